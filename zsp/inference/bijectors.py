r"""Bijectors: smooth one-to-one maps from unconstrained numbers onto a support, with their log-Jacobians.

.. math:: y = f(x), \quad \log p_X(x) = \log p_Y(f(x)) + \log\Bigl|\det\frac{\partial f}{\partial x}\Bigr|

``torch.distributions.biject_to`` has a transform for most supports. What is here is what it lacks (lower Cholesky
factors, whose transform there takes a matrix of which half does nothing), what loses precision there, and what is
cheaper: the value and its log-Jacobian come from one call, and a map costs nothing to build, for a support that depends
on other variables is a new one in every evaluation. Anything else that ``biject_to`` knows is taken from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, biject_to, constraints
from torch.distributions.constraints import Constraint
from torch.nn.functional import logsigmoid, pad, softplus

from zsp.distributions.supports import LogSimplex, OpenUnitInterval, Simplex
from zsp.distributions.truncated_normal import LessThanEq
from zsp.distributions.wishart import PositiveDefinite
from zsp.node import LateValue

__all__ = ["Bijector", "NoBijectorError", "Unconstrained", "bijector_of"]


class NoBijectorError(NotImplementedError):
    """There is no bijector onto a support."""


class Bijector:
    """A smooth one-to-one map from unconstrained numbers onto a support; values may have any leading axes.

    Attributes:
        bounds: the numbers and tensors that the support depends on.
    """

    bounds: tuple[Any, ...] = ()

    @property
    def is_fixed(self) -> bool:
        """Whether the map depends on no tensor, and so on no other variable's value."""
        return not any([isinstance(bound, Tensor) for bound in self.bounds])

    def with_bounds(self, bounds: tuple[Any, ...]) -> Bijector:
        """The bijector of the same kind with other bounds."""
        return type(self)(*bounds) if bounds else self

    def constrain(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The point of the support for ``x``, and log-Jacobian terms.

        Returns:
            The value, and the terms, whose sum over all but the leading axes is the log-Jacobian; None where it is 0.
        """
        raise NotImplementedError

    def unconstrain(self, y: Tensor) -> Tensor:
        """The inverse of :meth:`constrain`."""
        raise NotImplementedError

    def unconstrained_shape(self, shape: torch.Size) -> torch.Size:
        """The shape of x for a value y of the given shape."""
        return shape


class _Identity(Bijector):
    """The real line."""

    def constrain(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return x, None

    def unconstrain(self, y: Tensor) -> Tensor:
        return y


class _Exp(Bijector):
    """Positive numbers, y = exp x."""

    def constrain(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return x.exp(), x

    def unconstrain(self, y: Tensor) -> Tensor:
        return y.log()


class _Above(Bijector):
    """Numbers above a bound, y = bound + exp x."""

    def __init__(self, bound: Any) -> None:
        self.bounds = (bound,)

    def constrain(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.bounds[0] + x.exp(), x

    def unconstrain(self, y: Tensor) -> Tensor:
        return (y - self.bounds[0]).log()


class _Below(Bijector):
    """Numbers below a bound, y = bound - exp x."""

    def __init__(self, bound: Any) -> None:
        self.bounds = (bound,)

    def constrain(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.bounds[0] - x.exp(), x

    def unconstrain(self, y: Tensor) -> Tensor:
        return (self.bounds[0] - y).log()


def _log_sigmoid_derivative(x: Tensor) -> Tensor:
    """log(s (1 - s)) for s = sigmoid x, without cancellation."""
    return 2 * logsigmoid(x) - x


class _UnitInterval(Bijector):
    """Numbers between 0 and 1, y = sigmoid x, never rounded to either end, where a density may be infinite."""

    def constrain(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        info = torch.finfo(x.dtype)
        return x.sigmoid().clamp(info.tiny, 1 - info.eps / 2), _log_sigmoid_derivative(x)

    def unconstrain(self, y: Tensor) -> Tensor:
        return y.logit()


class _Interval(Bijector):
    """Numbers between two bounds, y = low + (high - low) sigmoid x."""

    def __init__(self, low: Any, high: Any) -> None:
        self.bounds = (low, high)

    def constrain(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        low, high = self.bounds
        terms = _log_sigmoid_derivative(x)
        if isinstance(low, Tensor) and isinstance(high, Tensor):
            # lerp, unlike low + width * s, does not round to a value outside
            return torch.lerp(low, high, x.sigmoid()), terms + (high - low).log()
        if isinstance(low, Tensor) or isinstance(high, Tensor):
            return (low + (high - low) * x.sigmoid()), terms + (high - low).log()
        return (low + (high - low) * x.sigmoid()).clamp(low, high), terms + math.log(high - low)

    def unconstrain(self, y: Tensor) -> Tensor:
        low, high = self.bounds
        return (y - low).log() - (high - y).log()


class _LogSimplex(Bijector):
    r"""Logarithms of probabilities by the isometric log-ratio: log softmax of coordinates in an orthonormal basis.

    With the basis of Helmert, coordinate i is :math:`(\sum_{j \le i} \log y_j - i \log y_{i+1}) / \sqrt{i (i + 1)}`.
    All components are treated alike, which stick-breaking does not. The volume is measured in log ratios to the last
    component, as the density of :class:`zsp.distributions.ExpConcrete` is.

    Reference: Egozcue et al. 2003, Mathematical Geology 35, equation 24.
    """

    def _log_probabilities(self, x: Tensor) -> Tensor:
        i, weights = _helmert(x)
        scaled = x * weights
        return pad(-(scaled.cumsum(-1) + i * scaled), (1, 0)).log_softmax(-1)

    def constrain(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._log_probabilities(x), x.new_full(x.shape[:-1], 0.5 * math.log(x.shape[-1] + 1))

    def unconstrain(self, y: Tensor) -> Tensor:
        i, weights = _helmert(y[..., 1:])
        return (y[..., :-1].cumsum(-1) - i * y[..., 1:]) * weights

    def unconstrained_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size((*shape[:-1], shape[-1] - 1))


def _helmert(x: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers i = 1, ..., n and their weights 1 / sqrt(i (i + 1)), like ``x``."""
    i = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)
    return i, (i * (i + 1)).rsqrt()


