r"""The improper flat density on a support, :math:`\log p(x) = 0`."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint, real
from typing_extensions import Unpack

from zsp.distributions.node_type import NodeOptions, node_type

__all__ = ["Flat", "flat_node"]


class Flat(Distribution):
    r"""Improper flat density on a support: zero log density, no draws.

    Args:
        shape: shape of a value, batch + event.
        support: where the value lies; its ``event_dim`` says how many of the last axes are one event.
    """

    has_sample = False
    arg_constraints: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]

    def __init__(self, shape: Any = (), support: Constraint = real) -> None:
        shape = torch.Size((shape,) if isinstance(shape, int) else shape)
        event_dim = support.event_dim
        if len(shape) < event_dim:
            raise ValueError(
                f"flat on {support} needs a shape with at least {event_dim} axes (the event), but got {list(shape)}."
            )
        self._support = support
        self._batch_shape, self._event_shape = shape[: len(shape) - event_dim], shape[len(shape) - event_dim :]
        self._validate_args = False

    @property
    def support(self) -> Constraint:  # type: ignore[override]
        """The given support."""
        return self._support

    def expand(self, batch_shape, _instance=None) -> Flat:
        """The same density with another batch shape."""
        return Flat((*batch_shape, *self._event_shape), self._support)

    def sample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """There are no draws.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "flat is an improper density, which cannot be drawn from. Sample it with zsp.mcmc, observe it, or give it "
            "a proper prior such as bn.normal with a large std."
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Zero, in the dtype of ``value``."""
        shape = value.shape[: value.dim() - len(self._event_shape)]
        if shape[len(shape) - len(self._batch_shape) :] != self._batch_shape:
            shape = torch.broadcast_shapes(shape, self._batch_shape)
        return value.new_zeros(shape)


@node_type()
def flat_node(shape: Any = (), support: Constraint = real, **options: Unpack[NodeOptions]) -> Flat:
    r"""Improper flat node, :math:`\log p(x) = 0` on a support; for MCMC or observation, without draws.

    Args:
        shape: shape of the value, batch + event.
        support: a ``torch.distributions.constraints`` object, default the real line.
    """
    return Flat(shape, support)
