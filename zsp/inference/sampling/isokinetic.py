r"""Isokinetic dynamics: a particle whose speed is always 1, for microcanonical samplers.

With the force :math:`f = \nabla \log \pi(z)` in D dimensions,

.. math:: \dot z = u, \qquad \dot u = (I - u u^\top) \, f(z) / (D - 1), \qquad |u| = 1,

leaves :math:`\pi(z)` times the uniform density of directions invariant (Robnik, De Luca, Silverstein and Seljak 2023,
arXiv:2212.08549; Robnik and Seljak 2023, arXiv:2303.18221, equation 3). At a fixed position its solution after a time t
is, with :math:`e = f / |f|`, :math:`\delta = t |f| / (D - 1)`,

.. math::
    u' = \frac{u + (\sinh \delta + (e \cdot u) (\cosh \delta - 1)) \, e}{\cosh \delta + (e \cdot u) \sinh \delta},
    \qquad \Delta K = (D - 1) \log(\cosh \delta + (e \cdot u) \sinh \delta)

(Steeg and Galstyan 2021, arXiv:2111.02434). :math:`e^{\Delta K}` is the inverse of the factor by which the map
contracts directions, so that :math:`\Delta K - \Delta \log \pi` plays the part of Hamiltonian dynamics' change of
energy in a Metropolis test (Robnik, Cohn-Gordon and Seljak 2025, arXiv:2503.01707, section 3); the exact flow
conserves it.

A step is a palindrome of such turns and straight moves: "leapfrog" with one gradient, "minimal_norm" with two and a
fraction of the error (McLachlan 1995, doi:10.1137/0916010, section 2).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from zsp.inference.sampling.arrays import Array, library
from zsp.inference.sampling.kernel import Density
from zsp.inference.sampling.metric import Metric
from zsp.inference.sampling.shared_trajectory import Place

__all__ = [
    "INTEGRATORS",
    "direction",
    "integrate",
    "n_gradients",
    "partly_refresh",
    "require_dimensions",
    "require_integrator",
    "turn",
]

_LAMBDA = 0.1931833275037836

INTEGRATORS: dict[str, tuple[float, ...]] = {
    "leapfrog": (0.5, 1.0, 0.5),
    "minimal_norm": (_LAMBDA, 0.5, 1 - 2 * _LAMBDA, 0.5, _LAMBDA),
}
"""The parts of a step: of a turn, of a move, of a turn, and so on."""


def n_gradients(integrator: str) -> int:
    """Evaluations of the gradient in one step."""
    return len(INTEGRATORS[integrator]) // 2


def integrate(density: Density, metric: Metric, integrator: str, place: Place, step: Array) -> tuple[Place, Array]:
    """One step of isokinetic dynamics.

    Args:
        density: from positions to log densities and gradients.
        metric: the mass matrix.
        integrator: a key of ``INTEGRATORS``.
        place: where the chains are; the momentum is the direction u.
        step: step sizes, [chain].

    Returns:
        The place after the step, and the change of the kinetic energy [chain].
    """
    position, momentum, force, log_density = place
    kinetic_change = 0 * log_density
    for i, part in enumerate(INTEGRATORS[integrator]):
        if i % 2 == 0:
            momentum, change = turn(momentum, force, part * step)
            kinetic_change = kinetic_change + change
        else:
            position = position + (part * step)[:, None] * momentum
            log_density, gradient = density(metric.push(position))
            force = metric.pull(gradient)
    return Place(position, momentum, force, log_density), kinetic_change


def turn(momentum: Array, force: Array, time: Array) -> tuple[Array, Array]:
    """Directions [chain, D] after a force has acted for a time [chain], and the change of the kinetic energy.

    Written with :math:`e^{-\\delta}`, so that a large force overflows nothing.
    """
    xp = library(momentum)
    scale = force.shape[-1] - 1
    norm = xp.sqrt(xp.linalg.vecdot(force, force))
    along = force / xp.clip(norm, 1e-30, None)[:, None]
    cosine = xp.clip(xp.linalg.vecdot(along, momentum), -1.0, 1.0)
    delta = time * norm / scale
    decay = xp.exp(-delta)
    new = ((1 - decay) * (1 + decay + cosine * (1 - decay)))[:, None] * along + (2 * decay)[:, None] * momentum
    change = scale * (delta + xp.log1p(0.5 * (1 - cosine) * xp.expm1(-2 * delta)))
    return direction(new), change


def direction(vector: Array) -> Array:
    """Vectors [chain, D], of length 1."""
    xp = library(vector)
    return vector / xp.sqrt(xp.linalg.vecdot(vector, vector))[:, None]


def partly_refresh(momentum: Array, normal: Array, time: Array, length: Array) -> Array:
    r"""Directions after a noise of standard normal numbers has acted for a time, which forget themselves in a length.

    .. math:: u' = \frac{u + \nu n}{|u + \nu n|}, \quad \nu = \sqrt{(e^{2 t / L} - 1) / D}, \quad n \sim N(0, I)

    (Robnik and Seljak 2023, arXiv:2303.18221, section 3.3).
    """
    xp = library(momentum)
    scale = xp.sqrt(xp.expm1(2 * time / length) / momentum.shape[-1])
    return direction(momentum + scale[:, None] * normal)


def require_dimensions(kernel: Any, position: Tensor) -> None:
    """Raise if there is no direction to turn to."""
    if position.shape[-1] < 2:
        raise ValueError(
            f"{type(kernel).__name__} needs at least two unconstrained dimensions to turn in, but the latents have "
            f"{position.shape[-1]}: use zsp.NUTS() or zsp.ChEES()."
        )


def require_integrator(kernel: Any) -> None:
    """Raise for an integrator that there is not."""
    if kernel.integrator not in INTEGRATORS:
        raise ValueError(f"integrator must be one of {', '.join(map(repr, INTEGRATORS))}, got {kernel.integrator!r}.")
