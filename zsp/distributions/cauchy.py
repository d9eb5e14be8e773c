r"""The Cauchy distribution, :math:`\log p(x) = -\log\pi s - \log(1 + z^2)` with :math:`z = (x - m) / s`."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions.constraints import positive, real
from typing_extensions import Unpack

from zsp.distributions.lean import Lean, Parameter
from zsp.distributions.node_type import ReparameterizedOptions, Value, node_type
from zsp.distributions.tensors import open_uniform

__all__ = ["Cauchy", "cauchy_node"]


def _log1p_square(z: Tensor) -> Tensor:
    """``log(1 + z^2)``, also where the square overflows (in float32 from 2e19 on)."""
    z = z.abs()
    is_large = z > 1e4
    near, far = torch.where(is_large, 0.0, z), torch.where(is_large, z, 1.0)
    return torch.where(is_large, 2 * far.log() + far.reciprocal().square(), torch.log1p(near * near))


class Cauchy(Lean, torch.distributions.Cauchy):
    r"""torch's Cauchy, with a finite density wherever the value is finite.

    Args:
        loc: m, the median, a tensor or a number.
        scale: s, half the distance of the quartiles.
    """

    support = real
    loc = Parameter()
    scale = Parameter()
    _loc: Tensor
    _scale: Tensor

    def __init__(self, loc: Value, scale: Value) -> None:
        self._set(loc=loc, scale=scale)

    def rsample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """A draw, differentiable in the parameters, of shape sample_shape + batch."""
        return self._loc - self._scale / (open_uniform(self._shape(sample_shape), self._loc) * math.pi).tan()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at ``value``."""
        return -_log1p_square((value - self._loc) / self._scale) - self._scale.log() - math.log(math.pi)


@node_type(loc=real, scale=positive, scipy="cauchy(loc, scale)")
def cauchy_node(loc: Value, scale: Value, **options: Unpack[ReparameterizedOptions]) -> Cauchy:
    r"""Cauchy node: Student's t with one degree of freedom, without mean or variance.

    .. math:: \log p(x) = -\log\pi s - \log\bigl(1 + ((x - m) / s)^2\bigr)

    Args:
        loc: m, the median.
        scale: s > 0, half the distance of the quartiles.
    """
    return Cauchy(loc, scale)
