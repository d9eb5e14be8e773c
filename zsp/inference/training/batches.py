"""Mini-batches, one or several at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

__all__ = ["Batches", "Chunk", "Epoch", "batches_of", "pick_rows"]


class Chunk:
    """Mini-batches that follow one another, all of one size.

    Args:
        fixed: what all of them are made of, a pytree.
        inputs: what each of them is made of besides, a pytree of tensors with a leading axis of steps.
        n_steps: how many they are.
        pick: from ``fixed`` and the inputs of one step to a mini-batch.
        is_ragged: whether it is the last of an epoch, smaller than the others.

    Attributes:
        shapes: what tells whether two chunks look alike but for the number of their steps.
    """

    def __init__(
        self, fixed: Any, inputs: Any, n_steps: int, pick: Callable[[Any, Any], Any], is_ragged: bool = False
    ) -> None:
        self.fixed = fixed
        self.inputs = inputs
        self.n_steps = n_steps
        self.pick = pick
        self.is_ragged = is_ragged

    def inputs_of(self, step: int) -> Any:
        """The inputs of one step."""
        return tree_map(lambda leaf: leaf[step], self.inputs)

    def __getitem__(self, step: int) -> Any:
        """A mini-batch."""
        return self.pick(self.fixed, self.inputs_of(step))

    def __iter__(self) -> Iterator[Any]:
        return (self[step] for step in range(self.n_steps))

    @property
    def shapes(self) -> Any:
        """The structure, shapes, dtypes and devices of what a mini-batch is made of."""
        fixed, structure = tree_flatten(self.fixed)
        inputs, structure_of_inputs = tree_flatten(self.inputs)
        looks = [
            (leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else type(leaf)
            for leaf in [*fixed, *(leaf[0] for leaf in inputs)]
        ]
        return structure, structure_of_inputs, looks


class Epoch(Protocol):
    """A pass over the data."""

    n_steps: int | None
    """How many mini-batches of full size it has; None if that is not known."""

    def take(self, n_steps: int) -> Chunk | None:
        """At most ``n_steps`` mini-batches: of full size while there are such, then one smaller; None at the end."""


Batches = Callable[[], Epoch]


def batches_of(data: Mapping[str, Tensor] | Iterable[Any], batch_size: int | None, shuffle: bool) -> Batches:
    """What begins an epoch of mini-batches of ``data``; see :func:`zsp.fit` for its arguments."""
    if not isinstance(data, Mapping):
        if batch_size is not None:
            raise ValueError("batch_size divides a mapping of tensors; an iterable of mini-batches has its own.")
        return lambda: _Stream(data)
    lengths = {name: len(value) for name, value in data.items()}
    if len(set(lengths.values())) != 1:
        shown = ", ".join(f"{name!r} has {length}" for name, length in lengths.items()) or "no data"
        raise ValueError(f"the data must have one length along their first axis, but {shown}.")
    n = next(iter(lengths.values()))
    size = n if batch_size is None else batch_size
    if n < 1 or size < 1:
        raise ValueError(
            f"there must be at least one datum and batch_size must be at least 1, got {n} and {batch_size}."
        )
    if not shuffle and size == n:
        return lambda: _Whole(data)
    return lambda: _Rows(data, torch.randperm(n) if shuffle else torch.arange(n), size)


class _Whole:
    """All data at once."""

    n_steps: int | None = 1

    def __init__(self, data: Mapping[str, Tensor]) -> None:
        self._left: Chunk | None = Chunk(dict(data), (), 1, _pick_all)

    def take(self, n_steps: int) -> Chunk | None:
        chunk, self._left = self._left, None
        return chunk


class _Rows:
    """Mini-batches of a mapping of tensors, in a given order of their rows."""

    def __init__(self, data: Mapping[str, Tensor], order: Tensor, size: int) -> None:
        self._data = dict(data)
        devices = {value.device for value in data.values()}
        self._order = order.to(devices.pop()) if len(devices) == 1 else order
        self._size = size
        self._start = 0
        self.n_steps: int | None = len(order) // size

    def take(self, n_steps: int) -> Chunk | None:
        left = len(self._order) - self._start
        if left == 0:
            return None
        n_steps = max(1, min(n_steps, left // self._size))
        n_rows = min(left, n_steps * self._size)
        rows = self._order[self._start : self._start + n_rows].view(n_steps, -1)
        self._start += n_rows
        return Chunk(self._data, rows, n_steps, pick_rows, n_rows < self._size)


def pick_rows(data: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """A mini-batch: the rows of each tensor."""
    return {name: value[rows.to(value.device)] for name, value in data.items()}


def _pick_all(batch: Any, nothing: Any) -> Any:
    return batch


class _Stream:
    """The mini-batches of an iterable, one at a time: making one may draw random numbers, each when its turn comes."""

    n_steps: int | None = None

    def __init__(self, data: Iterable[Any]) -> None:
        self._iterator = iter(data)

    def take(self, n_steps: int) -> Chunk | None:
        try:
            return Chunk(next(self._iterator), (), 1, _pick_all)
        except StopIteration:
            return None
