"""The ELBO taken apart: terms by name, divergences in closed form, their weight, free bits."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

import zsp
from tests.inference.variational.two_latents import COMBINATIONS, copies, exact, gradients, objective
from tests.monte_carlo import assert_mean

N = 20_000


def elbo(log_p, log_q):
    return log_p[0] - log_q[0]


def estimate_of(types):
    """Leave-one-out needs a node to score; sgvb takes the others."""
    return (lambda bound: bound.sgvb()) if types == ("pathwise", "pathwise") else (lambda bound: bound.reinforce())


# -- terms ------------------------------------------------------------------------------------------------------------


def test_the_terms_add_up_to_the_bound():
    bound = objective(zsp.elbo, ("bernoulli", "pathwise"), copies(5), 3)
    terms = bound.terms
    assert list(terms) == ["a", "c", "x", "y"]
    assert terms["x"].log_q is None and terms["x"].kl is None
    total = sum(term.log_p if term.kl is None else -term.kl for term in terms.values())
    np.testing.assert_allclose(total.detach(), bound.tensor.detach(), rtol=1e-12)
    np.testing.assert_allclose((terms["a"].log_q - terms["a"].log_p).detach(), terms["a"].kl.detach(), rtol=1e-12)
    np.testing.assert_allclose(terms["x"].log_p.detach(), bound.bn.cond_log_prob("x").mean(0).detach())
    assert terms["c"].kl.requires_grad and terms["c"].kl.shape == (5,)


def test_terms_are_scaled_and_leave_out_what_the_model_draws():
    q = zsp.BayesianNet()
    q.normal("u", torch.zeros(4), std=0.5, n_samples=6)

    @zsp.meta_bayesian_net()
    def local():
        bn = zsp.BayesianNet()
        u = bn.normal("u", torch.zeros(4), std=1.0)
        f = bn.normal("f", u, std=0.1)
        bn.normal("y", f, std=1.0, total_size=20)
        return bn

    bound = zsp.elbo(local(), {"y": torch.ones(4)}, variational=q, from_prior=("f",), axis=0)
    assert list(bound.terms) == ["u", "y"]
    np.testing.assert_allclose(bound.terms["y"].log_p, 5 * bound.bn.cond_log_prob("y").mean(0))
    np.testing.assert_allclose(bound.tensor, bound.terms["y"].log_p - bound.terms["u"].kl)


def test_a_term_without_sample_axes_keeps_its_batch():
    q = zsp.BayesianNet()
    q.normal("w", torch.zeros(3), std=1.0)
    q.normal("z", torch.zeros(3), std=1.0, n_samples=4)

    @zsp.meta_bayesian_net()
    def model():
        bn = zsp.BayesianNet()
        bn.normal("w", torch.zeros(3), std=1.0)
        bn.normal("z", torch.zeros(3), std=1.0)
        return bn

    bound = zsp.elbo(model(), {}, variational=q, axis=0)
    assert bound.terms["w"].kl.shape == bound.terms["z"].kl.shape == (3,)


def test_a_log_joint_that_is_no_sum_has_no_terms():
    bound = objective(zsp.elbo, ("pathwise", "pathwise"), copies(5), 3)
    values = {name: bound.bn[name].tensor for name in ("x", "y")}
    callable_model = zsp.elbo(lambda v: v["a"] * 0, values, variational=bound.variational, axis=0)
    with pytest.raises(ValueError, match="asked for by node, but a net whose log joint is a callable"):
        _ = callable_model.terms


# -- divergences in closed form ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("types", COMBINATIONS, ids="-".join)
def test_closed_forms_leave_the_mean_of_the_gradient(types):
    expected = exact(types, elbo)
    names = list(expected)
    parameters = copies(N)
    bound = objective(zsp.elbo, types, parameters, 2, analytic_kl=True)
    assert set(bound._divergence.analytic) == {"a", "c"}
    found = gradients(estimate_of(types)(bound), parameters, names)
    for name in names:
        assert_mean(-found[name], expected[name], false_alarm=1e-7 / len(names))


def test_the_closed_form_is_torchs_for_grouped_masked_and_scaled_nodes():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    loc, scale = torch.randn(2, 3), torch.rand(2, 3) + 0.5

    @zsp.meta_bayesian_net()
    def model():
        bn = zsp.BayesianNet()
        bn.normal("z", torch.zeros(2, 3), std=2.0, group_ndims=1, mask=mask, total_size=10)
        bn.bernoulli("s", torch.full((2,), 0.3), total_size=10)
        return bn

    q = zsp.BayesianNet()
    q.normal("z", loc, std=scale, group_ndims=1, mask=mask, total_size=10, n_samples=4)
    q.bernoulli("s", torch.full((2,), -1.0), total_size=10, n_samples=4)
    bound = zsp.elbo(model(), {}, variational=q, axis=0, analytic_kl=True)
    kl_z = 5 * (kl_divergence(Normal(loc, scale), Normal(0.0, 2.0)) * mask).sum(-1)
    kl_s = 5 * kl_divergence(Bernoulli(logits=torch.tensor(-1.0)), Bernoulli(logits=torch.tensor(0.3))).expand(2)
    np.testing.assert_allclose(bound.terms["z"].kl, kl_z, rtol=1e-12)
    np.testing.assert_allclose(bound.tensor, -kl_z - kl_s, rtol=1e-12)
    assert bound.terms["z"].log_q is None


@zsp.meta_bayesian_net(scope="forward")
def forward_model(batch):
    bn = zsp.BayesianNet()
    z = bn.normal("z", torch.zeros(batch), std=1.0)
    u = bn.normal("u", 0.5 * z, std=1.0)
    bn.normal("x", u, std=0.5)
    return bn


@zsp.reuse_variables("backward")
def backward_q(mean, n_samples):
    """Inference the other way round, u before z: the prior of u is conditioned on z, which is drawn given u."""
    bn = zsp.BayesianNet()
    u = bn.normal("u", mean, std=0.6, n_samples=n_samples)
    bn.normal("z", 0.4 * u, std=0.8)
    return bn


def test_a_prior_that_is_conditioned_on_what_is_drawn_given_the_latent_has_no_closed_form():
    mean = torch.full((N,), 0.3, requires_grad=True)
    observed = {"x": torch.ones(N)}
    bound = zsp.elbo(forward_model(N), observed, variational=backward_q(mean, 2), axis=0, analytic_kl=True)
    assert set(bound._divergence.analytic) == {"z"}
    plain = zsp.elbo(forward_model(N), observed, variational=backward_q(mean, 2), axis=0)
    assert_mean(bound.tensor.detach() - plain.tensor.detach(), 0.0)
    with pytest.raises(ValueError, match="asks for the divergence of 'u' in closed form, but its prior is conditioned on"):
        zsp.elbo(forward_model(N), observed, variational=backward_q(mean, 2), axis=0, analytic_kl=["u"])


def test_a_pair_that_torch_has_no_divergence_for_is_sampled_unless_it_is_named():
    @zsp.meta_bayesian_net()
    def model():
        bn = zsp.BayesianNet()
        bn.student_t("z", 3.0, torch.zeros(4), 1.0)
        bn.normal("w", torch.zeros(4), std=1.0)
        return bn

    q = zsp.BayesianNet()
    q.normal("z", torch.zeros(4), std=1.0)
    q.normal("w", torch.zeros(4), std=1.0)
    bound = zsp.elbo(model(), {}, variational=q, analytic_kl=True)
    assert bound.terms["z"].log_q is not None and bound.terms["w"].log_q is None
    with pytest.raises(ValueError, match="of 'z' in closed form, but torch has none from normal to student_t"):
        zsp.elbo(model(), {}, variational=q, analytic_kl=["z"])
    assert zsp.elbo(model(), {}, variational=q, analytic_kl=["w"]).terms["w"].log_q is None
    with pytest.raises(ValueError, match="analytic_kl names 'v', but the variational net's latents are"):
        zsp.elbo(model(), {}, variational=q, analytic_kl=["v"])
    with pytest.raises(ValueError, match="analytic_kl needs a MetaBayesianNet"):
        zsp.elbo(lambda values: values["z"], {}, variational=q, analytic_kl=True)


# -- the weight and free bits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("types", [("pathwise", "pathwise"), ("bernoulli", "score")], ids="-".join)
@pytest.mark.parametrize("analytic_kl", [False, True])
def test_the_weight_multiplies_the_divergence(types, analytic_kl):
    """The gradient is that of the likelihood plus beta times that of the divergence, each exact in the mean."""
    parameters = copies(N)
    names = ["a_mean", "c_mean", "c_slope", "a_prior", "x_weight"]
    estimates = {}
    for beta in (1.0, 0.0, 0.3, torch.tensor(0.3)):
        torch.manual_seed(0)
        bound = objective(zsp.elbo, types, parameters, 2, analytic_kl=analytic_kl, kl_weight=beta)
        estimates[beta] = gradients(estimate_of(types)(bound), parameters, names)
    for name in names:  # linear in beta, draw by draw
        mixed = 0.3 * estimates[1.0][name] + 0.7 * estimates[0.0][name]
        keys = [key for key in estimates if key not in (1.0, 0.0)]
        assert len(keys) == 2
        for key in keys:
            np.testing.assert_allclose(estimates[key][name], mixed, atol=1e-10)
    expected = exact(types, elbo)
    for name in names:
        assert_mean(-estimates[1.0][name], expected[name], false_alarm=1e-7 / len(names))


def test_a_weight_for_every_datum():
    beta = torch.tensor([0.0, 0.5, 2.0])
    torch.manual_seed(0)
    bound = objective(zsp.elbo, ("pathwise", "pathwise"), copies(3), 4, kl_weight=beta)
    terms = bound.terms
    expected = terms["x"].log_p + terms["y"].log_p - beta * (terms["a"].kl + terms["c"].kl)
    np.testing.assert_allclose(bound.tensor.detach(), expected.detach(), rtol=1e-12)
    np.testing.assert_allclose(bound.sgvb().detach(), -expected.detach(), rtol=1e-12)
    with pytest.raises(ValueError, match=r"kl_weight must be a number or broadcast.*\[4, 3\], but it has shape \[7\]"):
        _ = objective(zsp.elbo, ("pathwise", "pathwise"), copies(3), 4, kl_weight=torch.ones(7)).tensor


@pytest.mark.parametrize("analytic_kl", [False, True])
def test_free_bits_stop_a_divergence_that_is_small_enough(analytic_kl):
    """One latent at 0.1 nats and one at 2: with half a nat free the first adds a constant."""
    first, second = (torch.full((1000,), value, requires_grad=True) for value in (math.sqrt(0.2), 2.0))

    @zsp.meta_bayesian_net()
    def model():
        bn = zsp.BayesianNet()
        z = bn.normal("z", torch.zeros(1000), std=1.0)
        u = bn.normal("u", torch.zeros(1000), std=1.0)
        bn.normal("x", z + u, std=2.0)
        return bn

    q = zsp.BayesianNet()
    q.normal("z", first, std=1.0, n_samples=20)
    q.normal("u", second, std=1.0, n_samples=20)
    options = {"variational": q, "axis": 0, "analytic_kl": analytic_kl}
    observed = {"x": torch.zeros(1000)}
    bound = zsp.elbo(model(), observed, free_bits=0.5, **options)
    terms = bound.terms
    expected = terms["x"].log_p - 0.5 - terms["u"].kl
    np.testing.assert_allclose(bound.tensor.detach(), expected.detach(), rtol=1e-10)
    assert bound.tensor.shape == (1000,)
    found = torch.autograd.grad(bound.sgvb().sum(), (first, second), retain_graph=True)
    wanted = torch.autograd.grad(-expected.sum(), (first, second))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)
    weighted_bound = zsp.elbo(model(), observed, free_bits=0.5, kl_weight=0.25, **options)
    expected = terms["x"].log_p - 0.25 * (0.5 + terms["u"].kl)
    # drawn values are those of q, which was executed once
    np.testing.assert_allclose(weighted_bound.tensor.detach(), expected.detach(), rtol=1e-10)


def test_free_bits_of_a_discrete_latent_take_its_divergence_from_the_signal():
    """Below the threshold the score is multiplied by the data's term alone."""
    logits = torch.full((N,), 0.2, requires_grad=True)

    @zsp.meta_bayesian_net()
    def model():
        bn = zsp.BayesianNet()
        z = bn.bernoulli("z", torch.zeros(N))
        bn.normal("x", z, std=1.0)
        return bn

    q = zsp.BayesianNet()
    q.bernoulli("z", logits, n_samples=2)
    bound = zsp.elbo(model(), {"x": torch.full((N,), 1.5)}, variational=q, axis=0, free_bits=1.0)
    (found,) = torch.autograd.grad(bound.reinforce().sum(), logits)
    leaf = torch.tensor(0.2, requires_grad=True)
    log_x = Normal(torch.tensor([0.0, 1.0]), 1.0).log_prob(torch.tensor(1.5))
    (expected,) = torch.autograd.grad((1 - leaf.sigmoid()) * log_x[0] + leaf.sigmoid() * log_x[1], leaf)
    assert_mean(-found, expected)


