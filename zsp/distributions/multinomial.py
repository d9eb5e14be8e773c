r"""Multinomial distributions, :math:`\log p(x) = \log\binom{n}{x_1 \dots x_K} + \sum_k x_k \log p_k`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions.constraints import nonnegative_integer, real_vector
from typing_extensions import Unpack

from zsp.distributions.lean import Lean, Parameter
from zsp.distributions.node_type import DiscreteOptions, node_type
from zsp.distributions.supports import Counts, counts
from zsp.distributions.tensors import times_log

__all__ = ["Multinomial", "UnnormalizedMultinomial", "multinomial_node", "unnormalized_multinomial_node"]


class Multinomial(Lean):
    r"""Counts of n independent categorical draws. (The density of torch's own fails under ``torch.func.vmap``.)

    Args:
        total_count: the number of draws n, a number or a tensor of the batch shape; with None it is the sum of the
            value, and there are no draws.
        logits: log probabilities, shape [..., n_categories].
        normalize_logits: False if they are normalised already.
    """

    logits = Parameter(event_dim=1)

    def __init__(self, total_count: int | Tensor | None, logits: Tensor, normalize_logits: bool = True) -> None:
        self._set(logits=logits)
        self._event_shape = self._logits.shape[-1:]
        if isinstance(total_count, Tensor):
            self._batch_shape = torch.broadcast_shapes(self._batch_shape, total_count.shape)
        self.total_count = self._total_count = total_count
        self._normalize_logits = normalize_logits
        self.has_sample = total_count is not None

    _logits: Tensor

    def expand(self, batch_shape, _instance=None) -> Multinomial:  # type: ignore[override]
        """The same distribution with its parameters expanded to ``batch_shape``."""
        total = self._total_count.expand(batch_shape) if isinstance(self._total_count, Tensor) else self._total_count
        return Multinomial(total, self._logits.expand((*batch_shape, *self._event_shape)), self._normalize_logits)

    @property
    def support(self) -> Any:  # type: ignore[override]
        """Vectors of counts that sum to the total."""
        return Counts(self._total_count)

    @property
    def mean(self) -> Tensor:
        """n times the probabilities."""
        total: Any = self._total_count
        return self.logits.softmax(-1) * (total.unsqueeze(-1) if isinstance(total, Tensor) else total)

    @property
    def variance(self) -> Tensor:
        """n p (1 - p) of each category."""
        return self.mean * (1 - self.logits.softmax(-1))

    def sample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """Counts in the dtype of the logits, of shape sample_shape + batch + [n_categories]."""
        total = self._total_count
        if total is None:
            raise NotImplementedError(
                "Multinomial with n_experiments=None has a density (n is the sum of the value) but no draws. "
                "Give n_experiments to sample from it, or observe the node."
            )
        with torch.no_grad():
            shape = self._shape(sample_shape)
            n_max = int(total.max()) if isinstance(total, Tensor) else int(total)
            flat = self.logits.softmax(-1).expand(shape).reshape(-1, shape[-1])
            if n_max == 0:
                return flat.new_zeros(shape)
            labels = torch.multinomial(flat, n_max, replacement=True)
            ones = torch.ones_like(labels, dtype=flat.dtype)
            if isinstance(total, Tensor):
                is_used = torch.arange(n_max, device=flat.device) < total.expand(shape[:-1]).reshape(-1, 1)
                ones = ones * is_used
            return torch.zeros_like(flat).scatter_add(-1, labels, ones).reshape(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of the counts ``value``, of any dtype."""
        log_p = self._logits.log_softmax(-1) if self._normalize_logits else self._logits
        value = value.to(log_p.dtype)
        total: Any = value.sum(-1) if self._total_count is None else self._total_count
        total = torch.as_tensor(total, dtype=log_p.dtype, device=log_p.device)
        coefficient = (total + 1).lgamma() - (value + 1).lgamma().sum(-1)
        return coefficient + times_log(value, log_p).sum(-1)


class UnnormalizedMultinomial(Lean):
    r"""A bag of categorical draws, without the multinomial coefficient: :math:`\log p(x) = \sum_k x_k \log p_k`.

    It is the probability of the draws in one given order; the coefficient does not depend on the parameters. There are
    no draws of it.

    Args:
        logits: log probabilities, shape [..., n_categories].
        normalize_logits: False if they are normalised already.
    """

    support = counts
    has_sample = False
    logits = Parameter(event_dim=1)
    _logits: Tensor

    def __init__(self, logits: Tensor, normalize_logits: bool = True) -> None:
        self._set(logits=logits)
        self._event_shape = self._logits.shape[-1:]
        self._normalize_logits = normalize_logits

    def sample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """There are no draws.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "unnormalized_multinomial (bag_of_categoricals) has a density but no draws, for it does not know how many "
            "draws a bag holds. Observe the node, or use bn.multinomial(..., n_experiments=n)."
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of the counts ``value``, of any dtype."""
        log_p = self._logits.log_softmax(-1) if self._normalize_logits else self._logits
        return times_log(value.to(log_p.dtype), log_p).sum(-1)


_COUNTS_HINT = "A value is a vector of counts (non-negative whole numbers, one a category), not proportions or labels."


@node_type(
    logits=real_vector,
    n_experiments=nonnegative_integer,
    hint=f"{_COUNTS_HINT} Its sum is n_experiments; n_experiments=None takes n from the value.",
    scipy="multinomial(n_experiments, softmax(logits))",
)
def multinomial_node(
    logits: Tensor,
    n_experiments: int | Tensor | None,
    normalize_logits: bool = True,
    **options: Unpack[DiscreteOptions],
) -> Multinomial:
    r"""Multinomial node: counts of n draws from K categories.

    .. math:: \log p(x) = \log\frac{n!}{\prod_k x_k!} + \sum_k x_k \log p_k

    Args:
        logits: unnormalised :math:`\log p`, shape [..., K].
        n_experiments: n; with None it is the sum of the (then necessarily given) value.
        normalize_logits: False if the logits are normalised already.
    """
    return Multinomial(n_experiments, logits, normalize_logits)


@node_type(logits=real_vector, hint=_COUNTS_HINT)
def unnormalized_multinomial_node(
    logits: Tensor, normalize_logits: bool = True, **options: Unpack[DiscreteOptions]
) -> UnnormalizedMultinomial:
    r"""Bag of categoricals node: counts of draws from K categories, as a sequence; also named ``bag_of_categoricals``.

    .. math:: \log p(x) = \sum_k x_k \log p_k

    It has a density but no draws: observe it.

    Args:
        logits: unnormalised :math:`\log p`, shape [..., K].
        normalize_logits: False if the logits are normalised already.
    """
    return UnnormalizedMultinomial(logits, normalize_logits)
