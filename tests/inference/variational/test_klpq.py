"""KL(p || q) by self-normalised importance sampling, and reweighted wake-sleep, against quadrature."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Normal

import zsp
from tests.inference.variational.two_latents import COMBINATIONS, THETA, copies, gradients, objective, phi_of
from tests.monte_carlo import assert_mean

N = 20_000
K = 2


def cross_entropy(log_p, log_q):
    """The mean of the estimator itself: its weights and draws are constants, so that log q alone is differentiated."""
    log_w = torch.stack([(p - q).expand(torch.broadcast_shapes(*(p.shape for p in log_p))) for p, q in zip(log_p, log_q, strict=True)])
    weights = torch.softmax(log_w, 0).detach()
    return -sum(w * q for w, q in zip(weights, log_q, strict=True))


def expected_estimate(types):
    """The gradient of sum_k w_k log q(z_k) at fixed draws, by quadrature over K draws."""
    import tests.inference.variational.two_latents as net

    p = copies()
    n_axes = 2 * K
    log_p, log_q, probability = [], [], torch.ones(())
    zero = torch.zeros(())
    with torch.no_grad():
        for k in range(K):
            a, wa = net.support(types[0], p["a_mean"], p["a_logstd"], n_axes, 2 * k, 12)
            c, wc = net.support(types[1], p["c_mean"] + p["c_slope"] * a, p["c_logstd"], n_axes, 2 * k + 1, 12)
            probability = probability * wa * wc
            total = net.log_density(types[0], a, p["a_prior"], zero)
            total = total + net.log_density(types[1], c, p["c_bias"] + p["c_weight"] * a, zero)
            total = total + Normal(p["x_weight"] * a, 0.8).log_prob(torch.tensor(net.DATA["x"]))
            log_p.append(total + Normal(p["y_weight"] * c, 0.6).log_prob(torch.tensor(net.DATA["y"])))
            log_q.append((a, c))
    densities = [
        net.log_density(types[0], a, p["a_mean"], p["a_logstd"])
        + net.log_density(types[1], c, p["c_mean"] + p["c_slope"] * a, p["c_logstd"])
        for a, c in log_q
    ]
    value = (probability * cross_entropy(log_p, densities)).sum()
    names = phi_of(types)
    return dict(zip(names, torch.autograd.grad(value, [p[name] for name in names]), strict=True))


@pytest.mark.parametrize("types", COMBINATIONS, ids="-".join)
def test_importance_has_the_mean_of_its_formula_for_every_mixture(types):
    """Differentiable draws count as constants: they have no path in the gradient."""
    expected = expected_estimate(types)
    names = list(expected)
    parameters = copies(N)
    found = gradients(objective(zsp.klpq, types, parameters, K).importance(), parameters, [*names, *THETA])
    for name in names:
        assert_mean(found[name], expected[name], bias=1e-6, false_alarm=1e-7 / len(names))
    assert all((found[name] == 0).all() for name in THETA), "the model gets no gradient"


@zsp.meta_bayesian_net(scope="sbn")
def belief_net(theta):
    """z ~ Bernoulli, x ~ Normal given z."""
    bn = zsp.BayesianNet()
    z = bn.bernoulli("z", theta["prior"])
    bn.normal("x", theta["weight"] * z, std=0.7)
    return bn


@zsp.reuse_variables("q_sbn")
def recognition(x, phi, n_samples=None):
    bn = zsp.BayesianNet()
    bn.bernoulli("z", phi["bias"] + phi["slope"] * x, n_samples=n_samples)
    return bn


def leaves(n=None, **values):
    shape = () if n is None else (n,)
    return {name: torch.full(shape, value, requires_grad=True) for name, value in values.items()}


def exact_posterior_logit(theta, x):
    log_x = [Normal(theta["weight"] * z, 0.7).log_prob(x) for z in (0.0, 1.0)]
    return theta["prior"] + log_x[1] - log_x[0]


def test_many_samples_give_the_gradient_of_the_divergence():
    """Its bias falls like 1 / K: at K = 2000 it is far below the errors."""
    theta, phi = leaves(prior=-0.3, weight=1.4), leaves(bias=0.1, slope=0.5)
    x = torch.tensor(1.1)
    posterior = Bernoulli(logits=exact_posterior_logit(theta, x).detach())
    divergence = torch.distributions.kl_divergence(posterior, Bernoulli(logits=phi["bias"] + phi["slope"] * x))
    expected = torch.autograd.grad(divergence, list(phi.values()))
    n = 500
    many_theta = {k: v.detach().expand(n) for k, v in theta.items()}
    many_phi = leaves(n, bias=0.1, slope=0.5)
    q = recognition(x.expand(n), many_phi, 2000)
    bound = zsp.klpq(belief_net(many_theta), {"x": x.expand(n)}, variational=q, axis=0)
    found = torch.autograd.grad(bound.importance().sum(), list(many_phi.values()))
    for draws, value in zip(found, expected, strict=True):
        assert_mean(draws, value, bias=2e-4)
    assert_mean(bound.tensor, divergence.detach(), bias=5e-4)


def test_at_the_exact_posterior_all_weights_are_equal_and_the_divergence_is_zero():
    theta = leaves(prior=-0.3, weight=1.4)
    x = torch.tensor([1.1, -0.4])
    logit = exact_posterior_logit(theta, x).detach()
    q = zsp.BayesianNet()
    q.bernoulli("z", logit, n_samples=9)
    both = {name: value.detach().expand(2) for name, value in theta.items()}
    objective_ = zsp.klpq(belief_net(both), {"x": x}, variational=q, axis=0)
    np.testing.assert_allclose(objective_.tensor, torch.zeros(2), atol=1e-12)
    expected = -q.cond_log_prob("z").mean(0)
    np.testing.assert_allclose(objective_.importance(), expected, rtol=1e-10)


def test_draws_of_several_nodes_are_fixed_by_another_execution_or_not_at_all():
    a = torch.zeros(3, requires_grad=True)
    q = zsp.BayesianNet()
    z = q.normal("z", a, std=1.0, n_samples=2)
    q.normal("u", z, std=1.0)
    weights = zsp.klpq(lambda values: -values["z"] * values["u"], {}, variational=q, axis=0)
    with pytest.raises(ValueError, match="is_reparameterized=False.*made outside a decorated function"):
        weights.importance()


# -- reweighted wake-sleep --------------------------------------------------------------------------------------------


def recipe(theta, phi, x, n_samples):
    """As the docstring of zsp.klpq has it."""
    model = belief_net(theta)
    q = recognition(x, phi, n_samples)
    bound = zsp.iw_objective(model, {"x": x}, variational=q, axis=0)
    return bound.wake_theta(), bound.klpq().importance()


def test_wake_theta_and_wake_phi_have_the_means_of_their_formulas():
    """Enumeration over K = 2 draws of the discrete latent."""
    x = torch.tensor(0.8)
    theta, phi = leaves(prior=-0.3, weight=1.4), leaves(bias=0.1, slope=0.5)
    z = torch.tensor([0.0, 1.0])
    log_q = Bernoulli(logits=phi["bias"] + phi["slope"] * x).log_prob(z)
    log_p = Bernoulli(logits=theta["prior"]).log_prob(z) + Normal(theta["weight"] * z, 0.7).log_prob(x)
    log_w = torch.stack([(log_p - log_q.detach()).unsqueeze(1).expand(2, 2), (log_p - log_q.detach()).expand(2, 2)])
    probability = (log_q.unsqueeze(1) + log_q).exp().detach()
    bound = (probability * (torch.logsumexp(log_w, 0) - math.log(2))).sum()
    weights = torch.softmax(log_w, 0).detach()
    entropy = -(probability * (weights[0] * log_q.unsqueeze(1) + weights[1] * log_q)).sum()
    expected_theta = torch.autograd.grad(-bound, list(theta.values()))
    expected_phi = torch.autograd.grad(entropy, list(phi.values()))
    many_theta, many_phi = leaves(N, prior=-0.3, weight=1.4), leaves(N, bias=0.1, slope=0.5)
    wake_theta, wake_phi = recipe(many_theta, many_phi, x.expand(N), 2)
    leaves_ = [*many_theta.values(), *many_phi.values()]
    found = torch.autograd.grad((wake_theta + wake_phi).sum(), leaves_)
    found_theta, found_phi = found[:2], found[2:]
    for found, expected in ((found_theta, expected_theta), (found_phi, expected_phi)):
        for draws, value in zip(found, expected, strict=True):
            assert_mean(draws, value, false_alarm=1e-7 / 4)


def test_wake_costs_of_differentiable_draws_are_one_nets_each():
    """What the model sends back to a differentiable draw is stopped: both costs go into one backward pass."""
    types = ("pathwise", "pathwise")
    names = [*phi_of(types), *THETA]
    found = {}
    for what in ("wake_theta", "both", "sgvb"):
        torch.manual_seed(0)
        parameters = copies(6)
        bound = objective(zsp.iw_objective, types, parameters, 4)
        costs = {"wake_theta": bound.wake_theta(), "sgvb": bound.sgvb()}
        cost = costs["wake_theta"] + bound.klpq().importance() if what == "both" else costs[what]
        found[what] = gradients(cost, parameters, names)
    for name in phi_of(types):
        assert (found["wake_theta"][name] == 0).all() and found["both"][name].abs().min() > 0
    for name in THETA:
        np.testing.assert_allclose(found["wake_theta"][name], found["sgvb"][name], rtol=1e-12)
        np.testing.assert_allclose(found["both"][name], found["sgvb"][name], rtol=1e-12)


def test_wake_theta_stops_a_draw_that_all_samples_share_and_works_without_gradients():
    loc, weight = torch.zeros(4, requires_grad=True), torch.ones(4, requires_grad=True)

    @zsp.meta_bayesian_net()
    def model():
        bn = zsp.BayesianNet()
        z = bn.normal("z", torch.zeros(4), std=1.0)
        bn.normal("u", weight * z, std=1.0, n_samples=3)
        return bn

    q = zsp.BayesianNet()
    z = q.normal("z", loc, std=1.0)
    q.normal("u", z, std=1.0, n_samples=3)
    bound = zsp.iw_objective(model(), {}, variational=q, axis=0)
    cost = bound.wake_theta()
    to_loc, to_weight = torch.autograd.grad(cost.sum(), (loc, weight))
    assert (to_loc == 0).all() and (to_weight != 0).all()
    with torch.no_grad():
        without = zsp.iw_objective(model(), {}, variational=q, axis=0)
        for value in (without.wake_theta(), without.sgvb()):
            np.testing.assert_allclose(value, cost.detach())


def test_sleep_phi_is_the_log_density_of_dreamt_latents():
    """Its gradient's mean, against enumeration of z and quadrature of x."""
    theta, phi = leaves(prior=-0.3, weight=1.4), leaves(bias=0.1, slope=0.5)
    points, weights = np.polynomial.hermite_e.hermegauss(40)
    cost = torch.zeros(())
    for z in (torch.tensor(0.0), torch.tensor(1.0)):
        x = (theta["weight"] * z + 0.7 * torch.as_tensor(points)).detach()
        log_q = Bernoulli(logits=phi["bias"] + phi["slope"] * x).log_prob(z)
        p = Bernoulli(logits=theta["prior"]).log_prob(z).exp().detach()
        cost = cost - p * (torch.as_tensor(weights) / math.sqrt(2 * math.pi) * log_q).sum()
    expected = torch.autograd.grad(cost, list(phi.values()))
    many_theta, many_phi = leaves(N, prior=-0.3, weight=1.4), leaves(N, bias=0.1, slope=0.5)

    @zsp.reuse_variables("q")
    def q(x):
        bn = zsp.BayesianNet()
        bn.bernoulli("z", many_phi["bias"] + many_phi["slope"] * x, n_samples=4)
        return bn

    found_cost = zsp.sleep_cost(belief_net(many_theta), {"x": torch.zeros(N)}, variational=q)
    assert found_cost.shape == (N,)
    found = torch.autograd.grad(found_cost.sum(), list(many_phi.values()))
    for draws, value in zip(found, expected, strict=True):
        assert_mean(draws, value, bias=1e-9, false_alarm=1e-7 / 2)


