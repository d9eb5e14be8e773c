r"""The Gumbel distribution of maxima, :math:`\log p(x) = -z - e^{-z} - \log s` with :math:`z = (x - m) / s`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions.constraints import positive, real
from typing_extensions import Unpack

from zsp.distributions.lean import Lean, Parameter
from zsp.distributions.node_type import ReparameterizedOptions, Value, node_type
from zsp.distributions.tensors import open_uniform

__all__ = ["Gumbel", "gumbel_node"]


class Gumbel(Lean, torch.distributions.Gumbel):
    r"""torch's Gumbel as one operation rather than a chain of transforms.

    Args:
        loc: m, the mode, a tensor or a number.
        scale: s.
    """

    support = real
    has_rsample = True  # type: ignore[assignment]
    loc = Parameter()
    scale = Parameter()
    _loc: Tensor
    _scale: Tensor

    def __init__(self, loc: Value, scale: Value) -> None:
        self._set(loc=loc, scale=scale)

    def rsample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """A draw, differentiable in the parameters, of shape sample_shape + batch."""
        return self._loc - self._scale * (-open_uniform(self._shape(sample_shape), self._loc).log()).log()

    def cdf(self, value: Tensor) -> Tensor:
        """Distribution function, :math:`e^{-e^{-z}}`."""
        return (-((self._loc - value) / self._scale).exp()).exp()

    def icdf(self, value: Tensor) -> Tensor:
        """Quantile function."""
        return self._loc - self._scale * (-value.log()).log()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at ``value``."""
        minus_z = (self._loc - value) / self._scale
        return minus_z - minus_z.exp() - self._scale.log()


@node_type(loc=real, scale=positive, scipy="gumbel_r(loc, scale)")
def gumbel_node(loc: Value, scale: Value, **options: Unpack[ReparameterizedOptions]) -> Gumbel:
    r"""Gumbel node, the distribution of maxima (for minima negate the value).

    .. math:: \log p(x) = -z - e^{-z} - \log s, \quad z = (x - m) / s

    Args:
        loc: m, the mode; the mean is :math:`m + 0.5772 s`.
        scale: s > 0.
    """
    return Gumbel(loc, scale)
