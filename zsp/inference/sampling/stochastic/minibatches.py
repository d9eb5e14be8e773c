"""Mini-batches without end, whose place in the data can be kept and found again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from zsp.inference.training.batches import Batches, Chunk, Epoch, batches_of, pick_rows

__all__ = ["Minibatches", "minibatches_of"]


class Minibatches(Protocol):
    """Mini-batches, as many as are asked for."""

    example: Mapping[str, Any]
    """A mini-batch."""

    def take(self, n_steps: int) -> list[Chunk]:
        """The next mini-batches, ``n_steps`` in all."""

    def state(self) -> dict[str, Any]:
        """Where they are in the data, of tensors and numbers."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from there."""


def minibatches_of(
    observed: Mapping[str, Any] | Iterable[Any], batch_size: int | None, generator: torch.Generator
) -> Minibatches:
    """Mini-batches of what was observed.

    Args:
        observed: name -> tensor; or an iterable of mini-batches, such mappings each.
        batch_size: of a mapping's mini-batches; None for all of it in every step.
        generator: of the order of a mapping's rows.

    Raises:
        ValueError: if lengths do not fit.
        TypeError: if mini-batches are no mappings.
    """
    if not isinstance(observed, Mapping):
        if not isinstance(observed, Iterable):
            raise TypeError(
                "observed must be a mapping from names to values, or an iterable of such mini-batches, for example a "
                f"DataLoader; got {type(observed).__name__}."
            )
        return _Restarted(observed, batches_of(observed, batch_size, shuffle=False))
    if batch_size is None:
        return _Whole()
    others = [name for name, value in observed.items() if not isinstance(value, Tensor) or not value.dim()]
    if others:
        raise TypeError(
            f"batch_size takes rows of every tensor in observed, but {others[0]!r} is "
            f"{_kind(observed[others[0]])}. Bind what is the same in every mini-batch to the model: "
            f"model.bind({others[0]}=...)."
        )
    batches_of(observed, batch_size, shuffle=True)  # refuses lengths that do not fit
    n = len(next(iter(observed.values())))
    if batch_size > n:
        raise ValueError(f"batch_size must be at most the number of data, {n}, got {batch_size}.")
    return _Rows(observed, batch_size, generator)


def _kind(value: Any) -> str:
    return "a tensor without axes" if isinstance(value, Tensor) else f"a {type(value).__name__}"


class _Whole:
    """All data in every step: they are no mini-batch, and stay where they are."""

    def __init__(self) -> None:
        self.example: Mapping[str, Any] = {}

    def take(self, n_steps: int) -> list[Chunk]:
        return [Chunk({}, (), n_steps, _pick_fixed)]

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


class _Rows:
    """Rows of a mapping of tensors, in a new random order each time that all have been taken.

    All mini-batches have one size: one may begin with the last rows of an order and end with the first of the next.
    """

    def __init__(self, data: Mapping[str, Tensor], size: int, generator: torch.Generator) -> None:
        self._data = dict(data)
        self._n = len(next(iter(data.values())))
        self._size = size
        self._generator = generator
        devices = {value.device for value in data.values()}
        self._device = devices.pop() if len(devices) == 1 else torch.device("cpu")
        self._left = torch.empty(0, dtype=torch.int64)
        self.example: Mapping[str, Any] = {name: value[:size] for name, value in data.items()}

    def take(self, n_steps: int) -> list[Chunk]:
        n_rows = n_steps * self._size
        orders = [self._left]
        while sum(map(len, orders)) < n_rows:
            orders.append(torch.randperm(self._n, generator=self._generator))
        rows, self._left = torch.cat(orders).tensor_split([n_rows])
        return [Chunk(self._data, rows.view(n_steps, -1).to(self._device), n_steps, pick_rows)]

    def state(self) -> dict[str, Any]:
        return {"left": self._left.clone(), "random": self._generator.get_state()}

    def restore(self, state: dict[str, Any]) -> None:
        self._left = state["left"]
        self._generator.set_state(state["random"])


