r"""Hamiltonian Monte Carlo with a fixed number of leapfrog steps.

.. math::
    p_{1/2} = p + \tfrac{\epsilon}{2} \nabla \log \pi(q), \quad q' = q + \epsilon M^{-1} p_{1/2}, \quad
    p' = p_{1/2} + \tfrac{\epsilon}{2} \nabla \log \pi(q')

n times, accepted with probability :math:`\min(1, e^{H(q, p) - H(q', p')})` (Neal 2011, arXiv:1206.1901, sections 3, 4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from zsp.inference.sampling.arrays import Array, Choice, kinetic, library
from zsp.inference.sampling.kernel import DIVERGENCE, Density, Kernel, Transitions, Tuning, require_options
from zsp.inference.sampling.metric import Metric
from zsp.inference.sampling.step_size import DualAveraging

__all__ = ["HMC"]


class Noise(NamedTuple):
    """The random numbers of a transition."""

    momentum: Array  # [chain, D], standard normal
    log_uniform: Array  # [chain]
    jitter: Array  # [chain], uniform in (-1, 1)


class State(NamedTuple):
    """Where the chains are."""

    position: Array  # [chain, D]
    force: Array
    log_density: Array  # [chain]
    step_size: DualAveraging


class Info(NamedTuple):
    """What HMC reports of a transition; each [chain]."""

    log_density: Array  # unconstrained, at the draw
    acceptance_rate: Array
    is_accepted: Array
    n_leapfrogs: Array
    is_divergent: Array
    energy: Array  # at the beginning of the trajectory
    step_size: Array


@dataclass(frozen=True)
class HMC(Kernel):
    r"""Hamiltonian Monte Carlo.

    ::

        hmc = zsp.HMC(step_size=0.1, n_leapfrogs=20)
        draws = zsp.mcmc(model, {"y": y}, kernel=hmc)

        state = hmc.init(log_density, position, seed=0)     # or in a loop of one's own
        for _ in range(100):
            state, info = hmc.step(log_density, state, adapt=True)

    Args:
        step_size: of the leapfrog steps; with ``adapt_step_size`` where the search for it begins.
        n_leapfrogs: their number in a trajectory.
        adapt_step_size: whether to search for a step size and adapt it by dual averaging.
        target_acceptance_rate: what it is adapted to.
        adapt_mass: whether to adapt the mass matrix.
        mass_matrix: "diagonal", "dense", "low_rank" or "identity", for the windowed warm-up of :func:`zsp.mcmc`.
        mass_estimate: "gradients" (from draws and gradients, as in nutpie) or "draws" (their variances, as in Stan).
        mass_collect_iters: in ``step(adapt=True)``, the transitions before the first mass matrix.
        mass_decay: in ``step(adapt=True)``, the decay of the exponentially weighted variances.
        jitter: every trajectory's step size, and with it its length, is multiplied by a number drawn uniformly from
            1 - jitter to 1 + jitter, so that no period of the dynamics traps the chain.

    Reference: Neal 2011, arXiv:1206.1901; Hoffman and Gelman 2014, arXiv:1111.4246, algorithm 5.
    """

    step_size: float = 1.0
    n_leapfrogs: int = 10
    adapt_step_size: bool = True
    target_acceptance_rate: float = 0.8
    adapt_mass: bool = True
    mass_matrix: str = "diagonal"
    mass_estimate: str = "gradients"
    mass_collect_iters: int = 10
    mass_decay: float = 0.99
    jitter: float = 0.0
    chain_axes: ClassVar[Mapping[str, int | None]] = {}

    def __post_init__(self) -> None:
        require_options(self)
        if self.n_leapfrogs < 1:
            raise ValueError(f"n_leapfrogs must be at least 1, got {self.n_leapfrogs}.")
        if not 0 <= self.jitter < 1:
            raise ValueError(f"jitter must be in [0, 1), got {self.jitter}.")
        if not 0 < self.mass_decay < 1:
            raise ValueError(f"mass_decay must be between 0 and 1, got {self.mass_decay}.")

    @property
    def adapts_mass(self) -> bool:
        """Whether the warm-up adapts the mass matrix."""
        return self.adapt_mass and self.mass_matrix != "identity"

    def draw_noise(self, n_steps: int, position: Tensor, generator: torch.Generator) -> Noise:
        """The random numbers of ``n_steps`` transitions."""
        n_chains, n_dims = position.shape
        like: Any = {"dtype": position.dtype, "device": position.device, "generator": generator}
        uniform = torch.rand(n_steps, n_chains, 2, **like)
        momentum = torch.randn(n_steps, n_chains, n_dims, **like)
        return Noise(momentum, torch.log1p(-uniform[..., 0]), 2 * uniform[..., 1] - 1)

    def begin(
        self, density: Density, position: Array, metric: Metric, step_size: DualAveraging, generator: torch.Generator
    ) -> State:
        """Chains at ``position`` [chain, D]."""
        log_density, gradient = density(position)
        return State(position, metric.pull(gradient), log_density, step_size)

    def advance(
        self, density: Density, state: State, noise: Noise, tuning: Tuning
    ) -> tuple[State, Transitions]:
        """One transition of every chain."""
        s, metric = state, tuning.metric
        xp = library(s.position)
        step_size = s.step_size.value(xp)
        step = (step_size * (1 + self.jitter * noise.jitter))[:, None]
        position, force, momentum, log_density = s.position, s.force, noise.momentum, s.log_density
        energy = kinetic(momentum) - log_density
        momentum = momentum + 0.5 * step * force
        for _ in range(self.n_leapfrogs - 1):
            position = position + step * metric.push(momentum)
            momentum = momentum + step * metric.pull(density.gradient(position))
        position = position + step * metric.push(momentum)
        log_density, gradient = density(position)
        force = metric.pull(gradient)
        momentum = momentum + 0.5 * step * force
        change = energy + log_density - kinetic(momentum)
        change = xp.where(abs(change) < 1e30, change, -1e30)  # what is not a number is not accepted
        acceptance_rate = xp.exp(xp.where(change < 0, change, 0.0))
        is_accepted = noise.log_uniform <= change
        accepted = Choice(is_accepted)
        position = accepted(position, s.position)
        force = accepted(force, s.force)
        log_density = accepted(log_density, s.log_density)
        n_leapfrogs = xp.zeros_like(log_density) + self.n_leapfrogs
        info = Info(
            log_density, acceptance_rate, is_accepted, n_leapfrogs, change < -DIVERGENCE, energy, step_size
        )
        everywhere = change < 1e31
        new_step_size = s.step_size.update(acceptance_rate, tuning.target, everywhere, tuning.is_adapting, xp)
        return State(position, force, log_density, new_step_size), Transitions(everywhere, position, force, info)
