"""The ELBO and its gradient against closed forms on conjugate Gaussian models.

Model: z ~ N(0, 1), x_i ~ N(z, s^2), i = 1..n, one data set per batch element. Posterior: N(m, v) with
v = 1 / (1 + n / s^2), m = v sum(x) / s^2.
"""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import zsp
from tests.monte_carlo import assert_mean

S = 0.7


@zsp.meta_bayesian_net(scope="conjugate")
def conjugate(batch, n, n_samples=None):
    bn = zsp.BayesianNet()
    z = bn.normal("z", torch.zeros(batch), std=1.0, n_samples=n_samples)
    bn.normal("x", z.unsqueeze(-1).expand(*z.shape, n), std=S, group_ndims=1)
    return bn


def data(batch=4, n=3):
    return torch.randn(batch, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def posterior(x):
    variance = 1 / (1 + x.shape[-1] / S**2)
    return variance * x.sum(-1) / S**2, math.sqrt(variance)


def log_evidence(x):
    n = x.shape[-1]
    covariance = np.ones((n, n)) + S**2 * np.eye(n)
    return torch.as_tensor(stats.multivariate_normal(np.zeros(n), covariance).logpdf(x.numpy()))


def q_net(mean, logstd, n_samples=None, **options):
    bn = zsp.BayesianNet()
    bn.normal("z", mean, logstd=logstd, n_samples=n_samples, **options)
    return bn


@pytest.mark.parametrize("n_samples", [None, 1, 5])
def test_every_draw_gives_the_log_evidence_at_the_exact_posterior(n_samples):
    x = data()
    mean, std = posterior(x)
    q = q_net(mean, torch.full((4,), math.log(std)), n_samples)
    bound = zsp.elbo(conjugate(4, 3, n_samples), {"x": x}, variational=q)
    assert bound.shape == ((4,) if n_samples is None else (n_samples, 4))
    np.testing.assert_allclose(bound.tensor, log_evidence(x).expand(bound.shape), atol=1e-10)


def exact_elbo(x, mean, logstd):
    """Closed form, differentiable."""
    n = x.shape[-1]
    variance = (2 * logstd).exp()
    log_likelihood = -0.5 * ((x - mean.unsqueeze(-1)) ** 2).sum(-1) / S**2 - 0.5 * n * variance / S**2
    log_likelihood = log_likelihood - n * (math.log(S) + 0.5 * math.log(2 * math.pi))
    kl = 0.5 * (variance + mean**2 - 1) - logstd
    return log_likelihood - kl


def parameters():
    mean = torch.tensor([0.3, -0.2, 0.5, 0.1], requires_grad=True)
    logstd = torch.tensor([-0.5, 0.1, -1.0, 0.0], requires_grad=True)
    return mean, logstd


N = 20_000


def test_the_elbo_is_the_closed_form():
    x, (mean, logstd) = data(), parameters()
    q = q_net(mean, logstd, N)
    bound = zsp.elbo(conjugate(4, 3), {"x": x}, variational=q)
    exact = exact_elbo(x, mean, logstd).detach()
    for draws, expected in zip(bound.tensor.detach().T, exact, strict=True):
        assert_mean(draws, expected, false_alarm=1e-7)
    assert bound.shape == (N, 4)
    averaged = zsp.elbo(conjugate(4, 3), {"x": x}, variational=q, axis=0)
    np.testing.assert_allclose(averaged.detach(), bound.tensor.detach().mean(0))
    np.testing.assert_allclose(averaged.sgvb().detach(), -averaged.tensor.detach())


@pytest.mark.parametrize("path", [False, True])
def test_the_mean_of_the_gradients_is_the_exact_gradient(path):
    x = data()
    mean, logstd = parameters()
    exact = torch.autograd.grad(exact_elbo(x, mean, logstd).sum(), (mean, logstd))
    # one parameter a draw, so that a single backward gives every draw's gradient
    means, logstds = (p.detach().expand(N, 4).clone().requires_grad_() for p in (mean, logstd))

    @zsp.reuse_variables("q")
    def q():
        return q_net(means, logstds, use_path_derivative=path)

    @zsp.meta_bayesian_net()
    def model():
        bn = zsp.BayesianNet()
        z = bn.normal("z", torch.zeros(N, 4), std=1.0)
        bn.normal("x", z.unsqueeze(-1).expand(N, 4, 3), std=S, group_ndims=1)
        return bn

    bound = zsp.elbo(model(), {"x": x}, variational=q)
    gradients = torch.autograd.grad(-bound.sgvb().sum(), (means, logstds))
    for draws, expected in zip(gradients, exact, strict=True):
        for i in range(4):
            assert_mean(draws[:, i], expected[i], false_alarm=1e-7)


def test_the_path_derivative_has_no_variance_at_the_exact_posterior():
    x = data()
    m, std = posterior(x)
    mean = m.clone().requires_grad_()
    logstd = torch.full((4,), math.log(std)).requires_grad_()

    @zsp.reuse_variables("q")
    def q(path):
        return q_net(mean, logstd, use_path_derivative=path)

    def gradient(path):
        bound = zsp.elbo(conjugate(4, 3), {"x": x}, variational=lambda: q(path))
        return torch.cat(torch.autograd.grad(bound.sgvb().sum(), (mean, logstd)))

    np.testing.assert_allclose(gradient(True), torch.zeros(8), atol=1e-10)
    assert gradient(False).abs().max() > 1e-2


def test_the_path_derivative_is_right_for_a_hierarchical_q():
    """z1 ~ N(0, 1), z2 ~ N(z1, 1) has the same factorisation as q: at q = p the gradient is zero for every draw."""
    loc = torch.zeros((), requires_grad=True)
    slope = torch.ones((), requires_grad=True)

    @zsp.meta_bayesian_net()
    def model():
        bn = zsp.BayesianNet()
        z1 = bn.normal("z1", 0.0, std=1.0)
        bn.normal("z2", z1, std=1.0)
        return bn

    @zsp.reuse_variables("q")
    def q(path):
        bn = zsp.BayesianNet()
        z1 = bn.normal("z1", loc, std=1.0, n_samples=5, use_path_derivative=path)
        bn.normal("z2", slope * z1, std=1.0, use_path_derivative=path)
        return bn

    def gradient(path):
        bound = zsp.elbo(model(), {}, variational=lambda: q(path), axis=0)
        return torch.stack(torch.autograd.grad(bound.sgvb(), (loc, slope)))

    np.testing.assert_allclose(gradient(True), torch.zeros(2), atol=1e-12)
    assert gradient(False).abs().max() > 1e-3


def test_a_net_of_several_latents_made_outside_a_decorated_function_cannot_take_the_path_derivative():
    q = zsp.BayesianNet()
    loc = torch.zeros(4, requires_grad=True)
    z = q.normal("z", loc, std=1.0, use_path_derivative=True)
    q.normal("u", z, std=1.0, use_path_derivative=True)

    @zsp.meta_bayesian_net()
    def model():
        bn = zsp.BayesianNet()
        z = bn.normal("z", torch.zeros(4), std=1.0)
        bn.normal("u", z, std=1.0)
        return bn

    with pytest.raises(ValueError, match="cannot be executed again. Decorate its function"):
        zsp.elbo(model(), {}, variational=q).sgvb()


def test_a_net_of_one_latent_is_not_executed_again():
    x = data()
    m, std = posterior(x)
    mean, logstd = m.clone().requires_grad_(), torch.full((4,), math.log(std)).requires_grad_()
    q = q_net(mean, logstd, use_path_derivative=True)
    gradients = torch.autograd.grad(zsp.elbo(conjugate(4, 3), {"x": x}, variational=q).sgvb().sum(), (mean, logstd))
    np.testing.assert_allclose(torch.stack(gradients), torch.zeros(2, 4), atol=1e-10)


def test_the_bound_is_tensor_like():
    x, (mean, logstd) = data(), parameters()
    bound = zsp.elbo(conjugate(4, 3), {"x": x}, variational=q_net(mean, logstd))
    tensor = bound.tensor
    assert torch.equal(torch.mean(bound), tensor.mean()) and torch.equal(bound.mean(), tensor.mean())
    assert torch.equal(-bound + 1, 1 - tensor) and bound.shape == (4,)
    (-bound).sum().backward()
    assert mean.grad is not None
    assert "ELBO(" in repr(bound)
    assert bound.bn["z"].is_observed() and not bound.variational["z"].is_observed()


def test_the_variational_net_may_be_executed_or_something_that_executes_it():
    x = data()

    @zsp.meta_bayesian_net(scope="q", reuse_variables=True)
    def meta(x):
        return body(x)

    @zsp.reuse_variables("q")
    def reusable(x):
        return body(x)

    def body(x):
        bn = zsp.BayesianNet()
        bn.normal("z", zsp.module("mean", nn.Linear, 3, 1)(x).squeeze(-1), std=1.0)
        return bn

    meta_q = meta().materialize(x=x)
    reusable.materialize(x)
    for variational in (meta_q, reusable, reusable(x), lambda: reusable(x), meta_q.observe(x=x)):
        assert zsp.elbo(conjugate(4, 3), {"x": x}, variational=variational).shape == (4,)
    with pytest.raises(TypeError, match="variational must be an executed zsp.BayesianNet.*but got float"):
        zsp.elbo(conjugate(4, 3), {"x": x}, variational=1.0)


def test_the_model_may_be_a_callable_on_a_dict():
    x, (mean, logstd) = data(), parameters()
    model = conjugate(4, 3)
    q = q_net(mean, logstd)

    def log_joint(values):
        return model(values)

    a = zsp.elbo(model, {"x": x}, variational=q)
    b = zsp.elbo(log_joint, {"x": x}, variational=q)
    assert torch.equal(a.tensor, b.tensor) and b.bn is None
    with pytest.raises(TypeError, match="Call the decorated function first"):
        zsp.elbo(None, {"x": x}, variational=q)
    with pytest.raises(TypeError, match="model = build_model"):
        zsp.elbo(conjugate, {"x": x}, variational=q)


def test_inputs_are_rebound_by_the_observed_mapping():
    x, (mean, logstd) = data(), parameters()
    bound = zsp.elbo(conjugate(99, 3), {"x": x, "batch": 4}, variational=q_net(mean, logstd))
    assert bound.shape == (4,)


def test_a_custom_log_joint_is_used():
    x, (mean, logstd) = data(), parameters()
    model = conjugate(4, 3)
    q = q_net(mean, logstd)
    before = zsp.elbo(model, {"x": x}, variational=q).tensor
    model.log_joint = lambda bn: bn.log_joint() + 1.0
    np.testing.assert_allclose(zsp.elbo(model, {"x": x}, variational=q).detach(), before.detach() + 1)


def test_latents_drawn_from_the_model_are_left_out_of_both_sums():
    """A sparse-GP shape of model: u in q, f | u from the model, y | f."""

    @zsp.meta_bayesian_net()
    def model():
        bn = zsp.BayesianNet()
        u = bn.normal("u", 0.0, std=1.0)
        f = bn.normal("f", u.unsqueeze(-1).expand(*u.shape, 4), std=0.1, group_ndims=1)
        bn.normal("y", f, std=1.0, group_ndims=1)
        return bn

    y = torch.randn(4)
    q = zsp.BayesianNet()
    q.normal("u", 0.0, std=0.5, n_samples=6)
    bound = zsp.elbo(model(), {"y": y}, variational=q, from_prior=("f",))
    log_pu, log_py = bound.bn.cond_log_prob(["u", "y"])
    assert bound.bn["f"].shape == (6, 4)
    np.testing.assert_allclose(bound.tensor, log_pu + log_py - q.cond_log_prob("u"))
    with pytest.raises(ValueError, match="from_prior names 'g', but the model has no such stochastic node"):
        zsp.elbo(model(), {"y": y}, variational=q, from_prior=("g",))


def test_a_latent_has_one_total_size():
    @zsp.meta_bayesian_net()
    def model(total_size):
        bn = zsp.BayesianNet()
        z = bn.normal("z", torch.zeros(4), std=1.0, total_size=total_size)
        bn.normal("x", z, std=1.0, total_size=20)
        return bn

    q = zsp.BayesianNet()
    q.normal("z", torch.zeros(4), std=1.0, total_size=20)
    x = torch.zeros(4)
    bound = zsp.elbo(model(20), {"x": x}, variational=q)
    terms = bound.bn.cond_log_prob("z") + bound.bn.cond_log_prob("x") - q.cond_log_prob("z")
    np.testing.assert_allclose(bound.tensor, 5 * terms)
    with pytest.raises(ValueError, match="'z' has total_size=None in the model and total_size=20 in the variational net"):
        zsp.elbo(model(None), {"x": x}, variational=q)


def test_the_routine_gives_the_size_of_the_sample_axis():
    """A model built for one particle is evaluated with as many as the variational net draws."""
    x = data()
    mean, logstd = parameters()
    bound = zsp.elbo(conjugate(4, 3, n_samples=1), {"x": x}, variational=q_net(mean, logstd, 7), axis=0)
    assert bound.shape == (4,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_transformed_and_eager_agree(dtype):
    torch.set_default_dtype(dtype)
    x = data().to(dtype)
    mean, logstd = (p.detach().to(dtype).requires_grad_() for p in parameters())
    model = conjugate(4, 3)

    @zsp.reuse_variables("q")
    def q(mean, logstd):
        return q_net(mean, logstd, 2)

    def loss(x, mean, logstd):
        return zsp.elbo(model, {"x": x}, variational=q(mean, logstd), axis=0).sgvb().sum()

    def seeded(function):
        torch.manual_seed(0)
        return function(x, mean, logstd)

    eager = seeded(loss)
    torch._dynamo.reset()
    compiled = seeded(torch.compile(loss, fullgraph=True, backend="aot_eager"))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    np.testing.assert_allclose(compiled.detach(), eager.detach(), rtol=tolerance)
    gradient = torch.autograd.grad(eager, (mean, logstd))
    transformed = seeded(torch.func.grad(loss, argnums=(1, 2)))
    compiled_gradient = torch.autograd.grad(compiled, (mean, logstd))
    for a, b, c in zip(gradient, transformed, compiled_gradient, strict=True):
        np.testing.assert_allclose(a, b.detach(), rtol=tolerance)
        np.testing.assert_allclose(a, c, rtol=tolerance)
    assert eager.dtype == dtype


@pytest.mark.parametrize("n_samples", [None, 3])
@pytest.mark.parametrize("given", ["std", "logstd"])
def test_sgvb_equals_plain_differentiation_of_the_bound_draw_by_draw(given, n_samples):
    """The cost uses the noise behind the draws; its value and gradient are those of log p - log q as it stands."""
    x, (mean, logstd) = data(), parameters()
    slope = torch.tensor(0.5, requires_grad=True)

    @zsp.meta_bayesian_net()
    def model():
        bn = zsp.BayesianNet()
        z = bn.normal("z", torch.zeros(4), std=1.0)
        u = bn.normal("u", z, std=1.5)
        bn.normal("x", u.unsqueeze(-1).expand(*u.shape, 3), std=S, group_ndims=1)
        return bn

    @zsp.reuse_variables("q")
    def q(given):
        bn = zsp.BayesianNet()
        z = bn.normal("z", mean, **{given: logstd if given == "logstd" else logstd.exp()}, n_samples=n_samples)
        bn.normal("u", slope * z, std=0.7)
        return bn

    for _ in range(2):  # the first execution is checked, the second is plain
        bound = zsp.elbo(model(), {"x": x}, variational=q(given), axis=None if n_samples is None else 0)
        plain = torch.autograd.grad(-bound.tensor.sum(), (mean, logstd, slope), retain_graph=True)
        cost = bound.sgvb()
        np.testing.assert_allclose(cost.detach(), -bound.tensor.detach(), rtol=1e-12)
        for ours, expected in zip(torch.autograd.grad(cost.sum(), (mean, logstd, slope)), plain, strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-10)


def test_the_density_of_another_value_than_the_last_draw_does_not_use_its_noise():
    dist = zsp.distributions.Normal(torch.zeros(3), torch.full((3,), 2.0))
    first, second = dist.rsample(), dist.rsample()
    assert dist.log_prob_of_draw(first, ()) is None
    np.testing.assert_allclose(dist.log_prob_of_draw(second, ()), dist.log_prob(second), rtol=1e-12)
    np.testing.assert_allclose(dist.log_prob_of_draw(second, (-1,)), dist.log_prob(second).sum(-1), rtol=1e-12)
