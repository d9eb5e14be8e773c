r"""The Poisson distribution, :math:`\log p(x) = x\log r - r - \log x!`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions.constraints import nonnegative, nonnegative_integer
from typing_extensions import Unpack

from zsp.distributions.lean import Lean, Parameter
from zsp.distributions.node_type import DiscreteOptions, Value, node_type
from zsp.distributions.tensors import xlogy

__all__ = ["Poisson", "poisson_node"]


class Poisson(Lean, torch.distributions.Poisson):
    r"""torch's Poisson, with finite derivatives at a rate of zero and values of any dtype.

    Args:
        rate: r, a tensor or a number.
    """

    support = nonnegative_integer
    rate = Parameter()
    _rate: Tensor

    def __init__(self, rate: Value) -> None:
        self._set(rate=rate)

    def sample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """Counts in the dtype of the rate, of shape sample_shape + batch."""
        with torch.no_grad():
            return torch.poisson(self._rate.expand(self._shape(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of the counts ``value``, of any dtype."""
        value = value.to(self._rate.dtype)
        return xlogy(value, self._rate) - self._rate - (value + 1).lgamma()


@node_type(
    rate=nonnegative,
    hint="A Poisson value is a count: 0, 1, 2, ...; for scaled or real data use a "
    "continuous likelihood, such as bn.gamma.",
    scipy="poisson(rate)",
)
def poisson_node(rate: Value, **options: Unpack[DiscreteOptions]) -> Poisson:
    r"""Poisson node with mean r.

    .. math:: \log p(x) = x\log r - r - \log x!, \quad x \in \{0, 1, 2, \dots\}

    Args:
        rate: r >= 0.
    """
    return Poisson(rate)
