"""HMC: the leapfrog's exact properties, ZhuSuan's way to use it, and its stationary law."""

import math

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_map

import zsp
from tests.inference.sampling.targets import (
    METRICS,
    assert_exact,
    banana,
    banana_draws,
    gaussian,
    gaussian_draws,
    gradient_of,
    tuning,
)
from tests.monte_carlo import assert_mean, assert_variance
from zsp.inference.sampling.arrays import to_numpy, to_torch
from zsp.inference.sampling.hmc import Noise
from zsp.inference.sampling.kernel import Density
from zsp.inference.sampling.step_size import DualAveraging

FIXED = {"adapt_step_size": False, "adapt_mass": False}


def transition(kernel, log_density, metric, position, noise, step_size):
    """One transition by ``advance``: the new state and what is told of it."""
    density = Density(log_density)
    state = kernel.begin(density, position, metric, DualAveraging.start(step_size), noise)
    return kernel.advance(density, state, noise, tuning(metric))


def accepted(momentum):
    """Random numbers with which every proposal is accepted."""
    return Noise(momentum, torch.full_like(momentum[:, 0], -math.inf), torch.zeros_like(momentum[:, 0]))


# -- the trajectory ---------------------------------------------------------------------------------------------------


def trajectory(log_density, metric, position, momentum, step_size, n):
    """n leapfrog steps written out, with the inverse mass matrix and without whitening: positions and momenta."""
    factor = metric.push(torch.eye(3)).mT
    momentum = torch.linalg.solve(factor.mT, momentum.mT).mT  # of N(0, M)
    inverse_mass = factor @ factor.mT
    for _ in range(n):
        momentum = momentum + 0.5 * step_size * gradient_of(log_density, position)[1]
        position = position + step_size * momentum @ inverse_mass
        momentum = momentum + 0.5 * step_size * gradient_of(log_density, position)[1]
    return position, momentum @ factor


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_a_trajectory_is_that_of_the_inverse_mass_matrix(metric):
    position, momentum = banana_draws(6), torch.randn(6, 3)
    kernel = zsp.HMC(n_leapfrogs=7, **FIXED)
    state, ended = transition(kernel, banana, metric, position, accepted(momentum), torch.full((6,), 0.02))
    expected, _ = trajectory(banana, metric, position, momentum, 0.02, 7)
    assert torch.allclose(state.position, expected, atol=1e-10)
    assert torch.allclose(ended.info.log_density, banana(expected), atol=1e-9)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_the_leapfrog_run_backwards_returns_to_its_start(metric):
    position, momentum = banana_draws(6), torch.randn(6, 3)
    kernel = zsp.HMC(n_leapfrogs=20, **FIXED)
    step_size = torch.full((6,), 0.01)
    forwards, _ = transition(kernel, banana, metric, position, accepted(momentum), step_size)
    _, last = trajectory(banana, metric, position, momentum, 0.01, 20)
    backwards, _ = transition(kernel, banana, metric, forwards.position, accepted(-last), step_size)
    assert (forwards.position - position).abs().amax(-1).min() > 0.05
    assert torch.allclose(backwards.position, position, atol=1e-10)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_the_energy_error_is_of_the_order_of_the_step_size_squared(metric):
    position, momentum = gaussian_draws(50), torch.randn(50, 3)
    errors = []
    for n in (64, 128, 256):  # trajectories of the same length
        density = Density(gaussian)
        state, _ = transition(
            zsp.HMC(n_leapfrogs=n, **FIXED), gaussian, metric, position, accepted(momentum), torch.full((50,), 1.3 / n)
        )
        _, last = trajectory(gaussian, metric, position, momentum, 1.3 / n, n)
        start = 0.5 * momentum.square().sum(-1) - density(position)[0]
        errors.append((0.5 * last.square().sum(-1) - state.log_density - start).abs())
    assert torch.allclose(errors[0] / errors[1], torch.tensor(4.0), rtol=0.05)
    assert torch.allclose(errors[1] / errors[2], torch.tensor(4.0), rtol=0.02)


def test_a_proposal_is_accepted_with_the_probability_of_metropolis():
    position, momentum = banana_draws(400), torch.randn(400, 3)
    kernel = zsp.HMC(n_leapfrogs=3, **FIXED)
    metric, step_size = METRICS["dense"], torch.full((400,), 0.13)
    proposed, _ = transition(kernel, banana, metric, position, accepted(momentum), step_size)
    end, last = trajectory(banana, metric, position, momentum, 0.13, 3)
    change = banana(end) - banana(position) + 0.5 * momentum.square().sum(-1) - 0.5 * last.square().sum(-1)
    expected = change.clamp(max=0).nan_to_num(-math.inf).exp()
    log_uniform = torch.rand(400).log()
    state, ended = transition(kernel, banana, metric, position, Noise(momentum, log_uniform, momentum[:, 0]), step_size)
    assert torch.allclose(ended.info.acceptance_rate, expected, atol=1e-8)
    assert ended.info.is_accepted.equal(log_uniform <= change) and 0 < ended.info.is_accepted.sum() < 400
    assert ended.info.is_divergent.equal(~(change >= -1000)) and ended.info.is_divergent.any()
    where = ended.info.is_accepted[:, None]
    assert state.position.equal(torch.where(where, proposed.position, position))
    assert torch.allclose(state.log_density, banana(state.position), atol=1e-12)
    assert torch.allclose(metric.unpull(state.force), gradient_of(banana, state.position)[1], atol=1e-9)


