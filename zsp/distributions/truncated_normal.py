r"""The normal distribution on an interval,
:math:`\log p(x) = -\tfrac12 z^2 - \log\sigma - \tfrac12\log 2\pi - \log(\Phi(b) - \Phi(a))`
with :math:`z = (x - \mu) / \sigma`, far into both tails."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to
from torch.distributions.constraints import Constraint, positive, real
from torch.special import erfcx, log_ndtr, ndtri
from typing_extensions import Unpack

from zsp.distributions.lean import Lean, Parameter
from zsp.distributions.node_type import ReparameterizedOptions, Value, exactly_one, node_type
from zsp.distributions.tensors import open_uniform

__all__ = ["LessThanEq", "TruncatedNormal", "truncated_normal_node"]

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def _gauss_legendre(n: int) -> tuple[list[float], list[float]]:
    r"""Places and weights of the quadrature :math:`\int_0^1 f \approx \sum_i w_i f(x_i)`, exact for degree 2n - 1.

    The places are the roots of the Legendre polynomial :math:`P_n`, by Newton's method, moved from [-1, 1] to [0, 1];
    numpy.polynomial has the same, but importing it takes longer than all of this module.
    """
    places, weights = [], []
    for i in range(n):
        x = math.cos(math.pi * (n - i - 0.25) / (n + 0.5))
        for _ in range(5):  # the first guess is good to three digits, each step doubles them
            below, p = 1.0, x
            for k in range(2, n + 1):
                below, p = p, ((2 * k - 1) * x * p - (k - 1) * below) / k
            slope = n * (below - x * p) / (1 - x * x)
            x -= p / slope
        places.append((1 + x) / 2)
        weights.append(1 / ((1 - x * x) * slope * slope))
    return places, weights


_PLACES, _WEIGHTS = _gauss_legendre(20)


class LessThanEq(Constraint):
    """Numbers up to a bound, which torch has in its open form only.

    Args:
        upper_bound: the largest number.
    """

    is_discrete = False
    event_dim = 0

    def __init__(self, upper_bound: Any) -> None:
        self.upper_bound = upper_bound
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Whether each number is at most the bound."""
        return value <= self.upper_bound

    def __repr__(self) -> str:
        return f"LessThanEq(upper_bound={self.upper_bound})"


for _registry in (biject_to, transform_to):
    _registry.register(LessThanEq, lambda c, r=_registry: r(constraints.less_than(c.upper_bound)))


def _log_mass(low: Tensor, high: Tensor) -> Tensor:
    r""":math:`\log\int_a^b e^{-(t^2 - r^2) / 2} dt / \sqrt{2\pi}` for a < b, r the number in [a, b] nearest to zero.

    Three forms, none of which subtracts what is nearly equal: quadrature where the interval is short, so that the
    density hardly changes; a ratio of scaled tails on one side of zero; and a sum of both sides of zero.
    """
    in_left_tail = high < 0
    a, b = torch.where(in_left_tail, -high, low), torch.where(in_left_tail, -low, high)  # now b > 0
    nearest = a.clamp(min=0)
    width = b - a
    is_short = width * (1 + nearest) < 4
    is_tail = ~is_short & (a > 0)
    is_wide = ~is_short & ~is_tail
    # short: Gauss-Legendre
    start, length = torch.where(is_short, a, 0.0), torch.where(is_short, width, 1.0)
    r = torch.where(is_short, nearest, 0.0)
    places, weights = (torch.tensor(x, dtype=width.dtype, device=width.device) for x in (_PLACES, _WEIGHTS))
    distance = (start - r).unsqueeze(-1) + length.unsqueeze(-1) * places
    total = ((-0.5 * distance * (distance + 2 * r.unsqueeze(-1))).exp() * weights).sum(-1)
    short = total.log() + length.log() - _HALF_LOG_2PI
    # tail: erfcx(a) - exp(-(b^2 - a^2) / 2) erfcx(b), over 2; an infinite b counts nothing
    near, has_end = torch.where(is_tail, a, 1.0), is_tail & b.isfinite()
    far = torch.where(has_end, b, near + 1)
    drop = (-0.5 * (far - near) * (far + near)).exp() * (erfcx(far * math.sqrt(0.5)) / erfcx(near * math.sqrt(0.5)))
    tail = (0.5 * erfcx(near * math.sqrt(0.5))).log() + torch.log1p(-torch.where(has_end, drop, 0.0))
    # wide: both sides of zero
    left, right = torch.where(is_wide & a.isfinite(), a, -1.0), torch.where(is_wide & b.isfinite(), b, 1.0)
    left_mass = torch.where(a.isfinite(), torch.erf(-left * math.sqrt(0.5)), 1.0)
    right_mass = torch.where(b.isfinite(), torch.erf(right * math.sqrt(0.5)), 1.0)
    wide = (0.5 * (left_mass + right_mass)).log()
    return torch.where(is_short, short, torch.where(is_tail, tail, wide))


