"""Microcanonical Langevin dynamics: its law at small steps, its bias at large ones, what its adaptation finds."""

import math

import pytest
import torch
from torch.utils._pytree import tree_map

import zsp
from tests.inference.sampling.many_chains import assert_standard_normal, assert_traced_equals_eager, begin, run
from tests.inference.sampling.targets import COVARIANCE, METRICS, gaussian, gaussian_draws, tuning
from tests.monte_carlo import assert_mean
from zsp.inference.sampling import isokinetic
from zsp.inference.sampling.arrays import to_numpy
from zsp.inference.sampling.isokinetic import direction, partly_refresh, turn
from zsp.inference.sampling.mclmc_adaptation import Memory

FIXED = {"adapt_step_size": False, "adapt_length": False}

# -- the law ------------------------------------------------------------------------------------------------------------


def test_a_direction_is_forgotten_in_its_length():
    """E u . u' = e^(-t / L) for many dimensions, in steps of any size."""
    momentum, time, length = direction(torch.randn(2000, 400)), torch.full((2000,), 0.3), torch.full((2000,), 2.0)
    new = momentum
    for _ in range(4):
        new = partly_refresh(new, torch.randn(2000, 400), time, length)
    torch.testing.assert_close(new.norm(dim=-1), torch.ones(2000), atol=1e-14, rtol=0)
    assert_mean((momentum * new).sum(-1), math.exp(-4 * 0.3 / 2.0), bias=2e-3)


def keeps_the_law(name="identity"):
    kernel = zsp.MCLMC(step_size=0.25, length=2.0, n_steps=25, **FIXED)
    draws, _ = run(kernel, gaussian, gaussian_draws(4000), 1, metric=METRICS[name])
    assert_standard_normal(torch.linalg.solve_triangular(torch.linalg.cholesky(COVARIANCE), draws.mT, upper=False).mT)


@pytest.mark.parametrize("name", METRICS)
def test_small_steps_keep_a_normal_distribution(name):
    keeps_the_law(name)


def test_a_force_of_the_wrong_scale_is_seen(monkeypatch):
    """Divided by D instead of D - 1: the law is then that of another temperature."""
    monkeypatch.setattr(isokinetic, "turn", lambda u, f, t: turn(u, f * (f.shape[-1] - 1) / f.shape[-1], t))
    with pytest.raises(AssertionError):
        keeps_the_law()


def standard(position):
    return -0.5 * position.square().sum(-1)


def squares(step_size, n_dims=10, n_chains=800, n_transitions=500):
    """Per chain, the mean square of all coordinates over time; and the mean squared energy error."""
    kernel = zsp.MCLMC(step_size=step_size, length=n_dims**0.5, n_steps=2, integrator="leapfrog", **FIXED)
    density, state, generator = begin(kernel, standard, torch.randn(n_chains, n_dims))
    total, variance = torch.zeros(n_chains), torch.zeros(())
    told = tuning(METRICS["identity"])
    state, told = to_numpy((state, told))
    n_burn = 100
    for i in range(2 * (n_burn + n_transitions)):
        noise = to_numpy(
            tree_map(lambda leaf: leaf[0], kernel.draw_noise(1, total[:, None].expand(-1, n_dims), generator))
        )
        state, ended = kernel.advance(density, state, noise, told)
        if ended is not None and i >= 2 * n_burn:
            total += torch.from_numpy(ended.position).square().mean(-1)
            variance += ended.info.energy_variance.mean().item()
    return total / n_transitions, variance / n_transitions


