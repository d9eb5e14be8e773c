r"""The von Mises distribution of angles, :math:`\log p(x) = k\cos(x - m) - \log 2\pi I_0(k)`."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions.constraints import interval, positive, real
from typing_extensions import Unpack

from zsp.distributions.lean import Lean, Parameter
from zsp.distributions.node_type import NodeOptions, Value, node_type

__all__ = ["VonMises", "von_mises_node"]

_N_ROUNDS = 40  # of rejection: less than 0.35 of the proposals are rejected in each, 0.35^40 = 6e-19


def _log_i0e(x: Tensor) -> Tensor:
    r""":math:`\log(e^{-x} I_0(x))`; for large x by its asymptotic series, whose derivative does not cancel."""
    is_large = x > 100
    small, y = torch.where(is_large, 1.0, x), 1 / torch.where(is_large, x, 100.0)
    # DLMF 10.40.1 with nu = 0
    tail = y * (1 / 8 + y * (9 / 128 + y * (75 / 1024 + y * (3675 / 32768 + y * (59535 / 262144)))))
    series = 0.5 * (y.log() - math.log(2 * math.pi)) + torch.log1p(tail)
    return torch.where(is_large, series, torch.special.i0e(small).log())


class VonMises(Lean):
    r"""Von Mises distribution on :math:`[-\pi, \pi]`, to full precision.

    (torch's approximates the Bessel function to 7 digits, and its draws cannot be compiled.)

    Args:
        loc: m, an angle in radians, a tensor or a number.
        concentration: k; the variance is about 1 / k when k is large.
    """

    support = interval(-math.pi, math.pi)
    loc = Parameter()
    concentration = Parameter()
    _loc: Tensor
    _concentration: Tensor

    def __init__(self, loc: Value, concentration: Value) -> None:
        self._set(loc=loc, concentration=concentration)

    @property
    def mean(self) -> Tensor:
        """The circular mean, which is the location."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        r"""The circular variance, :math:`1 - I_1(k) / I_0(k)`."""
        return 1 - torch.special.i1e(self.concentration) / torch.special.i0e(self.concentration)

    def sample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """An angle, of shape sample_shape + batch.

        Reference: Best & Fisher 1979, Applied Statistics 28: rejection from a wrapped Cauchy distribution.
        """
        with torch.no_grad():
            shape = self._shape(sample_shape)
            k = self._concentration.double().clamp(min=1e-5)  # below that it is uniform to 1e-5
            tau = 1 + (1 + 4 * k * k).sqrt()
            rho = (tau - (2 * tau).sqrt()) / (2 * k)
            r = (1 + rho * rho) / (2 * rho)
            cosine, is_done = torch.zeros_like(k), torch.zeros(shape, dtype=torch.bool, device=k.device)
            for _ in range(_N_ROUNDS):
                u = torch.rand((2, *shape), dtype=torch.float64, device=k.device)
                z = (math.pi * u[0]).cos()
                f = (1 + r * z) / (r + z)
                c = k * (r - f)
                accept = c.log() - u[1].log() + 1 - c >= 0
                cosine, is_done = torch.where(is_done, cosine, f), is_done | accept
                if not _is_traced() and is_done.all():
                    break
            sign = torch.randint(0, 2, shape, dtype=torch.float64, device=k.device) * 2 - 1
            angle = sign * cosine.clamp(-1, 1).acos() + self._loc
            wrapped = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
            return wrapped.to(self._loc.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at the angles ``value``."""
        # cos(d) - 1 = -2 sin(d / 2)^2: nothing cancels when k is large
        k = self._concentration
        return -2 * k * ((value - self._loc) / 2).sin().square() - _log_i0e(k) - math.log(2 * math.pi)


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


@node_type(
    loc=real,
    concentration=positive,
    hint="A von Mises value is an angle in radians in [-pi, pi]; torch.remainder(x + pi, 2 * pi) - pi brings any "
    "angle there, torch.deg2rad(x) converts degrees.",
    scipy="vonmises(concentration, loc)",
)
def von_mises_node(loc: Value, concentration: Value, **options: Unpack[NodeOptions]) -> VonMises:
    r"""Von Mises node, the normal distribution of angles.

    .. math:: \log p(x) = k\cos(x - m) - \log 2\pi I_0(k), \quad -\pi \le x \le \pi

    Args:
        loc: m, the circular mean, in radians.
        concentration: k > 0; the variance is about 1 / k when k is large.
    """
    return VonMises(loc, concentration)
