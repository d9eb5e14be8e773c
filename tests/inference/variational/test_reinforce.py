"""REINFORCE against exact gradients of nets with every mixture of differentiable, stopped and discrete draws."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import zsp
from tests.inference.variational.two_latents import (
    COMBINATIONS,
    DATA,
    MODELS,
    copies,
    exact,
    gradients,
    objective,
    q_net,
)
from tests.monte_carlo import assert_less_variance, assert_mean

N = 20_000


def elbo(log_p, log_q):
    return log_p[0] - log_q[0]


def settled(bound):
    """A moving mean that has seen a step, so that it is a baseline now: another for each node."""
    moving_mean = zsp.MovingMean()
    n_nodes = sum(not node.is_reparameterized for node in bound.variational._stochastic_nodes())
    moving_mean([torch.tensor(-2.0 - i) for i in range(n_nodes)] or [torch.zeros(())])
    return moving_mean


VARIANTS = {
    "none": (1, lambda bound: bound.reinforce(variance_reduction=False)),
    "plain": (1, lambda bound: bound.reinforce(variance_reduction=False, rao_blackwellize=False)),
    "leave-one-out": (3, lambda bound: bound.reinforce()),
    "moving mean": (1, lambda bound: bound.reinforce(moving_mean=settled(bound))),
    "baseline": (2, lambda bound: bound.reinforce(baseline=torch.full((N,), -1.5))[0]),
    "both": (1, lambda bound: bound.reinforce(baseline=torch.tensor(-1.0), moving_mean=settled(bound))[0]),
}


@pytest.mark.parametrize("types", COMBINATIONS, ids="-".join)
def test_the_mean_gradient_is_exact_with_every_baseline(types):
    expected = exact(types, elbo)
    names = list(expected)  # the model's parameters as well
    assert len(names) >= 8
    for n_samples, estimate in VARIANTS.values():
        if types == ("pathwise", "pathwise") and estimate in (VARIANTS["baseline"][1], VARIANTS["both"][1]):
            continue  # no node needs one, which is an error
        parameters = copies(N)
        found = gradients(estimate(objective(zsp.elbo, types, parameters, n_samples)), parameters, names)
        for name in names:
            assert_mean(-found[name], expected[name], false_alarm=1e-7 / len(names) / len(VARIANTS))


def test_the_tolerance_would_notice_a_score_that_misses_a_term():
    """What is multiplied matters: with the data y left out of c's signal the mean moves by many standard errors."""
    types = ("score", "bernoulli")
    expected = exact(types, elbo)["c_mean"]
    parameters = copies(N)
    bound = objective(zsp.elbo, types, parameters)
    without = [s for s in bound._summands if s.name != "y"]
    bound._all_summands = without
    found = gradients(bound.reinforce(variance_reduction=False), parameters, ["c_mean"])["c_mean"]
    with pytest.raises(AssertionError):
        assert_mean(-found, expected)


@pytest.mark.parametrize("types", [("score", "pathwise"), ("bernoulli", "bernoulli")], ids="-".join)
def test_the_value_of_the_cost_is_minus_the_bound(types):
    bound = objective(zsp.elbo, types, copies(50), 4)
    for cost in (bound.reinforce(), bound.reinforce(variance_reduction=False)):
        np.testing.assert_allclose(cost.detach(), -bound.tensor.detach(), rtol=1e-12)
        assert cost.shape == (50,)
    cost, baseline_cost = bound.reinforce(baseline=torch.zeros(50))
    assert cost.shape == baseline_cost.shape == (50,)


@pytest.mark.parametrize("types", [("score", "score"), ("pathwise", "score")], ids="-".join)
def test_a_model_that_is_a_callable_is_one_term(types):
    expected = exact(types, elbo)
    names = list(expected)
    parameters = copies(N)
    variational = q_net(types, parameters, 2)
    data = {name: torch.full((2, N), value) for name, value in DATA.items()}
    theta = {name: value.expand(2, N) for name, value in parameters.items()}
    bound = zsp.elbo(lambda values: MODELS[types]({**values, "theta": theta}), data, variational=variational, axis=0)
    found = gradients(bound.reinforce(), parameters, names)
    for name in names:
        assert_mean(-found[name], expected[name], false_alarm=1e-7 / len(names))


