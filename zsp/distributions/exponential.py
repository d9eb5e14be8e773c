r"""The exponential distribution, :math:`\log p(x) = \log r - r x`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions.constraints import nonnegative, positive
from typing_extensions import Unpack

from zsp.distributions.lean import Lean, Parameter
from zsp.distributions.node_type import ReparameterizedOptions, Value, node_type

__all__ = ["Exponential", "exponential_node"]


class Exponential(Lean, torch.distributions.Exponential):
    r"""torch's exponential, with the parameters kept as given and no density below zero.

    Args:
        rate: r, a tensor or a number.
    """

    support = nonnegative
    rate = Parameter()
    _rate: Tensor

    def __init__(self, rate: Value) -> None:
        self._set(rate=rate)

    def rsample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """A draw, differentiable in the rate, of shape sample_shape + batch."""
        noise = torch.rand(self._shape(sample_shape), dtype=self._rate.dtype, device=self._rate.device)
        return -torch.log1p(-noise) / self._rate

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at ``value``; minus infinity below zero."""
        return torch.where(value >= 0, self._rate.log() - self._rate * value, -torch.inf)


@node_type(rate=positive, hint="An exponential value is not negative.", scipy="expon(scale=1 / rate)")
def exponential_node(rate: Value, **options: Unpack[ReparameterizedOptions]) -> Exponential:
    r"""Exponential node with mean 1 / r.

    .. math:: \log p(x) = \log r - r x, \quad x \ge 0

    Args:
        rate: r > 0.
    """
    return Exponential(rate)
