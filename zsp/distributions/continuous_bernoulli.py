r"""The continuous Bernoulli distribution on [0, 1], :math:`\log p(x) = l (x - \tfrac12) - \log(2 \sinh(l / 2) / l)`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions.constraints import real, unit_interval
from typing_extensions import Unpack

from zsp.distributions.lean import Lean, Parameter
from zsp.distributions.node_type import ReparameterizedOptions, Value, node_type
from zsp.distributions.tensors import open_uniform

__all__ = ["ContinuousBernoulli", "continuous_bernoulli_node"]


def _log_sinhc(y: Tensor) -> Tensor:
    """``log(sinh(y) / y)``."""
    y = y.abs()
    is_small = y < 0.1
    square = torch.where(is_small, y, 0.0).square()
    series = square * (1 / 6 - square * (1 / 180 - square * (1 / 2835 - square * (1 / 37800 - square / 467775))))
    y = torch.where(is_small, 1.0, y)
    return torch.where(is_small, series, y + (-torch.expm1(-2 * y)).log() - (2 * y).log())


class ContinuousBernoulli(Lean, torch.distributions.ContinuousBernoulli):
    r"""torch's continuous Bernoulli, exact at every logit.

    (torch's goes through a clamped probability: its log density is wrong by 0.6 at a logit of 30 in float32.)

    Args:
        logits: l, a tensor or a number; positive favours 1.
    """

    support = unit_interval
    has_rsample = True
    logits = Parameter()
    _logits: Tensor
    _lims = (0.499, 0.501)  # what torch's KL divergences read

    def __init__(self, logits: Value) -> None:
        self._set(logits=logits)

    @property
    def probs(self) -> Tensor:  # type: ignore[override]
        r""":math:`\sigma(l)`, which is not the mean."""
        return self.logits.sigmoid()

    @property
    def mean(self) -> Tensor:
        r""":math:`1 / (1 - e^{-l}) - 1 / l`."""
        logits = self.logits
        is_small = logits.abs() < 0.05
        small, large = torch.where(is_small, logits, 0.0), torch.where(is_small, 1.0, logits)
        series = 0.5 + small * (1 / 12 - small**2 * (1 / 720 - small**2 / 30240))
        return torch.where(is_small, series, -torch.expm1(-large).reciprocal() - 1 / large)

    @property
    def variance(self) -> Tensor:
        r""":math:`1 / l^2 - 1 / (4 \sinh^2(l / 2))`."""
        logits = self.logits.abs()
        is_small = logits < 0.2
        small, large = torch.where(is_small, logits, 0.0).square(), torch.where(is_small, 1.0, logits)
        series = 1 / 12 - small * (1 / 240 - small * (1 / 6048 - small / 172800))
        return torch.where(is_small, series, large**-2 - (-large).exp() * torch.expm1(-large) ** -2)

    def entropy(self) -> Tensor:
        """Entropy in nats."""
        return _log_sinhc(self.logits / 2) - self.logits * (self.mean - 0.5)

    def cdf(self, value: Tensor) -> Tensor:
        r"""Distribution function, :math:`(e^{l x} - 1) / (e^l - 1)`."""
        # x e^{l (x - 1) / 2} sinhc(l x / 2) / sinhc(l / 2)
        x, logits = value.clamp(0, 1), self._logits
        return x * (logits * (x - 1) / 2 + _log_sinhc(logits * x / 2) - _log_sinhc(logits / 2)).exp()

    def icdf(self, value: Tensor) -> Tensor:
        """Quantile function."""
        is_positive = self._logits > 0
        logits = -self._logits.abs()
        u = torch.where(is_positive, 1 - value, value)
        is_small = logits > -1e-3
        small, large = torch.where(is_small, logits, 0.0), torch.where(is_small, -1.0, logits)
        series = u + small * u * (1 - u) * (0.5 + small * ((1 - 2 * u) / 6 + small * (1 - 6 * u * (1 - u)) / 24))
        x = torch.where(is_small, series, torch.log1p(u * torch.expm1(large)) / large).clamp(0, 1)
        return torch.where(is_positive, 1 - x, x)

    def rsample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """A draw, differentiable in the logits, of shape sample_shape + batch."""
        return self.icdf(open_uniform(self._shape(sample_shape), self._logits))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at ``value``."""
        # l (x - 1/2) - |l| / 2 = -|l| (x or 1 - x), so that nothing cancels where l is large
        logits = self._logits
        side = torch.where(logits > 0, value - 1, -value) * logits.abs()
        return side - (_log_sinhc(logits / 2) - logits.abs() / 2)


@node_type(logits=real, hint="A continuous Bernoulli value lies in [0, 1]; images of 0..255 are divided by 255 first.")
def continuous_bernoulli_node(logits: Value, **options: Unpack[ReparameterizedOptions]) -> ContinuousBernoulli:
    r"""Continuous Bernoulli node on [0, 1], for intensities between black and white.

    .. math:: \log p(x) = l x - \log\frac{e^l - 1}{l}, \quad 0 \le x \le 1

    Reference: Loaiza-Ganem & Cunningham 2019, arXiv:1907.06845, equations 6 and 7, with
    :math:`\lambda = \sigma(l)`.

    Args:
        logits: l; positive favours 1.
    """
    return ContinuousBernoulli(logits)
