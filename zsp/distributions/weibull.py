r"""The Weibull distribution, :math:`\log p(x) = \log k - \log x + k\log(x / s) - (x / s)^k`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions.constraints import positive
from typing_extensions import Unpack

from zsp.distributions.lean import Lean, Parameter
from zsp.distributions.node_type import ReparameterizedOptions, Value, node_type
from zsp.distributions.tensors import open_uniform

__all__ = ["Weibull", "weibull_node"]


class Weibull(Lean, torch.distributions.Weibull):
    r"""torch's Weibull as one operation rather than a chain of transforms.

    Args:
        scale: s, a tensor or a number.
        concentration: k.
    """

    support = positive
    has_rsample = True  # type: ignore[assignment]
    scale = Parameter()
    concentration = Parameter()
    _scale: Tensor
    _concentration: Tensor

    def __init__(self, scale: Value, concentration: Value) -> None:
        self._set(scale=scale, concentration=concentration)

    @property
    def concentration_reciprocal(self) -> Tensor:  # type: ignore[override]
        """1 / k, which torch's moments read."""
        return 1 / self.concentration

    def rsample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """A draw, differentiable in the parameters, of shape sample_shape + batch; positive and finite."""
        exponential = -open_uniform(self._shape(sample_shape), self._scale).log()
        draw = self._scale * (exponential.log() / self._concentration).exp()
        return draw.clamp(min=torch.finfo(draw.dtype).tiny, max=torch.finfo(draw.dtype).max)

    def cdf(self, value: Tensor) -> Tensor:
        """Distribution function, :math:`1 - e^{-(x / s)^k}`."""
        return -torch.expm1(-((value / self._scale) ** self._concentration))

    def icdf(self, value: Tensor) -> Tensor:
        """Quantile function."""
        return self._scale * (-torch.log1p(-value)) ** (1 / self._concentration)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at ``value``."""
        log_value = value.log()
        log_power = self._concentration * (log_value - self._scale.log())
        return self._concentration.log() - log_value + log_power - log_power.exp()


@node_type(
    scale=positive,
    concentration=positive,
    hint="A Weibull value is positive.",
    scipy="weibull_min(concentration, scale=scale)",
)
def weibull_node(scale: Value, concentration: Value, **options: Unpack[ReparameterizedOptions]) -> Weibull:
    r"""Weibull node, for waiting times whose hazard grows or falls as a power of time.

    .. math:: \log p(x) = \log\tfrac ks + (k - 1)\log\tfrac xs - \Bigl(\frac xs\Bigr)^k, \quad x > 0

    Args:
        scale: s > 0; the share 1 - 1/e of the values is below it.
        concentration: k > 0; the hazard falls with time for k < 1 and grows for k > 1.
    """
    return Weibull(scale, concentration)
