r"""MAMS: the Metropolis-adjusted microcanonical sampler, for many chains at once.

From a direction u drawn uniformly, :math:`\lceil h T / \epsilon \rceil` steps of isokinetic dynamics (see
``isokinetic``) lead from z to z', which is accepted with probability

.. math:: \min(1, e^{-W}), \qquad W = \log \pi(z) - \log \pi(z') + \sum \Delta K

(Robnik, Cohn-Gordon and Seljak 2025, arXiv:2503.01707, section 3). The fraction h goes through van der
Corput's sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from zsp.inference.sampling.arrays import Array
from zsp.inference.sampling.isokinetic import (
    direction,
    integrate,
    n_gradients,
    require_dimensions,
    require_integrator,
)
from zsp.inference.sampling.kernel import Density
from zsp.inference.sampling.metric import Metric
from zsp.inference.sampling.shared_trajectory import Place, SharedTrajectory, require_trajectory_options
from zsp.inference.sampling.trajectory_length import LengthAdaptation

__all__ = ["MAMS"]


@dataclass(frozen=True)
class MAMS(SharedTrajectory):
    r"""Isokinetic trajectories with a Metropolis test: :class:`zsp.MCLMC` without its bias.

    ::

        draws = zsp.mcmc(model, {"y": y}, kernel=zsp.MAMS(), n_chains=64, n_warmup=500, n_samples=200)

    The convention is the paper's, speed 1: on a standard normal distribution in D dimensions a step of
    :math:`\sqrt D \epsilon` does what :class:`zsp.HMC`'s does with :math:`\epsilon`, and good trajectories have lengths
    about :math:`\sqrt D`.

    The step size is adapted to the harmonic mean of the chains' acceptance probabilities. The paper finds the
    trajectory length from the autocorrelation of one long chain; here many chains find it together, from the gradient
    of the criterion ChEES (see :class:`zsp.ChEES`), which holds for any flow.

    A transition reports what :class:`zsp.ChEES`'s does; ``energy_change`` is W.

    Args:
        step_size: of the integrator's steps; with ``adapt_step_size`` where the search for it begins.
        trajectory_length: T, of the positions in which the mass matrix is the identity; with
            ``adapt_trajectory_length`` where its adaptation begins, default one step.
        adapt_step_size: whether to search for a step size and adapt it by dual averaging.
        adapt_trajectory_length: whether to adapt the trajectory length. It needs two chains at least.
        target_acceptance_rate: what the harmonic mean of the acceptance probabilities is adapted to.
        integrator: "leapfrog", or "minimal_norm" with two gradients a step.
        jitter: trajectories have lengths from 1 - jitter times the longest to the longest.
        learning_rate: Adam's, of the logarithm of the length.
        max_leapfrogs: the most steps of a trajectory.
        mass_matrix: "diagonal", "dense", "low_rank" or "identity", for the windowed warm-up of :func:`zsp.mcmc`.
        mass_estimate: "gradients" (from draws and gradients, as in nutpie) or "draws" (their variances, as in Stan).

    Reference: Robnik, Cohn-Gordon and Seljak 2025, arXiv:2503.01707; Hoffman, Radul and Sountsov 2021 for the length.
    """

    step_size: float = 1.0
    trajectory_length: float | None = None
    adapt_step_size: bool = True
    adapt_trajectory_length: bool = True
    target_acceptance_rate: float = 0.9
    integrator: str = "leapfrog"
    jitter: float = 1.0
    learning_rate: float = 0.025
    max_leapfrogs: int = 1000
    mass_matrix: str = "diagonal"
    mass_estimate: str = "gradients"

    def __post_init__(self) -> None:
        require_trajectory_options(self)
        require_integrator(self)

    @property
    def n_gradients(self) -> int:  # type: ignore[override]
        """Evaluations of the gradient in one step."""
        return n_gradients(self.integrator)

    def start_adaptation(self, step_size: Tensor, position: Tensor) -> LengthAdaptation:
        """The adaptation from first step sizes [chain] at positions [chain, D]."""
        require_dimensions(self, position)
        return super().start_adaptation(step_size, position)

    def find_step_size(
        self, density: Density, position: Tensor, metric: Metric, first: Tensor, momentum: Tensor
    ) -> Tensor:
        """Step sizes [chain] to begin the adaptation with: those of Hamiltonian dynamics, for a speed of 1."""
        speed = position.shape[-1] ** 0.5
        return speed * super().find_step_size(density, position, metric, first / speed, momentum)

    def _refresh(self, normal: Array) -> Array:
        return direction(normal)

    def _leapfrog(self, density: Density, metric: Metric, place: Place, step: Array) -> tuple[Place, Array]:
        return integrate(density, metric, self.integrator, place, step)
