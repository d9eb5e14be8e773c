"""ChEES-HMC: the leapfrog, the law it keeps, what its adaptation finds, and what it says when it is misused."""

import math

import pytest
import torch

import zsp
from tests.inference.sampling.many_chains import (
    assert_standard_normal,
    assert_traced_equals_eager,
    place_at,
    run,
    straightened,
)
from tests.inference.sampling.targets import (
    COVARIANCE,
    METRICS,
    banana,
    banana_draws,
    gaussian,
    gaussian_draws,
)
from tests.monte_carlo import assert_mean
from zsp.inference.sampling import shared_trajectory
from zsp.inference.sampling.chees import leapfrog
from zsp.inference.sampling.trajectory_length import (
    LengthAdaptation,
    Outcome,
    chees_gradient,
    leading_scale,
    van_der_corput,
)

FIXED = {"adapt_step_size": False, "adapt_trajectory_length": False}

# -- the integrator -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METRICS)
def test_the_leapfrog_runs_backwards_to_where_it_began(name):
    metric = METRICS[name]
    density, start = place_at(banana, metric.unpush(banana_draws(50)), torch.randn(50, 3), metric)
    step = torch.full((50,), 0.01)
    place, total = start, 0
    for _ in range(30):
        place, change = leapfrog(density, metric, place, step)
        total = total + change
    moved = (place.position - start.position).norm(dim=-1)
    place = place._replace(momentum=-place.momentum)
    for _ in range(30):
        place, change = leapfrog(density, metric, place, step)
        total = total + change
    assert (moved > 0.01).all()
    torch.testing.assert_close(place.position, start.position, atol=1e-10, rtol=0)
    torch.testing.assert_close(-place.momentum, start.momentum, atol=1e-10, rtol=0)
    torch.testing.assert_close(total, torch.zeros(50), atol=1e-10, rtol=0)


def test_the_energy_error_is_of_order_step_size_squared():
    position, momentum = gaussian_draws(100), torch.randn(100, 3)

    def error(n):
        density, start = place_at(gaussian, position, momentum)
        place, total = start, 0
        for _ in range(n):
            place, change = leapfrog(density, METRICS["identity"], place, torch.full((100,), 2.0 / n))
            total = total + change
        return (total - (place.log_density - start.log_density)).square().mean().sqrt()

    assert 3.9 < error(40) / error(80) < 4.1


# -- the law it keeps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METRICS)
def test_it_keeps_a_normal_distribution(name):
    kernel = zsp.ChEES(step_size=0.5, trajectory_length=2.5, **FIXED)
    draws, reports = run(kernel, gaussian, gaussian_draws(20_000), 6, metric=METRICS[name])
    assert_standard_normal(torch.linalg.solve_triangular(torch.linalg.cholesky(COVARIANCE), draws.mT, upper=False).mT)
    rate = sum(report.acceptance_rate.mean().item() for report in reports) / len(reports)
    assert 0.3 < rate < 0.97, "the test of acceptance had something to do"


def keeps_the_banana(kernel=None):
    kernel = kernel or zsp.ChEES(step_size=0.11, trajectory_length=0.8, **FIXED)
    draws, reports = run(kernel, banana, banana_draws(20_000), 6)
    assert_standard_normal(straightened(draws))
    return sum(report.acceptance_rate.mean().item() for report in reports) / len(reports)


def test_it_keeps_a_curved_distribution():
    assert 0.4 < keeps_the_banana() < 0.95


def test_an_acceptance_test_that_forgets_the_kinetic_energy_is_seen(monkeypatch):
    def forgetful(self, *given):
        place, change = leapfrog(*given)
        return place, 0 * change

    monkeypatch.setattr(zsp.ChEES, "_leapfrog", forgetful)
    with pytest.raises(AssertionError):
        keeps_the_banana()


def test_momenta_of_the_wrong_scale_are_seen(monkeypatch):
    monkeypatch.setattr(zsp.ChEES, "_refresh", lambda self, normal: 1.1 * normal)
    with pytest.raises(AssertionError):
        keeps_the_banana()


def test_it_keeps_the_law_in_single_precision():
    kernel = zsp.ChEES(step_size=0.11, trajectory_length=0.8, **FIXED)
    draws, reports = run(kernel, banana, banana_draws(20_000).float(), 4)
    assert draws.dtype == torch.float32 and {leaf.dtype for leaf in reports[0]} == {torch.float32, torch.bool}
    assert_standard_normal(straightened(draws.double()))


def test_all_chains_make_the_same_number_of_steps_which_goes_through_the_sequence():
    kernel = zsp.ChEES(step_size=0.1, trajectory_length=1.6, **FIXED)
    _, reports = run(kernel, gaussian, gaussian_draws(3), 7)
    assert [report.n_leapfrogs.tolist() for report in reports] == [[n] * 3 for n in (8, 4, 12, 2, 10, 6, 14)]
    torch.testing.assert_close(reports[2].trajectory_length, torch.full((3,), 1.2))


# -- what the adaptation finds -----------------------------------------------------------------------------------------


