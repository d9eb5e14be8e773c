"""The exact expectation over discrete draws equals sums in a Python loop."""

import numpy as np
import pytest
import torch

import zsp
from tests.inference.variational.discrete_nets import LABELS, LAYERS, NETS, ONE, Net, brute_force_bound, gradients
from tests.monte_carlo import assert_mean


@pytest.mark.parametrize("name", NETS)
def test_the_value_and_the_gradient_are_those_of_the_sum_over_all_values(name):
    net = NETS[name]
    exact = brute_force_bound(net)
    found = {}

    def cost(bound):
        found["cost"] = bound.enumerate()
        return found["cost"]

    gradient = gradients(net, cost, 3)
    np.testing.assert_allclose(-found["cost"].detach(), exact.expand(3), rtol=1e-12)
    for parameter, value in net.parameters.items():
        for index in np.ndindex(value.shape):
            step = torch.zeros_like(value)
            step[index] = 1e-5
            ends = [Net(**{**vars(net), "parameters": {**net.parameters, parameter: value + s}}) for s in (step, -step)]
            up, down = map(brute_force_bound, ends)
            np.testing.assert_allclose(gradient[parameter][:, *index], ((up - down) / 2e-5).expand(3), atol=1e-8)


def test_rows_of_the_batch_share_the_table_and_samples_cost_nothing():
    parameters = {"logits": torch.randn(50, 3)}
    x = torch.bernoulli(torch.full((50, 4), 0.5))
    executed = []

    @zsp.meta_bayesian_net()
    def model(n):
        bn = zsp.BayesianNet()
        b = bn.bernoulli("b", torch.zeros(n, 3), group_ndims=1)
        executed.append(b.shape)
        bn.bernoulli("x", b.sum(-1, keepdim=True).expand(*b.shape[:-1], 4), group_ndims=1)
        return bn

    @zsp.reuse_variables("q")
    def q(logits, n_samples):
        bn = zsp.BayesianNet()
        bn.bernoulli("b", logits, group_ndims=1, n_samples=n_samples)
        return bn

    model = model(50)
    alone = zsp.elbo(model, {"x": x}, variational=q(**parameters, n_samples=None)).enumerate()
    executed.clear()
    averaged = zsp.elbo(model, {"x": x}, variational=q(**parameters, n_samples=5), axis=0).enumerate(max_rows=8)
    np.testing.assert_allclose(averaged, alone, rtol=1e-12)
    assert executed[-1] == (50, 3)  # all 8 rows at once, without the sample axis
    kept = zsp.elbo(model, {"x": x}, variational=q(**parameters, n_samples=5)).enumerate()
    np.testing.assert_allclose(kept, alone.expand(5, 50), rtol=1e-12)


def test_differentiable_draws_beside_discrete_ones_keep_their_gradient():
    """y ~ N(m, s), b | y, and the model N(x | b + y): by quadrature over y."""
    parameters = [torch.tensor(value, requires_grad=True) for value in (0.4, -0.3, 0.8)]
    mean, logstd, slope = parameters
    x = torch.tensor(1.2)

    def f(y, b, log_q_b):
        normal = torch.distributions.Normal
        log_p = normal(0.0, 1.0).log_prob(y) + np.log(0.5) + normal(b + y, 0.6).log_prob(x)
        return log_p - normal(mean, logstd.exp()).log_prob(y) - log_q_b

    nodes, weights = (torch.as_tensor(v) for v in np.polynomial.hermite_e.hermegauss(60))
    y = mean + logstd.exp() * nodes
    log_q = [torch.nn.functional.logsigmoid(sign * slope * y) for sign in (-1, 1)]
    exact = sum((weights * log_q[b].exp() * f(y, float(b), log_q[b])).sum() for b in (0, 1)) / weights.sum()
    expected = torch.autograd.grad(exact, parameters)

    @zsp.meta_bayesian_net()
    def model(n):
        bn = zsp.BayesianNet()
        y = bn.normal("y", torch.zeros(n), std=1.0)
        b = bn.bernoulli("b", torch.zeros(n))
        bn.normal("x", b + y, std=0.6)
        return bn

    @zsp.reuse_variables("q")
    def q(mean, logstd, slope):
        bn = zsp.BayesianNet()
        y = bn.normal("y", mean, logstd=logstd)
        bn.bernoulli("b", slope * y)
        return bn

    n = 20_000
    rows = [p.detach().expand(n).clone().requires_grad_() for p in parameters]
    cost = zsp.elbo(model(n), {"x": x.expand(n)}, variational=q(*rows)).enumerate()
    assert_mean(-cost.detach(), exact.detach())
    for draws, value in zip(torch.autograd.grad(-cost.sum(), rows), expected, strict=True):
        assert_mean(draws, value)


def test_a_value_without_probability_adds_nothing():
    logits = torch.tensor([[0.2, -torch.inf, 0.5, -0.1]])
    bound = zsp.elbo(LABELS.model(1), {"x": LABELS.data["x"][None]}, variational=LABELS.q(logits))
    kept = torch.tensor([0, 2, 3])
    log_q = logits[0, kept].log_softmax(-1)
    log_p = torch.stack([LABELS.model(1).observe(k=k[None], x=LABELS.data["x"][None]).log_joint()[0] for k in kept])
    np.testing.assert_allclose(-bound.enumerate()[0], (log_q.exp() * (log_p - log_q)).sum(), rtol=1e-12)


def test_float32():
    expected = gradients(ONE, lambda bound: bound.enumerate(), 1)["logits"]
    torch.set_default_dtype(torch.float32)
    found = gradients(ONE, lambda bound: bound.enumerate(), 1, dtype=torch.float32)["logits"]
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_cannot_be_enumerated_is_refused():
    @zsp.meta_bayesian_net()
    def model(n):
        bn = zsp.BayesianNet()
        bn.poisson("k", torch.ones(n))
        return bn

    @zsp.reuse_variables("q")
    def q(rate):
        bn = zsp.BayesianNet()
        bn.poisson("k", rate)
        return bn

    with pytest.raises(ValueError, match=r"node 'k' \(Poisson\) cannot be enumerated: its values are not one finite list"):
        zsp.elbo(model(2), {}, variational=q(torch.ones(2))).enumerate()

    one = zsp.elbo(ONE.model(1), {"x": ONE.data["x"][None]}, variational=ONE.q(torch.zeros(1, 3)))
    with pytest.raises(
        ValueError,
        match=r"'b' would have 8 rows \('b' has 2\^3 values\), more than max_rows=7. Use an estimator that draws them",
    ):
        one.enumerate(max_rows=7)

    outside = zsp.BayesianNet()
    outside.bernoulli("b", torch.zeros(1, 3), group_ndims=1)
    with pytest.raises(ValueError, match="enumerate.. executes the variational net for every value.*Decorate its function"):
        zsp.elbo(ONE.model(1), {"x": ONE.data["x"][None]}, variational=outside).enumerate()
    weighted = zsp.elbo(LAYERS.model(1), {"x": LAYERS.data["x"][None]}, variational=LAYERS.q(*(p[None] for p in LAYERS.parameters.values())), kl_weight=0.5)
    with pytest.raises(ValueError, match="enumerate evaluates log p - log q as it stands.*kl_weight"):
        weighted.enumerate()
