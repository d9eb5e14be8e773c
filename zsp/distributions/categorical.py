r"""Categorical distributions, :math:`p(k) = e^{l_k} / \sum_j e^{l_j}`, over labels and over one-hot vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions.constraints import integer_interval, one_hot, positive, real_vector
from typing_extensions import Unpack

from zsp.distributions.lean import Lean, Parameter
from zsp.distributions.node_type import DiscreteOptions, Value, exactly_one, node_type
from zsp.distributions.supports import simplex
from zsp.distributions.tensors import open_uniform, times_log

__all__ = ["Categorical", "OneHotCategorical", "categorical_node", "onehot_categorical_node"]


def _logits_of(probs: Tensor | None, logits: Tensor | None) -> Tensor:
    if (probs is None) == (logits is None):
        raise exactly_one("probs", "logits", both=probs is not None)
    given: Any = logits if probs is None else torch.as_tensor(probs).log()
    logits = torch.as_tensor(given) if not isinstance(given, Tensor) else given
    if logits.dim() < 1:
        raise ValueError("a categorical needs logits of shape [..., n_categories], but got a single number.")
    return logits


def _draw_labels(logits: Tensor, sample_shape: Any) -> Tensor:
    """Labels (int64) of shape sample_shape + batch."""
    with torch.no_grad():
        n_draws = torch.Size(sample_shape).numel()
        flat = logits.softmax(-1).reshape(-1, logits.shape[-1])
        labels = torch.multinomial(flat, n_draws, replacement=True)
        return labels.T.reshape((*sample_shape, *logits.shape[:-1]))


class Categorical(Lean, torch.distributions.Categorical):
    r"""torch's categorical, at the cost of its own arithmetic; its draws have the dtype of its logits.

    Args:
        probs: probabilities, shape [..., n_categories]; exclusive with ``logits``.
        logits: unnormalised log probabilities, shape [..., n_categories]; minus infinity forbids a category.
    """

    has_enumerate_support = True
    _logits: Tensor

    def __init__(self, probs: Tensor | None = None, logits: Tensor | None = None) -> None:
        self._logits = _logits_of(probs, logits)
        self._batch_shape = self._logits.shape[:-1]
        self._event_shape = torch.Size()
        self._validate_args = False

    @property
    def parameter(self) -> Tensor:
        """The logits, as they were given."""
        return self._logits

    @property
    def _num_events(self) -> int:  # type: ignore[override]
        return self._logits.shape[-1]

    @property
    def logits(self) -> Tensor:  # type: ignore[override]
        """Normalised log probabilities, shape batch + [n_categories]."""
        return self._logits.log_softmax(-1)

    @property
    def probs(self) -> Tensor:  # type: ignore[override]
        """Probabilities, shape batch + [n_categories]."""
        return self._logits.softmax(-1)

    @property
    def support(self) -> Any:  # type: ignore[override]
        """The labels 0, 1, ..., n_categories - 1."""
        return integer_interval(0, self._num_events - 1)

    def expand(self, batch_shape, _instance=None) -> Categorical:  # type: ignore[override]
        """The same distribution with its parameters expanded to ``batch_shape``."""
        return Categorical(logits=self._logits.expand((*batch_shape, self._num_events)))

    def sample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """Labels in the dtype of the logits, of shape sample_shape + batch."""
        return _draw_labels(self._logits, sample_shape).to(self._logits.dtype)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All labels, along a new first axis."""
        labels = torch.arange(self._num_events, dtype=self._logits.dtype, device=self._logits.device)
        labels = labels.view(-1, *(1 for _ in self._batch_shape))
        return labels.expand(-1, *self._batch_shape) if expand else labels

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of the labels ``value``, of any dtype."""
        log_p = self._logits.log_softmax(-1)
        value = value.long().unsqueeze(-1)
        if value.shape[:-1] != self._batch_shape:
            shape = torch.broadcast_shapes(value.shape[:-1], self._batch_shape)
            value, log_p = value.expand(*shape, 1), log_p.expand(*shape, -1)
        return log_p.gather(-1, value).squeeze(-1)


class OneHotCategorical(Lean):
    r"""Categorical over one-hot vectors, :math:`\log p(x) = \sum_k x_k \log p_k`; draws have the dtype of its logits.

    torch's own takes the argmax of the value: it is not differentiable in a relaxed value and slower.

    Args:
        probs: probabilities, shape [..., n_categories]; exclusive with ``logits``.
        logits: unnormalised log probabilities, shape [..., n_categories]; minus infinity forbids a category.
        straight_through: a temperature; draws then carry the gradient of a relaxed draw at this temperature.
    """

    support = one_hot
    relaxed_support = simplex  # where log_prob is its own smooth extension, linear in the value
    has_enumerate_support = True
    logits = Parameter(event_dim=1)

    def __init__(
        self, probs: Tensor | None = None, logits: Tensor | None = None, straight_through: Value | None = None
    ) -> None:
        self._logits = _logits_of(probs, logits)
        self._straight_through = straight_through
        self._batch_shape, self._event_shape = self._logits.shape[:-1], self._logits.shape[-1:]
        self._validate_args = False

    @property
    def probs(self) -> Tensor:
        """Probabilities, shape batch + [n_categories]."""
        return self._logits.softmax(-1)

    @property
    def mean(self) -> Tensor:
        """The probabilities."""
        return self.probs

    @property
    def variance(self) -> Tensor:
        """p (1 - p) of each component."""
        return self.probs * (1 - self.probs)

    def entropy(self) -> Tensor:
        """Entropy in nats."""
        log_p = self._logits.log_softmax(-1)
        return -times_log(log_p.exp(), log_p).sum(-1)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether draws carry the gradient of a relaxed draw, which is biased."""
        return self._straight_through is not None

    def rsample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """One-hot vectors with the gradient of a relaxed draw that has the same noise (``straight_through``)."""
        if self._straight_through is None:
            raise NotImplementedError("a one-hot draw has no derivative; straight_through=temperature gives it one.")
        gumbel = -(-open_uniform(self._shape(sample_shape), self._logits).log()).log()
        temperature = self._straight_through
        if isinstance(temperature, Tensor) and temperature.dim():
            temperature = temperature.unsqueeze(-1)
        relaxed = ((self._logits + gumbel) / temperature).softmax(-1)
        hard = torch.nn.functional.one_hot(relaxed.detach().argmax(-1), self._event_shape[-1]).to(relaxed.dtype)
        return hard + (relaxed - relaxed.detach())

    def sample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """One-hot vectors in the dtype of the logits, of shape sample_shape + batch + [n_categories]."""
        labels = _draw_labels(self._logits, sample_shape)
        return torch.nn.functional.one_hot(labels, self._event_shape[-1]).to(self._logits.dtype)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All one-hot vectors, along a new first axis."""
        n = self._event_shape[-1]
        vectors = torch.eye(n, dtype=self._logits.dtype, device=self._logits.device)
        vectors = vectors.view(n, *(1 for _ in self._batch_shape), n)
        return vectors.expand(n, *self._batch_shape, n) if expand else vectors

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of the one-hot vectors ``value``, of any dtype."""
        log_p = self._logits.log_softmax(-1)
        return times_log(value.to(log_p.dtype), log_p).sum(-1)