def test_van_der_corput_mirrors_the_digits():
    made = [van_der_corput(torch.tensor([float(i), float(i)])).tolist() for i in range(1, 9)]
    assert made == [[v, v] for v in (0.5, 0.25, 0.75, 0.125, 0.625, 0.375, 0.875, 0.0625)]


def test_the_gradient_is_that_of_the_criterion():
    """The exact flow of a normal distribution: ChEES is sum sigma^4 sin(t / sigma)^2 with t = h T."""
    scales, time, fraction = torch.tensor([1.0, 0.5, 2.0]), torch.tensor(1.3), torch.tensor(0.6)
    length = (time / fraction).requires_grad_()
    criterion = (scales**4 * torch.sin(fraction * length / scales) ** 2).sum()
    (slope,) = torch.autograd.grad(criterion, length)

    def estimate():
        start, momentum = scales * torch.randn(1000, 3), torch.randn(1000, 3)
        sine, cosine = torch.sin(time / scales), torch.cos(time / scales)
        end = start * cosine + scales * momentum * sine
        velocity = momentum * cosine - start / scales * sine
        outcome = Outcome(start, end, velocity, torch.ones(1000), fraction.expand(1000))
        # the estimate is in units of the spread
        return chees_gradient(outcome, length.detach())[0] * start.var(0, correction=0).mean() ** 2

    estimates = torch.stack([estimate() for _ in range(1000)])
    assert_mean(estimates, slope * length.detach(), bias=1e-3 * 5)  # means over 1,000 chains are off by a thousandth
    assert 3 * estimates.std() / 1000**0.5 < 0.05 * abs(slope * length).item(), "a tenth would be seen"


def test_a_trajectory_that_left_the_numbers_does_not_count():
    start, end, velocity = torch.randn(3, 10, 2)
    rate = torch.rand(10)
    end[3], velocity[3], rate[3] = math.nan, math.inf, 0.0
    gradient = chees_gradient(Outcome(start, end, velocity, rate, torch.ones(10)), torch.tensor(1.0))
    end[3], velocity[3] = 1e3, 1.0
    expected = chees_gradient(Outcome(start, end, velocity, rate, torch.ones(10)), torch.tensor(1.0))
    assert gradient.isfinite().all() and (gradient == gradient[0]).all()
    torch.testing.assert_close(gradient, expected)


SCALES = torch.tensor([1.0, 0.5, 3.0])


def scaled(values):
    return -0.5 * (values["x"] / SCALES.to(values["x"])).square().sum(-1)


@pytest.mark.parametrize("jitter", [0.0, 1.0])
def test_the_trajectory_length_is_where_the_criterion_is_largest(jitter):
    lengths = torch.linspace(0.5, 9, 2000)
    fractions = torch.linspace(1 - jitter, 1, 201)
    value = (SCALES**4 * torch.sin(fractions[:, None] * lengths[:, None, None] / SCALES).square()).sum(-1).mean(-1)
    best = lengths[value.argmax()].item()
    assert abs(best - (0.5 * math.pi if jitter == 0 else 2.247) * 3) < 0.1, "a quarter of the slowest period"

    kernel = zsp.ChEES(
        step_size=0.2, trajectory_length=2.0, adapt_step_size=False, mass_matrix="identity", jitter=jitter
    )
    draws = zsp.mcmc(
        scaled, {}, kernel=kernel, latents={"x": torch.zeros(3)}, n_chains=256, n_warmup=250, n_samples=64,
        progress=False, compile=False,
    )  # fmt: skip
    # the longest of 64 lengths, whole steps
    assert abs(draws.info.trajectory_length.max().item() / best - 1) < 0.1


@pytest.mark.parametrize("mass_matrix", ["identity", "diagonal"])
def test_the_step_size_gives_the_wanted_harmonic_mean(mass_matrix):
    kernel = zsp.ChEES(mass_matrix=mass_matrix, target_acceptance_rate=0.7)
    draws = zsp.mcmc(
        scaled, {}, kernel=kernel, latents={"x": torch.zeros(3)}, n_chains=128, n_warmup=400, n_samples=150,
        progress=False, compile=False,
    )  # fmt: skip
    harmonic = (1 / (1 / draws.info.acceptance_rate.clamp(min=1e-30)).mean(0)).mean().item()
    assert abs(harmonic - 0.7) < 0.15
    assert (draws.info.step_size == draws.info.step_size[0, 0]).all()
    scale = 3.0 if mass_matrix == "identity" else 1.0
    assert 1.2 * scale < draws.info.trajectory_length.max().item() < 3.2 * scale
    ess = zsp.inference.diagnostics.ess_bulk(draws["x"])
    assert (ess > 1000).all()
    flat = draws["x"].flatten(0, 1) / SCALES
    assert_mean(flat.square(), 1.0, ess=1000)
    assert_mean(flat, 0.0, ess=1000)


