r"""Microcanonical Langevin Monte Carlo, for many chains at once.

A step is one of isokinetic dynamics and a noise on the direction (see ``isokinetic``):

.. math::
    (z, u) \leftarrow \Phi_\epsilon(z, u), \qquad u \leftarrow \frac{u + \nu n}{|u + \nu n|}, \qquad
    \nu = \sqrt{(e^{2 \epsilon / L} - 1) / D}, \quad n \sim N(0, I).

There is no Metropolis test: the draws have the law of the discretised dynamics, which is off by :math:`O(\epsilon^2)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from zsp.inference.compilation.tracing import is_traced
from zsp.inference.sampling.arrays import Array, Choice, is_any, library
from zsp.inference.sampling.isokinetic import (
    direction,
    integrate,
    n_gradients,
    partly_refresh,
    require_dimensions,
    require_integrator,
)
from zsp.inference.sampling.kernel import DIVERGENCE, Density, Kernel, Transitions, Tuning, require_mass_options
from zsp.inference.sampling.mclmc_adaptation import Memory
from zsp.inference.sampling.metric import Metric
from zsp.inference.sampling.shared_trajectory import Place
from zsp.inference.sampling.trajectory_length import spread

__all__ = ["MCLMC"]


class Noise(NamedTuple):
    """The random numbers of a step, standard normal, each [chain, D]."""

    refreshment: Array
    momentum: Array  # a new direction, for chains that have none


class State(NamedTuple):
    """Where the chains are."""

    position: Array  # [chain, D], of which the mass matrix is the identity
    force: Array
    log_density: Array  # [chain]
    step: Array  # [chain], steps since the last draw
    squared_error: Array  # [chain], sum of squared energy errors since then
    n_divergent: Array  # [chain], steps since then that were not taken
    step_size: Memory


class Info(NamedTuple):
    """What MCLMC reports of a transition; each [chain]."""

    log_density: Array  # unconstrained, at the draw
    acceptance_rate: Array  # the part of the steps that stayed in the numbers
    n_leapfrogs: Array  # evaluations of the gradient
    is_divergent: Array  # whether one did not
    energy_variance: Array  # mean squared energy error of a step, per dimension
    step_size: Array
    trajectory_length: Array  # L, in which directions are forgotten


@dataclass(frozen=True)
class MCLMC(Kernel):
    r"""Microcanonical Langevin dynamics without a Metropolis test: fast, and biased by its step size.

    ::

        draws = zsp.mcmc(model, {"y": y}, kernel=zsp.MCLMC(), n_chains=64, n_warmup=300, n_samples=300)

    The bias of expectations is of order :math:`\epsilon^2`, and more draws do not reduce it: with the default
    ``energy_variance`` it is some percent of a standard deviation. Divide that by 64 to halve the step size and quarter
    the bias, see ``draws.info.energy_variance``, or use :class:`zsp.MAMS`, which has none.

    The convention is the papers', speed 1: on a standard normal distribution in D dimensions a step of
    :math:`\sqrt D \epsilon` does what :class:`zsp.HMC`'s does with :math:`\epsilon`, and L is about :math:`\sqrt D`.
    Both are of the positions in which the mass matrix is the identity. The warm-up adapts them with all chains
    together; it works from two chains on, and well from some dozens.

    A step that leaves the numbers, or whose energy error exceeds 1000, is not taken; its chain gets a new direction and
    its transition counts as divergent.

    Args:
        step_size: of the integrator; with ``adapt_step_size`` where the search for it begins.
        length: L, in which a direction is forgotten; with ``adapt_length`` where its adaptation begins, default the
            chains' spread, :math:`(\sum_d \mathrm{var}\, z_d)^{1/2}`.
        n_steps: of the integrator in a transition: only the last of them makes a draw. A draw forgets the one before it
            after some L / step_size of them: more keep fewer and less correlated draws, of as many gradients.
        adapt_step_size: whether to adapt the step size to ``energy_variance``.
        adapt_length: whether to adapt L to the autocorrelation of the chains.
        energy_variance: the mean squared energy error of a step, per dimension, that the step size is adapted to.
        integrator: "minimal_norm" with two gradients a step, or "leapfrog".
        mass_matrix: "diagonal", "dense", "low_rank" or "identity", for the windowed warm-up of :func:`zsp.mcmc`.
        mass_estimate: "gradients" (from draws and gradients, as in nutpie) or "draws" (their variances, as in Stan).

    Reference: Robnik, De Luca, Silverstein and Seljak 2023, arXiv:2212.08549; Robnik and Seljak 2023, arXiv:2303.18221.
    """

    target_acceptance_rate: ClassVar[float] = 1.0  # type: ignore[misc]  # not an option of this kernel

    step_size: float = 1.0
    length: float | None = None
    n_steps: int = 2
    adapt_step_size: bool = True
    adapt_length: bool = True
    energy_variance: float = 5e-4
    integrator: str = "minimal_norm"
    mass_matrix: str = "diagonal"
    mass_estimate: str = "gradients"

    def __post_init__(self) -> None:
        require_mass_options(self)
        require_integrator(self)
        for name in ("step_size", "energy_variance"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.length is not None and not self.length > 0:
            raise ValueError(f"length must be positive, or None to begin at the chains' spread, got {self.length}.")
        if self.length is None and not self.adapt_length:
            raise ValueError("adapt_length=False needs the length that stays: length=3.0, for example.")
        if self.n_steps < 1:
            raise ValueError(f"n_steps must be at least 1, got {self.n_steps}.")

    @property
    def adapts(self) -> bool:
        """Whether the warm-up adapts anything but the mass matrix."""
        return self.adapt_step_size or self.adapt_length

    def find_step_size(
        self, density: Density, position: Tensor, metric: Metric, first: Tensor, momentum: Tensor
    ) -> Tensor:
        """Step sizes [chain] to begin the adaptation with: those of Hamiltonian dynamics, for a speed of 1."""
        speed = position.shape[-1] ** 0.5
        return speed * super().find_step_size(density, position, metric, first / speed, momentum)

    def start_adaptation(self, step_size: Tensor, position: Tensor) -> Memory:
        """The adaptation from first step sizes [chain] at positions [chain, D]."""
        require_dimensions(self, position)
        if self.adapt_length and len(position) < 2:
            raise ValueError(
                "MCLMC adapts its length to how many chains forget where they were, but there is one chain: run some "
                "dozens of them (n_chains=64), or give a length that stays (length=..., adapt_length=False)."
            )
        return Memory.start(step_size, self._first_length(position), torch.zeros_like(position))

    def restart_adaptation(
        self, adaptation: Memory, step_size: Tensor, position: Tensor, before: Metric, after: Metric
    ) -> Memory:
        """The adaptation from new first step sizes, when the mass matrix has changed."""
        length = self._first_length(after.unpush(position)) if self.adapt_length else adaptation.log_length.exp()
        return Memory.start(step_size, length, adaptation.momentum)

    def _first_length(self, position: Tensor) -> Tensor:
        if self.length is not None:
            return position.new_tensor(self.length)
        return spread(position) * position.shape[-1] ** 0.5

    def draw_noise(self, n_steps: int, position: Tensor, generator: torch.Generator) -> Noise:
        """The random numbers of ``n_steps`` steps."""
        shape = (2, n_steps, *position.shape)
        return Noise(*torch.randn(shape, dtype=position.dtype, device=position.device, generator=generator))

    def begin(
        self, density: Density, position: Tensor, metric: Metric, step_size: Memory, generator: torch.Generator
    ) -> State:
        """Chains at ``position`` [chain, D]; they go on in the directions that they had."""
        log_density, gradient = density(position)
        new = Choice((step_size.momentum == 0).all(-1))
        (momentum,) = self.draw_noise(1, position, generator).momentum
        momentum = new(direction(momentum), step_size.momentum)
        zero = 0 * step_size.log_length
        return State(
            metric.unpush(position), metric.pull(gradient), log_density, zero, zero, zero,
            step_size._replace(momentum=momentum),
        )  # fmt: skip

    def advance(self, density: Density, state: State, noise: Noise, tuning: Tuning) -> tuple[State, Transitions | None]:
        """One step of every chain."""
        s, memory = state, state.step_size
        xp = library(s.position)
        step_size, length = xp.exp(memory.log_step_size), xp.exp(memory.log_length)
        old = Place(s.position, memory.momentum, s.force, s.log_density)
        new, kinetic_change = integrate(density, tuning.metric, self.integrator, old, step_size)
        energy_change = kinetic_change - (new.log_density - old.log_density)
        is_good = (abs(energy_change) < DIVERGENCE) & xp.isfinite(new.position).all(-1)

        good = Choice(is_good)
        place = Place(*map(good, new, old))
        forward = good(new.momentum, direction(noise.momentum))
        momentum = partly_refresh(forward, noise.refreshment, step_size, length)
        state = State(
            place.position, place.force, place.log_density, s.step + 1,
            s.squared_error + xp.where(is_good, energy_change, 0.0) ** 2, s.n_divergent + ~is_good,
            self._adapt(memory._replace(momentum=momentum), place.position, energy_change, tuning),
        )  # fmt: skip
        is_done = state.step >= self.n_steps
        if not is_any(is_done):
            return state, None
        return self._report(state, is_done, step_size, length, tuning)

    def _adapt(self, memory: Memory, position: Array, energy_change: Array, tuning: Tuning) -> Memory:
        if not is_traced() and not tuning.is_adapting:
            return memory
        if self.adapt_length:
            memory = memory.update_length(position, tuning.is_adapting)
        if self.adapt_step_size:
            memory = memory.update_step_size(
                energy_change, position.shape[-1], self.energy_variance, tuning.is_adapting
            )
        return memory

    def _report(
        self, s: State, is_done: Array, step_size: Array, length: Array, tuning: Tuning
    ) -> tuple[State, Transitions]:
        """The draws of the chains whose transition has ended, and the state in which the next one begins."""
        zero = 0 * s.step
        info = Info(
            s.log_density, 1 - s.n_divergent / self.n_steps, zero + self.n_steps * n_gradients(self.integrator),
            s.n_divergent > 0, s.squared_error / (self.n_steps * s.position.shape[-1]), step_size, length,
        )  # fmt: skip
        ended = Transitions(is_done, tuning.metric.push(s.position), s.force, info)
        done = Choice(is_done)
        counts = (done(zero, count) for count in (s.step, s.squared_error, s.n_divergent))
        return State(*[s.position, s.force, s.log_density, *counts, s.step_size]), ended