def test_wake_sleep_learns_the_posterior_and_the_model():
    """x from the net itself with other parameters: RWS recovers them, and q the posterior."""
    torch.manual_seed(0)
    truth = {"prior": torch.tensor(0.5), "weight": torch.tensor(2.0)}
    z = Bernoulli(logits=truth["prior"]).sample((1000,))
    x = truth["weight"] * z + 0.7 * torch.randn(1000)
    theta, phi = leaves(prior=0.0, weight=1.0), leaves(bias=0.0, slope=0.0)
    optimizer = torch.optim.Adam([*theta.values(), *phi.values()], lr=0.1)
    model = belief_net(theta)

    @zsp.meta_bayesian_net(scope="q")
    def build_q(x):
        bn = zsp.BayesianNet()
        bn.bernoulli("z", phi["bias"] + phi["slope"] * x, n_samples=10)
        return bn

    q = build_q()
    for _ in range(200):
        many = {name: value.expand(1000) for name, value in theta.items()}
        bound = zsp.iw_objective(model, {"x": x, "theta": many}, variational=q, axis=0)
        loss = bound.wake_theta().mean() + bound.klpq().importance().mean()
        loss = loss + zsp.sleep_cost(model, {"x": x, "theta": many}, variational=q).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert abs(theta["prior"] - 0.5) < 0.25 and abs(theta["weight"] - 2.0) < 0.1, theta
    grid = torch.linspace(-1, 3, 9)
    learnt = (phi["bias"] + phi["slope"] * grid).sigmoid()
    np.testing.assert_allclose(learnt.detach(), exact_posterior_logit(theta, grid).sigmoid().detach(), atol=0.08)