def test_the_bias_is_of_order_step_size_squared():
    """As of any symmetric integrator of second order; nothing here removes it."""
    short, short_variance = squares(1.5)
    long, long_variance = squares(3.0)
    bias, error = [], []
    for values in (short, long):
        bias.append((values.mean() - 1).item())
        error.append((values.std() / len(values) ** 0.5).item())
    print("bias", bias, "standard error", error, "energy variance", short_variance, long_variance)
    assert bias[0] > 6 * error[0], "the bias is seen"
    # four times as large, not two or eight times: 0.15 for higher orders, and 5.4 standard errors
    tolerance = 0.15 + 5.4 * (error[0] / bias[0] + error[1] / bias[1])
    assert tolerance < 0.45
    assert abs(bias[1] / bias[0] / 4 - 1) < tolerance
    assert 0.7 < long_variance / short_variance / 2**6 < 1.5, "the variance of energy errors goes with its sixth power"


# -- what the adaptation finds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("integrator, mass_matrix", [("minimal_norm", "diagonal"), ("leapfrog", "identity")])
def test_the_adaptation_finds_the_energy_variance_and_the_length(integrator, mass_matrix):
    n_dims = 20
    kernel = zsp.MCLMC(integrator=integrator, mass_matrix=mass_matrix)
    draws = zsp.mcmc(
        lambda values: standard(values["x"]), {}, kernel=kernel, latents={"x": torch.zeros(n_dims)}, n_chains=128,
        n_warmup=400, n_samples=100, progress=False, compile=False,
    )  # fmt: skip
    assert abs(draws.info.energy_variance.mean().item() / 5e-4 - 1) < 0.3
    assert (draws.info.step_size == draws.info.step_size[0, 0]).all()
    # the fixed point sqrt(0.8 D) of the continuous dynamics; steps are long, D is 20
    assert 0.7 < draws.info.trajectory_length[0, 0].item() / (0.8 * n_dims) ** 0.5 < 1.4
    assert not draws.info.is_divergent.any()
    spread = draws["x"].flatten(0, 1).square().mean().item()
    assert abs(spread - 1) < 0.1, "biased, but not by much"


def test_a_suggested_step_size_has_the_wanted_error():
    """Where the error goes with the third power of the step size, one step finds it."""
    memory = Memory.start(torch.full((50,), 0.3), torch.tensor(1.0), torch.zeros(50, 4))
    energy_change = 0.02 * torch.ones(50)
    memory = memory.update_step_size(energy_change, 4, 5e-4, torch.tensor(1.0))
    expected = 0.3 * (4 * 5e-4 / 0.02**2) ** (1 / 6)
    torch.testing.assert_close(memory.log_step_size.exp(), torch.full((50,), expected), atol=1e-6, rtol=0)
    unchanged = memory.update_step_size(10 * energy_change, 4, 5e-4, torch.tensor(0.0))
    assert torch.equal(unchanged.log_step_size, memory.log_step_size)
    shorter = memory.update_step_size(energy_change * math.nan, 4, 5e-4, torch.tensor(1.0))
    assert (shorter.log_step_size < memory.log_step_size).all() and shorter.log_step_size.isfinite().all()


def test_the_length_follows_the_autocorrelation():
    """Positions whose correlation falls by a factor of 0.8 a step: tau = 1 + 2 sum 0.8^k, until 0.05."""
    n, decay = 20_000, 0.8
    memory = Memory.start(torch.full((n,), 0.5), torch.tensor(3.0), torch.zeros(n, 4))
    position = torch.randn(n, 4)
    lengths = []
    for _ in range(16):
        memory = memory.update_length(position, torch.tensor(1.0))
        lengths.append(memory.log_length[0].exp().item())
        position = decay * position + (1 - decay**2) ** 0.5 * torch.randn(n, 4)
    last = math.ceil(math.log(0.05) / math.log(decay))  # the first below 0.05
    time = 1 + 2 * sum(decay**k for k in range(1, last))
    assert lengths[last - 1] == pytest.approx(3.0)
    assert lengths[last] == pytest.approx((3.0 * 0.4 * 0.5 * time) ** 0.5, rel=0.03)


# -- in the run loop, and outside --------------------------------------------------------------------------------------


