r"""The negative binomial distribution, :math:`\log p(x) = \log\binom{r + x - 1}{x} + r\log\sigma(-l) + x\log\sigma(l)`.

The convention is torch's and Pyro's: x counts successes of log odds l before the r-th failure, so that its mean is
:math:`r e^l`. (scipy's ``nbinom(r, p)`` has :math:`p = \sigma(-l)`.)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions.constraints import nonnegative_integer, positive, real
from torch.nn.functional import logsigmoid
from typing_extensions import Unpack

from zsp.distributions.lean import Lean, Parameter
from zsp.distributions.node_type import DiscreteOptions, Value, node_type
from zsp.distributions.tensors import times_log

__all__ = ["NegativeBinomial", "negative_binomial_node"]


def _log_rising(r: Tensor, x: Tensor) -> Tensor:
    r""":math:`\log\Gamma(r + x) - \log\Gamma(r)`; by Stirling's series for large r (it cancels)."""
    is_large = r > 100
    small, big = torch.where(is_large, 1.0, r), torch.where(is_large, r, 100.0)
    total = big + x
    # (t - 1/2) log t - (r - 1/2) log r - x, in small parts, and the series 1 / 12t - 1 / 360t^3 + 1 / 1260t^5
    main = (big - 0.5) * torch.log1p(x / big) + x * (total.log() - 1)
    series = _stirling(total) - _stirling(big)
    return torch.where(is_large, main + series, (small + torch.where(is_large, 0.0, x)).lgamma() - small.lgamma())


def _stirling(x: Tensor) -> Tensor:
    y = 1 / x
    return y * (1 / 12 - y * y * (1 / 360 - y * y * (1 / 1260)))


class NegativeBinomial(Lean, torch.distributions.NegativeBinomial):
    r"""torch's negative binomial, with digits left where r is large (it nears a Poisson distribution).

    Args:
        total_count: r, the number of failures at which the trials stop, a tensor or a number; it need not be whole.
        logits: the log odds l of a success.
    """

    support = nonnegative_integer
    total_count = Parameter()
    logits = Parameter()
    _total_count: Tensor
    _logits: Tensor

    def __init__(self, total_count: Value, logits: Value) -> None:
        self._set(logits=logits, total_count=total_count)
        self._total_count = self._total_count.to(self._logits.dtype)

    @property
    def parameter(self) -> Tensor:
        """A parameter, as it was given: values follow its dtype and device."""
        return self._logits

    @property
    def probs(self) -> Tensor:  # type: ignore[override]
        """Probability of a success, of the batch shape."""
        return self.logits.sigmoid()

    @property
    def mean(self) -> Tensor:
        r""":math:`r e^l`."""
        return self.total_count * self.logits.exp()

    @property
    def variance(self) -> Tensor:
        r""":math:`r e^l (1 + e^l)`."""
        return self.mean * (1 + self.logits.exp())

    def sample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """Counts in the dtype of the logits, of shape sample_shape + batch: Poisson with a gamma rate."""
        with torch.no_grad():
            shape = self._shape(sample_shape)
            return torch.poisson(torch._standard_gamma(self._total_count.expand(shape)) * self._logits.exp())

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of the counts ``value``, of any dtype."""
        value, r = value.to(self._logits.dtype), self._total_count
        coefficient = _log_rising(r, value) - (value + 1).lgamma()
        return coefficient + r * logsigmoid(-self._logits) + times_log(value, logsigmoid(self._logits))


@node_type(
    logits=real,
    total_count=positive,
    hint="A negative binomial value is a count: 0, 1, 2, ...",
    scipy="nbinom(total_count, expit(-logits))",
)
def negative_binomial_node(logits: Value, total_count: Value, **options: Unpack[DiscreteOptions]) -> NegativeBinomial:
    r"""Negative binomial node: counts with mean :math:`\mu = r e^l` and variance :math:`\mu + \mu^2 / r`.

    .. math:: \log p(x) = \log\frac{\Gamma(r + x)}{\Gamma(r)\, x!} + r\log\sigma(-l) + x\log\sigma(l)

    It counts successes before the r-th failure (torch's and Pyro's convention; scipy's p is :math:`\sigma(-l)`). For a
    given mean, ``logits = mean.log() - total_count.log()``.

    Args:
        logits: the log odds l of a success.
        total_count: r > 0, the number of failures; it need not be whole. Smaller is more dispersed.
    """
    return NegativeBinomial(total_count, logits)