def test_jitter_multiplies_the_step_size():
    position, momentum = torch.randn(2, 4, 3)
    jitter = torch.tensor([-1.0, 0.0, 0.5, 1.0])
    noise = accepted(momentum)._replace(jitter=jitter)
    kernel = zsp.HMC(n_leapfrogs=5, jitter=0.4, **FIXED)
    state, ended = transition(kernel, gaussian, METRICS["identity"], position, noise, torch.full((4,), 0.05))
    for i in range(4):
        expected, _ = trajectory(
            gaussian, METRICS["identity"], position[i : i + 1], momentum[i : i + 1], 0.05 * (1 + 0.4 * jitter[i]), 5
        )
        assert torch.allclose(state.position[i], expected[0], atol=1e-12)


# -- batches and libraries --------------------------------------------------------------------------------------------


def test_chains_of_a_batch_are_the_single_chains():
    kernel = zsp.HMC(n_leapfrogs=4, jitter=0.2, **FIXED)
    noise = kernel.draw_noise(20, torch.zeros(6, 3), torch.Generator().manual_seed(0))
    position = torch.randn(6, 3)

    def run(chains, as_numpy):
        density = Density(banana)
        state = kernel.begin(density, position[chains], METRICS["dense"], DualAveraging.start(step_size[chains]), None)
        rest, fixed = Noise(*(leaf[:, chains] for leaf in noise)), tuning(METRICS["dense"], is_adapting=1.0)
        if as_numpy:
            state, rest, fixed = to_numpy((state, rest, fixed))
        draws = []
        for i in range(20):
            with np.errstate(all="ignore"):
                state, ended = kernel.advance(density, state, tree_map(lambda leaf, i=i: leaf[i], rest), fixed)
            draws.append(to_torch(ended.position))
        return torch.stack(draws)

    step_size = torch.tensor([0.02, 0.05, 0.1, 0.2, 0.3, 0.5])
    together = run(slice(None), False)
    for i in range(6):
        assert torch.allclose(run(slice(i, i + 1), False), together[:, i : i + 1], atol=1e-9)
    assert torch.allclose(run(slice(None), True), together, atol=1e-9)


# -- init and step ----------------------------------------------------------------------------------------------------


def test_latents_with_two_chain_axes_in_a_loop_of_the_users_own():
    """ZhuSuan's E-step: chains and documents, each with a log joint of its own."""
    observed = torch.randn(5)

    def log_joint(latents):
        return -0.5 * latents["z"].square() - 0.5 * (observed - latents["z"]).square() / 0.25

    kernel = zsp.HMC(step_size=0.1, n_leapfrogs=8)
    state = kernel.init(log_joint, {"z": torch.zeros(300, 5)}, seed=1)
    assert state.log_density.shape == (300, 5)
    for _ in range(50):
        state, info = kernel.step(log_joint, state, adapt=True)
    for _ in range(10):
        state, info = kernel.step(log_joint, state)
    assert info.acceptance_rate.shape == (300, 5)
    assert state.log_density.equal(info.log_density)
    assert torch.allclose(state.log_density, log_joint(state.position), atol=1e-12)
    assert_mean(state.position["z"], observed * 0.8)
    assert_variance(state.position["z"], 0.2)


@pytest.mark.parametrize("kernel", [zsp.HMC(step_size=0.1), zsp.NUTS(step_size=0.1)], ids=["HMC", "NUTS"])
def test_a_step_is_pure_and_its_state_is_a_pytree_of_tensors(kernel):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    state = kernel.init(gaussian, torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), seed=7)
    copy = tree_map(torch.clone, state)
    first, first_info = kernel.step(gaussian, state, adapt=True)
    second, second_info = kernel.step(gaussian, state, adapt=True)
    leaves = torch.utils._pytree.tree_leaves
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves(state))
    assert all(a.equal(b) for a, b in zip(leaves(state), leaves(copy), strict=True)), "the state is not changed"
    assert all(a.equal(b) for a, b in zip(leaves(first), leaves(second), strict=True)), "the random state is inside"
    assert all(a.equal(b) for a, b in zip(first_info, second_info, strict=True))
    third, _ = kernel.step(gaussian, state)
    fourth, _ = kernel.step(gaussian, third)
    assert not fourth.position.equal(third.position)
    assert torch.get_rng_state().equal(before)
    assert not kernel.init(gaussian, state.position, seed=8).random.equal(state.random)


def test_the_log_density_may_change_between_steps():
    """Monte Carlo EM: the second density's value and gradient are used, not those of the first."""
    kernel = zsp.HMC(step_size=0.3, n_leapfrogs=8, **FIXED)
    state = kernel.init(gaussian, gaussian_draws(4000), seed=0)
    for _ in range(15):
        state, _ = kernel.step(lambda q: -0.5 * (q - 3).square().sum(-1), state)
    assert_mean(state.position, 3.0)
    assert_variance(state.position, 1.0)