@node_type(
    logits=real_vector,
    hint="A categorical value is a label 0, 1, ..., n_categories - 1. For one-hot vectors use bn.onehot_categorical; "
    "labels that start at 1 need 1 subtracted.",
    scipy="rv_discrete(values=(arange(K), softmax(logits)))",
)
def categorical_node(logits: Tensor, **options: Unpack[DiscreteOptions]) -> Categorical:
    r"""Categorical node over labels, :math:`x \in \{0, \dots, K - 1\}`; also named ``discrete``.

    .. math:: \log p(x = k) = l_k - \log\sum_j e^{l_j}

    Args:
        logits: unnormalised log probabilities l, shape [..., K].
    """
    return Categorical(logits=logits)


@node_type(
    logits=real_vector,
    straight_through=positive,
    hint="A value is a vector with one 1 and zeros. For labels use bn.categorical, or "
    "torch.nn.functional.one_hot(labels, n_categories); for relaxed vectors bn.concrete.",
    scipy="multinomial(1, softmax(logits))",
)
def onehot_categorical_node(
    logits: Tensor, *, straight_through: Value | None = None, **options: Unpack[DiscreteOptions]
) -> OneHotCategorical:
    r"""Categorical node over one-hot vectors of length K; also named ``onehot_discrete``.

    .. math:: \log p(x) = \sum_k x_k \bigl(l_k - \log\sum_j e^{l_j}\bigr)

    Args:
        logits: unnormalised log probabilities l, shape [..., K].
        straight_through: a temperature t > 0, a number or of the batch shape; the draw, still one-hot, then carries the
            gradient of the relaxed draw (``concrete``) with the same noise, so that ``sgvb`` trains through it. That
            gradient is biased.

    Reference for straight-through gradients: Jang et al. 2017, arXiv:1611.01144, section 2.2.
    """
    return OneHotCategorical(logits=logits, straight_through=straight_through)
