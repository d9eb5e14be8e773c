r"""The geometric distribution, :math:`\log p(x) = x\log\sigma(-l) + \log\sigma(l)`, of failures before a success."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions.constraints import nonnegative_integer, real
from torch.nn.functional import logsigmoid
from typing_extensions import Unpack

from zsp.distributions.lean import Lean, Parameter
from zsp.distributions.node_type import DiscreteOptions, Value, node_type
from zsp.distributions.tensors import open_uniform, times_log

__all__ = ["Geometric", "geometric_node"]


class Geometric(Lean, torch.distributions.Geometric):
    r"""torch's geometric, in the logits: the number of failures before the first success.

    (torch's density writes into its parameters, which fails under vmap and compilation, and rounds 1 - p: to zero from
    logits of 37 on.)

    Args:
        logits: log odds l of a success, a tensor or a number.
    """

    support = nonnegative_integer
    logits = Parameter()
    _logits: Tensor

    def __init__(self, logits: Value) -> None:
        self._set(logits=logits)

    @property
    def probs(self) -> Tensor:  # type: ignore[override]
        """Probability of a success, of the batch shape."""
        return self.logits.sigmoid()

    @property
    def mean(self) -> Tensor:
        r""":math:`(1 - p) / p = e^{-l}`."""
        return (-self.logits).exp()

    @property
    def variance(self) -> Tensor:
        r""":math:`(1 - p) / p^2`."""
        return self.mean * (1 + self.mean)

    def entropy(self) -> Tensor:
        """Entropy in nats."""
        return -logsigmoid(self.logits) - self.mean * logsigmoid(-self.logits)

    def sample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """Counts in the dtype of the logits, of shape sample_shape + batch."""
        with torch.no_grad():
            noise = open_uniform(self._shape(sample_shape), self._logits)
            return (noise.log() / logsigmoid(-self._logits)).floor()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of the counts ``value``, of any dtype."""
        return times_log(value.to(self._logits.dtype), logsigmoid(-self._logits)) + logsigmoid(self._logits)


@node_type(
    logits=real,
    hint="A geometric value counts the failures before the first success: 0, 1, 2, ...; for the number of trials, "
    "which includes the success, subtract 1.",
    scipy="geom(expit(logits), loc=-1)",
)
def geometric_node(logits: Value, **options: Unpack[DiscreteOptions]) -> Geometric:
    r"""Geometric node: the number of failures before the first success (scipy's ``geom`` counts that trial too).

    .. math:: \log p(x) = x\log\sigma(-l) + \log\sigma(l), \quad x \in \{0, 1, 2, \dots\}

    Args:
        logits: the log odds l of a success.
    """
    return Geometric(logits)
