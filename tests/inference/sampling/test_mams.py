"""Isokinetic dynamics against its differential equation, and the Metropolis-adjusted sampler on top of it."""

import math

import numpy as np
import pytest
import scipy.integrate
import torch

import zsp
from tests.inference.sampling.many_chains import (
    assert_standard_normal,
    assert_traced_equals_eager,
    place_at,
    run,
    straightened,
)
from tests.inference.sampling.targets import COVARIANCE, METRICS, banana, banana_draws, gaussian, gaussian_draws
from tests.monte_carlo import assert_mean
from zsp.inference.sampling import isokinetic
from zsp.inference.sampling.isokinetic import INTEGRATORS, direction, integrate, turn

FIXED = {"adapt_step_size": False, "adapt_trajectory_length": False}

# -- the dynamics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_dims", [2, 3, 10])
def test_a_turn_solves_the_equation_of_the_direction(n_dims):
    """du/dt = (f - u (u . f)) / (D - 1), and d log-volume of directions = -dK = -(u . f) dt."""
    momentum, force, time = direction(torch.randn(1, n_dims)), 5 * torch.randn(1, n_dims), 0.7

    def slope(_, state):
        u, f = state[:-1], force[0].numpy()
        return np.append((f - u * (u @ f)) / (n_dims - 1), u @ f)

    exact = scipy.integrate.solve_ivp(slope, (0, time), [*momentum[0], 0.0], rtol=1e-11, atol=1e-12).y[:, -1]
    new, change = turn(momentum, force, torch.tensor([time]))
    torch.testing.assert_close(new[0], torch.from_numpy(exact[:-1]), atol=1e-8, rtol=0)
    torch.testing.assert_close(change[0].item(), exact[-1], atol=1e-8, rtol=0)


def test_the_kinetic_energy_is_the_logarithm_of_the_contraction_of_directions():
    momentum, force = direction(torch.randn(1, 4)), 3 * torch.randn(1, 4)
    jacobian = torch.func.jacrev(lambda u: turn(direction(u[None]), force, torch.tensor([0.9]))[0][0])(momentum[0])
    new, change = turn(momentum, force, torch.tensor([0.9]))
    tangents = [torch.linalg.svd(u).Vh[1:] for u in (momentum, new)]  # bases of the directions orthogonal to u
    determinant = torch.linalg.det(tangents[1] @ jacobian @ tangents[0].mT).abs()
    torch.testing.assert_close(-determinant.log(), change[0], atol=1e-10, rtol=1e-10)


def test_a_turn_survives_no_force_a_huge_one_and_one_straight_ahead():
    u = direction(torch.randn(1, 3))
    time = torch.ones(1)
    for force, expected, energy in (
        (0 * u, u, 0.0),
        (1e6 * u, u, 1e6),
        (-3.0 * u, u, -3.0),
        (1e6 * torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.0, 0.0, 1.0]]), None),
    ):
        new, change = turn(u, force, time)
        torch.testing.assert_close(new, expected, atol=1e-12, rtol=0)
        if energy is not None:
            torch.testing.assert_close(change[0].item(), energy, atol=1e-9, rtol=1e-12)
        assert change.isfinite()


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("name", METRICS)
def test_an_integrator_runs_backwards_and_keeps_the_speed(integrator, name):
    metric = METRICS[name]
    density, start = place_at(banana, metric.unpush(banana_draws(50)), direction(torch.randn(50, 3)), metric)
    step = torch.full((50,), 0.005)
    place, total = start, 0
    for _ in range(30):
        place, change = integrate(density, metric, integrator, place, step)
        total = total + change
        torch.testing.assert_close(place.momentum.norm(dim=-1), torch.ones(50), atol=1e-14, rtol=0)
    assert ((place.position - start.position).norm(dim=-1) > 0.01).all()
    place = place._replace(momentum=-place.momentum)
    for _ in range(30):
        place, change = integrate(density, metric, integrator, place, step)
        total = total + change
    torch.testing.assert_close(place.position, start.position, atol=1e-10, rtol=0)
    torch.testing.assert_close(-place.momentum, start.momentum, atol=1e-10, rtol=0)
    torch.testing.assert_close(total, torch.zeros(50), atol=1e-10, rtol=0)


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_the_energy_error_is_of_order_step_size_squared(integrator):
    position, momentum = gaussian_draws(100), direction(torch.randn(100, 3))

    def error(n):
        density, start = place_at(gaussian, position, momentum)
        place, total = start, 0
        for _ in range(n):
            place, change = integrate(density, METRICS["identity"], integrator, place, torch.full((100,), 2.0 / n))
            total = total + change
        return (total - (place.log_density - start.log_density)).square().mean().sqrt().item()

    assert 3.9 < error(80) / error(160) < 4.1
    leapfrog, minimal = (INTEGRATORS[name] for name in ("leapfrog", "minimal_norm"))
    assert sum(leapfrog[::2]) == sum(leapfrog[1::2]) == 1
    assert math.isclose(sum(minimal[::2]), 1) and sum(minimal[1::2]) == 1


