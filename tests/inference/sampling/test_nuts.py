"""NUTS against a recursive implementation that is given the same random numbers, and its stationary law."""

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
from zsp.inference.sampling.arrays import to_numpy, to_torch
from zsp.inference.sampling.kernel import Density, Momenta
from zsp.inference.sampling.nuts import Noise
from zsp.inference.sampling.step_size import DualAveraging

# -- the sampler as the papers describe it: recursion, whole trajectories in memory, one chain ---------------------------


def whitening(metric):
    """L with inverse mass matrix L L', [D, D]."""
    return metric.push(torch.eye(3)).mT


class Leaf:
    def __init__(self, log_density, factor, position, momentum):
        self.position, self.momentum = position, momentum
        value, gradient = gradient_of(log_density, position)
        self.log_density, self.force = value.item(), factor.mT @ gradient
        self.energy = 0.5 * (momentum @ momentum).item() - self.log_density


def leapfrog(log_density, factor, leaf, step):
    half = leaf.momentum + 0.5 * step * leaf.force
    position = leaf.position + step * factor @ half
    force = factor.mT @ gradient_of(log_density, position)[1]
    return Leaf(log_density, factor, position, half + 0.5 * step * force)


def turned(momenta):
    """The criterion, of a trajectory's momenta in order."""
    total = sum(momenta)
    return bool(momenta[0] @ total <= 0 or momenta[-1] @ total <= 0)


def has_turned(left, right):
    left, right = [leaf.momentum for leaf in left], [leaf.momentum for leaf in right]
    return turned(left + right) or turned([*left, right[0]]) or turned([left[-1], *right])


def recursive_transition(log_density, factor, position, momentum, step_size, noise, row, max_tree_depth):
    """One transition of one chain; row is that of its first direction, each leapfrog step has the next."""
    start = Leaf(log_density, factor, position, momentum)
    start.log_weight = 0.0
    made = []

    def build(last, direction, depth, left_half=()):
        """A subtree's leaves in the order in which they are made, and whether it is valid after a left half.

        With a leaf that turns the left half before it back nothing more is made: the trajectory of both is not valid.
        """
        if depth == 0:
            leaf = leapfrog(log_density, factor, last, direction * step_size)
            made.append(leaf)
            leaf.row = row + len(made)
            error = leaf.energy - start.energy
            leaf.log_weight = -error if abs(error) < 1e30 else -1e30
            after = [other.momentum for other in (*left_half, leaf)]
            return [leaf], error <= 1000 and not (left_half and turned(after))
        first, valid = build(last, direction, depth - 1, left_half)
        if not valid:
            return first, False
        second, valid = build(first[-1], direction, depth - 1, first)
        return first + second, valid and not has_turned(first, second)

    tree, draw, depth = [start], start, 0  # the tree from its first to its last state in time
    direction = noise.direction[row].item()
    while depth < max_tree_depth:
        subtree, valid = build(tree[-1] if direction > 0 else tree[0], direction, depth)
        if not valid:
            break
        weight = -math.inf
        for leaf in subtree:  # any of them with its weight
            weight = np.logaddexp(weight, leaf.log_weight)
            if noise.log_uniform[leaf.row, 0] <= leaf.log_weight - weight:
                candidate = leaf
        last_row = row + len(made)
        if noise.log_uniform[last_row, 1] <= weight - np.logaddexp.reduce([leaf.log_weight for leaf in tree]):
            draw = candidate
        depth += 1
        halves = (tree, subtree) if direction > 0 else (subtree[::-1], tree)
        tree = halves[0] + halves[1]
        direction = noise.direction[last_row].item()
        if has_turned(*halves):
            break
    errors = [leaf.energy - start.energy for leaf in made]
    accepted = [min(1.0, math.exp(-max(error, 0.0))) if math.isfinite(error) else 0.0 for error in errors]
    return {
        "position": draw.position.numpy(), "log_density": draw.log_density, "energy": start.energy,
        "n_leapfrogs": len(made), "tree_depth": depth, "acceptance_rate": sum(accepted) / len(made),
        "is_divergent": not errors[-1] <= 1000, "row": row + len(made),
    }  # fmt: skip


def flat_nuts(max_tree_depth, log_density, metric, position, step_size, noise, momenta, as_numpy=True):
    """The transitions of the state machine until the random numbers are used up, a list for each chain."""

    class Told(zsp.NUTS):
        """Begins with the first of the numbers."""

        def draw_noise(self, n_steps, position, generator):
            return tree_map(lambda leaf: leaf[:n_steps], noise)

        def draw_momenta(self, n_trajectories, position, generator):
            return Momenta.of(momenta[:n_trajectories])

    kernel = Told(max_tree_depth=max_tree_depth)
    density = Density(log_density)
    fixed = tuning(metric)._replace(momenta=Momenta.of(momenta[1:]))
    state = kernel.begin(density, position, metric, DualAveraging.start(step_size), torch.Generator())
    if as_numpy:
        state, noise, fixed = to_numpy((state, noise, fixed))
    transitions = [[] for _ in position]
    for i in range(1, len(noise.direction)):
        with np.errstate(all="ignore"):  # trajectories diverge
            state, ended = kernel.advance(density, state, tree_map(lambda leaf, i=i: leaf[i], noise), fixed)
        if ended is None:
            continue
        ended = to_torch(ended)
        for chain in ended.is_done.nonzero()[:, 0].tolist():
            info = {name: value[chain].item() for name, value in ended.info._asdict().items()}
            transitions[chain].append({**info, "position": ended.position[chain].numpy(), "row": i})
    return transitions


