"""Importance-weighted and Renyi bounds: their values, and every estimator's mean against quadrature of the bound."""

import functools
import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal

import zsp
from tests.inference.variational.two_latents import COMBINATIONS, THETA, copies, exact, gradients, objective, phi_of
from tests.monte_carlo import assert_less_variance, assert_mean
from zsp.inference.variational.leave_one_out import leave_one_out_bounds

N = 20_000
K = 2
PATHWISE = ("pathwise", "pathwise")


def bound_of(alpha=0.0):
    """The bound by K samples as a function of log densities."""

    def function(log_p, log_q):
        log_w = torch.stack([(p - q).expand(torch.broadcast_shapes(*(p.shape for p in log_p))) for p, q in zip(log_p, log_q, strict=True)])
        if alpha == 1:
            return log_w.mean(0)
        return (torch.logsumexp((1 - alpha) * log_w, 0) - math.log(len(log_p))) / (1 - alpha)

    return function


@functools.cache
def exact_gradient(types, alpha, n_samples):
    return exact(types, bound_of(alpha), n_samples, n_points=12)


def check(types, estimate, function=zsp.iw_objective, alpha=0.0, n_samples=K, **options):
    if alpha:
        options["alpha"] = alpha
    expected = exact_gradient(types, alpha, n_samples)
    names = list(expected)
    parameters = copies(N)
    found = gradients(estimate(objective(function, types, parameters, n_samples, **options)), parameters, names)
    for name in names:
        assert_mean(-found[name], expected[name], bias=1e-6, false_alarm=1e-7 / len(names))


def test_sgvb_is_exact_in_the_mean():
    check(PATHWISE, lambda bound: bound.sgvb())


def test_dreg_is_exact_in_the_mean_for_both_nets_and_a_hierarchical_q():
    check(PATHWISE, lambda bound: bound.dreg())


@pytest.mark.parametrize("mean", ["geometric", "arithmetic"])
@pytest.mark.parametrize("types", COMBINATIONS, ids="-".join)
def test_vimco_is_exact_in_the_mean_for_every_mixture(types, mean):
    check(types, lambda bound: bound.vimco(mean))


def test_vimco_is_exact_with_three_samples():
    check(("bernoulli", "bernoulli"), lambda bound: bound.vimco(), n_samples=3)


@pytest.mark.parametrize("alpha", [-0.5, 0.5, 1.0, 2.0])
def test_the_estimators_of_renyi_bounds_are_exact_in_the_mean(alpha):
    for estimate in (lambda bound: bound.sgvb(), lambda bound: bound.dreg()):
        check(PATHWISE, estimate, zsp.renyi, alpha)
    check(("bernoulli", "bernoulli"), lambda bound: bound.vimco(), zsp.renyi, alpha)


def test_the_check_sees_a_dreg_with_the_weights_not_squared():
    def wrong(bound):
        bound.alpha = 1.0  # its factor, with the weights of alpha = 0
        weights = torch.softmax(bound.log_weights.detach(), 0)
        cost = bound.dreg()
        return cost * 0 + (weights * (zsp.inference.variational.path_derivative.log_q_through_draws(
            bound.variational) - bound._log_p)).sum(0)  # fmt: skip

    with pytest.raises(AssertionError):
        check(PATHWISE, wrong)


# -- values -----------------------------------------------------------------------------------------------------------


def test_the_value_is_the_log_mean_weight_and_every_cost_is_minus_it():
    bound = objective(zsp.iw_objective, PATHWISE, copies(7), 5)
    log_w = bound.log_weights.detach()
    expected = (log_w.exp().mean(0)).log()
    np.testing.assert_allclose(bound.tensor.detach(), expected, rtol=1e-12)
    for cost in (bound.sgvb(), bound.dreg(), bound.vimco()):
        np.testing.assert_allclose(cost.detach(), -expected, rtol=1e-12)
    discrete = objective(zsp.iw_objective, ("bernoulli", "bernoulli"), copies(7), 5)
    np.testing.assert_allclose(discrete.vimco().detach(), -discrete.tensor.detach(), rtol=1e-12)


def test_one_sample_makes_it_the_elbo():
    torch.manual_seed(0)
    weighted = objective(zsp.importance_weighted_objective, PATHWISE, copies(7), 1)
    torch.manual_seed(0)
    plain = objective(zsp.elbo, PATHWISE, copies(7), 1)
    np.testing.assert_allclose(weighted.tensor.detach(), plain.tensor.detach(), rtol=1e-12)
    assert zsp.iw_objective is zsp.importance_weighted_objective


