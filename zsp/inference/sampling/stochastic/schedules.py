r"""Schedules: what each step of a stochastic-gradient kernel does with its learning rate.

A schedule is a function of the number of the step, from 0 on, warm-up included. It returns the factor by which the
kernel's ``learning_rate`` is multiplied, or a :class:`Stage`, which also says how much noise there is and whether the
step may make a draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["CyclicalSchedule", "PolynomialSchedule", "Schedule", "Stage", "stage_at"]


class Stage(NamedTuple):
    """What a schedule says of a step.

    Attributes:
        factor: of the learning rate, at least 0.
        temperature: of the noise, by which its variance is multiplied: 1 samples, 0 optimises.
        is_kept: whether the position after the step may be a draw.
    """

    factor: float
    temperature: float = 1.0
    is_kept: bool = True


Schedule = Callable[[int], float | Stage]


def stage_at(schedule: Schedule | None, step: int) -> Stage:
    """What the schedule says of a step; without a schedule every step is alike.

    Raises:
        ValueError: for a factor or a temperature that is negative or not finite.
    """
    if schedule is None:
        return Stage(1.0)
    found = schedule(step)
    stage = found if isinstance(found, Stage) else Stage(float(found))
    if not (0 <= stage.factor < math.inf and 0 <= stage.temperature < math.inf):
        raise ValueError(
            f"a schedule must return factors of the learning rate (and temperatures) that are finite and at least 0, "
            f"but for step {step} it returned {found}."
        )
    return stage


@dataclass(frozen=True)
class PolynomialSchedule:
    r"""A learning rate that decays polynomially, :math:`(1 + t / b)^{-\gamma}`.

    With :math:`\gamma` in (1/2, 1] the rates sum to infinity and their squares do not, and averages weighted by the
    rates converge to the posterior's; plain averages of the draws then give the early ones too little weight.

    Args:
        b: steps after which the rate has begun to decay.
        gamma: the exponent.

    Reference: Welling and Teh 2011, section 3 and section 4.2.
    """

    b: float
    gamma: float = 0.55

    def __post_init__(self) -> None:
        for name in ("b", "gamma"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")

    def __call__(self, step: int) -> float:
        """The factor of the learning rate in a step."""
        return (1 + step / self.b) ** -self.gamma


@dataclass(frozen=True)
class CyclicalSchedule:
    r"""Cyclical learning rates (cSG-MCMC): each cycle goes somewhere else, then samples there.

    .. math:: \tfrac12 \Bigl(\cos\frac{\pi (t \bmod P)}{P} + 1\Bigr)

    In the first part of every cycle of P steps there is no noise: it explores. The rest samples, and only the positions
    there are kept as draws.

    Args:
        period: P, steps of a cycle.
        exploration: the part of a cycle that explores, from 0 to less than 1.

    Reference: Zhang, Li, Zhang, Chen and Wilson 2020, arXiv:1902.03932, equation 1 and algorithm 1.
    """

    period: int
    exploration: float = 0.8

    def __post_init__(self) -> None:
        if isinstance(self.period, bool) or not isinstance(self.period, int) or self.period < 2:
            raise ValueError(f"period must be a whole number of at least 2 steps, got {self.period!r}.")
        last = (self.period - 1) / self.period
        if not 0 <= self.exploration <= last:
            raise ValueError(
                f"exploration must be from 0 to {last:g}, so that a step of each cycle of {self.period} samples, got "
                f"{self.exploration}."
            )

    def __call__(self, step: int) -> Stage:
        """What a step does."""
        part = step % self.period / self.period
        is_sampling = part >= self.exploration
        return Stage(0.5 * (math.cos(math.pi * part) + 1), float(is_sampling), is_sampling)