def test_weights_need_the_terms():
    bound = objective(zsp.elbo, ("pathwise", "pathwise"), copies(5), 3)
    values = {name: bound.bn[name].tensor for name in ("x", "y")}
    weighted_bound = zsp.elbo(lambda v: v["a"] * 0, values, variational=bound.variational, axis=0, kl_weight=0.5)
    with pytest.raises(ValueError, match="analytic_kl, kl_weight and free_bits need log p as a sum over nodes"):
        weighted_bound.sgvb()


def test_the_path_derivative_may_be_weighted_but_not_taken_apart():
    expected = exact(("pathwise", "pathwise"), elbo)
    names = list(expected)
    parameters = copies(N)
    plain = gradients(objective(zsp.elbo, ("pathwise", "pathwise"), parameters, 2, path=True).sgvb(), parameters, names)
    for name in names:
        assert_mean(-plain[name], expected[name], false_alarm=1e-7 / len(names))
    draws = {}
    for path in (True, False):
        torch.manual_seed(0)
        bound = objective(zsp.elbo, ("pathwise", "pathwise"), parameters, 2, path=path, kl_weight=0.4)
        draws[path] = gradients(bound.sgvb(), parameters, names)
    for name in names:
        assert_mean(draws[True][name] - draws[False][name], 0.0, false_alarm=1e-7 / len(names))
    for options in ({"analytic_kl": True}, {"free_bits": 0.1}):
        with pytest.raises(ValueError, match="use_path_derivative leaves a part .* Use the one or the others"):
            objective(zsp.elbo, ("pathwise", "pathwise"), parameters, 2, path=True, **options).sgvb()
