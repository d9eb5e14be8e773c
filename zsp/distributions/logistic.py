r"""The logistic distribution, :math:`\log p(x) = -|z| - 2\log(1 + e^{-|z|}) - \log s` with :math:`z = (x - m) / s`."""

from __future__ import annotations

import math

from torch import Tensor
from torch.distributions.constraints import positive, real
from torch.nn.functional import softplus
from typing_extensions import Unpack

from zsp.distributions.lean import Lean, Parameter
from zsp.distributions.node_type import ReparameterizedOptions, Value, node_type
from zsp.distributions.tensors import open_uniform

__all__ = ["Logistic", "logistic_node"]


class Logistic(Lean):
    r"""Logistic distribution, which torch lacks: its distribution function is :math:`\sigma((x - m) / s)`.

    Args:
        loc: m, a tensor or a number.
        scale: s.
    """

    support = real
    has_rsample = True
    loc = Parameter()
    scale = Parameter()
    _loc: Tensor
    _scale: Tensor

    def __init__(self, loc: Value, scale: Value) -> None:
        self._set(loc=loc, scale=scale)

    @property
    def mean(self) -> Tensor:
        """The location."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """scale^2 pi^2 / 3."""
        return self.scale**2 * (math.pi**2 / 3)

    def rsample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """A draw, differentiable in the parameters, of shape sample_shape + batch."""
        return self._loc + self._scale * open_uniform(self._shape(sample_shape), self._loc).logit()

    def cdf(self, value: Tensor) -> Tensor:
        """Distribution function."""
        return ((value - self._loc) / self._scale).sigmoid()

    def icdf(self, value: Tensor) -> Tensor:
        """Quantile function."""
        return self._loc + self._scale * value.logit()

    def entropy(self) -> Tensor:
        """Entropy in nats."""
        return self.scale.log() + 2

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at ``value``."""
        distance = ((value - self._loc) / self._scale).abs()
        return -distance - 2 * softplus(-distance) - self._scale.log()


@node_type(loc=real, scale=positive, scipy="logistic(loc, scale)")
def logistic_node(loc: Value, scale: Value, **options: Unpack[ReparameterizedOptions]) -> Logistic:
    r"""Logistic node.

    .. math:: \log p(x) = -z - 2\log(1 + e^{-z}) - \log s, \quad z = (x - m) / s

    Args:
        loc: m, the mean.
        scale: s > 0; the variance is :math:`\pi^2 s^2 / 3`.
    """
    return Logistic(loc, scale)
