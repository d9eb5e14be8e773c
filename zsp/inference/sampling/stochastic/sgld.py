r"""Stochastic gradient Langevin dynamics (Welling and Teh 2011, equation 4).

.. math:: q \leftarrow q + \frac{\eta}{2} \hat g(q) + \sqrt\eta\, n, \qquad n \sim N(0, I),

with an unbiased estimate :math:`\hat g` of the gradient of the log density of all data.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from zsp.inference.sampling.stochastic.density import Derivatives
from zsp.inference.sampling.stochastic.kernel import Noise, Number, StochasticGradientKernel, require_rate
from zsp.inference.sampling.stochastic.schedules import Schedule

__all__ = ["SGLD"]


class State(NamedTuple):
    """Where the chains are."""

    position: Tensor  # [chain, D]


class Coefficients(NamedTuple):
    """The numbers of a step."""

    drift: Number
    noise: Number


class Info(NamedTuple):
    """What SGLD reports of a step; each [chain]."""

    log_density: Tensor  # the mini-batch's estimate, unconstrained, where its gradient was taken


@dataclass(frozen=True)
class SGLD(StochasticGradientKernel):
    r"""Stochastic gradient Langevin dynamics.

    ::

        draws = zsp.mcmc(model, {"x": x, "y": y}, kernel=zsp.SGLD(1e-4), batch_size=100, n_chains=20)

    The convention is ZhuSuan's: the drift is learning_rate / 2 times the gradient of the log joint of all data, the
    noise has variance learning_rate.

    .. math:: q \leftarrow q + \frac{\eta}{2} \hat g(q) + N(0, \eta)

    On :math:`N(0, 1)` with exact gradients the draws have variance :math:`1 / (1 - \eta / 4)`; a gradient with noise of
    variance :math:`\sigma^2` adds the factor :math:`1 + \eta \sigma^2 / 4`. So the rate must be small against both the
    smallest variance of the posterior and :math:`4 / \sigma^2`; above 4 times the smallest variance the chain diverges.

    Args:
        learning_rate: :math:`\eta`.
        schedule: from the number of the step to a factor of the learning rate, such as
            :class:`zsp.CyclicalSchedule`; default always 1.

    Reference: Welling and Teh 2011; ZhuSuan's ``zhusuan.SGLD``.
    """

    learning_rate: float
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        require_rate(self)

    def coefficients(self, learning_rate: float, temperature: float) -> Coefficients:
        """The numbers of a step."""
        return Coefficients(learning_rate / 2, sqrt(temperature * learning_rate))

    def begin(self, position: Tensor, generator: torch.Generator) -> State:
        """Chains at ``position`` [chain, D]."""
        return State(position)

    def advance(
        self, derivatives: Derivatives, state: State, noise: Noise, coefficients: Coefficients
    ) -> tuple[State, Info]:
        """One step of every chain."""
        c = coefficients
        value, gradient = derivatives(state.position)
        position = state.position + c.drift * gradient + c.noise * noise.normal
        return State(position), Info(value)
