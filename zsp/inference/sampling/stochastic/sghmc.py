r"""Stochastic gradient Hamiltonian Monte Carlo (Chen et al. 2014, equation 15), in the form with velocities.

.. math::
    v \leftarrow (1 - \alpha) v + \eta \hat g(q) + N(0, 2 (\alpha - \hat\beta) \eta), \qquad q \leftarrow q + v

The second-order integrator is the symmetric splitting of Chen et al. 2015: half a step of q, friction and force in the
middle, half a step of q.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from zsp.inference.sampling.stochastic.density import Derivatives
from zsp.inference.sampling.stochastic.kernel import (
    Noise,
    Number,
    StochasticGradientKernel,
    require_positive,
    require_rate,
    require_resampling,
)
from zsp.inference.sampling.stochastic.schedules import Schedule

__all__ = ["SGHMC", "draw_velocity"]


class State(NamedTuple):
    """Where the chains are and go; each [chain, D]."""

    position: Tensor
    velocity: Tensor


class Coefficients(NamedTuple):
    """The numbers of a step: what the velocity, the gradient and the noise are multiplied by."""

    velocity: Number
    gradient: Number
    noise: Number


class Info(NamedTuple):
    """What SGHMC reports of a step; each [chain]."""

    log_density: Tensor  # the mini-batch's estimate, unconstrained, where its gradient was taken


@dataclass(frozen=True)
class SGHMC(StochasticGradientKernel):
    r"""Stochastic gradient Hamiltonian Monte Carlo.

    ::

        draws = zsp.mcmc(model, loader, kernel=zsp.SGHMC(1e-5, friction=0.1), n_chains=20)

    The convention is ZhuSuan's, velocities of variance :math:`\eta`, gradients of the log joint of all data. With
    ``second_order=False`` a step is

    .. math::
        v \leftarrow (1 - \alpha) v + \eta \hat g(q) + N(0, 2 (\alpha - \hat\beta) \eta), \qquad q \leftarrow q + v,

    and with ``second_order=True``

    .. math::
        q \leftarrow q + v / 2, \quad
        v \leftarrow e^{-\alpha / 2} \bigl(e^{-\alpha / 2} v + \eta \hat g(q) + N(0, 2 (\alpha - \hat\beta) \eta)\bigr),
        \quad q \leftarrow q + v / 2.

    A step covers the time :math:`h = \sqrt\eta` with the friction :math:`\alpha / h`. At a fixed friction in time the
    law of positions and velocities is off by O(h) with the first, by O(h^2) with the second. A gradient with noise of
    variance :math:`\sigma^2` in each dimension heats the chain; ``variance_estimate`` :math:`= \eta \sigma^2 / 2`
    takes that out of the noise that is added.

    Args:
        learning_rate: :math:`\eta`.
        friction: :math:`\alpha`, the part of the velocity that a step forgets.
        variance_estimate: :math:`\hat\beta`, the estimated variance of the gradient's noise times learning_rate / 2,
            from 0 to ``friction``.
        n_iter_resample_v: steps after which velocities are drawn anew from :math:`N(0, \eta)`; None for never.
        second_order: which of the two integrators.
        schedule: from the number of the step to a factor of the learning rate; default always 1. ``friction`` stays.

    Reference: Chen, Fox and Guestrin 2014, arXiv:1402.4102, equation 15; Chen, Ding and Carin 2015, arXiv:1610.06665;
    ZhuSuan's ``zhusuan.SGHMC``.
    """

    learning_rate: float
    friction: float = 0.25
    variance_estimate: float = 0.0
    n_iter_resample_v: int | None = 20
    second_order: bool = True
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        require_rate(self)
        require_positive(self, "friction")
        require_resampling(self)
        if not self.second_order and not self.friction < 2:
            raise ValueError(
                f"friction must be less than 2 for the first-order integrator, which multiplies velocities by "
                f"1 - friction, got {self.friction}. A friction of 1 forgets them at once."
            )
        if not 0 <= self.variance_estimate <= self.friction:
            raise ValueError(
                f"variance_estimate must be from 0 to friction ({self.friction}), since the noise that is added has "
                f"variance 2 (friction - variance_estimate) learning_rate, got {self.variance_estimate}."
            )

    def coefficients(self, learning_rate: float, temperature: float) -> Coefficients:
        """The numbers of a step."""
        noise = sqrt(2 * (self.friction - self.variance_estimate) * learning_rate * temperature)
        if not self.second_order:
            return Coefficients(1 - self.friction, learning_rate, noise)
        half = exp(-self.friction / 2)
        return Coefficients(half * half, half * learning_rate, half * noise)

    def begin(self, position: Tensor, generator: torch.Generator) -> State:
        """Chains at ``position`` [chain, D], with velocities of their own."""
        learning_rate = self.learning_rate * self.stage(0).factor
        return State(position, draw_velocity(position, learning_rate, generator))

    def refresh(self, state: State, learning_rate: float, generator: torch.Generator) -> State:
        """The state with velocities drawn anew."""
        return state._replace(velocity=draw_velocity(state.position, learning_rate, generator))

    def advance(
        self, derivatives: Derivatives, state: State, noise: Noise, coefficients: Coefficients
    ) -> tuple[State, Info]:
        """One step of every chain."""
        c, position = coefficients, state.position
        middle = position + 0.5 * state.velocity if self.second_order else position
        value, gradient = derivatives(middle)
        velocity = c.velocity * state.velocity + c.gradient * gradient + c.noise * noise.normal
        new = middle + 0.5 * velocity if self.second_order else position + velocity
        return State(new, velocity), Info(value)


def draw_velocity(position: Tensor, learning_rate: float, generator: torch.Generator) -> Tensor:
    """Velocities [chain, D] of variance ``learning_rate``."""
    normal = torch.randn(position.shape, dtype=position.dtype, device=position.device, generator=generator)
    return sqrt(learning_rate) * normal
