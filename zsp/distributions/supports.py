"""Supports that torch lacks, or whose torch version is wrong for large or float32 values.

A support is a ``torch.distributions.constraints.Constraint``. Those of continuous variables know their transform
(``torch.distributions.biject_to``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to, constraint_registry, transform_to, transforms
from torch.distributions.constraints import Constraint

__all__ = [
    "Anything",
    "Counts",
    "LogSimplex",
    "OpenUnitInterval",
    "Ordered",
    "Point",
    "Simplex",
    "counts",
    "log_simplex",
    "open_simplex",
    "open_unit_interval",
    "ordered",
    "positive_ordered",
    "simplex",
]


def _sum_tolerance(value: Tensor) -> float:
    """How far the sum of n rounded terms that should add up to 1 may be from it."""
    return 8 * torch.finfo(value.dtype).eps * max(value.shape[-1], 8) ** 0.5 if value.is_floating_point() else 0.0


class Simplex(Constraint):
    """Vectors of non-negative numbers that sum to 1, with a tolerance that follows the dtype and the length.

    torch's own asks for a sum within 1e-6, which softmax in float32 misses with a few thousand categories.

    Args:
        is_open: whether zeros are outside.
    """

    is_discrete = False
    event_dim = 1

    def __init__(self, is_open: bool = False) -> None:
        self.is_open = is_open
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Whether each vector is on the simplex."""
        inside = (value > 0) if self.is_open else (value >= 0)
        return inside.all(-1) & ((value.sum(-1) - 1).abs() <= _sum_tolerance(value))


class LogSimplex(Constraint):
    """Vectors whose exponentials are on the simplex: logarithms of probabilities."""

    is_discrete = False
    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        """Whether each vector holds the logarithms of probabilities."""
        return value.isfinite().all(-1) & (value.logsumexp(-1).abs() <= _sum_tolerance(value))


class OpenUnitInterval(Constraint):
    """Numbers strictly between 0 and 1."""

    is_discrete = False
    event_dim = 0

    def check(self, value: Tensor) -> Tensor:
        """Whether each number is in (0, 1)."""
        return (value > 0) & (value < 1)


class Ordered(Constraint):
    """Vectors of increasing numbers.

    Args:
        is_positive: whether the first, and so each of them, is above zero.
    """

    is_discrete = False
    event_dim = 1

    def __init__(self, is_positive: bool = False) -> None:
        self.is_positive = is_positive
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Whether the numbers of each vector increase."""
        increases = (value[..., 1:] > value[..., :-1]).all(-1)
        return increases & (value[..., 0] > 0) if self.is_positive else increases

    def __repr__(self) -> str:
        return f"Ordered(is_positive={self.is_positive})"


class Counts(Constraint):
    """Vectors of non-negative whole numbers; with ``total`` they sum to it.

    Args:
        total: the sum, a number or a tensor of the batch shape, or None for any.
    """

    is_discrete = True
    event_dim = 1

    def __init__(self, total: Any = None) -> None:
        self.total = total
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Whether each vector holds counts."""
        inside = ((value >= 0) & (value % 1 == 0)).all(-1)
        return inside if self.total is None else inside & (value.sum(-1) == self.total)

    def __repr__(self) -> str:
        return "Counts()" if self.total is None else f"Counts(total={self.total})"


class Point(Constraint):
    """One value.

    Args:
        value: the value.
    """

    is_discrete = True
    event_dim = 0

    def __init__(self, value: Tensor) -> None:
        self.value = value
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Whether each value equals the point."""
        return value == self.value


class Anything(Constraint):
    """Any value but NaN.

    Args:
        event_dim: how many of the last axes are one event.
        is_discrete: whether the values are discrete.
    """

    def __init__(self, event_dim: int = 0, is_discrete: bool = False) -> None:
        self._event_dim, self._is_discrete = event_dim, is_discrete
        super().__init__()

    @property
    def event_dim(self) -> int:  # type: ignore[override]
        """How many of the last axes are one event."""
        return self._event_dim

    @property
    def is_discrete(self) -> bool:  # type: ignore[override]
        """Whether the values are discrete."""
        return self._is_discrete

    def check(self, value: Tensor) -> Tensor:
        """Whether each event is free of NaN."""
        inside = value == value
        return inside.flatten(-self._event_dim).all(-1) if self._event_dim else inside


class _LogStickBreaking(transforms.Transform):
    """Unconstrained vectors of n - 1 numbers to logarithms of probabilities: log softmax of the vector and a zero.

    The volume is measured in the n - 1 log ratios to the last component, as the density of :class:`ExpConcrete` is, so
    that its Jacobian determinant is 1.
    """

    domain = torch.distributions.constraints.real_vector
    codomain: Constraint = LogSimplex()
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _LogStickBreaking)

    def __hash__(self) -> int:
        return hash(type(self))

    def _call(self, x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x, (0, 1)).log_softmax(-1)

    def _inverse(self, y: Tensor) -> Tensor:
        return y[..., :-1] - y[..., -1:]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Zero: x is the vector of log ratios itself."""
        return x.new_zeros(x.shape[:-1])

    def forward_shape(self, shape):
        """One component more."""
        return (*shape[:-1], shape[-1] + 1)

    def inverse_shape(self, shape):
        """One component less."""
        return (*shape[:-1], shape[-1] - 1)


class _Increments(transforms.Transform):
    """Sums of steps, each the exponential of a number; the first is the number itself unless it must be positive."""

    domain = torch.distributions.constraints.real_vector
    bijective = True

    def __init__(self, is_positive: bool) -> None:
        super().__init__()
        self.is_positive = is_positive
        self.codomain: Constraint = Ordered(is_positive)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Increments) and self.is_positive == other.is_positive

    def __hash__(self) -> int:
        return hash((type(self), self.is_positive))

    def _call(self, x: Tensor) -> Tensor:
        steps = x.exp() if self.is_positive else torch.cat([x[..., :1], x[..., 1:].exp()], -1)
        return steps.cumsum(-1)

    def _inverse(self, y: Tensor) -> Tensor:
        first = y[..., :1].log() if self.is_positive else y[..., :1]
        return torch.cat([first, y.diff(dim=-1).log()], -1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """The sum of the steps' logarithms."""
        return (x if self.is_positive else x[..., 1:]).sum(-1)


ordered = Ordered()
positive_ordered = Ordered(is_positive=True)
simplex = Simplex()
open_simplex = Simplex(is_open=True)
log_simplex = LogSimplex()
open_unit_interval = OpenUnitInterval()
counts = Counts()


def _register(registry: constraint_registry.ConstraintRegistry) -> None:
    registry.register(Simplex, lambda constraint: transforms.StickBreakingTransform())
    registry.register(LogSimplex, lambda constraint: _LogStickBreaking())
    registry.register(OpenUnitInterval, lambda constraint: transforms.SigmoidTransform())
    registry.register(Ordered, lambda constraint: _Increments(constraint.is_positive))


_register(biject_to)  # our own classes only: what torch registers stays as it is
_register(transform_to)