def test_the_mean_bound_grows_with_the_number_of_samples():
    """E[L_1] < E[L_2] < E[L_8] < E[L_64] <= log p(x), each by more than its errors allow."""
    previous, log_evidence = None, exact_log_evidence()
    for n_samples in (1, 2, 8, 64):
        values = objective(zsp.iw_objective, PATHWISE, copies(N), n_samples).tensor.detach()
        if previous is not None:
            z = 5.3 * ((values.var() + previous.var()) / N).sqrt()
            assert previous.mean() + z < values.mean()
        previous = values
    assert values.mean() < log_evidence + 5.3 * values.std() / N**0.5
    assert log_evidence - values.mean() < 0.1


def exact_log_evidence():
    """a, c, x and y are jointly normal."""
    theta = copies()
    mean = torch.stack([theta["a_prior"], theta["c_bias"] + theta["c_weight"] * theta["a_prior"]])
    w = theta["c_weight"]
    covariance = torch.stack([torch.stack([torch.ones(()), w]), torch.stack([w, 1 + w**2])])
    design = torch.diag(torch.stack([theta["x_weight"], theta["y_weight"]]))
    covariance = design @ covariance @ design.T + torch.diag(torch.tensor([0.64, 0.36]))
    return torch.distributions.MultivariateNormal(design @ mean, covariance).log_prob(torch.tensor([0.9, -0.6])).item()


def test_renyi_bounds_fall_with_alpha():
    values = {}
    for alpha in (-1.0, 0.0, 0.5, 1.0, 3.0):
        torch.manual_seed(0)
        values[alpha] = objective(zsp.renyi, PATHWISE, copies(200), 50, alpha=alpha).tensor.detach()
    for higher, lower in zip(list(values.values())[:-1], list(values.values())[1:], strict=True):
        assert (higher > lower).all()
    torch.manual_seed(0)
    np.testing.assert_allclose(values[0.0], objective(zsp.iw_objective, PATHWISE, copies(200), 50).tensor.detach())
    torch.manual_seed(0)
    np.testing.assert_allclose(values[1.0], objective(zsp.elbo, PATHWISE, copies(200), 50).tensor.detach())


# -- VIMCO's baselines ------------------------------------------------------------------------------------------------


def by_square_table(log_weights, mean):
    """The formula as it stands, K times K: entry (k, j) is w_j, or the mean of the others on the diagonal."""
    k = len(log_weights)
    table = log_weights.expand(k, k).clone()
    for i in range(k):
        others = torch.cat([log_weights[:i], log_weights[i + 1 :]])
        table[i, i] = others.mean() if mean == "geometric" else torch.logsumexp(others, 0) - math.log(k - 1)
    return torch.logsumexp(table, 1) - math.log(k)


@pytest.mark.parametrize("mean", ["geometric", "arithmetic"])
@pytest.mark.parametrize("where", [0, 4, 9])
def test_one_weight_far_above_the_rest(mean, where):
    """By e^45: the others' sum, lost in float64 next to it, is not lost here."""
    log_weights = torch.linspace(-1.0, 1.0, 10)
    log_weights[where] += 45.0
    found = leave_one_out_bounds(log_weights, mean)
    np.testing.assert_allclose(found, by_square_table(log_weights, mean), rtol=1e-12)
    by_subtraction = torch.log(log_weights.exp().sum() - log_weights.exp())
    assert not torch.isfinite(by_subtraction[where]) or abs(by_subtraction[where] - math.log(9)) > 0.1


@pytest.mark.parametrize("mean", ["geometric", "arithmetic"])
@pytest.mark.parametrize("k", [2, 3, 50])
def test_the_baselines_are_those_of_the_square_table(k, mean):
    log_weights = 5 * torch.randn(k, 3, 2)
    found = leave_one_out_bounds(log_weights, mean)
    for i, j in np.ndindex(3, 2):
        np.testing.assert_allclose(found[:, i, j], by_square_table(log_weights[:, i, j], mean), rtol=1e-10, atol=1e-12)


# -- variance ---------------------------------------------------------------------------------------------------------


@zsp.meta_bayesian_net(scope="rainforth")
def rainforth(mean):
    """z ~ N(mean, I), x ~ N(z, I), of three dimensions: the posterior is N((mean + x) / 2, I / 2)."""
    bn = zsp.BayesianNet()
    z = bn.normal("z", mean, std=1.0, group_ndims=1)
    bn.normal("x", z, std=1.0, group_ndims=1)
    return bn


def rainforth_gradients(estimate, n_samples, n):
    """n gradients with respect to q's mean and log scale, its variance being 2/3, its mean off by 0.1: shape [n, 6]."""
    torch.manual_seed(3)
    x, mean = torch.tensor([1.0, -0.5, 0.2]), torch.zeros(3)
    q_mean = (0.5 * (x + mean) + 0.1).expand(n, 3).clone().requires_grad_()
    q_logstd = torch.full((n, 3), 0.5 * math.log(2 / 3), requires_grad=True)
    q = zsp.BayesianNet()
    q.normal("z", q_mean, logstd=q_logstd, n_samples=n_samples, group_ndims=1)
    bound = zsp.iw_objective(rainforth(mean.expand(n, 3)), {"x": x.expand(n, 3)}, variational=q, axis=0)
    return torch.cat(torch.autograd.grad(estimate(bound).sum(), (q_mean, q_logstd)), -1)