def _ndtri_exp(y: Tensor) -> Tensor:
    r"""The z with :math:`\log\Phi(z) = y`, for y up to log 1/2; in the tail by Newton's method on the logarithm."""
    is_tail = y < -10
    near, far = torch.where(is_tail, -1.0, y), torch.where(is_tail, y, -10.0)
    z = -(-2 * (far + _HALF_LOG_2PI + 0.5 * (-2 * far).log())).sqrt()
    for _ in range(4):
        slope = math.sqrt(2 / math.pi) / erfcx(-z * math.sqrt(0.5))
        z = z - (log_ndtr(z) - far) / slope
    return torch.where(is_tail, z, ndtri(near.exp()))


class TruncatedNormal(Lean):
    r"""A normal variable given that it lies in an interval; exact in the tails, and differentiable in all parameters.

    Args:
        loc: mean of the normal variable before truncation, a tensor or a number.
        scale: its standard deviation.
        low: lower end, or None.
        high: upper end, or None.
    """

    has_rsample = True
    loc = Parameter()
    scale = Parameter()
    low = Parameter()
    high = Parameter()
    _loc: Tensor
    _scale: Tensor
    _low: Tensor | None
    _high: Tensor | None

    def __init__(self, loc: Value, scale: Value, low: Value | None = None, high: Value | None = None) -> None:
        self._low = self._high = None
        given = {"loc": loc, "scale": scale, "low": low, "high": high}
        self._set((), **{name: value for name, value in given.items() if value is not None})

    def parameters_fit(self) -> tuple[Tensor, str] | None:
        """The lower end lies below the upper one."""
        if self._low is None or self._high is None:
            return None
        return self._low < self._high, "minval must be below maxval"

    @property
    def support(self) -> Any:  # type: ignore[override]
        """The closed interval."""
        if self._low is None:
            return real if self._high is None else LessThanEq(self._high)
        if self._high is None:
            return constraints.greater_than_eq(self._low)  # type: ignore[arg-type]
        return constraints.interval(self._low, self._high)  # type: ignore[arg-type]

    def _standard_ends(self) -> tuple[Tensor, Tensor]:
        zero = torch.zeros_like(self._loc)
        low = zero - torch.inf if self._low is None else (self._low - self._loc) / self._scale
        high = zero + torch.inf if self._high is None else (self._high - self._loc) / self._scale
        return torch.broadcast_tensors(low, high)  # type: ignore[return-value]

    @staticmethod
    def _log_ratio(at: Tensor, low: Tensor, high: Tensor, log_mass: Tensor) -> Tensor:
        """The logarithm of the standard density at an end over the mass; minus infinity at an infinite end."""
        nearest = low.clamp(min=0) + high.clamp(max=0)
        safe = torch.where(at.isfinite(), at, nearest)
        log_p = -0.5 * (safe - nearest) * (safe + nearest) - _HALF_LOG_2PI - log_mass
        return torch.where(at.isfinite(), log_p, -torch.inf)

    @property
    def mean(self) -> Tensor:
        r""":math:`\mu + \sigma (\varphi(a) - \varphi(b)) / (\Phi(b) - \Phi(a))`."""
        low, high = self._standard_ends()
        log_mass = _log_mass(low, high)
        first, second = (self._log_ratio(end, low, high, log_mass).exp() for end in (low, high))
        return (self._loc + self._scale * (first - second)).expand(self._batch_shape)

    @property
    def variance(self) -> Tensor:
        """By the ratios of the density at the ends to the mass; digits are lost where it is far below scale^2."""
        low, high = self._standard_ends()
        log_mass = _log_mass(low, high)
        first, second = (self._log_ratio(end, low, high, log_mass).exp() for end in (low, high))
        ends = torch.where(low.isfinite(), low, 0.0) * first - torch.where(high.isfinite(), high, 0.0) * second
        return (self._scale**2 * (1 + ends - (first - second) ** 2)).expand(self._batch_shape)

    def cdf(self, value: Tensor) -> Tensor:
        """Distribution function."""
        low, high = self._standard_ends()
        z = torch.maximum(torch.minimum((value - self._loc) / self._scale, high), low)
        low, z, high = torch.broadcast_tensors(low, z, high)
        below, above = z > low, z < high
        inner = torch.where(below, z, torch.minimum(high, low + 1))
        part, whole = _log_mass(low, inner), _log_mass(low, high)
        shift = 0.5 * (_nearest(low, inner).square() - _nearest(low, high).square())
        return torch.where(below, torch.where(above, (part - whole - shift).exp(), 1.0), 0.0)

    def rsample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """A draw, differentiable in the parameters, of shape sample_shape + batch; inside the interval."""
        low, high = self._standard_ends()
        u = open_uniform(self._shape(sample_shape), self._loc)
        with torch.no_grad():
            # Phi(z) = (1 - u) Phi(a) + u Phi(b), or the same of the upper tails: whichever is below one half
            lower = torch.logaddexp(log_ndtr(low) + torch.log1p(-u), log_ndtr(high) + u.log())
            upper = torch.logaddexp(log_ndtr(-low) + torch.log1p(-u), log_ndtr(-high) + u.log())
            z = _ndtri_exp(torch.minimum(lower, upper).clamp(max=-math.log(2)))
            z = torch.where(lower < upper, z, -z)
            z = torch.maximum(torch.minimum(z, high), low)
        # dz/da = (1 - u) phi(a) / phi(z), dz/db = u phi(b) / phi(z)
        if self._low is not None:
            z = z + (0.5 * (z - low) * (z + low) + torch.log1p(-u)).exp().detach() * (low - low.detach())
        if self._high is not None:
            z = z + (0.5 * (z - high) * (z + high) + u.log()).exp().detach() * (high - high.detach())
        value = self._loc + self._scale * z
        with torch.no_grad():  # rounding may leave the interval
            inside = value if self._low is None else torch.maximum(value, self._low)
            inside = inside if self._high is None else torch.minimum(inside, self._high)
        return value + (inside - value.detach())

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at ``value``; minus infinity outside the interval."""
        low, high = self._standard_ends()
        inside = torch.ones_like(value, dtype=torch.bool)
        if self._low is not None:
            inside = inside & (value >= self._low)
        if self._high is not None:
            inside = inside & (value <= self._high)
        z, nearest = (value - self._loc) / self._scale, _nearest(low, high)
        square = (z - nearest) * (z + nearest)
        log_p = -0.5 * square - _HALF_LOG_2PI - self._scale.log() - _log_mass(low, high)
        return torch.where(inside, log_p, -torch.inf)


def _nearest(low: Tensor, high: Tensor) -> Tensor:
    """The number in [low, high] that is nearest to zero."""
    return torch.where(low > 0, low, torch.where(high < 0, high, 0.0))


@node_type(
    mean=real,
    std=positive,
    logstd=real,
    minval=real,
    maxval=real,
    hint="A truncated normal value lies between minval and maxval; without a bound on one side leave it out.",
    scipy="truncnorm((minval - mean) / std, (maxval - mean) / std, mean, std)",
)
def truncated_normal_node(
    mean: Value = 0.0,
    *,
    std: Value | None = None,
    logstd: Value | None = None,
    minval: Value | None = None,
    maxval: Value | None = None,
    **options: Unpack[ReparameterizedOptions],
) -> TruncatedNormal:
    r"""Normal node given that the value lies in [a, b]; mean and std are those before truncation.

    .. math:: \log p(x) = \log \mathrm{N}(x; \mu, \sigma^2)
              - \log\Bigl(\Phi\Bigl(\frac{b - \mu}\sigma\Bigr) - \Phi\Bigl(\frac{a - \mu}\sigma\Bigr)\Bigr)

    Args:
        mean: :math:`\mu`, broadcastable with the other parameters; it may lie outside the interval.
        std: :math:`\sigma > 0`; give exactly one of ``std`` and ``logstd``.
        logstd: :math:`\log\sigma`.
        minval: a; None for no lower end.
        maxval: b, above a; None for no upper end.
    """
    if (std is None) == (logstd is None):
        raise exactly_one("std", "logstd", both=std is not None)
    if std is None:
        std = logstd.exp() if isinstance(logstd, Tensor) else math.exp(logstd)  # type: ignore[arg-type]
    return TruncatedNormal(mean, std, minval, maxval)
