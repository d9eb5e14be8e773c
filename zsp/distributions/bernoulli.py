r"""The Bernoulli distribution, :math:`\log p(x) = x \log\sigma(l) + (1 - x) \log\sigma(-l)`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions.constraints import boolean, positive, real, unit_interval
from torch.distributions.utils import probs_to_logits
from typing_extensions import Unpack

from zsp.distributions.lean import Lean, Parameter
from zsp.distributions.node_type import DiscreteOptions, Value, exactly_one, node_type
from zsp.distributions.tensors import broadcast_shape, open_uniform

__all__ = ["Bernoulli", "bernoulli_node"]


class Bernoulli(Lean, torch.distributions.Bernoulli):
    r"""torch's Bernoulli, at the cost of its own arithmetic: its log density is one fused operation.

    Args:
        probs: probability of 1; exclusive with ``logits``.
        logits: :math:`\log p / (1 - p)`, a tensor or a number.
        straight_through: a temperature; draws then carry the gradient of a relaxed draw at this temperature.
    """

    support = boolean
    relaxed_support = unit_interval  # where log_prob is its own smooth extension, linear in the value
    logits = Parameter()
    _event_shape = torch.Size()

    def __init__(
        self, probs: Value | None = None, logits: Value | None = None, straight_through: Value | None = None
    ) -> None:
        if (probs is None) == (logits is None):
            raise exactly_one("probs", "logits", both=probs is not None)
        if logits is None:
            logits = probs_to_logits(torch.as_tensor(probs), is_binary=True)
        elif not isinstance(logits, Tensor):
            logits = torch.as_tensor(logits, dtype=torch.get_default_dtype())
        self._logits = logits
        self._straight_through = straight_through
        self._batch_shape = logits.shape

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

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether draws carry the gradient of a relaxed draw, which is biased."""
        return self._straight_through is not None

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """0 and 1, along a new first axis."""
        values = torch.arange(2, dtype=self.dtype, device=self._logits.device).view(-1, *(1 for _ in self._batch_shape))
        return values.expand(-1, *self._batch_shape) if expand else values

    def rsample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """Zeros and ones with the gradient of a relaxed draw that has the same noise (``straight_through``)."""
        if self._straight_through is None:
            raise NotImplementedError("a Bernoulli draw has no derivative; straight_through=temperature gives it one.")
        noise = open_uniform(self._shape(sample_shape), self._logits).logit()
        relaxed = ((self._logits + noise) / self._straight_through).sigmoid()
        return (relaxed.detach() > 0.5).to(relaxed.dtype) + (relaxed - relaxed.detach())

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
            shape = broadcast_shape(value.shape, logits.shape)
            value, logits = value.expand(shape), logits.expand(shape)
        return torch.binary_cross_entropy_with_logits(logits, value, None, None, 0)


@node_type(
    logits=real,
    straight_through=positive,
    hint="A Bernoulli value is 0 or 1. For grey images divide 0..255 by 255 first, then binarise with "
    "torch.bernoulli(x), or use a continuous likelihood such as bn.normal.",
    scipy="bernoulli(expit(logits))",
)
def bernoulli_node(
    logits: Value, *, straight_through: Value | None = None, **options: Unpack[DiscreteOptions]
) -> Bernoulli:
    r"""Bernoulli node, :math:`x \in \{0, 1\}`.

    .. math:: \log p(x) = x \log\sigma(l) + (1 - x) \log\sigma(-l)

    Args:
        logits: the log odds l of 1.
        straight_through: a temperature t > 0; the draw, still 0 or 1, then carries the gradient of the relaxed draw
            (``bin_concrete``) with the same noise, so that ``sgvb`` trains through it. That gradient is biased.

    Reference for straight-through gradients: Jang et al. 2017, arXiv:1611.01144, section 2.2.
    """
    return Bernoulli(logits=logits, straight_through=straight_through)
