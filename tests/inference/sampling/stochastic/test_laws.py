"""Each stochastic-gradient kernel has the stationary law that its equations give in closed form, bias included."""

import dataclasses

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch

from tests.inference.sampling.stochastic.linear import (
    PRECISION,
    assert_covariance,
    recursion,
    run,
    stationary,
)
from tests.monte_carlo import assert_mean
from zsp.inference.sampling.stochastic.kernel import Noise
from zsp.inference.sampling.stochastic.psgld import PSGLD
from zsp.inference.sampling.stochastic.sghmc import SGHMC
from zsp.inference.sampling.stochastic.sgld import SGLD
from zsp.inference.sampling.stochastic.sgnht import SGNHT

LINEAR = {
    "SGLD": SGLD(0.6),
    "SGHMC, first order": SGHMC(0.2, friction=0.3, n_iter_resample_v=None, second_order=False),
    "SGHMC, second order": SGHMC(0.8, friction=0.4, n_iter_resample_v=None),
    "SGHMC, less noise": SGHMC(0.4, friction=0.6, variance_estimate=0.2, n_iter_resample_v=None),
    "SGNHT held, first order": SGNHT(0.2, variance_extra=0.3, tune_rate=0.0, second_order=False),
    "SGNHT held, second order": SGNHT(0.8, variance_extra=0.4, tune_rate=0.0),
}


def moments(state):
    """[chain, D] or [chain, 2 D]: the positions, and the velocities where there are any."""
    return torch.cat([part for part in state.inner[:2] if part.shape == state.inner.position.shape], 1)


@pytest.mark.parametrize("sigma", [0.0, 2.0], ids=["exact gradients", "noisy gradients"])
@pytest.mark.parametrize("kernel", LINEAR.values(), ids=LINEAR)
def test_the_stationary_covariance_is_that_of_the_linear_recursion(kernel, sigma):
    state, _ = run(kernel, sigma=sigma)
    expected = stationary(kernel, sigma=sigma)
    assert_covariance(moments(state), expected)
    # what is tested is the bias: the law for small steps is another
    small = scipy.linalg.block_diag(np.linalg.inv(PRECISION), kernel.learning_rate * np.eye(2))
    with pytest.raises(AssertionError, match="mean"):
        assert_covariance(moments(state), small[: len(expected), : len(expected)])