def draws_of_a_gradient(types, n_samples, estimate):
    """With respect to c's mean, for 20 data that differ: shape [1000, 20]."""
    torch.manual_seed(1)
    parameters = copies(N)
    data = {"x": torch.linspace(-3, 3, 20).repeat(1000), "y": torch.linspace(2, -2, 20).repeat(1000)}
    bound = objective(zsp.elbo, types, parameters, n_samples, data=data)
    (found,) = gradients(estimate(bound), parameters, ["c_mean"]).values()
    return found.reshape(1000, 20)


@pytest.mark.parametrize("types", [("bernoulli", "bernoulli"), ("score", "score")], ids="-".join)
def test_leave_one_out_has_less_variance_than_a_moving_mean_and_that_less_than_nothing(types):
    """The moving mean is one number for all data, the other samples are of the datum itself."""
    leave_one_out = draws_of_a_gradient(types, 8, lambda bound: bound.reinforce())
    moving_mean = zsp.MovingMean()
    draws_of_a_gradient(types, 8, lambda bound: bound.reinforce(moving_mean=moving_mean))  # it has seen a step
    moving = draws_of_a_gradient(types, 8, lambda bound: bound.reinforce(moving_mean=moving_mean))
    nothing = draws_of_a_gradient(types, 8, lambda bound: bound.reinforce(variance_reduction=False))
    assert_less_variance(leave_one_out, moving)
    assert_less_variance(moving, nothing)


@zsp.meta_bayesian_net(scope="chains")
def two_chains(batch):
    """Two chains of discrete latents with data of their own: nothing in one is downstream of the other."""
    bn = zsp.BayesianNet()
    for name in "ab":
        z = bn.bernoulli(f"z_{name}", torch.zeros(batch))
        u = bn.bernoulli(f"u_{name}", 1.5 * z - 0.5)
        bn.normal(f"x_{name}", 2.0 * u, std=0.5)
    return bn


@zsp.reuse_variables("q_chains")
def q_chains(logits, n_samples):
    bn = zsp.BayesianNet()
    for name in "ab":
        z = bn.bernoulli(f"z_{name}", logits[f"z_{name}"], n_samples=n_samples)
        bn.bernoulli(f"u_{name}", logits[f"u_{name}"] + z)
    return bn


def chains(n_samples=2, batch=N):
    logits = {f"{kind}_{name}": torch.full((batch,), 0.3, requires_grad=True) for kind in "zu" for name in "ab"}
    observed = {f"x_{name}": torch.full((batch,), 1.2) for name in "ab"}
    bound = zsp.elbo(two_chains(batch), observed, variational=q_chains(logits, n_samples), axis=0)
    return bound, logits


@pytest.mark.parametrize("variance_reduction", [True, False])
def test_rao_blackwellisation_lowers_the_variance_of_every_parameter(variance_reduction):
    draws = {}
    for rao_blackwellize in (True, False):
        torch.manual_seed(0)
        bound, logits = chains()
        cost = bound.reinforce(variance_reduction, rao_blackwellize=rao_blackwellize)
        found = torch.autograd.grad(cost.sum(), list(logits.values()))
        draws[rao_blackwellize] = found
    for lower, plain in zip(draws[True], draws[False], strict=True):
        assert_less_variance(lower, plain, false_alarm=1e-7 / 4)