def test_without_adaptation_the_averaged_step_size_is_used():
    kernel = zsp.HMC(step_size=0.1, n_leapfrogs=3, adapt_mass=False)
    state = kernel.init(gaussian, gaussian_draws(5), seed=0)
    for _ in range(10):
        state, _ = kernel.step(gaussian, state, adapt=True)
    average = state.step_size.log_average.exp()
    assert not torch.allclose(average, state.step_size.log_step_size.exp(), rtol=1e-3)
    after, info = kernel.step(gaussian, state)
    assert torch.allclose(info.step_size, average, rtol=1e-12)
    assert all(a.equal(b) for a, b in zip(after.step_size, state.step_size, strict=True)), "and can be adapted further"


def test_masses_are_the_exponentially_weighted_variances_of_all_chains():
    kernel = zsp.HMC(step_size=0.5, n_leapfrogs=2, adapt_step_size=False, mass_collect_iters=3, mass_decay=0.9)
    state = kernel.init(gaussian, gaussian_draws(6), seed=0)
    draws, metrics = [], []
    for _ in range(8):
        state, _ = kernel.step(gaussian, state, adapt=True)
        draws.append(state.position)
        metrics.append(state.metric)
    assert [type(metric).__name__ for metric in metrics] == ["Identity"] * 2 + ["Diagonal"] * 6
    for t in range(3, 9):
        weights = 0.9 ** torch.arange(t - 1, -1, -1.0)
        weights = (weights / weights.sum())[:, None, None] / 6
        made = torch.stack(draws[:t])
        mean = (weights * made).sum((0, 1))
        variance = (weights * (made - mean).square()).sum((0, 1))
        assert torch.allclose(metrics[t - 1].scale.square(), variance, rtol=1e-10)


def test_a_chain_that_has_not_moved_keeps_a_finite_mass():
    """The first steps of one chain are all rejected: its variance is 0, and it must go on."""
    kernel = zsp.HMC(step_size=50.0, n_leapfrogs=3, adapt_step_size=False, mass_collect_iters=2)
    state = kernel.init(lambda q: -0.5 * 1e4 * q.square().sum(-1), torch.full((1, 2), 0.01), seed=0)
    for _ in range(4):
        state, info = kernel.step(lambda q: -0.5 * 1e4 * q.square().sum(-1), state, adapt=True)
        assert not info.is_accepted.any()
    assert state.metric.scale.equal(torch.ones(2))


# -- the stationary law -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("target, draw", [(gaussian, gaussian_draws), (banana, banana_draws)])
def test_exact_draws_stay_exact_draws(metric, target, draw):
    """Chains that begin at independent exact draws are independent exact draws after any number of transitions."""
    kernel = zsp.HMC(step_size=0.25 if target is gaussian else 0.04, n_leapfrogs=10, jitter=0.3, **FIXED)
    n = 10_000
    start = draw(n)
    state = kernel.init(target, start, seed=0)._replace(metric=METRICS[metric])
    for _ in range(8):
        state, info = kernel.step(target, state)
    moved = (state.position - start).abs().mean()
    assert moved > 0.2 and 0.2 < info.acceptance_rate.mean() < 0.99, (moved, info.acceptance_rate.mean())
    assert_exact(target, state.position)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"n_leapfrogs": 0}, "n_leapfrogs must be at least 1, got 0"),
        ({"jitter": 1.0}, r"jitter must be in \[0, 1\), got 1.0"),
        ({"mass_decay": 1.5}, "mass_decay must be between 0 and 1, got 1.5"),
        ({"step_size": -0.1}, "step_size must be positive, got -0.1"),
        ({"target_acceptance_rate": 80}, "target_acceptance_rate must be between 0 and 1, got 80"),
        ({"mass_matrix": "full"}, "mass_matrix must be one of 'diagonal', 'dense', 'low_rank', 'identity', got 'full'"),
        ({"mass_estimate": "gradient"}, "mass_estimate must be one of 'gradients', 'draws', got 'gradient'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        zsp.HMC(**options)


def test_a_beginning_that_is_not_finite_is_refused():
    def log_density(q):
        return torch.log(q[..., 0]) - q.sum(-1)

    with pytest.raises(ValueError, match=r"must be finite where the chains begin, but for 1 of 2 chains .* are nan, -1"):
        zsp.HMC().init(log_density, torch.tensor([[-1.0], [1.0]]), seed=0)


def test_float32_stays_float32():
    kernel = zsp.HMC(step_size=0.3)
    state = kernel.init(gaussian, gaussian_draws(6).float(), seed=0)
    for adapt in (True, False):
        state, info = kernel.step(gaussian, state, adapt=adapt)
    floating = [leaf for leaf in torch.utils._pytree.tree_leaves((state, info)) if leaf.is_floating_point()]
    assert {leaf.dtype for leaf in floating} == {torch.float32}
    np.testing.assert_allclose(state.log_density, gaussian(state.position), atol=1e-5)
