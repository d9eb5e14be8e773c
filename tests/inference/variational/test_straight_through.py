"""Gumbel-softmax and straight-through gradients: their own laws, and how far these are from the exact gradient."""

import numpy as np
import pytest
import torch

import zsp
from tests.inference.variational.discrete_nets import ONE, ONE_HOT, W, X, data_of, gradients, parameters_of
from tests.monte_carlo import assert_mean

N = 40_000


def straight_through_bound(net, temperature, n):
    @zsp.reuse_variables("q")
    def q(logits):
        bn = zsp.BayesianNet()
        if net is ONE:
            bn.bernoulli("b", logits, straight_through=temperature, group_ndims=1)
        else:
            bn.onehot_categorical("k", logits, straight_through=temperature)
        return bn

    logits = parameters_of(net, n)["logits"]
    return zsp.elbo(net.model(n), data_of(net, n), variational=q(logits)), logits


def straight_through(net, temperature):
    bound, logits = straight_through_bound(net, temperature, N)
    return torch.autograd.grad(-bound.sgvb().sum(), logits)[0]


def relaxed(temperature):
    """Both nets relaxed, as in Maddison et al.: another bound, whose gradient sgvb estimates without bias."""

    @zsp.meta_bayesian_net()
    def model(n):
        bn = zsp.BayesianNet()
        b = bn.bin_concrete("b", temperature, torch.tensor([0.3, -0.5, 0.2]).expand(n, 3), group_ndims=1)
        bn.bernoulli("x", (2 * b - 1) @ W, group_ndims=1)
        return bn

    q = zsp.BayesianNet()
    logits = parameters_of(ONE, N)["logits"]
    q.bin_concrete("b", temperature, logits, group_ndims=1)
    bound = zsp.elbo(model(N), {"x": X.expand(N, 4)}, variational=q)
    return torch.autograd.grad(-bound.sgvb().sum(), logits)[0]


def exact(net):
    return gradients(net, lambda bound: bound.enumerate(), 1)["logits"][0]


def bias(draws, net):
    """Norm of the bias over that of the gradient, and its standard error."""
    size = exact(net).norm()
    difference = (draws.mean(0) - exact(net)).norm()
    return float(difference / size), float((draws.var(0).sum() / len(draws)).sqrt() / size)


# (estimator, net, temperature) -> bias over the size of the gradient, as measured with 40,000 draws; it falls with the
# temperature, while the variance grows (0.3 against 1: from 1.1 to 1.8 on "one", from 11 to 51 on "one-hot")
BIASES = {
    ("gumbel-softmax", "one", 0.3): 0.30,
    ("gumbel-softmax", "one", 1.0): 0.50,
    ("straight-through", "one", 0.3): 0.12,
    ("straight-through", "one", 1.0): 0.32,
    ("straight-through", "one-hot", 1.0): 0.37,
}


def test_the_bound_is_that_of_the_discrete_net():
    bound, _ = straight_through_bound(ONE, 0.5, 5000)
    assert set(bound.variational["b"].tensor.unique().tolist()) == {0.0, 1.0}
    discrete = zsp.elbo(ONE.model(1), data_of(ONE, 1), variational=ONE.q(parameters_of(ONE, 1)["logits"]))
    assert_mean(bound.tensor.detach(), -discrete.enumerate().item())


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_the_law_of_a_straight_through_gradient(temperature):
    r"""f(b) = a b: the mean is a E[d/dl sigma((l + e) / t)], with e logistic, and not a sigma(l) sigma(-l)."""
    logit, a = 0.7, 3.0
    u = (torch.arange(2_000_000) + 0.5) / 2_000_000
    soft = ((logit + u.logit()) / temperature).sigmoid()
    expected = (a * soft * (1 - soft) / temperature).mean()
    p = torch.sigmoid(torch.tensor(logit))
    assert abs(expected - a * p * (1 - p)) > 0.02 * expected
    logits = torch.full((N,), logit, requires_grad=True)
    draw = zsp.BayesianNet().bernoulli("b", logits, straight_through=temperature)
    assert_mean(torch.autograd.grad((a * draw).sum(), logits)[0], expected)


@pytest.mark.parametrize("estimator, name, temperature", BIASES)
def test_the_bias_is_what_was_measured(estimator, name, temperature):
    net = {"one": ONE, "one-hot": ONE_HOT}[name]
    draws = relaxed(temperature) if estimator == "gumbel-softmax" else straight_through(net, temperature)
    found, error = bias(draws, net)
    assert found > 5.4 * error  # it is biased
    assert abs(found - BIASES[estimator, name, temperature]) < 5.4 * error + 0.005, (found, error)


def test_what_is_unbiased_passes_as_such():
    """The same measure on an unbiased estimator, for comparison."""
    draws = gradients(ONE, lambda bound: bound.rebar(zsp.Relaxation(1.0))[0], N)["logits"]
    found, error = bias(draws, ONE)
    assert found < 4 * error, (found, error)
    assert np.isfinite(found)
