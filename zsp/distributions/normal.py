r"""The normal distribution, :math:`\log p(x) = -\tfrac12 ((x - \mu) / \sigma)^2 - \log\sigma - \tfrac12\log 2\pi`,
and the distributions of its modulus (folded, half) and of its exponential (log-normal)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions.constraints import nonnegative, positive, real
from typing_extensions import Unpack

from zsp.distributions.lean import Lean, Parameter
from zsp.distributions.node_type import ReparameterizedOptions, Value, exactly_one, node_type
from zsp.distributions.tensors import broadcast_shape

__all__ = [
    "FoldNormal",
    "HalfNormal",
    "LogNormal",
    "Normal",
    "fold_normal_node",
    "half_normal_node",
    "log_normal_node",
    "normal_node",
]

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_HALF_LOG_2_OVER_PI = 0.5 * math.log(2 / math.pi)


class Normal(torch.distributions.Normal):
    """torch's normal, given by its scale or its log scale, at the cost of its own arithmetic.

    It keeps the parameters as they were given (a number stays a number) and builds ``loc`` and ``scale`` of the batch
    shape only when they are asked for.

    Args:
        loc: mean, a tensor or a number.
        scale: standard deviation; exclusive with ``log_scale``.
        log_scale: its logarithm.
    """

    _event_shape = torch.Size()
    _validate_args = False
    _drawn: tuple[Tensor, Tensor] | None = None  # the last draw, and the noise behind it

    def __init__(self, loc: Value, scale: Value | None = None, *, log_scale: Value | None = None) -> None:
        if not isinstance(loc, Tensor):
            like = scale if isinstance(scale, Tensor) else log_scale
            if isinstance(like, Tensor):
                loc = torch.as_tensor(loc, dtype=like.dtype, device=like.device)
            else:
                loc = torch.as_tensor(loc, dtype=torch.get_default_dtype())
        if scale is None:
            if log_scale is None:
                raise ValueError("Normal needs a scale or a log_scale, but got neither")
            scale = log_scale.exp() if isinstance(log_scale, Tensor) else math.exp(log_scale)
        self._loc, self._scale, self._log_scale = loc, scale, log_scale
        self._batch_shape = broadcast_shape(loc.shape, scale.shape) if isinstance(scale, Tensor) else loc.shape

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters and of the values."""
        return self._loc.dtype

    @property
    def parameter(self) -> Tensor:
        """A parameter, as it was given."""
        return self._loc

    @property
    def loc(self) -> Tensor:  # type: ignore[override]
        """Mean, of the batch shape."""
        return self._loc.expand(self._batch_shape)

    @property
    def scale(self) -> Tensor:  # type: ignore[override]
        """Standard deviation, of the batch shape."""
        scale = self._scale
        if not isinstance(scale, Tensor):
            scale = torch.as_tensor(scale, dtype=self._loc.dtype, device=self._loc.device)
        return scale.expand(self._batch_shape)

    def expand(self, batch_shape, _instance=None) -> Normal:  # type: ignore[override]
        """The same distribution with its parameters expanded to ``batch_shape``."""
        log_scale = self._log_scale.expand(batch_shape) if isinstance(self._log_scale, Tensor) else None
        return Normal(self.loc.expand(batch_shape), self.scale.expand(batch_shape), log_scale=log_scale)

    def rsample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """A draw, differentiable in the parameters, of shape sample_shape + batch."""
        loc, scale = self._loc, self._scale
        if sample_shape or loc.shape != self._batch_shape:
            noise = torch.randn((*sample_shape, *self._batch_shape), dtype=loc.dtype, device=loc.device)
        else:
            # the same numbers, with less to pass
            noise = torch.randn_like(loc, memory_format=torch.contiguous_format)
        draw = torch.addcmul(loc, noise, scale) if isinstance(scale, Tensor) else torch.add(loc, noise, alpha=scale)
        self._drawn = (draw, noise)
        return draw

    def sample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """A draw without gradient, of shape sample_shape + batch."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob_of_draw(self, draw: Tensor, axes: tuple[int, ...]) -> Tensor | None:
        r"""``log_prob(draw).sum(axes)`` as a function of the noise behind the last draw; None for any other value.

        With :math:`x = \mu + \sigma\epsilon`, :math:`\log p(x) = -\tfrac12\epsilon^2 - \log\sigma - \tfrac12\log 2\pi`:
        the same value and the same gradient with respect to whatever the parameters depend on, with less to compute;
        but not the derivative with respect to ``draw``, whose way through the mean is already added. ``axes`` are the
        last ones, counted from the end and in order.
        """
        if self._drawn is None or self._drawn[0] is not draw:
            return None
        noise = self._drawn[1]
        log_scale = self._log_scale
        if not isinstance(log_scale, Tensor):
            scale = self._scale
            log_scale = scale.log() if isinstance(scale, Tensor) else noise.new_full((), math.log(scale))
        # the noise, which has no gradient, takes the factor 1/2: on the other terms it would be an operation backward
        terms = torch.addcmul(log_scale, noise, noise, value=0.5)
        if not axes:
            return torch.rsub(terms, -_HALF_LOG_2PI)
        n = noise.shape[axes[0] :].numel()
        return torch.rsub(terms.sum(axes), -n * _HALF_LOG_2PI)

    def summed_log_prob(self, value: Tensor, axes: tuple[int, ...]) -> Tensor:
        """``log_prob(value).sum(axes)`` over the last axes; where the scale is a number, only squares are summed."""
        loc, scale = self._loc, self._scale
        if isinstance(scale, Tensor):
            return self.log_prob(value).sum(axes)
        difference = value - loc
        constant = difference.shape[axes[0] :].numel() * (-math.log(scale) - _HALF_LOG_2PI)
        # a product with itself, whose derivative is cheaper than that of a square
        return torch.rsub((difference * difference).sum(axes), constant, alpha=0.5 / (scale * scale))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at ``value``."""
        # the fewest operations, forward and backward: rsub(a, b, alpha=c) is b - c a in one
        scale = self._scale
        if isinstance(scale, Tensor):
            log_scale = self._log_scale if isinstance(self._log_scale, Tensor) else scale.log()
            square = torch.square((value - self._loc) / scale)
            return torch.sub(torch.rsub(log_scale, -_HALF_LOG_2PI), square, alpha=0.5)
        return torch.rsub(
            torch.square(value - self._loc), -math.log(scale) - _HALF_LOG_2PI, alpha=0.5 / (scale * scale)
        )


