r"""ChEES-HMC: Hamiltonian Monte Carlo for many chains at once.

.. math::
    p_{1/2} = p + \tfrac{\epsilon}{2} L^\top \nabla \log \pi(L z), \quad z' = z + \epsilon p_{1/2}, \quad
    p' = p_{1/2} + \tfrac{\epsilon}{2} L^\top \nabla \log \pi(L z')

:math:`\lceil h T / \epsilon \rceil` times, with :math:`p \sim N(0, I)`, accepted with probability
:math:`\min(1, e^{H(z, p) - H(z', p')})`. The fraction h in (0, 1), the same for all chains, goes through van der
Corput's sequence; T and :math:`\epsilon` are adapted in the warm-up (see ``trajectory_length``) and then fixed.
"""

from __future__ import annotations

from dataclasses import dataclass

from zsp.inference.sampling.arrays import Array, kinetic
from zsp.inference.sampling.kernel import Density
from zsp.inference.sampling.metric import Metric
from zsp.inference.sampling.shared_trajectory import Place, SharedTrajectory, require_trajectory_options

__all__ = ["ChEES", "leapfrog"]


@dataclass(frozen=True)
class ChEES(SharedTrajectory):
    r"""Hamiltonian Monte Carlo with one step size and one trajectory length that many chains learn together.

    ::

        draws = zsp.mcmc(model, {"y": y}, kernel=zsp.ChEES(), n_chains=64, n_warmup=500, n_samples=200)

    For dozens to thousands of chains: no tree is built, and all chains do the same work. With few chains the length is
    learned badly, and :class:`zsp.NUTS` is the better choice.

    In the warm-up the length T of the longest trajectory climbs the gradient of the criterion ChEES, and the step size
    is adapted to the harmonic mean of the acceptance probabilities. On a normal distribution with standard deviations
    :math:`\sigma_d` ChEES is :math:`\sum_d \sigma_d^4 \sin^2(h T / \sigma_d)`, averaged over h: the largest
    deviation rules, with T = 2.25 times it, or a quarter of its period, 1.57 times it, without jitter.

    A transition reports ``acceptance_rate``, ``is_accepted``, ``n_leapfrogs``, ``is_divergent``, ``energy_change`` (of
    the trajectory, accepted or not), ``step_size`` and ``trajectory_length`` (its own, not the longest).

    Args:
        step_size: of the leapfrog steps; with ``adapt_step_size`` where the search for it begins.
        trajectory_length: T, of the positions in which the mass matrix is the identity; with
            ``adapt_trajectory_length`` where its adaptation begins, default one step.
        adapt_step_size: whether to search for a step size and adapt it by dual averaging.
        adapt_trajectory_length: whether to adapt the trajectory length. It needs two chains at least.
        target_acceptance_rate: what the harmonic mean of the acceptance probabilities is adapted to.
        jitter: trajectories have lengths from 1 - jitter times the longest to the longest.
        learning_rate: Adam's, of the logarithm of the length.
        max_leapfrogs: the most steps of a trajectory.
        mass_matrix: "diagonal", "dense", "low_rank" or "identity", for the windowed warm-up of :func:`zsp.mcmc`.
        mass_estimate: "gradients" (from draws and gradients, as in nutpie) or "draws" (their variances, as in Stan).

    Reference: Hoffman, Radul and Sountsov 2021, "An adaptive-MCMC scheme for setting trajectory lengths in Hamiltonian
    Monte Carlo", AISTATS, algorithm 1. The paper has no mass matrix; here the criterion is taken of the positions in
    which it is the identity.
    """

    step_size: float = 1.0
    trajectory_length: float | None = None
    adapt_step_size: bool = True
    adapt_trajectory_length: bool = True
    target_acceptance_rate: float = 0.651
    jitter: float = 1.0
    learning_rate: float = 0.025
    max_leapfrogs: int = 1000
    mass_matrix: str = "diagonal"
    mass_estimate: str = "gradients"

    def __post_init__(self) -> None:
        require_trajectory_options(self)

    def _refresh(self, normal: Array) -> Array:
        return normal

    def _leapfrog(self, density: Density, metric: Metric, place: Place, step: Array) -> tuple[Place, Array]:
        return leapfrog(density, metric, place, step)


def leapfrog(density: Density, metric: Metric, place: Place, step: Array) -> tuple[Place, Array]:
    """One leapfrog step of sizes ``step`` [chain], and the change of the kinetic energy [chain]."""
    step = step[:, None]
    half = place.momentum + 0.5 * step * place.force
    position = place.position + step * half
    log_density, gradient = density(metric.push(position))
    force = metric.pull(gradient)
    momentum = half + 0.5 * step * force
    return Place(position, momentum, force, log_density), kinetic(momentum) - kinetic(place.momentum)
