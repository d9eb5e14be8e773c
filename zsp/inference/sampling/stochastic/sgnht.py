r"""The stochastic gradient Nosé-Hoover thermostat (Ding et al. 2014, algorithm 2), in the form with velocities.

.. math::
    v \leftarrow (1 - \alpha) v + \eta \hat g(q) + N(0, 2 A \eta), \qquad q \leftarrow q + v, \qquad
    \alpha \leftarrow \alpha + \tau (v^2 - \eta)
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from zsp.inference.sampling.stochastic.density import Derivatives
from zsp.inference.sampling.stochastic.kernel import (
    Noise,
    Number,
    StochasticGradientKernel,
    require_rate,
    require_resampling,
)
from zsp.inference.sampling.stochastic.schedules import Schedule
from zsp.inference.sampling.stochastic.sghmc import draw_velocity

__all__ = ["SGNHT"]

WARM, COLD = 1.5, 0.5
"""A thermostat that has settled keeps the mean temperature near 1; outside of these it has not."""


class State(NamedTuple):
    """Where the chains are and go."""

    position: Tensor  # [chain, D]
    velocity: Tensor  # [chain, D]
    friction: Tensor  # [chain, D], or [chain, 1] for one thermostat a chain


class Coefficients(NamedTuple):
    """The numbers of a step."""

    learning_rate: Number
    noise: Number
    tune_rate: Number


class Info(NamedTuple):
    """What SGNHT reports of a step; each [chain]."""

    log_density: Tensor  # the mini-batch's estimate, unconstrained, where its gradient was taken
    friction: Tensor  # the mean of the thermostats
    largest_friction: Tensor
    temperature: Tensor  # the mean of v^2 / learning_rate, which the thermostats bring to 1


@dataclass(frozen=True)
class SGNHT(StochasticGradientKernel):
    r"""The stochastic gradient Nosé-Hoover thermostat: a friction that adapts to unknown noise of the gradient.

    The convention is ZhuSuan's, velocities of variance :math:`\eta`, gradients of the log joint of all data. With
    ``second_order=False`` a step is

    .. math::
        v \leftarrow (1 - \alpha) v + \eta \hat g(q) + N(0, 2 A \eta), \qquad q \leftarrow q + v, \qquad
        \alpha \leftarrow \alpha + \tau (v^2 - \eta);

    with ``second_order=True`` position and thermostat move by halves around the velocity, as in
    :class:`zsp.SGHMC`. The thermostat begins at :math:`\alpha = A`; in equilibrium it is
    :math:`A + \eta \sigma^2 / 2`, with :math:`\sigma^2` the variance of the gradient's noise.

    What to look out for: in a step the thermostat falls by at most :math:`\tau \eta`. Chains that begin where gradients
    are large become fast, their thermostats rise far above 1, and then stop them for about
    :math:`\alpha / (\tau \eta)` steps; with a small rate that may be the whole run. ``info.temperature`` is then below
    1, ``info.largest_friction`` above 1, and :func:`zsp.mcmc` warns. Begin near the mode (``init=``), or with a larger
    ``variance_extra`` or ``tune_rate``. A thermostat that had no time to rise leaves the temperature above 1.

    Args:
        learning_rate: :math:`\eta`.
        variance_extra: A, the noise that is added beside the gradient's own. With 0 and exact gradients the chain is
            deterministic but for its beginning.
        tune_rate: :math:`\tau`; 1 is the paper's, 0 holds the thermostat at A.
        n_iter_resample_v: steps after which velocities are drawn anew from :math:`N(0, \eta)`; None for never.
        second_order: which of the two integrators.
        use_vector_alpha: whether each dimension has a thermostat, or each chain one for all its latents together.
        schedule: from the number of the step to a factor of the learning rate; default always 1. In stages without
            noise the thermostats stand still.

    Reference: Ding, Fang, Babbush, Chen, Skeel and Neven 2014, algorithm 2; Chen, Ding and Carin 2015,
    arXiv:1610.06665; ZhuSuan's ``zhusuan.SGNHT``.
    """

    learning_rate: float
    variance_extra: float = 0.0
    tune_rate: float = 1.0
    n_iter_resample_v: int | None = None
    second_order: bool = True
    use_vector_alpha: bool = True
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        require_rate(self)
        require_resampling(self)
        for name in ("variance_extra", "tune_rate"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be at least 0 and finite, got {getattr(self, name)}.")

    def coefficients(self, learning_rate: float, temperature: float) -> Coefficients:
        """The numbers of a step."""
        noise = sqrt(2 * self.variance_extra * learning_rate * temperature)
        return Coefficients(learning_rate, noise, self.tune_rate * temperature)

    def begin(self, position: Tensor, generator: torch.Generator) -> State:
        """Chains at ``position`` [chain, D], with velocities of their own."""
        velocity = draw_velocity(position, self.learning_rate * self.stage(0).factor, generator)
        friction = torch.full_like(position if self.use_vector_alpha else position[:, :1], self.variance_extra)
        return State(position, velocity, friction)

    def refresh(self, state: State, learning_rate: float, generator: torch.Generator) -> State:
        """The state with velocities drawn anew."""
        return state._replace(velocity=draw_velocity(state.position, learning_rate, generator))

    def advance(
        self, derivatives: Derivatives, state: State, noise: Noise, coefficients: Coefficients
    ) -> tuple[State, Info]:
        """One step of every chain."""
        c, (position, velocity, friction) = coefficients, state
        if self.second_order:
            middle = position + 0.5 * velocity
            friction = friction + 0.5 * c.tune_rate * (self._heat(velocity) - c.learning_rate)
            value, gradient = derivatives(middle)
            half = torch.exp(-0.5 * friction)
            velocity = half * (half * velocity + c.learning_rate * gradient + c.noise * noise.normal)
            position = middle + 0.5 * velocity
            friction = friction + 0.5 * c.tune_rate * (self._heat(velocity) - c.learning_rate)
        else:
            value, gradient = derivatives(position)
            velocity = (1 - friction) * velocity + c.learning_rate * gradient + c.noise * noise.normal
            position = position + velocity
            friction = friction + c.tune_rate * (self._heat(velocity) - c.learning_rate)
        temperature = (velocity * velocity).mean(-1) / c.learning_rate
        info = Info(value, friction.mean(-1), friction.amax(-1), temperature)
        return State(position, velocity, friction), info

    def _heat(self, velocity: Tensor) -> Tensor:
        """What a thermostat compares with the learning rate."""
        square = velocity * velocity
        return square if self.use_vector_alpha else square.mean(-1, keepdim=True)

    def problems(self, info: dict[str, Tensor]) -> list[str]:
        """Thermostats that have not settled."""
        temperature = info["temperature"].double().mean(1)
        is_off = (temperature < COLD) | (temperature > WARM) | ~temperature.isfinite()
        is_stopped = info["largest_friction"][:, -1] > 2
        found = []
        if self.tune_rate and is_off.any():
            worst = temperature[is_off][(temperature[is_off] - 1).abs().argmax()].item()
            found.append(
                f"the thermostats of SGNHT have not settled in {int(is_off.sum())} of {len(is_off)} chains: the mean "
                f"of v^2 / learning_rate (info.temperature) should be 1 and is {worst:.3g} in the worst. Make more "
                "warm-up, begin near the mode (init=...), or raise tune_rate."
            )
        if is_stopped.any():
            largest = info["largest_friction"][:, -1].max().item()
            n_steps = f"{largest / (self.tune_rate * self.learning_rate):.2g} steps" if self.tune_rate else "ever"
            found.append(
                f"SGNHT stands still in some dimensions of {int(is_stopped.sum())} of {len(is_stopped)} chains: a "
                f"thermostat is at {largest:.3g}, where every step forgets the velocity, and needs {n_steps} to come "
                "down. Begin near the mode (init=...), lower learning_rate or raise tune_rate."
            )
        return found