def test_a_chain_does_not_see_the_other_chains_terms():
    """The gradient of one chain's parameters does not change at all with the other chain's data."""
    found = []
    for other in (1.2, 40.0):
        torch.manual_seed(0)
        logits = {f"{kind}_{name}": torch.full((5,), 0.3, requires_grad=True) for kind in "zu" for name in "ab"}
        observed = {"x_a": torch.full((5,), 1.2), "x_b": torch.full((5,), other)}
        bound = zsp.elbo(two_chains(5), observed, variational=q_chains(logits, 3), axis=0)
        found.append(torch.autograd.grad(bound.reinforce().sum(), [logits["z_a"], logits["u_a"]]))
    for before, after in zip(*found, strict=True):
        np.testing.assert_allclose(before, after, rtol=1e-12)


# -- what else a net may declare --------------------------------------------------------------------------------------


def test_latents_that_the_model_draws_itself_are_scored_too():
    """u in q, a discrete d | u from the model, y | d: exact by enumeration."""
    parameters = {"q": 0.4, "weight": 0.9, "scale": 1.3}

    @zsp.meta_bayesian_net()
    def model(p):
        bn = zsp.BayesianNet()
        u = bn.bernoulli("u", torch.zeros_like(p["q"]))
        d = bn.bernoulli("d", p["weight"] * (2 * u - 1))
        bn.normal("y", p["scale"] * d, std=1.0)
        return bn

    @zsp.reuse_variables("q")
    def q(p, n_samples):
        bn = zsp.BayesianNet()
        bn.bernoulli("u", p["q"], n_samples=n_samples)
        return bn

    leaves = {k: torch.tensor(v, requires_grad=True) for k, v in parameters.items()}
    total = torch.zeros(())
    for u in (0.0, 1.0):
        u = torch.tensor(u)
        log_q = torch.distributions.Bernoulli(logits=leaves["q"]).log_prob(u)
        for d in (0.0, 1.0):
            d = torch.tensor(d)
            log_d = torch.distributions.Bernoulli(logits=leaves["weight"] * (2 * u - 1)).log_prob(d)
            log_y = torch.distributions.Normal(leaves["scale"] * d, 1.0).log_prob(torch.tensor(0.8))
            total = total + (log_q + log_d).exp() * (math.log(0.5) + log_y - log_q)
    expected = torch.autograd.grad(total, list(leaves.values()))
    many = {k: torch.full((N,), v, requires_grad=True) for k, v in parameters.items()}
    bound = zsp.elbo(model(many), {"y": torch.full((N,), 0.8)}, variational=q(many, 3), axis=0, from_prior=("d",))
    found = torch.autograd.grad(bound.reinforce().sum(), list(many.values()))
    for draws, value in zip(found, expected, strict=True):
        assert_mean(-draws, value, false_alarm=1e-7 / 3)


def test_scaled_terms_and_masks_are_those_of_the_bound():
    """Each of n data has a discrete latent; one is masked. The bound is scaled by N / n, the draws' density is not."""
    n, total, logit, mean = 3, 12, 0.7, 1.1
    mask = torch.tensor([True, True, False])
    x = torch.tensor([0.5, -1.0, 2.0])

    @zsp.meta_bayesian_net()
    def model(mean):
        bn = zsp.BayesianNet()
        z = bn.bernoulli("z", torch.zeros(n), total_size=total, mask=mask, group_ndims=0)
        bn.normal("x", mean.unsqueeze(-1) * z, std=1.0, total_size=total, mask=mask)
        return bn

    def exact_bound(logit, mean):
        value = torch.zeros(())
        for i in range(2):  # those that count
            for z in (0.0, 1.0):
                z = torch.tensor(z)
                log_q = torch.distributions.Bernoulli(logits=logit).log_prob(z)
                log_p = math.log(0.5) + torch.distributions.Normal(mean * z, 1.0).log_prob(x[i])
                value = value + log_q.exp() * (log_p - log_q)
        return value * total / n

    leaves = [torch.tensor(v, requires_grad=True) for v in (logit, mean)]
    expected = torch.autograd.grad(exact_bound(*leaves), leaves)
    logits, means = (torch.full((N,), v, requires_grad=True) for v in (logit, mean))
    q = zsp.BayesianNet()
    z = torch.distributions.Bernoulli(logits=logits.unsqueeze(-1).expand(N, n))
    q.stochastic("z", z, total_size=total, mask=mask)
    q._nodes["z"].with_samples = True  # N replicates stand as samples, so that the data axis comes first after them
    bound = zsp.elbo(model(means), {"x": x.expand(N, n)}, variational=q)
    found = torch.autograd.grad(bound.reinforce(variance_reduction=False).sum(), [logits, means])
    for draws, value in zip(found, expected, strict=True):
        assert_mean(-draws, value, false_alarm=1e-7 / 2)


