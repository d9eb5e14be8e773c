r"""Ordinal labels, :math:`p(x = k) = \sigma(c_{k+1} - h) - \sigma(c_k - h)` between increasing cutpoints."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions.constraints import Constraint, integer_interval, real
from torch.nn.functional import logsigmoid, pad
from typing_extensions import Unpack

from zsp.distributions.categorical import Categorical
from zsp.distributions.lean import Lean, Parameter
from zsp.distributions.node_type import DiscreteOptions, Value, node_type
from zsp.distributions.tensors import as_tensors

__all__ = ["OrderedLogistic", "ordered_logistic_node"]


class _Increasing(Constraint):
    """Vectors of increasing numbers."""

    is_discrete = False
    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        """Whether each vector increases."""
        return value.isfinite().all(-1) & (value.diff(dim=-1) > 0).all(-1)

    def __repr__(self) -> str:
        return "Increasing()"


class OrderedLogistic(Lean):
    r"""Labels 0, ..., K of a logistic variable with mean h that is cut at K points.

    Args:
        predictor: h, a tensor or a number.
        cutpoints: increasing :math:`c_1, \dots, c_K`, shape [..., K].
    """

    has_enumerate_support = True
    predictor = Parameter()
    cutpoints = Parameter(event_dim=1)
    _predictor: Tensor
    _cutpoints: Tensor

    def __init__(self, predictor: Value, cutpoints: Tensor) -> None:
        self._set(predictor=predictor, cutpoints=cutpoints)

    @property
    def support(self) -> Any:  # type: ignore[override]
        """The labels 0, 1, ..., K."""
        return integer_interval(0, self._cutpoints.shape[-1])

    @property
    def categorical(self) -> Categorical:
        """The same distribution by its K + 1 log probabilities."""
        # sigma(b) - sigma(a) = sigma(b) sigma(-a) (1 - e^{a - b}): no difference of numbers beside 1
        distance = self._cutpoints - self._predictor.unsqueeze(-1)
        between = (-torch.expm1(-self._cutpoints.diff(dim=-1))).log()
        below, above = pad(logsigmoid(distance), (0, 1)), pad(logsigmoid(-distance), (1, 0))
        return Categorical(logits=below + above + pad(between, (1, 1)))

    @property
    def probs(self) -> Tensor:
        """Probabilities, shape batch + [K + 1]."""
        return self.categorical.probs

    def sample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """Labels in the dtype of the parameters, of shape sample_shape + batch."""
        return self.categorical.sample(sample_shape)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All labels, along a new first axis."""
        return self.categorical.enumerate_support(expand)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of the labels ``value``, of any dtype."""
        return self.categorical.log_prob(value)


@node_type(
    predictor=real,
    cutpoints=_Increasing(),
    hint="An ordinal value is a label 0, 1, ..., K with K cutpoints; labels that start at 1 need 1 subtracted.",
)
def ordered_logistic_node(predictor: Value, cutpoints: Tensor, **options: Unpack[DiscreteOptions]) -> OrderedLogistic:
    r"""Ordinal node with labels 0, ..., K (proportional odds).

    .. math:: p(x \le k) = \sigma(c_{k + 1} - h)

    Args:
        predictor: h; larger favours higher labels. Its shape is the batch shape.
        cutpoints: increasing :math:`c_1 < \dots < c_K`, shape [..., K].

    Reference: McCullagh 1980, J. R. Statist. Soc. B 42, section 2.1.
    """
    return OrderedLogistic(as_tensors(predictor, cutpoints)[0], cutpoints)
