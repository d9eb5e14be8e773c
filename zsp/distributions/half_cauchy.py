r"""The half-Cauchy distribution, :math:`\log p(x) = \log\tfrac2\pi - \log s - \log(1 + (x / s)^2)`."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions.constraints import nonnegative, positive
from typing_extensions import Unpack

from zsp.distributions.lean import Lean, Parameter
from zsp.distributions.node_type import ReparameterizedOptions, Value, node_type
from zsp.distributions.tensors import open_uniform

__all__ = ["HalfCauchy", "half_cauchy_node"]


class HalfCauchy(Lean):
    r"""The modulus of a Cauchy variable, as one operation rather than torch's transformed distribution.

    Args:
        scale: s, a tensor or a number; the median.
    """

    support = nonnegative
    has_rsample = True
    scale = Parameter()
    _scale: Tensor

    def __init__(self, scale: Value) -> None:
        self._set(scale=scale)

    @property
    def mean(self) -> Tensor:
        """Infinite."""
        return torch.full_like(self.scale, torch.inf)

    @property
    def variance(self) -> Tensor:
        """Infinite."""
        return torch.full_like(self.scale, torch.inf)

    def rsample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """A draw, differentiable in the scale, of shape sample_shape + batch."""
        # one over the tangent, for small noise is exact and noise near 1 is not
        return self._scale / (open_uniform(self._shape(sample_shape), self._scale) * (math.pi / 2)).tan()

    def cdf(self, value: Tensor) -> Tensor:
        """Distribution function."""
        return (value / self._scale).atan() * (2 / math.pi)

    def icdf(self, value: Tensor) -> Tensor:
        """Quantile function."""
        return self._scale * (value * (math.pi / 2)).tan()

    def entropy(self) -> Tensor:
        """Entropy in nats."""
        return (2 * math.pi * self.scale).log()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at ``value``; minus infinity below zero."""
        standard = value / self._scale
        log_p = math.log(2 / math.pi) - self._scale.log() - torch.log1p(standard * standard)
        return torch.where(value >= 0, log_p, -torch.inf)


@node_type(scale=positive, hint="A half-Cauchy value is not negative.", scipy="halfcauchy(scale=scale)")
def half_cauchy_node(scale: Value, **options: Unpack[ReparameterizedOptions]) -> HalfCauchy:
    r"""Half-Cauchy node, a common prior of scales.

    .. math:: \log p(x) = \log\tfrac2\pi - \log s - \log(1 + (x / s)^2), \quad x \ge 0

    Args:
        scale: s > 0, the median.
    """
    return HalfCauchy(scale)