def dreg(bound):
    return bound.dreg()


def iwae(bound):
    return bound.sgvb()


def test_dreg_has_less_variance_than_iwae_at_64_samples():
    less, more = (rainforth_gradients(estimate, 64, n=2000) for estimate in (dreg, iwae))
    for i in range(less.shape[1]):
        assert_less_variance(less[:, i], more[:, i], false_alarm=1e-7 / less.shape[1])


def test_the_signal_to_noise_ratio_of_iwae_falls_and_that_of_dreg_does_not():
    """Rainforth et al. 2018: like K^-1/2 for IWAE; Tucker et al. 2019: like K^1/2 for DReG."""
    sizes = (8, 64, 512)
    log_ratios = {"iwae": [], "dreg": []}
    for n_samples in sizes:
        draws = rainforth_gradients(dreg, n_samples, n=800)
        signal = draws.mean(0).abs()  # of both, by the estimator of less variance
        log_ratios["dreg"].append((signal / draws.std(0)).log().mean().item())
        log_ratios["iwae"].append((signal / rainforth_gradients(iwae, n_samples, n=500).std(0)).log().mean().item())
    slopes = {name: np.polyfit(np.log(sizes), values, 1)[0] for name, values in log_ratios.items()}
    print(slopes)
    assert -0.65 < slopes["iwae"] < -0.35 and 0.35 < slopes["dreg"] < 0.65


def test_dreg_has_no_variance_at_the_exact_posterior():
    @zsp.meta_bayesian_net()
    def model():
        bn = zsp.BayesianNet()
        z1 = bn.normal("z1", torch.zeros(4), std=1.0)
        bn.normal("z2", 0.5 * z1, std=0.7)
        return bn

    leaves = [torch.zeros(4, requires_grad=True), torch.full((4,), 0.5, requires_grad=True)]

    @zsp.reuse_variables("q")
    def q():
        bn = zsp.BayesianNet()
        z1 = bn.normal("z1", leaves[0], std=1.0, n_samples=6)
        bn.normal("z2", leaves[1] * z1, std=0.7)
        return bn

    bound = zsp.iw_objective(model(), {}, variational=q, axis=0)
    for gradient in torch.autograd.grad(bound.dreg().sum(), leaves, retain_graph=True):
        np.testing.assert_allclose(gradient, torch.zeros(4), atol=1e-14)
    (loc, _) = torch.autograd.grad(bound.sgvb().sum(), leaves)
    assert loc.abs().max() > 1e-3


def test_costs_of_one_objective_do_not_disturb_each_other():
    """dreg() changes what flows back to the draws, but only when its own cost is differentiated."""
    parameters = copies(6)
    names = [*phi_of(PATHWISE), *THETA]

    def found(order):
        torch.manual_seed(0)
        bound = objective(zsp.iw_objective, PATHWISE, parameters, 5)
        costs = {name: getattr(bound, name)() for name in ("dreg", "sgvb", "vimco")}
        results = {}
        for name in order:
            leaves = [parameters[n] for n in names]
            results[name] = torch.autograd.grad(costs[name].sum(), leaves, retain_graph=True)
        return results

    alone = {name: found([name])[name] for name in ("dreg", "sgvb", "vimco")}
    together = found(["sgvb", "dreg", "vimco", "dreg", "sgvb"])
    for name, gradient in alone.items():
        for a, b in zip(gradient, together[name], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)
    theta = len(phi_of(PATHWISE))
    for a, b in zip(alone["dreg"][theta:], alone["sgvb"][theta:], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)  # the model keeps IWAE's gradient
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(alone["dreg"], alone["sgvb"], strict=True))


def test_a_net_of_one_latent_need_not_be_decorated():
    mean = torch.zeros(N, requires_grad=True)

    @zsp.meta_bayesian_net()
    def model():
        bn = zsp.BayesianNet()
        z = bn.normal("z", torch.zeros(N), std=1.0)
        bn.normal("x", z, std=0.5)
        return bn

    q = zsp.BayesianNet()
    q.normal("z", mean, std=0.8, n_samples=K)
    bound = zsp.iw_objective(model(), {"x": torch.ones(N)}, variational=q, axis=0)
    (found,) = torch.autograd.grad(bound.dreg().sum(), mean, retain_graph=True)
    (plain,) = torch.autograd.grad(bound.sgvb().sum(), mean)
    assert_mean(found - plain, 0.0)


