r"""The uniform distribution on an interval, :math:`\log p(x) = -\log(b - a)`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions.constraints import interval, real
from typing_extensions import Unpack

from zsp.distributions.lean import Lean, Parameter
from zsp.distributions.node_type import ReparameterizedOptions, Value, node_type

__all__ = ["Uniform", "uniform_node"]


class Uniform(Lean, torch.distributions.Uniform):
    r"""torch's uniform at the cost of its own arithmetic, and with a finite density at both ends of the interval.

    (torch's is zero at ``high``, where a sigmoid in float32 does arrive.)

    Args:
        low: lower end, a tensor or a number.
        high: upper end, above ``low``.
    """

    low = Parameter()
    high = Parameter()
    _low: Tensor
    _high: Tensor

    def __init__(self, low: Value, high: Value) -> None:
        self._set(low=low, high=high)

    def parameters_fit(self) -> tuple[Tensor, str]:
        """The lower end lies below the upper one."""
        return self._low < self._high, "minval must be below maxval"

    @property
    def support(self) -> Any:  # type: ignore[override]
        """The closed interval."""
        return interval(self._low, self._high)

    def rsample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """A draw, differentiable in the ends, of shape sample_shape + batch."""
        noise = torch.rand(self._shape(sample_shape), dtype=self._low.dtype, device=self._low.device)
        return torch.lerp(self._low, self._high, noise)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at ``value``; minus infinity outside the interval."""
        inside = (value >= self._low) & (value <= self._high)
        return torch.where(inside, -(self._high - self._low).log(), -torch.inf)


@node_type(
    minval=real,
    maxval=real,
    hint="A uniform value lies between minval and maxval.",
    scipy="uniform(minval, maxval - minval)",
)
def uniform_node(minval: Value = 0.0, maxval: Value = 1.0, **options: Unpack[ReparameterizedOptions]) -> Uniform:
    r"""Uniform node on the interval [a, b].

    .. math:: \log p(x) = -\log(b - a), \quad a \le x \le b

    Args:
        minval: a.
        maxval: b, above a.
    """
    return Uniform(minval, maxval)
