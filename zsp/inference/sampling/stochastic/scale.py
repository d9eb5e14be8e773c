"""A mini-batch stands for all data: every node that it observes has to say how many these are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from zsp.checks.wording import quoted
from zsp.execution import checked
from zsp.inference.enumeration import EnumeratedNet
from zsp.inference.log_density import LogDensity
from zsp.meta_bayesian_net import MetaBayesianNet

__all__ = ["ROWS_AT_ONCE", "require_scale"]

ROWS_AT_ONCE = 4096
"""Data whose values are checked in one execution of the model."""


def require_scale(
    log_density: LogDensity, example: Mapping[str, Tensor], observed: Mapping[str, Any] | Iterable[Any]
) -> int | None:
    """Raise if the terms of a mini-batch are not scaled to all data, or an observed value is outside its support.

    Args:
        log_density: of a mini-batch.
        example: a mini-batch.
        observed: all data where that is a mapping, whose values are all checked; or an iterable of mini-batches, of
            which the first is.

    Returns:
        How many data there are, as the nodes say; None for a callable.

    Raises:
        ValueError: if a node has no ``total_size`` or another than there are data, or refuses a value.
    """
    position = log_density.initial((), generator=torch.Generator(log_density.device).manual_seed(0))
    given = _total_sizes(log_density, position, example)
    n_data = len(next(iter(observed.values()))) if isinstance(observed, Mapping) else None
    if without := [name for name, size in given.items() if size is None]:
        raise ValueError(
            f"{quoted(without)} is observed in mini-batches, but does not say for how many data these stand, so that "
            f"the prior would count too much. Give the node total_size={n_data or 'N, the number of all data'}."
        )
    for name, size in given.items():
        if n_data is not None and size != n_data:
            raise ValueError(
                f"{name!r} has total_size={size}, but there are {n_data} data in observed: make it total_size={n_data}."
            )
    with checked(), torch.no_grad():
        if isinstance(observed, Mapping):
            assert n_data is not None
            for start in range(0, n_data, ROWS_AT_ONCE):
                part = {name: value[start : start + ROWS_AT_ONCE] for name, value in observed.items()}
                log_density.rebind(part)(position)
        else:
            log_density(position)
    return max((size for size in given.values() if size is not None), default=None)


def _total_sizes(log_density: LogDensity, position: Tensor, example: Mapping[str, Tensor]) -> dict[str, int | None]:
    """The nodes that a mini-batch observes; none for a callable, which has no nodes."""
    model = log_density._meta_bn
    model = model.meta_bn if isinstance(model, EnumeratedNet) else model
    if not isinstance(model, MetaBayesianNet):
        return {}
    with torch.no_grad():
        bn = model._execute({**example, **log_density.constrain(position)})
    return {node.name: node.total_size for node in bn._stochastic_nodes() if node.name in example}
