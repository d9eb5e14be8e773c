r"""The Bernoulli distribution, :math:`\log p(x) = x \log\sigma(l) + (1 - x) \log\sigma(-l)`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions.constraints import boolean, real
from torch.distributions.utils import probs_to_logits
from typing_extensions import Unpack

from zsp.distributions.lean import Lean, Parameter
from zsp.distributions.node_type import DiscreteOptions, Value, exactly_one, node_type

__all__ = ["Bernoulli", "bernoulli_node"]


class Bernoulli(Lean, torch.distributions.Bernoulli):
    r"""torch's Bernoulli, at the cost of its own arithmetic: its log density is one fused operation.

    Args:
        probs: probability of 1; exclusive with ``logits``.
        logits: :math:`\log p / (1 - p)`, a tensor or a number.
    """

    support = boolean
    logits = Parameter()

    def __init__(self, probs: Value | None = None, logits: Value | None = None) -> None:
        if (probs is None) == (logits is None):
            raise exactly_one("probs", "logits", both=probs is not None)
        if logits is None:
            logits = probs_to_logits(torch.as_tensor(probs), is_binary=True)
        elif not isinstance(logits, Tensor):
            logits = torch.as_tensor(logits, dtype=torch.get_default_dtype())
        self._logits = logits
        self._batch_shape = logits.shape
        self._event_shape = torch.Size()
        self._validate_args = False

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the logits and of the values."""
        return self._logits.dtype

    @property
    def probs(self) -> Tensor:  # type: ignore[override]
        """Probability of 1, of the batch shape."""
        return self.logits.sigmoid()

    @property
    def mean(self) -> Tensor:
        """The probability of 1."""
        return self.probs

    def sample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """Zeros and ones in the dtype of the logits, of shape sample_shape + batch."""
        logits = self._logits
        with torch.no_grad():  # comparing takes a third of the time of torch.bernoulli, which also aborts CUDA at a NaN
            noise = torch.rand((*sample_shape, *self._batch_shape), dtype=logits.dtype, device=logits.device)
            return (noise < logits.sigmoid()).to(logits.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of ``value``, of any dtype."""
        return -self._cross_entropy(value)

    def summed_log_prob(self, value: Tensor, axes: tuple[int, ...]) -> Tensor:
        """``log_prob(value).sum(axes)``; the sign changes after the sum, which saves two passes over an image."""
        return -self._cross_entropy(value).sum(axes)

    def _cross_entropy(self, value: Tensor) -> Tensor:
        logits = self._logits
        if value.dtype != logits.dtype:
            value = value.to(logits.dtype)
        if value.shape != logits.shape:
            shape = torch.broadcast_shapes(value.shape, logits.shape)
            value, logits = value.expand(shape), logits.expand(shape)
        return torch.binary_cross_entropy_with_logits(logits, value, None, None, 0)


@node_type(
    logits=real,
    hint="A Bernoulli value is 0 or 1. For grey images divide 0..255 by 255 first, then binarise with "
    "torch.bernoulli(x), or use a continuous likelihood such as bn.normal.",
    scipy="bernoulli(expit(logits))",
)
def bernoulli_node(logits: Value, **options: Unpack[DiscreteOptions]) -> Bernoulli:
    r"""Bernoulli node, :math:`x \in \{0, 1\}`.

    .. math:: \log p(x) = x \log\sigma(l) + (1 - x) \log\sigma(-l)

    Args:
        logits: the log odds l of 1.
    """
    return Bernoulli(logits=logits)