class _Restarted:
    """The mini-batches of an iterable, which begins anew when it ends.

    Going on from a checkpoint, it is begun with the random state of the epoch that was interrupted, and as many
    mini-batches are skipped as that had given.
    """

    def __init__(self, data: Iterable[Any], batches: Batches) -> None:
        self._batches = batches
        own = getattr(data, "generator", None)
        self._own = own if isinstance(own, torch.Generator) else None
        self._ahead: Chunk | None = None
        self._epoch = self._begin()
        self.example: Mapping[str, Any] = self._look_ahead()

    def _begin(self) -> Epoch:
        self._before = self._random_state()
        self._n_taken = 0
        return self._batches()

    def _random_state(self) -> list[Tensor]:
        return [torch.get_rng_state(), *([] if self._own is None else [self._own.get_state()])]

    def _set_random_state(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if self._own is not None:
            self._own.set_state(states[1])

    def _look_ahead(self) -> Mapping[str, Any]:
        self._ahead = self._next()
        return self._ahead[0]

    def _next(self) -> Chunk:
        if self._ahead is not None:
            chunk, self._ahead = self._ahead, None
            return chunk
        found = self._epoch.take(1)
        if found is None:
            was_empty = self._n_taken == 0
            n_before = self._n_taken
            self._epoch = self._begin()
            found = self._epoch.take(1)
            if found is None:
                raise ValueError(
                    "observed gave no mini-batch"
                    + ("" if was_empty else f" after the first {n_before}: it can be gone through only once")
                    + ". Give a DataLoader, a list, or tensors and batch_size: what can be gone through again."
                )
        self._n_taken += 1
        _require_mapping(found.fixed)
        return found

    def take(self, n_steps: int) -> list[Chunk]:
        return _joined([self._next() for _ in range(n_steps)])

    def state(self) -> dict[str, Any]:
        n_taken = self._n_taken - (self._ahead is not None)
        return {"before": self._before, "n_taken": n_taken, "now": self._random_state()}

    def restore(self, state: dict[str, Any]) -> None:
        self._ahead = None
        self._set_random_state(state["before"])
        self._epoch = self._begin()
        for _ in range(state["n_taken"]):
            if self._epoch.take(1) is None:
                raise ValueError(
                    f"the run that wrote the checkpoint had taken {state['n_taken']} mini-batches of its last pass "
                    f"over the data, but now a pass has only {self._n_taken}. Resume with the same data."
                )
            self._n_taken += 1
        self._set_random_state(state["now"])


def _joined(chunks: list[Chunk]) -> list[Chunk]:
    """Single mini-batches that follow one another and have one structure and shape, in one chunk."""
    joined: list[Chunk] = []
    for _, run in groupby(chunks, lambda chunk: chunk.shapes):
        batches = [chunk.fixed for chunk in run]
        stacked = tree_map(lambda *leaves: torch.stack(leaves), *batches)
        joined.append(Chunk((), stacked, len(batches), _pick_inputs))
    return joined


def _pick_fixed(fixed: Any, nothing: Any) -> Any:
    return fixed


def _pick_inputs(nothing: Any, inputs: Any) -> Any:
    return inputs


def _require_mapping(batch: Any) -> None:
    if isinstance(batch, Mapping) and all(isinstance(value, Tensor) for value in batch.values()):
        return
    if isinstance(batch, Mapping):
        name = next(name for name, value in batch.items() if not isinstance(value, Tensor))
        raise TypeError(f"a mini-batch must hold tensors, but its {name!r} is a {type(batch[name]).__name__}.")
    raise TypeError(
        f"a mini-batch must be a dict from the model's inputs and nodes to tensors, but got a {type(batch).__name__}. "
        "Give tensors and batch_size: zsp.mcmc(model, {'x': x, 'y': y}, batch_size=100, ...); or let the DataLoader "
        "name them: collate_fn=lambda rows: dict(zip(('x', 'y'), default_collate(rows)))."
    )
