r"""The binomial distribution, :math:`\log p(x) = \log\binom nx + x\log\sigma(l) + (n - x)\log\sigma(-l)`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions.constraints import integer_interval, nonnegative_integer, real
from torch.nn.functional import logsigmoid
from typing_extensions import Unpack

from zsp.distributions.lean import Lean, Parameter
from zsp.distributions.node_type import DiscreteOptions, Value, node_type
from zsp.distributions.tensors import as_tensors, broadcast_shape, times_log

__all__ = ["Binomial", "binomial_node"]


class Binomial(Lean):
    r"""Number of successes in n trials.

    (torch's density subtracts terms of size n l, and loses its digits for large logits.)

    Args:
        total_count: the number of trials n, a number or a tensor.
        logits: the log odds l of a success.
    """

    logits = Parameter()
    total_count = Parameter()
    _logits: Tensor
    _total_count: Tensor

    def __init__(self, total_count: int | Tensor, logits: Value) -> None:
        self._logits, total_count = as_tensors(logits, total_count)
        self._total_count = total_count.to(self._logits.dtype)
        self._batch_shape = broadcast_shape(self._logits.shape, self._total_count.shape)
        self._event_shape = torch.Size()
        self._validate_args = False

    @property
    def support(self) -> Any:  # type: ignore[override]
        """0, 1, ..., n."""
        return integer_interval(0, self._total_count)  # type: ignore[arg-type]

    @property
    def probs(self) -> Tensor:
        """Probability of a success, of the batch shape."""
        return self.logits.sigmoid()

    @property
    def mean(self) -> Tensor:
        """n p."""
        return self.total_count * self.probs

    @property
    def variance(self) -> Tensor:
        """n p (1 - p)."""
        return self.mean * (-self.logits).sigmoid()

    def entropy(self) -> Tensor:
        """Entropy in nats, by a sum over 0, 1, ..., the largest n."""
        n_max = int(self._total_count.max())
        counts = torch.arange(n_max + 1, dtype=self.dtype, device=self._logits.device)
        counts = counts.view(-1, *(1 for _ in self._batch_shape))
        inside = counts <= self._total_count
        log_p = self.log_prob(torch.where(inside, counts, 0.0))
        return -torch.where(inside, log_p.exp() * log_p, 0.0).sum(0)

    def sample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """Counts in the dtype of the logits, of shape sample_shape + batch."""
        with torch.no_grad():
            shape = self._shape(sample_shape)
            return torch.binomial(self._total_count.expand(shape), self._logits.sigmoid().expand(shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of the counts ``value``, of any dtype."""
        n, logits = self._total_count, self._logits
        value = value.to(logits.dtype)
        coefficient = (n + 1).lgamma() - (value + 1).lgamma() - (n - value + 1).lgamma()
        return coefficient + times_log(value, logsigmoid(logits)) + times_log(n - value, logsigmoid(-logits))


@node_type(
    logits=real,
    n_experiments=nonnegative_integer,
    hint="A binomial value is a count from 0 to n_experiments, not a proportion: multiply by n_experiments.",
    scipy="binom(n_experiments, expit(logits))",
)
def binomial_node(logits: Value, n_experiments: int | Tensor, **options: Unpack[DiscreteOptions]) -> Binomial:
    r"""Binomial node: successes in n trials.

    .. math:: \log p(x) = \log\binom nx + x\log\sigma(l) + (n - x)\log\sigma(-l)

    Args:
        logits: the log odds l of a success.
        n_experiments: the number of trials n, a number or a tensor broadcastable with the logits.
    """
    return Binomial(n_experiments, logits)