@node_type(mean=real, std=positive, logstd=real, scipy="norm(mean, std)")
def normal_node(
    mean: Value = 0.0,
    *,
    std: Value | None = None,
    logstd: Value | None = None,
    **options: Unpack[ReparameterizedOptions],
) -> Normal:
    r"""Normal node, :math:`x \sim \mathrm{N}(\mu, \sigma^2)`.

    .. math:: \log p(x) = -\tfrac12 ((x - \mu) / \sigma)^2 - \log\sigma - \tfrac12\log 2\pi

    Args:
        mean: :math:`\mu`, broadcastable with the other parameter.
        std: :math:`\sigma > 0`; give exactly one of ``std`` and ``logstd``.
        logstd: :math:`\log\sigma`.
    """
    if (std is None) == (logstd is None):
        raise exactly_one("std", "logstd", both=std is not None)
    return Normal(mean, std, log_scale=logstd)


class _OfNormal(torch.distributions.Distribution):
    """A function of a normal variable; it holds a normal and is none, for torch finds KL divergences by type."""

    arg_constraints: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]
    has_rsample = True

    def __init__(self, loc: Value, scale: Value | None = None, *, log_scale: Value | None = None) -> None:
        self._normal = Normal(loc, scale, log_scale=log_scale)
        self._batch_shape, self._event_shape = self._normal._batch_shape, torch.Size()
        self._validate_args = False

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters and of the values."""
        return self._normal.dtype

    @property
    def parameter(self) -> Tensor:
        """A parameter, as it was given."""
        return self._normal.parameter

    @property
    def loc(self) -> Tensor:
        """Mean of the normal variable, of the batch shape."""
        return self._normal.loc

    @property
    def scale(self) -> Tensor:
        """Standard deviation of the normal variable, of the batch shape."""
        return self._normal.scale

    def expand(self, batch_shape, _instance=None):
        """The same distribution with its parameters expanded to ``batch_shape``."""
        new = object.__new__(type(self))
        new.__dict__.update(
            self.__dict__, _normal=self._normal.expand(batch_shape), _batch_shape=torch.Size(batch_shape)
        )
        return new

    def sample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """A draw without gradient, of shape sample_shape + batch."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._normal})"


