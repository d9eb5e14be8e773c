r"""The No-U-Turn sampler, as a flat state machine over chains.

One step is one leapfrog step of every chain. A chain whose trajectory ends in it makes its draw, takes a new momentum
and begins the next trajectory in the same step, so that no chain waits for the longest tree. A step has no branch on
data that its result depends on, so that several of them can be compiled into one call.

The trajectory is doubled until it turns back (Hoffman and Gelman 2014, arXiv:1111.4246); its next state is drawn with
multinomial weights and a bias to the newer half (Betancourt 2017, arXiv:1701.02434, appendix A.3). A trajectory with
first and last momentum :math:`p_-, p_+` and sum of momenta :math:`\rho` turns back when

.. math:: p_- \cdot \rho \le 0 \quad\text{or}\quad p_+ \cdot \rho \le 0,

and, as in Stan, when this holds of its left half and the first state of its right half, or the reverse. All balanced
subtrees are checked, from fewer than ``max_tree_depth`` checkpoints (cf. Lao and Dillon 2019; Phan et al. 2019,
arXiv:1912.11554): leaf n of a subtree, counted from 0, is kept in place popcount(n), where it stays until every
subtree that begins with it is complete. The subtrees that leaf n completes are those that begin in the places below
popcount(n), as many as n has trailing ones; all but the longest of them are right halves. A leaf with none is the first
state of the right half to the left half that begins in the place below its own: what would be rejected when that half
is complete is rejected at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from zsp.inference.sampling.arrays import Array, Choice, dot, is_any, kinetic, library
from zsp.inference.sampling.kernel import DIVERGENCE, Density, Kernel, Momenta, Transitions, Tuning, require_options
from zsp.inference.sampling.metric import Metric
from zsp.inference.sampling.step_size import DualAveraging

__all__ = ["NUTS"]

_NOTHING = -1e30  # the logarithm of no weight; finite, so that differences of two of them are


class Noise(NamedTuple):
    """The random numbers of a step."""

    log_uniform: Array  # [chain, 2], logarithms of uniform numbers
    direction: Array  # [chain], 1 or -1


class Trajectory(NamedTuple):
    """The chains in the middle of their trajectories: a tree, and the subtree that is to double it."""

    position: Array  # [chain, D]: where the next leapfrog step begins
    force: Array
    momentum: Array
    other_position: Array  # [chain, D]: the other end of the tree
    other_force: Array
    other_momentum: Array
    proposal: Array  # [chain, D]: the state drawn from the tree so far
    proposal_force: Array
    log_density: Array  # [chain], at the proposal
    candidate: Array  # [chain, D]: the state drawn from the subtree so far
    candidate_force: Array
    candidate_log_density: Array
    tree_momentum: Array  # [chain, D]: sum over the tree
    subtree_momentum: Array
    checkpoint_sum: Array  # [place, chain, D]: sum of the subtree's momenta before the leaf
    checkpoint_first: Array  # its momentum
    checkpoint_previous: Array  # the momentum of the leaf before it
    leaf: Array  # [chain]: number of the subtree's leaves so far
    n_ones: Array  # of this number in binary
    longest: Array  # the place where the longest subtree begins that the leaf completes, or begins the right half of
    size: Array  # number of its leaves when it is complete, and of the tree's states
    depth: Array  # of the tree
    direction: Array  # 1 or -1, in which the subtree grows
    energy: Array  # at the beginning of the trajectory
    log_weight: Array  # of the tree, relative to its first state
    subtree_log_weight: Array
    sum_acceptance: Array  # of the leaves' acceptance probabilities
    n_leapfrogs: Array
    n_begun: Array  # trajectories that began in this block
    step_size: DualAveraging
    table: Array  # see _leaf_table; the same for ever


class Info(NamedTuple):
    """What NUTS reports of a transition; each [chain]."""

    log_density: Array  # unconstrained, at the draw
    acceptance_rate: Array  # mean over the trajectory's leapfrog steps
    n_leapfrogs: Array
    tree_depth: Array
    is_divergent: Array
    energy: Array  # at the beginning of the trajectory
    step_size: Array


@dataclass(frozen=True)
class NUTS(Kernel):
    r"""The No-U-Turn sampler: Hamiltonian Monte Carlo that ends a trajectory when it turns back.

    ::

        draws = zsp.mcmc(model, {"y": y}, kernel=zsp.NUTS())

    Args:
        target_acceptance_rate: what the step size is adapted to in the warm-up; nearer to 1 for a posterior with
            divergences.
        max_tree_depth: a trajectory has at most 2 ** max_tree_depth - 1 leapfrog steps.
        mass_matrix: "diagonal", "dense", "low_rank" or "identity"; adapted in the warm-up, from the draws of all
            chains together.
        mass_estimate: "gradients" (from draws and gradients, as in nutpie) or "draws" (their variances, as in Stan).
        step_size: of the leapfrog steps; with ``adapt_step_size`` where the search for it begins.
        adapt_step_size: whether to search for a step size and adapt it by dual averaging in the warm-up.

    Reference: Hoffman and Gelman 2014, arXiv:1111.4246; Betancourt 2017, arXiv:1701.02434, appendix A; Dance et al.
    2025, arXiv:2503.17405 (a state machine instead of a loop in a loop).
    """

    target_acceptance_rate: float = 0.8
    max_tree_depth: int = 10
    mass_matrix: str = "diagonal"
    mass_estimate: str = "gradients"
    step_size: float = 1.0
    adapt_step_size: bool = True
    chain_axes: ClassVar[Mapping[str, int | None]] = {
        "checkpoint_sum": 1, "checkpoint_first": 1, "checkpoint_previous": 1, "table": None
    }  # fmt: skip

    def __post_init__(self) -> None:
        require_options(self)
        if not 1 <= self.max_tree_depth <= 20:
            raise ValueError(f"max_tree_depth must be between 1 and 20, got {self.max_tree_depth}.")

    def draw_noise(self, n_steps: int, position: Tensor, generator: torch.Generator) -> Noise:
        """The random numbers of ``n_steps`` steps."""
        like: Any = {"dtype": position.dtype, "device": position.device, "generator": generator}
        uniform = torch.rand(n_steps, len(position), 3, **like)
        direction = torch.where(uniform[..., 2] < 0.5, -1.0, 1.0).to(position.dtype)
        return Noise(torch.log1p(-uniform[..., :2]), direction)

    def draw_momenta(self, n_trajectories: int, position: Tensor, generator: torch.Generator) -> Momenta:
        """Momenta for so many trajectories of each chain."""
        shape = (n_trajectories, *position.shape)
        return Momenta.of(torch.randn(shape, dtype=position.dtype, device=position.device, generator=generator))

    def begin(
        self, density: Density, position: Tensor, metric: Metric, step_size: DualAveraging, generator: torch.Generator
    ) -> Trajectory:
        """Trajectories that begin at ``position`` [chain, D]."""
        log_density, gradient = density(position)
        (momentum,) = self.draw_momenta(1, position, generator).values
        (direction,) = self.draw_noise(1, position, generator).direction
        force = metric.pull(gradient)
        zero, count = torch.zeros_like(log_density), torch.zeros_like(log_density, dtype=torch.int64)
        # of the longest subtree, half of a tree, no leaf with a higher number of ones begins another subtree
        places = position.new_zeros(max(self.max_tree_depth - 1, 1), *position.shape)
        return Trajectory(
            position, force, momentum, position, force, momentum,
            position, force, log_density, position, force, log_density,
            momentum, torch.zeros_like(position), places, places, places,
            count, count, count - 1, count + 1, count, direction, kinetic(momentum) - log_density,
            zero, zero + _NOTHING, zero, zero, count, step_size, _leaf_table(self.max_tree_depth, position.device),
        )  # fmt: skip

    def advance(
        self, density: Density, state: Trajectory, noise: Noise, tuning: Tuning
    ) -> tuple[Trajectory, Transitions | None]:
        """One leapfrog step of every chain, and what follows from it."""
        s = state
        xp = library(s.position)
        metric: Metric = tuning.metric
        step_size = s.step_size.value(xp)
        step = (s.direction * step_size)[:, None]
        half = s.momentum + 0.5 * step * s.force
        position = s.position + step * metric.push(half)
        log_density, gradient = density(position)
        force = metric.pull(gradient)
        momentum = half + 0.5 * step * force

        # the new leaf's log weight is minus the change of energy; where that is not a number it has none
        log_weight = s.energy + log_density - kinetic(momentum)
        log_weight = xp.where(abs(log_weight) < -_NOTHING, log_weight, _NOTHING)
        is_divergent = log_weight < -DIVERGENCE
        subtree_log_weight = xp.logaddexp(s.subtree_log_weight, log_weight)
        is_taken = noise.log_uniform[:, 0] <= log_weight - subtree_log_weight  # always for the first leaf
        taken = Choice(is_taken)
        sum_acceptance = s.sum_acceptance + xp.exp(xp.where(log_weight < 0, log_weight, 0.0))
        n_leapfrogs = s.n_leapfrogs + 1
        subtree_momentum = s.subtree_momentum + momentum

        n_ones, longest = s.n_ones, s.longest
        place = s.table[2, : len(s.checkpoint_sum), None]
        here = (place == n_ones)[:, :, None]
        sums = xp.where(here, s.subtree_momentum, s.checkpoint_sum)
        first = xp.where(here, momentum, s.checkpoint_first)
        previous = xp.where(here, s.momentum, s.checkpoint_previous)

        is_rejected = is_divergent
        is_start = (place < n_ones) & (place >= longest)
        if is_any(is_start):
            since = subtree_momentum - sums
            turns = is_start & _turns_at_an_end(first, momentum, since)
            is_start_of_right_half = is_start & (place > longest)
            if is_any(is_start_of_right_half):
                turns = turns | (is_start_of_right_half & _turns_at_an_end(previous, momentum, previous + since))
            is_rejected = is_rejected | turns.any(0)
        is_last = s.leaf + 1 == s.size
        is_over = is_last | is_rejected
        leaf = (s.leaf + 1) * ~is_over
        state = s._replace(
            position=position, force=force, momentum=momentum,
            candidate=taken(position, s.candidate), candidate_force=taken(force, s.candidate_force),
            candidate_log_density=taken(log_density, s.candidate_log_density),
            subtree_momentum=subtree_momentum,
            checkpoint_sum=sums, checkpoint_first=first, checkpoint_previous=previous,
            leaf=leaf, n_ones=s.table[0][leaf], longest=s.table[1][leaf],
            subtree_log_weight=subtree_log_weight, sum_acceptance=sum_acceptance, n_leapfrogs=n_leapfrogs,
        )  # fmt: skip
        if not is_any(is_over):
            return state, None
        return self._join(state, noise, is_over, is_rejected, is_divergent, tuning)

    def _join(
        self,
        s: Trajectory,
        noise: Noise,
        is_over: Array,
        is_rejected: Array,
        is_divergent: Array,
        tuning: Tuning,
    ) -> tuple[Trajectory, Transitions | None]:
        """Join subtrees that are over to their trees, end trajectories that are over, and begin what comes next."""
        xp = library(s.position)
        is_accepted = is_over & ~is_rejected
        accepted, over = Choice(is_accepted), Choice(is_over)
        is_done = is_rejected
        if not accepted.is_empty:
            turns = _turns(
                s.other_momentum, s.checkpoint_previous[0], s.tree_momentum,
                s.checkpoint_first[0], s.momentum, s.subtree_momentum,
            )  # fmt: skip
            is_done = is_done | (is_accepted & (turns | (s.depth + 1 == self.max_tree_depth)))
        depth = s.depth + is_accepted
        taken = Choice(is_accepted & (noise.log_uniform[:, 1] <= s.subtree_log_weight - s.log_weight))
        proposal = taken(s.candidate, s.proposal)
        proposal_force = taken(s.candidate_force, s.proposal_force)
        log_density = taken(s.candidate_log_density, s.log_density)
        acceptance_rate = s.sum_acceptance / s.n_leapfrogs
        done = Choice(is_done)
        ended, step_size, fresh = None, s.step_size, s.momentum
        if not done.is_empty:
            assert tuning.momenta
            fresh = tuning.momenta.values[s.n_begun, xp.arange(len(is_done))]
            info = Info(
                log_density, acceptance_rate, s.n_leapfrogs, depth, is_divergent, s.energy, s.step_size.value(xp)
            )
            ended = Transitions(is_done, proposal, proposal_force, info)
            step_size = s.step_size.update(acceptance_rate, tuning.target, is_done, tuning.is_adapting, xp)

        back = Choice(is_accepted & (noise.direction != s.direction))
        is_kept = ~is_done
        state = s._replace(
            position=done(proposal, back(s.other_position, s.position)),
            force=done(proposal_force, back(s.other_force, s.force)),
            momentum=done(fresh, back(s.other_momentum, s.momentum)),
            other_position=done(proposal, back(s.position, s.other_position)),
            other_force=done(proposal_force, back(s.force, s.other_force)),
            other_momentum=done(fresh, back(s.momentum, s.other_momentum)),
            proposal=proposal,
            proposal_force=proposal_force,
            log_density=log_density,
            tree_momentum=done(fresh, accepted(s.tree_momentum + s.subtree_momentum, s.tree_momentum)),
            subtree_momentum=over(0.0, s.subtree_momentum),
            size=xp.where(is_done, 1, s.size + s.size * is_accepted),
            depth=depth * is_kept,
            direction=over(noise.direction, s.direction),
            energy=done(kinetic(fresh) - log_density, s.energy),
            log_weight=done(0.0, accepted(xp.logaddexp(s.log_weight, s.subtree_log_weight), s.log_weight)),
            subtree_log_weight=over(_NOTHING, s.subtree_log_weight),
            sum_acceptance=done(0.0, s.sum_acceptance),
            n_leapfrogs=done(0.0, s.n_leapfrogs),
            n_begun=s.n_begun + is_done,
            step_size=step_size,
        )
        return state, ended


def _turns(
    first_left: Array, last_left: Array, sum_left: Array, first_right: Array, last_right: Array, sum_right: Array
) -> Array:
    """Whether the trajectory of these two halves turns back: momenta of their ends and sums, [..., D]."""
    return (
        _turns_at_an_end(first_left, last_right, sum_left + sum_right)
        | _turns_at_an_end(first_left, first_right, sum_left + first_right)
        | _turns_at_an_end(last_left, last_right, last_left + sum_right)
    )


def _turns_at_an_end(first: Array, last: Array, total: Array) -> Array:
    """Whether a trajectory with this first and last momentum and sum of momenta turns back; [..., D] each."""
    return (dot(first, total) <= 0) | (dot(last, total) <= 0)


def _leaf_table(max_tree_depth: int, device: torch.device) -> Tensor:
    """For each leaf of a subtree its number of ones, its ``longest`` and itself; [3, leaf]."""
    leaves = torch.arange(max(2 ** (max_tree_depth - 1), max_tree_depth), device=device)
    bits = leaves[:, None] >> torch.arange(max_tree_depth, device=device) & 1
    n_ones, n_trailing = bits.sum(-1), bits.cumprod(-1).sum(-1)
    return torch.stack([n_ones, n_ones - n_trailing.clamp(min=1), leaves])
