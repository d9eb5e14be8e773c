r"""Gamma, :math:`\log p(x) = a\log b - \log\Gamma(a) + (a - 1)\log x - b x`, and the inverse of a gamma variable."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions.constraints import nonnegative, positive
from typing_extensions import Unpack

from zsp.distributions.lean import Lean, Parameter
from zsp.distributions.node_type import ReparameterizedOptions, Value, node_type
from zsp.distributions.tensors import log_gamma_draw, xlogy

__all__ = ["Gamma", "InverseGamma", "gamma_node", "inverse_gamma_node"]


class Gamma(Lean, torch.distributions.Gamma):
    r"""torch's gamma, with finite derivatives at zero and the parameters kept as given.

    Args:
        concentration: shape a, a tensor or a number.
        rate: inverse scale b.
    """

    support = nonnegative
    concentration = Parameter()
    rate = Parameter()
    _concentration: Tensor
    _rate: Tensor

    def __init__(self, concentration: Value, rate: Value) -> None:
        self._set(concentration=concentration, rate=rate)

    def rsample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """A draw, differentiable in the parameters, of shape sample_shape + batch; never zero."""
        draw = torch._standard_gamma(self._concentration.expand(self._shape(sample_shape))) / self._rate
        return draw.clamp(min=torch.finfo(draw.dtype).tiny)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at ``value``."""
        a, b = self._concentration, self._rate
        return a * b.log() - a.lgamma() + xlogy(a - 1, value) - b * value


class InverseGamma(Lean):
    r"""The inverse of a gamma variable, computed in its logarithm.

    Args:
        concentration: shape a, a tensor or a number.
        rate: b, the inverse scale of the gamma variable, hence the scale of this one.
    """

    support = positive
    has_rsample = True
    concentration = Parameter()
    rate = Parameter()
    _concentration: Tensor
    _rate: Tensor

    def __init__(self, concentration: Value, rate: Value) -> None:
        self._set(concentration=concentration, rate=rate)

    @property
    def mean(self) -> Tensor:
        """b / (a - 1); infinite for a <= 1."""
        a = self.concentration
        return torch.where(a > 1, self.rate / torch.where(a > 1, a - 1, 1.0), torch.inf)

    @property
    def variance(self) -> Tensor:
        """b^2 / ((a - 1)^2 (a - 2)); infinite for a <= 2."""
        a = torch.where(self.concentration > 2, self.concentration, 3.0)
        return torch.where(self.concentration > 2, self.rate**2 / ((a - 1) ** 2 * (a - 2)), torch.inf)

    def cdf(self, value: Tensor) -> Tensor:
        """Distribution function."""
        return torch.special.gammaincc(self.concentration, self._rate / value)

    def entropy(self) -> Tensor:
        """Entropy in nats."""
        a = self.concentration
        return a + self._rate.log() + a.lgamma() - (1 + a) * a.digamma()

    def rsample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """A draw, differentiable in the parameters, of shape sample_shape + batch; always finite."""
        draw = (self._rate.log() - log_gamma_draw(self._concentration, self._shape(sample_shape))).exp()
        return draw.clamp(min=torch.finfo(draw.dtype).tiny, max=torch.finfo(draw.dtype).max)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at ``value``."""
        a, b = self._concentration, self._rate
        return a * b.log() - a.lgamma() - (a + 1) * value.log() - b / value


@node_type(alpha=positive, beta=positive, hint="A gamma value is positive.", scipy="gamma(alpha, scale=1 / beta)")
def gamma_node(alpha: Value, beta: Value, **options: Unpack[ReparameterizedOptions]) -> Gamma:
    r"""Gamma node with mean a / b.

    .. math:: \log p(x) = a\log b - \log\Gamma(a) + (a - 1)\log x - b x, \quad x > 0

    Args:
        alpha: the shape a > 0.
        beta: the rate b > 0 (the inverse of the scale).
    """
    return Gamma(alpha, beta)


@node_type(
    alpha=positive, beta=positive, hint="An inverse-gamma value is positive.", scipy="invgamma(alpha, scale=beta)"
)
def inverse_gamma_node(alpha: Value, beta: Value, **options: Unpack[ReparameterizedOptions]) -> InverseGamma:
    r"""Inverse-gamma node: 1 / x is gamma with shape a and rate b.

    .. math:: \log p(x) = a\log b - \log\Gamma(a) - (a + 1)\log x - b / x, \quad x > 0

    Args:
        alpha: the shape a > 0.
        beta: the scale b > 0 of x.
    """
    return InverseGamma(alpha, beta)
