"""Mini-batches, one or several at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten

__all__ = ["Batches", "Chunk", "Epoch", "batches_of", "pick_rows"]


class Chunk:
    """Mini-batches that follow one another, all of one size.

    Attributes:
        arguments: what they are made of, a pytree.
        n_steps: how many they are.
        pick: from the arguments and an index to a mini-batch.
        is_ragged: whether it is the last of an epoch, smaller than the others.
        leaves: those of the arguments.
        structure: that of the arguments.
    """

    def __init__(
        self,
        arguments: Any,
        n_steps: int,
        pick: Callable[[Any, int], Any],
        is_ragged: bool = False,
        flat: tuple[list[Any], TreeSpec] | None = None,
    ) -> None:
        self.arguments = arguments
        self.n_steps = n_steps
        self.pick = pick
        self.is_ragged = is_ragged
        self.leaves, self.structure = tree_flatten(arguments) if flat is None else flat

    def __iter__(self) -> Iterator[Any]:
        return (self.pick(self.arguments, step) for step in range(self.n_steps))


class Epoch(Protocol):
    """A pass over the data."""

    n_steps: int | None
    """How many mini-batches of full size it has; None if that is not known."""

    def take(self, n_steps: int) -> Chunk | None:
        """The next ``n_steps`` mini-batches if so many of full size are left, one otherwise, None at the end."""


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
        self._left: Chunk | None = Chunk(dict(data), 1, lambda data, step: dict(data))

    def take(self, n_steps: int) -> Chunk | None:
        chunk, self._left = self._left, None
        return chunk


class _Rows:
    """Mini-batches of a mapping of tensors, in a given order of their rows."""

    def __init__(self, data: Mapping[str, Tensor], order: Tensor, size: int) -> None:
        self._data = dict(data)
        devices = {value.device for value in data.values()}
        self._order = order.to(devices.pop()) if len(devices) == 1 else order
        self._leaves, self._structure = tree_flatten((self._data, order))
        self._size = size
        self._start = 0
        self.n_steps: int | None = len(order) // size

    def take(self, n_steps: int) -> Chunk | None:
        left = len(self._order) - self._start
        if left == 0:
            return None
        n_steps = n_steps if left >= n_steps * self._size else 1
        n_rows = min(left, n_steps * self._size)
        rows = self._order[self._start : self._start + n_rows].view(n_steps, -1)
        self._start += n_rows
        flat = [*self._leaves[:-1], rows], self._structure
        return Chunk((self._data, rows), n_steps, pick_rows, n_rows < self._size, flat)


def pick_rows(arguments: tuple[dict[str, Tensor], Tensor], step: int) -> dict[str, Tensor]:
    """A mini-batch of ``(data, rows)``: those of each tensor in the data that ``rows`` [step, size] names."""
    data, rows = arguments
    return {name: value[rows[step].to(value.device)] for name, value in data.items()}


class _Stream:
    """The mini-batches of an iterable, one at a time: making one may draw random numbers, each when its turn comes."""

    n_steps: int | None = None

    def __init__(self, data: Iterable[Any]) -> None:
        self._iterator = iter(data)

    def take(self, n_steps: int) -> Chunk | None:
        try:
            return Chunk(next(self._iterator), 1, lambda batch, step: batch)
        except StopIteration:
            return None