class FoldNormal(_OfNormal):
    r"""The modulus of a normal variable (Leone et al. 1961, Technometrics 3).

    Args:
        loc: mean of the normal variable, a tensor or a number.
        scale: its standard deviation; exclusive with ``log_scale``.
        log_scale: its logarithm.
    """

    support = nonnegative

    def rsample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """A draw, differentiable in the parameters, of shape sample_shape + batch."""
        return self._normal.rsample(sample_shape).abs()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at ``value``; minus infinity below zero."""
        normal = self._normal
        loc = normal._loc.abs()  # the density is even in the mean; with this sign nothing large cancels
        log_scale: Value | None = normal._log_scale
        if log_scale is None:
            log_scale = normal._scale.log() if isinstance(normal._scale, Tensor) else math.log(normal._scale)
        standard, standard_loc = (value - loc) / normal._scale, loc / normal._scale
        mirrored = torch.nn.functional.softplus(-2 * standard_loc * (value / normal._scale))
        log_p = mirrored - 0.5 * standard * standard - log_scale - _HALF_LOG_2PI
        return torch.where(value >= 0, log_p, -torch.inf)


class LogNormal(_OfNormal):
    r"""The exponential of a normal variable.

    Args:
        loc: mean of the logarithm, a tensor or a number.
        scale: standard deviation of the logarithm; exclusive with ``log_scale``.
        log_scale: its logarithm.
    """

    support = positive

    @property
    def mean(self) -> Tensor:
        """exp(loc + scale^2 / 2)."""
        return (self.loc + 0.5 * self.scale**2).exp()

    @property
    def variance(self) -> Tensor:
        """(exp(scale^2) - 1) exp(2 loc + scale^2)."""
        return (self.scale**2).expm1() * (2 * self.loc + self.scale**2).exp()

    def cdf(self, value: Tensor) -> Tensor:
        """Distribution function."""
        return torch.where(value > 0, self._normal.cdf(torch.where(value > 0, value, 1.0).log()), 0.0)

    def icdf(self, value: Tensor) -> Tensor:
        """Quantile function."""
        return self._normal.icdf(value).exp()

    def entropy(self) -> Tensor:
        """Entropy in nats."""
        return self._normal.entropy() + self.loc

    def rsample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """A draw, differentiable in the parameters, of shape sample_shape + batch."""
        return self._normal.rsample(sample_shape).exp()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at ``value``."""
        log_value = value.log()
        return self._normal.log_prob(log_value) - log_value