class _Simplex(_LogSimplex):
    """Probabilities that sum to 1, by the isometric log-ratio; the volume is that of all but one of them."""

    def constrain(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        log_y = self._log_probabilities(x)
        return log_y.exp(), log_y.sum(-1) + 0.5 * math.log(x.shape[-1] + 1)

    def unconstrain(self, y: Tensor) -> Tensor:
        return super().unconstrain(y.log())


def _n_rows(n: int, *, with_diagonal: bool) -> int:
    """The number of rows of a matrix with n entries below its diagonal (or up to it)."""
    root = math.isqrt(8 * n + 1)
    return (root - 1) // 2 if with_diagonal else (root + 1) // 2


def _to_tril(entries: Tensor, offset: int) -> Tensor:
    """The matrix whose entries on and below a diagonal are given row by row, with zeros above."""
    d = _n_rows(entries.shape[-1], with_diagonal=offset == 0)
    rows, columns = torch.tril_indices(d, d, offset, device=entries.device)
    places = (rows * d + columns).expand(entries.shape)
    matrix = entries.new_zeros((*entries.shape[:-1], d * d)).scatter(-1, places, entries)
    return matrix.view(*entries.shape[:-1], d, d)


class _LowerCholesky(Bijector):
    """Lower triangular matrices with a positive diagonal, which is the exponential of x's."""

    def constrain(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        matrix = _to_tril(x, 0)
        logs = matrix.diagonal(dim1=-2, dim2=-1)
        return matrix.tril(-1) + torch.diag_embed(logs.exp()), logs

    def unconstrain(self, y: Tensor) -> Tensor:
        d = y.shape[-1]
        rows, columns = torch.tril_indices(d, d, device=y.device)
        matrix = y.tril(-1) + torch.diag_embed(y.diagonal(dim1=-2, dim2=-1).log())
        return matrix[..., rows, columns]

    def unconstrained_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size((*shape[:-2], shape[-1] * (shape[-1] + 1) // 2))


class _CorrelationCholesky(Bijector):
    r"""Lower Cholesky factors of correlation matrices, each row a point of a half sphere.

    .. math:: L_{ij} = \tanh(x_{ij}) \prod_{k < j} \operatorname{sech}(x_{ik}), \quad
        L_{ii} = \prod_{k < i} \operatorname{sech}(x_{ik})

    computed by the logarithms of the products. Reference: Lewandowski, Kurowicka & Joe 2009, J. Multivariate Analysis
    100, section 2 (the canonical partial correlations are tanh x).
    """

    def constrain(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        matrix = _to_tril(x, -1)
        log_cosh = softplus(-2 * matrix) + matrix - math.log(2)
        log_rest = log_cosh - log_cosh.cumsum(-1)  # half the log of what is left of the row's squared length
        unit = torch.eye(matrix.shape[-1], dtype=x.dtype, device=x.device)
        return (matrix.tanh() + unit) * log_rest.exp(), (log_rest - 2 * log_cosh).tril(-1)

    def unconstrain(self, y: Tensor) -> Tensor:
        d = y.shape[-1]
        rows, columns = torch.tril_indices(d, d, -1, device=y.device)
        rest = y.square().flip(-1).cumsum(-1).flip(-1)  # squared length of the row from an entry on
        return (y[..., rows, columns] * rest[..., rows, columns + 1].rsqrt()).asinh()

    def unconstrained_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size((*shape[:-2], shape[-1] * (shape[-1] - 1) // 2))


class _FromTorch(Bijector):
    """A support that only ``torch.distributions.biject_to`` knows."""

    def __init__(self, support: Constraint) -> None:
        try:
            self._transform = biject_to(support)
        except NotImplementedError:
            raise NoBijectorError(f"no bijector onto the support {support!r} is known") from None
        if not self._transform.bijective:
            raise NoBijectorError(f"torch's transform onto the support {support!r} is not one-to-one")
        self.bounds = tuple(_tensors_in(support))

    def with_bounds(self, bounds: tuple[Any, ...]) -> Bijector:
        """Itself, where it has none; a transform of torch's cannot be taken apart."""
        if bounds:
            raise NoBijectorError(f"the bounds of {self._transform} cannot be exchanged")
        return self

    def constrain(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        y = self._transform(x)
        return y, self._transform.log_abs_det_jacobian(x, y)

    def unconstrain(self, y: Tensor) -> Tensor:
        return self._transform.inv(y)

    def unconstrained_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size(self._transform.inverse_shape(shape))


def _tensors_in(support: Any) -> list[Tensor]:
    """The tensors that a support depends on, also through the supports that it is made of."""
    found: list[Tensor] = []
    for part in vars(support).values():
        for item in part if isinstance(part, (list, tuple)) else [part]:
            if isinstance(item, Tensor):
                found.append(item)
            elif isinstance(item, Constraint):
                found.extend(_tensors_in(item))
    return found


_EXP, _UNIT_INTERVAL = _Exp(), _UnitInterval()


def _above(support: Any) -> Bijector:
    bound = support.lower_bound
    return _EXP if isinstance(bound, (int, float)) and bound == 0 else _Above(bound)


def _between(support: Any) -> Bijector:
    low, high = support.lower_bound, support.upper_bound
    is_unit = not isinstance(low, Tensor) and not isinstance(high, Tensor) and (low, high) == (0, 1)
    return _UNIT_INTERVAL if is_unit else _Interval(low, high)


def _always(bijector: Bijector) -> Callable[[Any], Bijector]:
    return lambda support: bijector


_BUILDERS: dict[type, Callable[[Any], Bijector]] = {
    type(constraints.real): _always(_Identity()),
    constraints.greater_than: _above,
    constraints.greater_than_eq: _above,
    constraints.less_than: lambda support: _Below(support.upper_bound),
    LessThanEq: lambda support: _Below(support.upper_bound),
    constraints.interval: _between,
    constraints.half_open_interval: _between,
    OpenUnitInterval: _always(_UNIT_INTERVAL),
    Simplex: _always(_Simplex()),
    type(constraints.simplex): _always(_Simplex()),
    LogSimplex: _always(_LogSimplex()),
    type(constraints.lower_cholesky): _always(_LowerCholesky()),
    type(constraints.corr_cholesky): _always(_CorrelationCholesky()),
    PositiveDefinite: _always(_FromTorch(PositiveDefinite())),
    type(constraints.positive_definite): _always(_FromTorch(PositiveDefinite())),
}


def bijector_of(support: Any) -> Bijector:
    """The bijector onto a support.

    Args:
        support: of a continuous variable, a ``torch.distributions`` constraint.

    Returns:
        The bijector; the same for the same support.

    Raises:
        NoBijectorError: if there is none.
    """
    while isinstance(support, (constraints.independent, constraints.MixtureSameFamilyConstraint)):
        support = support.base_constraint
    build = _BUILDERS.get(type(support))
    return _FromTorch(support) if build is None else build(support)


class Unconstrained(LateValue):
    """A node's value as a point of unconstrained space; the net maps it onto the support that the node has.

    Args:
        x: the unconstrained value.
        terms: a list that the log-Jacobian's terms are added to.
    """

    def __init__(self, x: Tensor, terms: list[Tensor]) -> None:
        self._x, self._terms = x, terms

    @property
    def tensor(self) -> Tensor:
        """The unconstrained value, whose dtype and device the node's value has."""
        return self._x

    def value_of(self, dist: Distribution) -> Tensor:
        """The value on the support; its log-Jacobian joins the terms."""
        value, terms = bijector_of(dist.support).constrain(self._x)
        if terms is not None:
            self._terms.append(terms)
        return value
