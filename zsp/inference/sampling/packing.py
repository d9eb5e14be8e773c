"""Positions of any structure and any number of chain axes, packed as [chain, D]."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["Packing"]


class Packing:
    """How positions are packed: a tensor of shape [*chain, ...] or a dict of them, as [chain, D].

    Args:
        position: an example.
        log_density: from a position to a tensor whose shape is that of the chain axes.

    Raises:
        ValueError: if the shape of the log density is not the beginning of every tensor's shape.
    """

    def __init__(self, position: Any, log_density: Callable[[Any], Tensor]) -> None:
        self._names = list(position) if isinstance(position, Mapping) else None
        tensors = self._tensors(position)
        with torch.no_grad():
            self.chain_shape = tuple(log_density(position).shape)
        n_axes = len(self.chain_shape)
        for name, tensor in zip(self._names or ["position"], tensors, strict=True):
            if tuple(tensor.shape[:n_axes]) != self.chain_shape:
                raise ValueError(
                    f"the log density has shape {list(self.chain_shape)}, so that these are the chain axes, but "
                    f"{name!r} has shape {list(tensor.shape)}, which does not begin with them. The log density must "
                    "sum over everything but the chain axes."
                )
        self._shapes = [tensor.shape[n_axes:] for tensor in tensors]
        self._sizes = [math.prod(shape) for shape in self._shapes]

    def _tensors(self, position: Any) -> list[Tensor]:
        return [position] if self._names is None else [position[name] for name in self._names]

    def pack(self, position: Any) -> Tensor:
        """[chain, D]"""
        n_chains = math.prod(self.chain_shape)
        return torch.cat([tensor.reshape(n_chains, -1) for tensor in self._tensors(position)], 1)

    def unpack(self, packed: Tensor) -> Any:
        """The position of which ``packed`` is the packed form."""
        parts = [
            part.reshape(*self.chain_shape, *shape)
            for part, shape in zip(packed.split(self._sizes, 1), self._shapes, strict=True)
        ]
        return parts[0] if self._names is None else dict(zip(self._names, parts, strict=True))

    def unflatten(self, values: Tensor) -> Tensor:
        """[chain] as [*chain]."""
        return values.reshape(self.chain_shape)

    def packed(self, log_density: Callable[[Any], Tensor]) -> Callable[[Tensor], Tensor]:
        """The log density as a function from [chain, D] to [chain]."""
        return lambda packed: log_density(self.unpack(packed)).reshape(-1)