def test_a_new_mass_matrix_changes_the_length_by_the_scale_that_rules_it():
    position = torch.randn(1000, 3) * torch.tensor([10.0, 1.0, 1.0])
    assert abs(leading_scale(position).item() / 10 - 1) < 0.1
    kernel = zsp.ChEES(trajectory_length=20.0)
    adaptation = kernel.start_adaptation(torch.ones(1000), position)
    after = type(METRICS["diagonal"])(torch.tensor([10.0, 1.0, 1.0]))
    restarted = kernel.restart_adaptation(adaptation, torch.full((1000,), 0.3), position, METRICS["identity"], after)
    assert abs(restarted.log_length.exp()[0].item() / 2 - 1) < 0.1
    torch.testing.assert_close(restarted.log_step_size.exp(), torch.full((1000,), 0.3))


def test_after_the_adaptation_the_averages_stay():
    adaptation = LengthAdaptation.start(torch.full((4,), 0.1), 1.0)
    adaptation = adaptation._replace(log_average_length=torch.full((4,), 0.5))
    assert (adaptation.finish().log_length == 0.5).all()


# -- in the run loop, and outside --------------------------------------------------------------------------------------


def test_a_traced_step_equals_an_eager_one_while_it_adapts():
    assert_traced_equals_eager(zsp.ChEES(step_size=0.3), gaussian, gaussian_draws(6), 60)


def test_the_same_seed_gives_the_same_draws():
    def sample(seed):
        return zsp.mcmc(
            scaled, {}, kernel=zsp.ChEES(), latents={"x": torch.zeros(3)}, n_chains=8, n_warmup=40, n_samples=5,
            seed=seed, progress=False, compile=False,
        )["x"]  # fmt: skip

    first = sample(3)
    assert torch.equal(first, sample(3)) and not torch.equal(first, sample(4))


def test_init_and_step_adapt_and_then_keep_the_law():
    def log_density(values):
        return -0.5 * (values["x"] / SCALES).square().sum(-1)

    kernel = zsp.ChEES(trajectory_length=3.0)
    state = kernel.init(log_density, {"x": torch.randn(2000, 3) * SCALES}, seed=0)
    for _ in range(60):
        state, _ = kernel.step(log_density, state, adapt=True)
    lengths = []
    for _ in range(8):
        state, info = kernel.step(log_density, state)
        lengths.append(info.trajectory_length[0].item())
    assert len(set(lengths)) > 1, "the sequence goes on"
    assert_standard_normal(state.position["x"] / SCALES)


def test_no_trajectory_is_lost_on_a_model():
    @zsp.meta_bayesian_net()
    def model():
        bn = zsp.BayesianNet()
        scale = bn.gamma("scale", torch.tensor(3.0), torch.tensor(2.0))
        bn.normal("y", torch.zeros(()), std=scale)
        return bn

    draws = zsp.mcmc(
        model(), {"y": torch.tensor(1.0)}, kernel=zsp.ChEES(), n_chains=64, n_warmup=150, n_samples=100,
        progress=False, compile=False,
    )  # fmt: skip
    grid = torch.linspace(1e-3, 20, 200_000)
    weight = (
        torch.distributions.Gamma(3.0, 2.0).log_prob(grid).exp()
        * torch.distributions.Normal(0.0, grid).log_prob(torch.tensor(1.0)).exp()
    )
    mean = (weight * grid).sum() / weight.sum()
    ess = zsp.inference.diagnostics.ess_bulk(draws["scale"]).item()
    assert ess > 1000
    assert_mean(draws["scale"].flatten(), mean, ess=ess)
    assert set(draws.info) >= {"acceptance_rate", "n_leapfrogs", "step_size", "is_divergent", "trajectory_length"}


# -- misuse -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"trajectory_length": 0.0}, "trajectory_length must be positive, or None to begin at one step, got 0.0"),
        ({"adapt_trajectory_length": False}, "needs the length that stays: trajectory_length=1.5"),
        ({"jitter": 1.5}, r"jitter must be in \[0, 1\], got 1.5"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"max_leapfrogs": 0}, "max_leapfrogs must be at least 1, got 0"),
        ({"step_size": -1.0}, "step_size must be positive"),
        ({"target_acceptance_rate": 1.0}, "target_acceptance_rate must be between 0 and 1"),
        ({"mass_matrix": "full"}, "mass_matrix must be one of .*got 'full'"),
    ],
)
def test_options_that_no_kernel_takes(options, message):
    with pytest.raises(ValueError, match=message):
        zsp.ChEES(**options)


def test_one_chain_has_nobody_to_learn_with():
    with pytest.raises(ValueError, match=r"many chains do together, but there is one chain.*n_chains=64.*False"):
        zsp.mcmc(scaled, {}, kernel=zsp.ChEES(), latents={"x": torch.zeros(3)}, n_chains=1, progress=False)


def test_a_trajectory_that_diverges_is_counted_and_not_taken():
    kernel = zsp.ChEES(step_size=30.0, trajectory_length=900.0, **FIXED)
    start = gaussian_draws(10)
    draws, reports = run(kernel, gaussian, start, 2)
    assert all(report.is_divergent.all() and (report.acceptance_rate == 0).all() for report in reports)
    torch.testing.assert_close(draws, start)
    assert shared_trajectory.DIVERGENCE == 1000