def test_a_masked_draw_that_others_use_is_scored():
    """The mask takes a latent's own terms away, not what its draw does to the data."""
    mask = torch.zeros(N, dtype=torch.bool)

    @zsp.meta_bayesian_net()
    def model():
        bn = zsp.BayesianNet()
        z = bn.bernoulli("z", torch.zeros(N), mask=mask)
        bn.normal("x", 2.0 * z, std=1.0)
        return bn

    logits = torch.full((N,), 0.4, requires_grad=True)
    q = zsp.BayesianNet()
    q.bernoulli("z", logits, mask=mask, n_samples=2)
    bound = zsp.elbo(model(), {"x": torch.full((N,), 1.7)}, variational=q, axis=0)
    (found,) = torch.autograd.grad(bound.reinforce().sum(), logits)
    leaf = torch.tensor(0.4, requires_grad=True)
    log_x = torch.distributions.Normal(torch.tensor([0.0, 2.0]), 1.0).log_prob(torch.tensor(1.7))
    (expected,) = torch.autograd.grad((1 - leaf.sigmoid()) * log_x[0] + leaf.sigmoid() * log_x[1], leaf)
    assert abs(expected) > 0.1
    assert_mean(-found, expected)


def test_differentiable_draws_beside_scored_ones_may_stick_the_landing():
    """use_path_derivative on the differentiable node of a mixed net: the same mean."""
    for types in (("pathwise", "bernoulli"), ("bernoulli", "pathwise"), ("pathwise", "score")):
        expected = exact(types, elbo)
        names = list(expected)
        parameters = copies(N)
        found = gradients(objective(zsp.elbo, types, parameters, 3, path=types[1] != "score").reinforce(), parameters, names)
        for name in names:
            assert_mean(-found[name], expected[name], false_alarm=1e-7 / len(names))


def test_a_neural_baseline_learns_the_signal():
    """NVIL: the baseline of each datum converges to its expected signal, and takes the variance with it."""
    torch.manual_seed(0)
    x = torch.tensor([-2.0, 0.0, 2.0]).repeat(200)

    @zsp.meta_bayesian_net()
    def model():
        bn = zsp.BayesianNet()
        z = bn.bernoulli("z", torch.zeros(600))
        bn.normal("x", 2.0 * z - 1.0, std=0.5)
        return bn

    logits = torch.full((600,), 0.2, requires_grad=True)
    p_net = model()
    table = nn.Parameter(torch.zeros(3))
    moving_mean = zsp.MovingMean()
    optimizer = torch.optim.SGD([table], lr=0.9 / 200)
    for step in range(200):
        q = zsp.BayesianNet()
        q.bernoulli("z", logits)
        bound = zsp.elbo(p_net, {"x": x}, variational=q)
        baseline = table.repeat(200)
        cost, baseline_cost = bound.reinforce(baseline=baseline, moving_mean=moving_mean)
        (grad_table,) = torch.autograd.grad(cost.sum(), table, allow_unused=True, retain_graph=True)
        assert grad_table is None, "the cost trains no baseline"
        optimizer.param_groups[0]["lr"] = 0.5 / 200 / (1 + step / 20)
        optimizer.zero_grad()
        baseline_cost.sum().backward()
        optimizer.step()
    p = torch.tensor(0.2).sigmoid()
    values = torch.tensor([0.0, 1.0])
    log_q = torch.distributions.Bernoulli(logits=0.2).log_prob(values)
    log_x = torch.distributions.Normal(2 * values - 1, 0.5).log_prob(torch.tensor([-2.0, 0.0, 2.0]).unsqueeze(-1))
    signals = (torch.stack([1 - p, p]) * (log_x + math.log(0.5) - log_q)).sum(-1)
    centred = signals - (table.detach() + moving_mean.mean / moving_mean.weight)
    assert (centred.abs() < 0.15 * (signals.max() - signals.min())).all(), (signals, table, moving_mean.mean)