def test_a_traced_step_equals_an_eager_one_while_it_adapts():
    kernel = zsp.MCLMC(step_size=0.5, n_steps=3)
    assert_traced_equals_eager(kernel, gaussian, gaussian_draws(6), 60)


def test_the_same_seed_gives_the_same_draws():
    def sample(seed):
        return zsp.mcmc(
            lambda values: gaussian(values["x"]), {}, kernel=zsp.MCLMC(), latents={"x": torch.zeros(3)}, n_chains=8,
            n_warmup=20, n_samples=5, seed=seed, progress=False, compile=False,
        )["x"]  # fmt: skip

    first = sample(3)
    assert torch.equal(first, sample(3)) and not torch.equal(first, sample(4))


def test_a_direction_lasts_from_step_to_step():
    kernel = zsp.MCLMC(step_size=0.01, length=1e9, n_steps=1, **FIXED)
    state = kernel.init(standard, torch.randn(5, 3), seed=0)
    directions = []
    for _ in range(3):
        state, _ = kernel.step(standard, state)
        directions.append(state.step_size.momentum)
    assert (torch.linalg.vecdot(directions[0], directions[2]) > 0.99).all()


def test_init_and_step_adapt_and_then_keep_the_law():
    kernel = zsp.MCLMC(energy_variance=1e-7)
    state = kernel.init(gaussian, gaussian_draws(2000), seed=0)
    for _ in range(150):
        state, _ = kernel.step(gaussian, state, adapt=True)
    for _ in range(25):
        state, info = kernel.step(gaussian, state)
    assert info.energy_variance.mean() < 3e-7 and (info.n_leapfrogs == 4).all()
    assert_standard_normal(
        torch.linalg.solve_triangular(torch.linalg.cholesky(COVARIANCE), state.position.mT, upper=False).mT
    )


def test_a_step_that_leaves_the_numbers_is_not_taken_and_counted():
    def walled(position):
        return torch.where(position.norm(dim=-1) < 2, standard(position), math.nan)

    kernel = zsp.MCLMC(step_size=0.5, length=5.0, n_steps=10, **FIXED)
    start = 0.2 * torch.randn(200, 3)
    draws, (report,) = run(kernel, walled, start, 1)
    assert 0 < report.is_divergent.double().mean() < 1
    torch.testing.assert_close(report.is_divergent, report.acceptance_rate < 1)
    assert (draws.norm(dim=-1) < 2).all() and ((draws - start).norm(dim=-1) > 0).all()
    assert report.log_density.isfinite().all() and report.energy_variance.isfinite().all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"step_size": 0.0}, "step_size must be positive, got 0.0"),
        ({"energy_variance": -1.0}, "energy_variance must be positive, got -1.0"),
        ({"length": 0.0}, "length must be positive, or None to begin at the chains' spread, got 0.0"),
        ({"adapt_length": False}, "adapt_length=False needs the length that stays: length=3.0"),
        ({"n_steps": 0}, "n_steps must be at least 1, got 0"),
        ({"integrator": "euler"}, "integrator must be one of 'leapfrog', 'minimal_norm', got 'euler'"),
        ({"mass_matrix": "full"}, "mass_matrix must be one of .*got 'full'"),
    ],
)
def test_options_that_no_kernel_takes(options, message):
    with pytest.raises(ValueError, match=message):
        zsp.MCLMC(**options)


@pytest.mark.parametrize(
    "shape, n_chains, message",
    [
        ((1,), 8, "MCLMC needs at least two unconstrained dimensions to turn in, but the latents have 1"),
        ((3,), 1, r"but there is one chain: run some dozens of them \(n_chains=64\)"),
    ],
)
def test_too_few_dimensions_or_chains(shape, n_chains, message):
    with pytest.raises(ValueError, match=message):
        zsp.mcmc(
            lambda values: standard(values["x"]), {}, kernel=zsp.MCLMC(), latents={"x": torch.zeros(shape)},
            n_chains=n_chains, progress=False,
        )  # fmt: skip