# -- the law it keeps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("name", ["identity", "dense"])
def test_it_keeps_a_normal_distribution(name, integrator):
    step_size = 1.0 if integrator == "leapfrog" else 1.6
    kernel = zsp.MAMS(step_size=step_size, trajectory_length=4.0, integrator=integrator, **FIXED)
    draws, reports = run(kernel, gaussian, gaussian_draws(20_000), 6, metric=METRICS[name])
    assert_standard_normal(torch.linalg.solve_triangular(torch.linalg.cholesky(COVARIANCE), draws.mT, upper=False).mT)
    rate = sum(report.acceptance_rate.mean().item() for report in reports) / len(reports)
    assert 0.1 < rate < 0.99, "the test of acceptance had something to do"
    assert (reports[0].n_leapfrogs % len(INTEGRATORS[integrator][1::2]) == 0).all()


def keeps_the_banana():
    kernel = zsp.MAMS(step_size=0.2, trajectory_length=1.5, **FIXED)
    draws, reports = run(kernel, banana, banana_draws(20_000), 6)
    assert_standard_normal(straightened(draws))
    return sum(report.acceptance_rate.mean().item() for report in reports) / len(reports)


def test_it_keeps_a_curved_distribution():
    assert 0.3 < keeps_the_banana() < 0.95


def forgetful(momentum, force, time):
    new, change = turn(momentum, force, time)
    return new, 0 * change


def of_another_dimension(momentum, force, time):
    new, change = turn(momentum, force, time)
    return new, change * force.shape[-1] / (force.shape[-1] - 1)


@pytest.mark.parametrize("wrong", [forgetful, of_another_dimension])
def test_a_wrong_kinetic_energy_is_seen(wrong, monkeypatch):
    monkeypatch.setattr(isokinetic, "turn", wrong)
    with pytest.raises(AssertionError):
        keeps_the_banana()


def test_directions_that_are_not_uniform_are_seen(monkeypatch):
    monkeypatch.setattr(zsp.MAMS, "_refresh", lambda self, normal: direction(normal + 0.5))
    with pytest.raises(AssertionError):
        keeps_the_banana()


# -- what the adaptation finds, and the run loop -----------------------------------------------------------------------


def correlated(values):
    return gaussian(values["x"])


def test_the_adaptation_finds_a_step_size_and_a_length():
    n_dims = 10

    def standard(values):
        return -0.5 * values["x"].square().sum(-1)

    draws = zsp.mcmc(
        standard, {}, kernel=zsp.MAMS(), latents={"x": torch.zeros(n_dims)}, n_chains=128, n_warmup=400, n_samples=100,
        progress=False, compile=False,
    )  # fmt: skip
    harmonic = (1 / (1 / draws.info.acceptance_rate.clamp(min=1e-30)).mean(0)).mean().item()
    assert abs(harmonic - 0.9) < 0.08
    # for a large D the exact flow is that of oscillators with period 2 pi sqrt D, so that ChEES is largest at 2.25 sqrt D;
    # the longest trajectory is up to one step longer
    longest = draws.info.trajectory_length.max().item()
    assert (longest - draws.info.step_size[0, 0].item()) / n_dims**0.5 > 1.2 and longest / n_dims**0.5 < 3.5
    ess = zsp.inference.diagnostics.ess_bulk(draws["x"]).min().item()
    assert ess > 2000
    assert_mean(draws["x"].flatten(0, 1).square(), 1.0, ess=2000)


def test_a_compiled_step_equals_an_eager_one_while_it_adapts():
    kernel = zsp.MAMS(step_size=0.5, trajectory_length=2.0)
    assert_traced_equals_eager(kernel, gaussian, gaussian_draws(6), 60, is_compiled=True)


def test_the_same_seed_gives_the_same_draws():
    def sample(seed):
        return zsp.mcmc(
            correlated, {}, kernel=zsp.MAMS(), latents={"x": torch.zeros(3)}, n_chains=8, n_warmup=40, n_samples=5,
            seed=seed, progress=False, compile=False,
        )["x"]  # fmt: skip

    first = sample(3)
    assert torch.equal(first, sample(3)) and not torch.equal(first, sample(4))


def test_init_and_step_keep_the_law():
    kernel = zsp.MAMS(step_size=1.0, trajectory_length=3.0, **FIXED)
    state = kernel.init(gaussian, gaussian_draws(5000), seed=0)
    for _ in range(5):
        state, info = kernel.step(gaussian, state)
    assert info.energy_change.shape == (5000,) and info.is_accepted.dtype == torch.bool
    assert_standard_normal(
        torch.linalg.solve_triangular(torch.linalg.cholesky(COVARIANCE), state.position.mT, upper=False).mT
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"integrator": "yoshida"}, "integrator must be one of 'leapfrog', 'minimal_norm', got 'yoshida'"),
        ({"jitter": -0.5}, r"jitter must be in \[0, 1\], got -0.5"),
    ],
)
def test_options_that_no_kernel_takes(options, message):
    with pytest.raises(ValueError, match=message):
        zsp.MAMS(**options)


def test_one_dimension_has_no_direction_to_turn_to():
    with pytest.raises(ValueError, match="MAMS needs at least two unconstrained dimensions to turn in, but.*have 1"):
        zsp.mcmc(
            lambda values: -values["x"].square().sum(-1), {}, kernel=zsp.MAMS(), latents={"x": torch.zeros(1)},
            n_chains=8, progress=False,
        )  # fmt: skip
