r"""Kernels whose chains all make trajectories of the same number of steps, as a flat state machine.

One step is one leapfrog step of every chain. When the trajectories have their length, all chains accept or reject
where they are led, the adaptation sees what became of all of them, and the next trajectories begin. No chain ever
waits for another, and the work of a step does not depend on data.

The chains move in positions :math:`z = L^{-1} q`, in which the mass matrix is the identity (see ``metric``).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zsp.inference.compilation.tracing import is_traced
from zsp.inference.sampling.arrays import Array, Choice, is_any, library
from zsp.inference.sampling.kernel import DIVERGENCE, Density, Kernel, Transitions, Tuning, require_options
from zsp.inference.sampling.metric import Metric
from zsp.inference.sampling.trajectory_length import LengthAdaptation, Outcome, leading_scale

__all__ = ["Place", "SharedTrajectory", "require_trajectory_options"]


class Noise(NamedTuple):
    """The random numbers of a step; only those of a step in which trajectories end are used."""

    momentum: Array  # [chain, D], standard normal
    log_uniform: Array  # [chain]


class Place(NamedTuple):
    """Where chains are, and how they move on."""

    position: Array  # [chain, D], of which the mass matrix is the identity
    momentum: Array
    force: Array
    log_density: Array  # [chain]


class Trajectories(NamedTuple):
    """The chains in the middle of their trajectories."""

    place: Place
    first_position: Array  # [chain, D]: where the trajectory began
    first_force: Array
    first_log_density: Array  # [chain]
    kinetic_change: Array  # since then
    leapfrog: Array  # number of steps since then
    n_leapfrogs: Array  # of the whole trajectory
    fraction: Array  # its part of the longest length
    step_size: LengthAdaptation


class Info(NamedTuple):
    """What is reported of a transition; each [chain]."""

    log_density: Array  # unconstrained, at the draw
    acceptance_rate: Array
    is_accepted: Array
    n_leapfrogs: Array  # evaluations of the gradient
    is_divergent: Array
    energy_change: Array  # from the beginning of the trajectory to its end
    step_size: Array
    trajectory_length: Array  # of this transition


class SharedTrajectory(Kernel):
    """The base of kernels with one trajectory length for all chains; a subclass says how a momentum moves."""

    trajectory_length: float | None
    adapt_trajectory_length: bool
    jitter: float
    learning_rate: float
    max_leapfrogs: int
    n_gradients = 1
    """Evaluations of the gradient in one of its steps."""

    @abstractmethod
    def _refresh(self, normal: Array) -> Array:
        """Momenta in their stationary law, from standard normal numbers [chain, D]."""

    @abstractmethod
    def _leapfrog(self, density: Density, metric: Metric, place: Place, step: Array) -> tuple[Place, Array]:
        """The place after a step [chain], and how much the kinetic energy has grown."""

    @property
    def adapts(self) -> bool:
        """Whether the warm-up adapts anything but the mass matrix."""
        return self.adapt_step_size or self.adapt_trajectory_length

    def start_adaptation(self, step_size: Tensor, position: Tensor) -> LengthAdaptation:
        """The adaptation from first step sizes [chain] at positions [chain, D]."""
        if self.adapt_trajectory_length and len(position) < 2:
            raise ValueError(
                f"{type(self).__name__} adapts its trajectory length to what many chains do together, but there is one "
                "chain: run some dozens of them (n_chains=64), or give a length that stays "
                "(trajectory_length=..., adapt_trajectory_length=False)."
            )
        return LengthAdaptation.start(step_size, self.trajectory_length)

    def restart_adaptation(
        self, adaptation: LengthAdaptation, step_size: Tensor, position: Tensor, before: Metric, after: Metric
    ) -> LengthAdaptation:
        """The adaptation from new first step sizes, when the mass matrix has changed."""
        if not self.adapt_trajectory_length:
            return adaptation.restart(step_size, torch.ones_like(step_size[0]))
        stretch = leading_scale(after.unpush(position)) / leading_scale(before.unpush(position))
        return adaptation.restart(step_size, stretch)

    def draw_noise(self, n_steps: int, position: Tensor, generator: torch.Generator) -> Noise:
        """The random numbers of ``n_steps`` steps."""
        n_chains, n_dims = position.shape
        like: Any = {"dtype": position.dtype, "device": position.device, "generator": generator}
        uniform = torch.rand(n_steps, n_chains, **like)
        return Noise(torch.randn(n_steps, n_chains, n_dims, **like), torch.log1p(-uniform))

    def begin(
        self,
        density: Density,
        position: Tensor,
        metric: Metric,
        step_size: LengthAdaptation,
        generator: torch.Generator,
    ) -> Trajectories:
        """Trajectories that begin at ``position`` [chain, D]."""
        log_density, gradient = density(position)
        (momentum,) = self.draw_noise(1, position, generator).momentum
        place = Place(metric.unpush(position), self._refresh(momentum), metric.pull(gradient), log_density)
        return self._begin_at(place, step_size)

    def _begin_at(self, place: Place, adaptation: LengthAdaptation) -> Trajectories:
        zero = 0 * adaptation.index
        fraction, n_leapfrogs = adaptation.plan(self.jitter, self.max_leapfrogs)
        return Trajectories(
            place, place.position, place.force, place.log_density, zero, zero, n_leapfrogs, fraction, adaptation
        )

    def advance(
        self, density: Density, state: Trajectories, noise: Noise, tuning: Tuning
    ) -> tuple[Trajectories, Transitions | None]:
        """One leapfrog step of every chain, and what follows from it."""
        step = library(state.leapfrog).exp(state.step_size.log_step_size)
        place, kinetic_change = self._leapfrog(density, tuning.metric, state.place, step)
        state = state._replace(
            place=place, kinetic_change=state.kinetic_change + kinetic_change, leapfrog=state.leapfrog + 1
        )
        is_over = state.leapfrog >= state.n_leapfrogs
        if not is_any(is_over):
            return state, None
        return self._end(state, noise, is_over, tuning)

    def _end(self, s: Trajectories, noise: Noise, is_over: Array, tuning: Tuning) -> tuple[Trajectories, Transitions]:
        """Accept or reject, adapt, and begin the next trajectories, if they are over."""
        xp = library(is_over)
        change = s.place.log_density - s.first_log_density - s.kinetic_change
        change = xp.where(abs(change) < 1e30, change, -1e30)  # what is not a number is not accepted
        acceptance_rate = xp.exp(xp.where(change < 0, change, 0.0))
        is_accepted = noise.log_uniform <= change
        accepted = Choice(is_accepted)
        position = accepted(s.place.position, s.first_position)
        force = accepted(s.place.force, s.first_force)
        log_density = accepted(s.place.log_density, s.first_log_density)
        step = xp.exp(s.step_size.log_step_size)
        info = Info(
            log_density, acceptance_rate, is_accepted, s.n_leapfrogs * self.n_gradients, change < -DIVERGENCE,
            -change, step, s.n_leapfrogs * step,
        )  # fmt: skip
        ended = Transitions(is_over, tuning.metric.push(position), force, info)

        outcome = Outcome(s.first_position, s.place.position, s.place.momentum, acceptance_rate, s.fraction)
        adaptation = self._adapt(s.step_size.next(is_over), outcome, is_over, tuning)
        new = self._begin_at(Place(position, self._refresh(noise.momentum), force, log_density), adaptation)
        over = Choice(is_over)
        place = Place(*map(over, new.place, s.place))
        rest = map(over, new[1:-1], s[1:-1])
        return Trajectories(*[place, *rest, adaptation]), ended

    def _adapt(
        self, adaptation: LengthAdaptation, outcome: Outcome, is_over: Array, tuning: Tuning
    ) -> LengthAdaptation:
        if not is_traced() and not tuning.is_adapting:
            return adaptation
        if self.adapt_step_size:
            adaptation = adaptation.update_step_size(outcome, tuning.target, is_over, tuning.is_adapting)
        if self.adapt_trajectory_length:
            adaptation = adaptation.update_length(
                outcome, is_over, tuning.is_adapting, self.learning_rate, self.max_leapfrogs
            )
        return adaptation


def require_trajectory_options(kernel: Any) -> None:
    """Raise for options that no kernel with shared trajectories takes."""
    require_options(kernel)
    if kernel.trajectory_length is not None and not kernel.trajectory_length > 0:
        raise ValueError(
            f"trajectory_length must be positive, or None to begin at one step, got {kernel.trajectory_length}."
        )
    if kernel.trajectory_length is None and not kernel.adapt_trajectory_length:
        raise ValueError(
            "adapt_trajectory_length=False needs the length that stays: trajectory_length=1.5, for example."
        )
    if not 0 <= kernel.jitter <= 1:
        raise ValueError(f"jitter must be in [0, 1], got {kernel.jitter}.")
    if not kernel.learning_rate > 0:
        raise ValueError(f"learning_rate must be positive, got {kernel.learning_rate}.")
    if kernel.max_leapfrogs < 1:
        raise ValueError(f"max_leapfrogs must be at least 1, got {kernel.max_leapfrogs}.")