def test_scaled_masked_and_prior_drawn_terms_are_those_of_the_weights():
    """f | u is drawn by the model; y is scaled and masked: dreg and sgvb agree in the mean."""
    mean, weight = torch.full((N,), 0.4, requires_grad=True), torch.full((N,), 0.7, requires_grad=True)

    @zsp.meta_bayesian_net()
    def model():
        bn = zsp.BayesianNet()
        u = bn.normal("u", torch.zeros(N), std=1.0)
        f = bn.normal("f", weight * u, std=0.3)
        mask = torch.tensor([True, False, True])
        y = f.unsqueeze(-1).expand(*f.shape, 3)
        bn.normal("y", y, std=0.8, mask=mask, group_ndims=1)
        return bn

    q = zsp.BayesianNet()
    q.normal("u", mean, std=0.6, n_samples=K)
    y = torch.tensor([0.3, 9.0, -0.2]).expand(N, 3)
    bound = zsp.iw_objective(model(), {"y": y}, variational=q, axis=0, from_prior=("f",))
    dreg = torch.autograd.grad(bound.dreg().sum(), (mean, weight), retain_graph=True)
    sgvb = torch.autograd.grad(bound.sgvb().sum(), (mean, weight))
    for a, b in zip(dreg, sgvb, strict=True):
        assert_mean(a - b, 0.0, false_alarm=1e-7 / 2)
    u, f = bound.variational["u"].tensor, bound.bn["f"].tensor
    log_w = Normal(0.0, 1.0).log_prob(u) - Normal(mean, 0.6).log_prob(u)
    log_w = log_w + Normal(f, 0.8).log_prob(torch.tensor(0.3)) + Normal(f, 0.8).log_prob(torch.tensor(-0.2))
    np.testing.assert_allclose(bound.log_weights.detach(), log_w.detach(), rtol=1e-10)


# -- messages ---------------------------------------------------------------------------------------------------------


def test_the_sample_axis_must_be_given():
    q = zsp.BayesianNet()
    q.normal("z", torch.zeros(2), std=1.0, n_samples=3)
    for function in (zsp.iw_objective, zsp.klpq):
        with pytest.raises(ValueError, match=r"weighs several samples.*pass axis=0"):
            function(lambda values: values["z"], {}, variational=q)
    with pytest.raises(ValueError, match="alpha must be a finite number, got inf"):
        zsp.renyi(lambda values: values["z"], {}, variational=q, alpha=math.inf, axis=0)


def test_the_path_derivative_of_a_weighted_bound_is_dreg():
    bound = objective(zsp.iw_objective, PATHWISE, copies(3), 2, path=True)
    for estimate in (bound.sgvb, bound.vimco):
        with pytest.raises(ValueError, match=r"use_path_derivative=True \(on 'a', 'c'\) would be biased.*Use dreg\(\)"):
            estimate()
    assert bound.dreg().shape == (3,)


@pytest.mark.parametrize("estimator", ["sgvb", "dreg"])
def test_discrete_latents_are_for_vimco(estimator):
    bound = objective(zsp.iw_objective, ("bernoulli", "pathwise"), copies(3), 2)
    with pytest.raises(ValueError, match=rf"{estimator} needs draws that are differentiable.*node 'a'.*Use vimco\(\)"):
        getattr(bound, estimator)()


def test_vimco_needs_two_samples_of_each_draw():
    with pytest.raises(ValueError, match=r"vimco needs two samples or more.*axis=0 has one"):
        objective(zsp.iw_objective, ("bernoulli", "pathwise"), copies(3), 1).vimco()
    with pytest.raises(ValueError, match="'geometric' or 'arithmetic', but got 'harmonic'"):
        objective(zsp.iw_objective, ("bernoulli", "pathwise"), copies(3), 2).vimco("harmonic")


@pytest.mark.parametrize("kind, estimator", [("bernoulli", "vimco"), ("normal", "dreg")])
def test_a_draw_that_all_samples_share_is_refused(kind, estimator):
    @zsp.meta_bayesian_net()
    def model():
        bn = zsp.BayesianNet()
        z = bn.bernoulli("z", torch.zeros(4)) if kind == "bernoulli" else bn.normal("z", torch.zeros(4), std=1.0)
        bn.normal("u", z.expand(4), std=1.0, n_samples=3)
        return bn

    @zsp.reuse_variables("q")
    def q(logits):
        bn = zsp.BayesianNet()
        z = bn.bernoulli("z", logits) if kind == "bernoulli" else bn.normal("z", logits, std=1.0)
        bn.normal("u", z + logits, std=1.0, n_samples=3)
        return bn

    bound = zsp.iw_objective(model(), {}, variational=q(torch.zeros(4, requires_grad=True)), axis=0)
    with pytest.raises(ValueError, match="node 'z' has one draw for all samples of axis=0"):
        getattr(bound, estimator)()