# -- messages ---------------------------------------------------------------------------------------------------------


def test_leave_one_out_needs_several_samples():
    bound = objective(zsp.elbo, ("bernoulli", "pathwise"), copies(4), 1)
    with pytest.raises(ValueError, match=r"for node 'a' there is one \(axis=0\).*moving_mean=zsp.MovingMean\(\)"):
        bound.reinforce()
    q = zsp.BayesianNet()
    logits = torch.zeros(4, requires_grad=True)
    q.bernoulli("z_a", logits)
    with pytest.raises(ValueError, match=r"there is one \(axis=None\).*zsp.MovingMean"):
        zsp.elbo(lambda values: values["z_a"] * 0.0, {}, variational=q).reinforce()


def test_leave_one_out_cannot_centre_a_draw_that_all_samples_share():
    q = zsp.BayesianNet()
    logits = torch.zeros(4, requires_grad=True)
    z = q.bernoulli("z", logits)
    q.bernoulli("u", logits + z, n_samples=3)

    @zsp.meta_bayesian_net()
    def model():
        bn = zsp.BayesianNet()
        z = bn.bernoulli("z", torch.zeros(4))
        bn.bernoulli("u", z.expand(4), n_samples=3)
        return bn

    bound = zsp.elbo(model(), {}, variational=q, axis=0)
    with pytest.raises(ValueError, match="for node 'z' its one draw is shared by all samples"):
        bound.reinforce()
    assert bound.reinforce(moving_mean=zsp.MovingMean()).shape == (4,)


def test_a_node_without_parameters_needs_no_baseline():
    q = zsp.BayesianNet()
    q.bernoulli("z_a", torch.zeros(4))
    cost = zsp.elbo(lambda values: values["z_a"] * 1.0, {}, variational=q).reinforce()
    assert cost.shape == (4,) and not cost.requires_grad


def test_baselines_that_fit_no_node():
    types = ("bernoulli", "bernoulli")
    bound = objective(zsp.elbo, types, copies(4), 2)
    with pytest.raises(ValueError, match=r"the baseline of 'a' has shape \[3\].*sample \+ batch \[2, 4\]"):
        bound.reinforce(baseline=torch.zeros(3))
    with pytest.raises(ValueError, match="baseline has tensors for 'a', but the nodes that need one are 'a', 'c'"):
        bound.reinforce(baseline={"a": torch.zeros(4)})
    with pytest.raises(ValueError, match="variance_reduction=False takes no baseline"):
        bound.reinforce(False, baseline=torch.zeros(4))
    differentiable = objective(zsp.elbo, ("pathwise", "pathwise"), copies(4), 2)
    with pytest.raises(ValueError, match="every draw is differentiable, so that no node needs one"):
        differentiable.reinforce(baseline=torch.zeros(4))
    cost, _ = bound.reinforce(baseline={"a": torch.zeros(4), "c": torch.ones(())})
    assert cost.shape == (4,)


def test_sgvb_names_reinforce():
    with pytest.raises(ValueError, match=r"node 'a' \(bernoulli\) is not reparameterised.*Use reinforce\(\) for it"):
        objective(zsp.elbo, ("bernoulli", "pathwise"), copies(4), 2).sgvb()