def assert_same(found, expected, atol):
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=atol, atol=atol, err_msg=name)


def some_numbers(n_steps, n_chains, seed=0):
    """Noise of so many steps, and momenta for as many trajectories, [trajectory, chain, D]."""
    kernel, position, generator = zsp.NUTS(), torch.zeros(n_chains, 3), torch.Generator().manual_seed(seed)
    return kernel.draw_noise(n_steps, position, generator), kernel.draw_momenta(n_steps, position, generator).values


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("target, max_tree_depth", [(gaussian, 7), (gaussian, 2), (banana, 6), (banana, 1)])
def test_trees_turns_and_draws_are_those_of_the_recursive_sampler(metric, target, max_tree_depth):
    noise, momenta = some_numbers(300, 4)
    noise.log_uniform[::13] = 0.0  # what a uniform number of 0 gives: a first leaf is taken all the same
    position = torch.randn(4, 3)
    step_size = torch.tensor([0.03, 0.1, 0.4, 1.6])
    found = flat_nuts(max_tree_depth, target, METRICS[metric], position, step_size, noise, momenta)
    factor = whitening(METRICS[metric])
    kinds, depths = set(), set()
    for chain, own in enumerate(found):
        numbers = Noise(*(leaf[:, chain] for leaf in noise))
        start, row = position[chain], 0
        for one, momentum in zip(own, momenta[:, chain], strict=False):
            expected = recursive_transition(
                target, factor, start, momentum, step_size[chain].item(), numbers, row, max_tree_depth
            )
            assert_same(one, expected, 1e-8)
            start, row = torch.from_numpy(one["position"]), one["row"]
            depths.add(one["tree_depth"])
            if one["is_divergent"]:
                kinds.add("divergent")
            elif one["n_leapfrogs"] > 2 ** one["tree_depth"] - 1:
                kinds.add("turned inside a subtree")
    assert max(depths) >= min(max_tree_depth, 4)
    assert max_tree_depth <= 2 or "turned inside a subtree" in kinds
    assert target is gaussian or "divergent" in kinds


def test_chains_of_a_batch_are_the_single_chains():
    """No chain is touched by the others, at whatever point of its trajectory they are."""
    noise, momenta = some_numbers(100, 6)
    position, step_size = banana_draws(6), torch.tensor([0.02, 0.05, 0.05, 0.1, 0.2, 0.5])
    together = flat_nuts(5, banana, METRICS["dense"], position, step_size, noise, momenta)
    for chain in range(6):
        alone = slice(chain, chain + 1)
        numbers = Noise(*(x[:, alone] for x in noise)), momenta[:, alone]
        (own,) = flat_nuts(5, banana, METRICS["dense"], position[alone], step_size[alone], *numbers)
        assert len(own) == len(together[chain]) > 2
        for one, other in zip(own, together[chain], strict=True):
            assert_same(one, other, 1e-9)


def test_tensors_give_what_numpy_arrays_give():
    noise, momenta = some_numbers(120, 4)
    position, step_size = banana_draws(4), torch.tensor([0.03, 0.06, 0.1, 0.15])
    arrays, tensors = (
        flat_nuts(6, banana, METRICS["low_rank"], position, step_size, noise, momenta, as_numpy)
        for as_numpy in (True, False)
    )
    for own, other in zip(arrays, tensors, strict=True):
        assert len(own) == len(other) > 1
        for a, b in zip(own, other, strict=True):
            assert_same(a, b, 1e-9)


def test_what_is_not_a_number_ends_the_trajectory_and_is_never_drawn():
    def walled(position):
        inside = position.abs().amax(-1) < 1
        return torch.where(inside, -0.5 * position.square().sum(-1), math.nan)

    state = zsp.NUTS(step_size=0.4, adapt_step_size=False).init(walled, torch.zeros(2000, 2), seed=0)
    kernel = zsp.NUTS(step_size=0.4, adapt_step_size=False)
    divergent = 0
    for _ in range(10):
        state, info = kernel.step(walled, state)
        divergent += int(info.is_divergent.sum())
        assert info.acceptance_rate.isfinite().all() and state.log_density.isfinite().all()
    assert divergent > 1000 and (state.position.abs() < 1).all()


# -- the stationary law -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target, draw, metric, step_size",
    [*((gaussian, gaussian_draws, metric, 0.4) for metric in METRICS), (banana, banana_draws, "dense", 0.05)],
)
def test_exact_draws_stay_exact_draws(metric, target, draw, step_size):
    """Chains that begin at independent exact draws are independent exact draws after any number of transitions."""
    kernel = zsp.NUTS(step_size=step_size, adapt_step_size=False, max_tree_depth=5)
    start = draw(4000)
    state = kernel.init(target, start, seed=0)._replace(metric=METRICS[metric])
    for _ in range(3):
        state, info = kernel.step(target, state)
    assert (state.position - start).abs().mean() > 0.3 and 0.3 < info.acceptance_rate.mean() < 0.99
    assert info.tree_depth.max() > info.tree_depth.min()
    assert_exact(target, state.position)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_tree_depth": 0}, "max_tree_depth must be between 1 and 20, got 0"),
        ({"target_acceptance_rate": 1.0}, "target_acceptance_rate must be between 0 and 1, got 1.0"),
        ({"mass_matrix": "diag"}, "mass_matrix must be one of 'diagonal', 'dense', 'low_rank', 'identity', got 'diag'"),
        ({"mass_estimate": "stan"}, "mass_estimate must be one of 'gradients', 'draws', got 'stan'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        zsp.NUTS(**options)
