r"""The Laplace distribution, :math:`\log p(x) = -|x - m| / s - \log 2s`."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions.constraints import positive, real
from typing_extensions import Unpack

from zsp.distributions.lean import Lean, Parameter
from zsp.distributions.node_type import ReparameterizedOptions, Value, node_type

__all__ = ["Laplace", "laplace_node"]


class Laplace(Lean, torch.distributions.Laplace):
    r"""torch's Laplace, with the parameters kept as given.

    Args:
        loc: m, a tensor or a number.
        scale: s.
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
        eps = torch.finfo(self._loc.dtype).eps
        noise = torch.rand(self._shape(sample_shape), dtype=self._loc.dtype, device=self._loc.device)
        noise = (2 * noise - 1).clamp(min=eps - 1)
        return self._loc - self._scale * noise.sign() * torch.log1p(-noise.abs())

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at ``value``."""
        return -(value - self._loc).abs() / self._scale - (self._scale.log() + math.log(2))


@node_type(loc=real, scale=positive, scipy="laplace(loc, scale)")
def laplace_node(loc: Value, scale: Value, **options: Unpack[ReparameterizedOptions]) -> Laplace:
    r"""Laplace (double exponential) node.

    .. math:: \log p(x) = -|x - m| / s - \log 2s

    Args:
        loc: m, the mean.
        scale: s > 0.
    """
    return Laplace(loc, scale)
