r"""Counts with further zeros, :math:`p(x) = \sigma(g) [x = 0] + \sigma(-g) p_0(x)`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.constraints import nonnegative, nonnegative_integer, positive, real
from torch.nn.functional import logsigmoid
from typing_extensions import Unpack

from zsp.distributions.lean import Lean, Parameter
from zsp.distributions.negative_binomial import NegativeBinomial
from zsp.distributions.node_type import DiscreteOptions, Value, node_type
from zsp.distributions.poisson import Poisson

__all__ = [
    "ZeroInflatedNegativeBinomial",
    "ZeroInflatedPoisson",
    "zero_inflated_negative_binomial_node",
    "zero_inflated_poisson_node",
]

_HINT = "A value is a count: 0, 1, 2, ..."


class _ZeroInflated(Lean):
    """A distribution of counts, of which a share is replaced by zeros; ``base`` is given by the subclass."""

    support = nonnegative_integer
    gate_logits = Parameter()
    _gate_logits: Tensor

    @property
    def base(self) -> Distribution:
        """The distribution of the counts that are no further zeros."""
        raise NotImplementedError

    @property
    def mean(self) -> Tensor:
        """(1 - gate) times the mean of the base."""
        return (-self.gate_logits).sigmoid() * self.base.mean

    @property
    def variance(self) -> Tensor:
        """(1 - gate) (variance + gate mean^2) of the base."""
        return (-self.gate_logits).sigmoid() * (self.base.variance + self.gate_logits.sigmoid() * self.base.mean**2)

    def sample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """Counts in the dtype of the parameters, of shape sample_shape + batch."""
        with torch.no_grad():
            counts = self.base.expand(self._batch_shape).sample(torch.Size(sample_shape))
            return torch.where(torch.rand_like(counts) < self._gate_logits.sigmoid(), 0.0, counts)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of the counts ``value``, of any dtype."""
        count = self.base.log_prob(value) + logsigmoid(-self._gate_logits)
        return torch.where(value == 0, torch.logaddexp(count, logsigmoid(self._gate_logits)), count)


class ZeroInflatedPoisson(_ZeroInflated):
    r"""Poisson counts with further zeros (Lambert 1992, Technometrics 34).

    Args:
        rate: r of the Poisson counts, a tensor or a number.
        gate_logits: log odds g of a further zero.
    """

    rate = Parameter()
    _rate: Tensor

    def __init__(self, rate: Value, gate_logits: Value) -> None:
        self._set(rate=rate, gate_logits=gate_logits)

    @property
    def base(self) -> Poisson:
        """The Poisson counts."""
        return Poisson(self._rate)


class ZeroInflatedNegativeBinomial(_ZeroInflated):
    r"""Negative binomial counts with further zeros.

    Args:
        total_count: r of the counts, a tensor or a number.
        logits: their log odds l.
        gate_logits: log odds g of a further zero.
    """

    total_count = Parameter()
    logits = Parameter()
    _total_count: Tensor
    _logits: Tensor

    def __init__(self, total_count: Value, logits: Value, gate_logits: Value) -> None:
        self._set(logits=logits, total_count=total_count, gate_logits=gate_logits)

    @property
    def base(self) -> NegativeBinomial:
        """The negative binomial counts."""
        return NegativeBinomial(self._total_count, self._logits)


@node_type(rate=nonnegative, gate_logits=real, hint=_HINT)
def zero_inflated_poisson_node(
    rate: Value, gate_logits: Value, **options: Unpack[DiscreteOptions]
) -> ZeroInflatedPoisson:
    r"""Zero-inflated Poisson node: zero with probability :math:`\sigma(g)`, a Poisson count otherwise.

    .. math:: \log p(x) = \log\bigl(\sigma(g) [x = 0] + \sigma(-g) r^x e^{-r} / x!\bigr)

    Args:
        rate: r >= 0, the mean of the Poisson counts.
        gate_logits: the log odds g of a further zero (Pyro's ``gate_logits``; its ``gate`` is :math:`\sigma(g)`).
    """
    return ZeroInflatedPoisson(rate, gate_logits)


@node_type(logits=real, total_count=positive, gate_logits=real, hint=_HINT)
def zero_inflated_negative_binomial_node(
    logits: Value, total_count: Value, gate_logits: Value, **options: Unpack[DiscreteOptions]
) -> ZeroInflatedNegativeBinomial:
    r"""Zero-inflated negative binomial node: zero with probability :math:`\sigma(g)`, a count otherwise.

    .. math:: \log p(x) = \log\bigl(\sigma(g) [x = 0] + \sigma(-g) \mathrm{NB}(x; r, l)\bigr)

    Args:
        logits: the log odds l of ``bn.negative_binomial``, whose mean is :math:`r e^l`.
        total_count: its r > 0.
        gate_logits: the log odds g of a further zero (Pyro's ``gate_logits``; its ``gate`` is :math:`\sigma(g)`).
    """
    return ZeroInflatedNegativeBinomial(total_count, logits, gate_logits)