def test_the_divergence_at_the_bounds_own_draws_executes_nothing():
    bound = objective(zsp.iw_objective, ("bernoulli", "bernoulli"), copies(4), 3)
    divergence = bound.klpq()
    assert divergence.variational is bound.variational and divergence.bn is bound.bn
    assert isinstance(divergence, zsp.KLpq) and divergence.importance().shape == (4,)
    assert "KLpq(" in repr(divergence)


def test_sleeping_needs_nets_that_can_be_executed():
    theta, phi = leaves(prior=0.0, weight=1.0), leaves(bias=0.0, slope=0.0)
    x = torch.zeros(())
    with pytest.raises(TypeError, match="draws from the model, which must be a MetaBayesianNet, not function"):
        zsp.sleep_cost(lambda values: x, {"x": x}, variational=recognition)
    with pytest.raises(TypeError, match="executes the variational net at dreamt data.*not BayesianNet"):
        zsp.sleep_cost(belief_net(theta), {"x": x}, variational=recognition(x, phi))

    @zsp.reuse_variables("q")
    def q(x):
        bn = zsp.BayesianNet()
        bn.bernoulli("u", x)
        return bn

    with pytest.raises(ValueError, match="'z'"):
        zsp.sleep_cost(belief_net(theta), {"x": x}, variational=q)