class HalfNormal(Lean):
    r"""The modulus of a normal variable with mean zero.

    Args:
        scale: standard deviation of the normal variable, a tensor or a number.
    """

    support = nonnegative
    has_rsample = True
    scale = Parameter()
    _scale: Tensor

    def __init__(self, scale: Value) -> None:
        self._set(scale=scale)

    @property
    def mean(self) -> Tensor:
        """scale sqrt(2 / pi)."""
        return self.scale * math.sqrt(2 / math.pi)

    @property
    def variance(self) -> Tensor:
        """scale^2 (1 - 2 / pi)."""
        return self.scale**2 * (1 - 2 / math.pi)

    def cdf(self, value: Tensor) -> Tensor:
        """Distribution function."""
        return torch.erf(value.clamp(min=0) / (self._scale * math.sqrt(2)))

    def icdf(self, value: Tensor) -> Tensor:
        """Quantile function."""
        return self._scale * math.sqrt(2) * torch.erfinv(value)

    def entropy(self) -> Tensor:
        """Entropy in nats."""
        return self.scale.log() + 0.5 - _HALF_LOG_2_OVER_PI

    def rsample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """A draw, differentiable in the scale, of shape sample_shape + batch."""
        noise = torch.randn(self._shape(sample_shape), dtype=self._scale.dtype, device=self._scale.device)
        return noise.abs() * self._scale

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at ``value``; minus infinity below zero."""
        standard = value / self._scale
        log_p = torch.addcmul(_HALF_LOG_2_OVER_PI - self._scale.log(), standard, standard, value=-0.5)
        return torch.where(value >= 0, log_p, -torch.inf)


@node_type(
    mean=real,
    std=positive,
    logstd=real,
    hint="A folded normal value is not negative; for any sign use bn.normal.",
    scipy="foldnorm(abs(mean) / std, scale=std)",
)
def fold_normal_node(
    mean: Value = 0.0,
    *,
    std: Value | None = None,
    logstd: Value | None = None,
    **options: Unpack[ReparameterizedOptions],
) -> FoldNormal:
    r"""Folded normal node, :math:`x = |y|` with :math:`y \sim \mathrm{N}(\mu, \sigma^2)`.

    .. math:: \log p(x) = \log\bigl(\mathrm{N}(x; \mu, \sigma^2) + \mathrm{N}(x; -\mu, \sigma^2)\bigr), \quad x \ge 0

    Args:
        mean: :math:`\mu`, broadcastable with the other parameter.
        std: :math:`\sigma > 0`; give exactly one of ``std`` and ``logstd``.
        logstd: :math:`\log\sigma`.
    """
    if (std is None) == (logstd is None):
        raise exactly_one("std", "logstd", both=std is not None)
    return FoldNormal(mean, std, log_scale=logstd)


@node_type(
    mean=real,
    std=positive,
    logstd=real,
    hint="A log-normal value is positive. Its mean and std are of log x.",
    scipy="lognorm(std, scale=exp(mean))",
)
def log_normal_node(
    mean: Value = 0.0,
    *,
    std: Value | None = None,
    logstd: Value | None = None,
    **options: Unpack[ReparameterizedOptions],
) -> LogNormal:
    r"""Log-normal node, :math:`\log x \sim \mathrm{N}(\mu, \sigma^2)`.

    .. math:: \log p(x) = \log \mathrm{N}(\log x; \mu, \sigma^2) - \log x, \quad x > 0

    Args:
        mean: :math:`\mu`, the mean of log x, broadcastable with the other parameter.
        std: :math:`\sigma > 0`, the standard deviation of log x; give exactly one of ``std`` and ``logstd``.
        logstd: :math:`\log\sigma`.
    """
    if (std is None) == (logstd is None):
        raise exactly_one("std", "logstd", both=std is not None)
    return LogNormal(mean, std, log_scale=logstd)


@node_type(
    scale=positive,
    hint="A half-normal value is not negative; for any sign use bn.normal.",
    scipy="halfnorm(scale=scale)",
)
def half_normal_node(scale: Value, **options: Unpack[ReparameterizedOptions]) -> HalfNormal:
    r"""Half-normal node, :math:`x = |y|` with :math:`y \sim \mathrm{N}(0, \sigma^2)`.

    .. math:: \log p(x) = \tfrac12\log\tfrac2\pi - \log\sigma - \tfrac12 (x / \sigma)^2, \quad x \ge 0

    Args:
        scale: :math:`\sigma > 0`.
    """
    return HalfNormal(scale)