@pytest.mark.parametrize("kernel", LINEAR.values(), ids=LINEAR)
def test_a_step_is_the_linear_map_of_its_equations(kernel):
    a, b = recursion(kernel)
    n = len(a)
    basis = torch.eye(n)
    zero = torch.zeros(n, 2)
    state = kernel.begin(zero, torch.Generator())
    state = state._replace(position=basis[:, :2])
    if n == 4:
        state = state._replace(velocity=basis[:, 2:])

    def derivatives(q, probe=None):
        return torch.zeros(len(q)), -q @ torch.as_tensor(PRECISION)

    moved, _ = kernel.advance(derivatives, state, Noise(zero), kernel.coefficients_at(0))
    assert np.allclose(torch.cat(list(moved[: n // 2]), 1).numpy().T, a, atol=1e-14)
    rest = kernel.begin(zero[:2], torch.Generator())
    rest = rest._replace(velocity=zero[:2]) if n == 4 else rest
    noisy, _ = kernel.advance(derivatives, rest, Noise(torch.eye(2)), kernel.coefficients_at(0))
    found = torch.cat(list(noisy[: n // 2]), 1).numpy().T
    assert np.allclose(found @ found.T, b, atol=1e-14)


@dataclasses.dataclass(frozen=True)
class LoudSGLD(SGLD):
    def coefficients(self, learning_rate, temperature):
        right = super().coefficients(learning_rate, temperature)
        return right._replace(noise=1.05 * right.noise)


@dataclasses.dataclass(frozen=True)
class LoudSGHMC(SGHMC):
    def coefficients(self, learning_rate, temperature):
        right = super().coefficients(learning_rate, temperature)
        return right._replace(noise=1.05 * right.noise)


@dataclasses.dataclass(frozen=True)
class SharedNoiseSGLD(SGLD):
    def draw_noise(self, n_steps, position, generator):
        return Noise(super().draw_noise(n_steps, position[:, :1], generator).normal.expand(-1, -1, 2))


@pytest.mark.parametrize(
    "wrong", [LoudSGLD(0.6), LoudSGHMC(0.4, friction=0.4, n_iter_resample_v=None), SharedNoiseSGLD(0.6)]
)
def test_noise_of_a_wrong_scale_or_shared_by_dimensions_is_noticed(wrong):
    state, _ = run(wrong)
    with pytest.raises(AssertionError, match="mean"):
        assert_covariance(moments(state), stationary(wrong))


def test_sgld_has_the_variance_of_its_docstring():
    for eta in (0.1, 1.0, 3.0):
        assert np.isclose(stationary(SGLD(eta), np.eye(1)).item(), 1 / (1 - eta / 4))
        ratio = stationary(SGLD(eta), np.eye(1), 2.0) / stationary(SGLD(eta), np.eye(1))
        assert np.isclose(ratio.item(), 1 + eta * 4 / 4)


def error(kernel):
    """What the covariance of (q, v / h) is off by on N(0, 1)."""
    scale = np.diag([1.0, kernel.learning_rate**-0.5])
    return np.abs(scale @ stationary(kernel, np.eye(1)) @ scale - np.eye(2)).max()


@pytest.mark.parametrize("kind", ["SGHMC", "SGNHT"])
@pytest.mark.parametrize("order", [1, 2])
def test_the_integrators_are_of_the_orders_that_they_claim(kind, order):
    def make(h):
        options = {"second_order": order == 2, "n_iter_resample_v": None}
        if kind == "SGHMC":
            return SGHMC(h * h, friction=1.3 * h, **options)
        return SGNHT(h * h, variance_extra=1.3 * h, tune_rate=0.0, **options)

    ratios = [error(make(h)) / error(make(h / 2)) for h in (0.1, 0.05, 0.025)]
    assert np.isclose(ratios[-1], 2.0**order, rtol=0.03), ratios
    assert abs(ratios[-1] / 2.0**order - 1) < abs(ratios[0] / 2.0**order - 1)


def test_resampled_velocities_have_the_law_of_the_periodic_recursion():
    kernel = SGHMC(0.3, friction=0.1, n_iter_resample_v=4)
    a, b = recursion(kernel)
    covariance = np.zeros((4, 4))  # of chains that begin at 0 with new velocities
    covariance[2:, 2:] = 0.3 * np.eye(2)
    for step in range(43):
        if step and step % 4 == 0:
            covariance[2:] = covariance[:, 2:] = 0.0
            covariance[2:, 2:] = 0.3 * np.eye(2)
        covariance = a @ covariance @ a.T + b
    assert [step for step in range(13) if kernel.resamples(step)] == [4, 8, 12]  # in step 0 they are new
    state, _ = run(kernel, n_steps=43)
    assert_covariance(moments(state), covariance)
    assert np.abs(covariance - stationary(kernel)).max() > 0.03  # the resampling is seen


# -- the thermostat ---------------------------------------------------------------------------------------------------


def settled(kernel, sigma):
    """The friction at which velocities of the linear recursion on N(0, 1) have variance learning_rate, and Var q there."""

    def law(alpha):
        # at another friction than that of the added noise, which SGHMC's variance_estimate allows
        like = SGHMC(
            kernel.learning_rate, friction=alpha, variance_estimate=alpha - kernel.variance_extra,
            n_iter_resample_v=None, second_order=kernel.second_order,
        )  # fmt: skip
        return stationary(like, np.eye(1), sigma)

    alpha = scipy.optimize.brentq(lambda a: law(a)[1, 1] - kernel.learning_rate, kernel.variance_extra + 1e-9, 1.0)
    return alpha, law(alpha)[0, 0]


@pytest.mark.parametrize("use_vector_alpha", [False, True])
@pytest.mark.parametrize("second_order", [False, True])
def test_a_step_of_sgnht_is_that_of_its_equations(second_order, use_vector_alpha):
    kernel = SGNHT(0.1, variance_extra=0.2, tune_rate=0.7, second_order=second_order, use_vector_alpha=use_vector_alpha)
    q, v, n = torch.randn(3, 5, 4)
    alpha = torch.rand(5, 4 if use_vector_alpha else 1)
    state = kernel.begin(q, torch.Generator())
    assert state.friction.shape == alpha.shape and (state.friction == 0.2).all()
    state = state._replace(velocity=v, friction=alpha)

    def derivatives(q, probe=None):
        return -0.25 * (q**4).sum(-1), -(q**3)

    def heat(v):
        return v**2 if use_vector_alpha else (v**2).mean(-1, keepdim=True)

    moved, info = kernel.advance(derivatives, state, Noise(n), kernel.coefficients_at(0))
    noise = (2 * 0.2 * 0.1) ** 0.5 * n
    if second_order:
        middle, alpha = q + v / 2, alpha + 0.35 * (heat(v) - 0.1)
        v = torch.exp(-alpha / 2) * (torch.exp(-alpha / 2) * v - 0.1 * middle**3 + noise)
        q, alpha = middle + v / 2, alpha + 0.35 * (heat(v) - 0.1)
    else:
        v = (1 - alpha) * v - 0.1 * q**3 + noise
        q, alpha = q + v, alpha + 0.7 * (heat(v) - 0.1)
    for found, expected in zip(moved, (q, v, alpha), strict=True):
        assert torch.allclose(found, expected, atol=1e-13)
    assert torch.allclose(info.temperature, (v**2).mean(-1) / 0.1)
    assert torch.allclose(info.largest_friction, alpha.amax(-1))


@pytest.mark.parametrize("second_order", [False, True])
def test_the_thermostat_finds_a_friction_for_unknown_noise_of_the_gradient(second_order):
    sigma, n_dims, n_chains = 3.0, 2000, 16
    kernel = SGNHT(0.04, variance_extra=0.02, second_order=second_order, use_vector_alpha=False)
    alpha, variance = settled(kernel, sigma)
    generator = torch.Generator().manual_seed(1)
    state = kernel.init(lambda q: -0.5 * (q * q).sum(-1), torch.randn(n_chains, n_dims, generator=generator), seed=2)
    for _ in range(400):
        xi = torch.randn(n_chains, n_dims, generator=generator)
        state, info = kernel.step(lambda q, xi=xi: (-0.5 * q * q + sigma * xi * q).sum(-1), state)
    assert info.friction.shape == (n_chains,)
    # one thermostat for so many dimensions hardly fluctuates, about its value by sqrt(learning_rate / D)
    assert abs(info.friction.mean().item() - alpha) < 5.3 * (0.04 / n_dims / n_chains) ** 0.5 + alpha / n_dims
    assert alpha > 5 * kernel.variance_extra  # found, not given
    draws = state.position.reshape(-1, 1)
    assert_covariance(draws, np.array([[variance]]))
    # without it, the same noise would heat the chain
    held = dataclasses.replace(kernel, tune_rate=0.0)
    assert stationary(held, np.eye(1), sigma)[0, 0] > 2 * variance


def test_thermostats_of_each_dimension_find_the_noise_of_each():
    sigma, eta, n_chains = torch.tensor([0.0, 2.0, 5.0]), 0.02, 500
    kernel = SGNHT(eta, variance_extra=0.1, second_order=False)
    generator = torch.Generator().manual_seed(1)
    state = kernel.init(lambda q: -0.5 * (q * q).sum(-1), torch.randn(n_chains, 3, generator=generator), seed=2)
    squares, frictions = torch.zeros(n_chains, 3), []
    for step in range(900):
        xi = torch.randn(n_chains, 3, generator=generator)
        state, _ = kernel.step(lambda q, xi=xi: (-0.5 * q * q + sigma * xi * q).sum(-1), state)
        squares += state.inner.velocity.square()
        if step >= 400:
            frictions.append(state.inner.friction)
    # a thermostat is the sum of what it has seen
    assert torch.allclose(state.inner.friction, 0.1 + squares - 900 * eta, atol=1e-10)
    # the velocity's variance is eta where (1 - a)^2 eta + 2 A eta + eta^2 sigma^2 = eta, but for the force's share,
    # a^2 and the thermostat's fluctuations, each of the order of eta
    friction = torch.stack(frictions).mean((0, 1))
    expected = [settled(kernel, s)[0] for s in sigma.tolist()]
    assert torch.allclose(friction, torch.tensor(expected), atol=2 * eta), (friction, expected)
    assert expected[2] - expected[0] > 10 * eta


# -- the preconditioner -----------------------------------------------------------------------------------------------


def grid_law(kernel):
    """The variance in the long run of PSGLD with decay=0 on N(0, 1): the law of its transitions on a grid."""
    q = np.linspace(-7, 7, 561)
    eta, epsilon = kernel.learning_rate, kernel.epsilon
    g = -q
    preconditioner = 1 / (epsilon + np.abs(g))
    drift = preconditioner * g
    if kernel.curvature:  # dG/dq = -G^2 d|g|/dq = -G^2 sign(g) (-1)
        drift = drift + preconditioner**2 * np.sign(g)
    mean, sd = q + eta / 2 * drift, np.sqrt(eta * preconditioner)
    moves = np.exp(-0.5 * ((q[None] - mean[:, None]) / sd[:, None]) ** 2)
    moves /= moves.sum(1, keepdims=True)
    balance = np.vstack([moves.T - np.eye(len(q)), np.ones(len(q))])
    law = np.linalg.lstsq(balance, np.append(np.zeros(len(q)), 1.0), rcond=None)[0]
    return law @ q**2


@pytest.mark.parametrize("curvature", [False, True])
def test_psgld_has_the_stationary_law_of_its_transitions(curvature):
    kernel = PSGLD(0.05, decay=0.0, epsilon=0.3, curvature=curvature)
    expected = grid_law(kernel)
    state = kernel.init(lambda q: -0.5 * (q * q).sum(-1), torch.randn(8000, 1), seed=2)
    for _ in range(250):
        state, info = kernel.step(lambda q: -0.5 * (q * q).sum(-1), state)
    assert_covariance(state.position, np.array([[expected]]))
    # as the rate falls, the variance becomes that of the target, or else of the target over G, N(0, 1) (epsilon + |q|)
    first, third = np.sqrt(2 / np.pi), 2 * np.sqrt(2 / np.pi)
    limit = 1.0 if curvature else (0.3 + third) / (0.3 + first)
    smaller = grid_law(dataclasses.replace(kernel, learning_rate=0.0125))
    assert abs(smaller - limit) < 0.4 * abs(expected - limit)
    assert abs(expected - limit) < 0.2 and (limit == 1.0 or limit > 1.6)


def test_a_step_of_psgld_is_that_of_its_equations():
    kernel = PSGLD(0.1, decay=0.7, epsilon=0.01, curvature=True)
    q, square, n = torch.randn(5, 3), torch.rand(5, 3), torch.randn(5, 3)
    sign = torch.randn(5, 3).sign()
    state = kernel.begin(q, torch.Generator())._replace(square=square)

    def derivatives(q, probe):  # of -sum q^4 / 4, a diagonal Hessian
        return -0.25 * (q**4).sum(-1), -(q**3), -3 * q**2 * probe

    moved, info = kernel.advance(derivatives, state, Noise(n, sign), kernel.coefficients_at(0))

    def preconditioner(q):
        return 1 / (0.01 + (0.7 * square + 0.3 * q**6).sqrt())

    p = q.clone().requires_grad_()
    (gamma,) = torch.autograd.grad(preconditioner(p).sum(), p)
    g = preconditioner(q)
    expected = q + 0.05 * (g * -(q**3) + gamma) + (0.1 * g).sqrt() * n
    assert torch.allclose(moved.position, expected, atol=1e-12)
    assert torch.allclose(info.preconditioner, g.mean(-1))


def test_the_curvature_is_estimated_without_bias():
    hessian = torch.tensor([[-2.0, 0.8], [0.8, -1.0]])
    kernel = PSGLD(1e-2, decay=0.5, curvature=True)
    q = torch.tensor([[0.7, -0.4]]).expand(20000, 2)
    state = kernel.init(lambda q: 0.5 * ((q @ hessian) * q).sum(-1), q, seed=0)
    moved, _ = kernel.step(lambda q: 0.5 * ((q @ hessian) * q).sum(-1), state)
    gradient = q[0] @ hessian
    p = q[0].clone().requires_grad_()
    preconditioner = 1 / (1e-3 + (0.5 * (p @ hessian) ** 2).sqrt())
    gamma = torch.stack([torch.autograd.grad(preconditioner[i], p, retain_graph=True)[0][i] for i in range(2)])
    assert_mean(moved.position, q[0] + 5e-3 * (preconditioner.detach() * gradient + gamma))


def test_single_precision_has_the_same_law():
    kernel = LINEAR["SGHMC, second order"]
    state, info = run(kernel, dtype=torch.float32)
    assert state.position.dtype == info.log_density.dtype == torch.float32
    assert_covariance(moments(state), stationary(kernel))
