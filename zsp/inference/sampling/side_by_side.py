"""Chains in equal parts, side by side on threads.

Threads that share every operation wait for each other in each of them. Chains that do not see each other need not: a
thread has some of them, and makes many steps before it looks at the others.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from zsp.inference.sampling.kernel import Rows, Transitions, Tuning

__all__ = ["Block", "Parts", "SideBySide", "number_of_parts", "together"]

Loop = Callable[[Any, Any, Tuning], tuple[Any, Transitions]]
"""From a state, random numbers and the tuning to a state and what ended, [step, chain, ...]; without side effects."""

Block = Callable[[Any, Any, Tuning], tuple[Any, Rows, int]]
"""From the same to a state, the transitions that ended, and the number of steps that were made."""


LEAST_CHAINS = 8
"""Of a part: to multiply the data by the positions of fewer takes as long, since it takes as long to read the data."""


def number_of_parts(n_chains: int, n_threads: int) -> int:
    """The largest number of equal parts that are not too small and for which there are threads."""
    most = max(1, min(n_chains // LEAST_CHAINS, n_threads))
    return max(n for n in range(1, most + 1) if n_chains % n == 0)


class Parts:
    """How what a kernel's step takes and gives is divided.

    Args:
        number: of parts.
        chain_axes: see :attr:`zsp.inference.sampling.kernel.Kernel.chain_axes`.
    """

    def __init__(self, number: int, chain_axes: Mapping[str, int | None]) -> None:
        self.number = number
        self._axes = chain_axes

    def of_state(self, state: Any) -> list[Any]:
        """The state of each part."""
        fields = []
        for name, field in zip(state._fields, state, strict=True):
            axis = self._axes.get(name, 0)
            fields.append([field] * self.number if axis is None else self.of_chains(field, axis))
        return [type(state)(*part) for part in zip(*fields, strict=True)]

    def of_tuning(self, tuning: Tuning) -> list[Tuning]:
        """The tuning of each part: that of all chains, but for the momenta [trajectory, chain, D]."""
        if not tuning.momenta:
            return [tuning] * self.number
        momenta = tuning.momenta
        return [tuning._replace(momenta=momenta._replace(values=part)) for part in self.of_chains(momenta.values, 1)]

    def of_chains(self, tree: Any, axis: int) -> list[Any]:
        """Parts of a pytree of tensors of which this is the axis of the chains."""

        def part(leaf: Tensor, i: int) -> Tensor:
            n = leaf.shape[axis] // self.number
            return leaf.narrow(axis, i * n, n)

        return [tree_map(partial(part, i=i), tree) for i in range(self.number)]

    def join_states(self, states: Sequence[Any]) -> Any:
        """The state of all chains."""
        fields = []
        for name, *parts in zip(states[0]._fields, *states, strict=True):
            axis = self._axes.get(name, 0)
            fields.append(parts[0] if axis is None else _concatenate(parts, axis))
        return type(states[0])(*fields)

    def join_rows(self, rows: Sequence[Rows], n_chains: int) -> Rows:
        """The transitions of all chains, of which each part has so many."""
        numbered = [part._replace(chain=part.chain + i * n_chains) for i, part in enumerate(rows)]
        joined: Rows = _concatenate(numbered, 0)
        return joined


def together(loop: Loop) -> Block:
    """All chains in one loop."""

    def block(state: Any, noise: Any, tuning: Tuning) -> tuple[Any, Rows, int]:
        state, ended = loop(state, noise, tuning)
        return state, ended.rows(), len(ended.is_done)

    return block


class SideBySide:
    """Equal parts of the chains on threads of their own, a :data:`Block`.

    Args:
        loop: of one part; on one thread.
        parts: how these are divided.
    """

    def __init__(self, loop: Loop, parts: Parts) -> None:
        self._loop = loop
        self._parts = parts
        self._threads = _start_threads(parts.number)

    def close(self) -> None:
        """End the threads; there are no calls any more."""
        self._threads.shutdown()

    def __call__(self, state: Any, noise: Any, tuning: Tuning) -> tuple[Any, Rows, int]:
        """As one loop would, it ends where the first part ends: the others end there, too."""
        parts = self._parts
        given = list(zip(parts.of_state(state), parts.of_chains(noise, 1), parts.of_tuning(tuning), strict=True))

        def run(i: int, n_steps: int | None = None) -> tuple[Any, Transitions]:
            state, noise, tuning = given[i]
            with torch.no_grad():
                return self._loop(state, tree_map(lambda leaf: leaf[:n_steps], noise), tuning)

        made = list(self._threads.map(run, range(parts.number)))
        lengths = [len(ended.is_done) for _, ended in made]
        too_long = [i for i, length in enumerate(lengths) if length > min(lengths)]
        for i, again in zip(too_long, self._threads.map(partial(run, n_steps=min(lengths)), too_long), strict=True):
            made[i] = again
        states, ended = zip(*made, strict=True)
        rows = parts.join_rows([part.rows() for part in ended], ended[0].is_done.shape[1])
        return parts.join_states(states), rows, min(lengths)


def _concatenate(trees: Sequence[Any], axis: int) -> Any:
    return tree_map(lambda *leaves: torch.cat(leaves, axis), *trees)


def _start_threads(n: int) -> ThreadPoolExecutor:
    """Threads in which torch uses no others."""
    n_torch = torch.get_num_threads()
    pool = ThreadPoolExecutor(n, "zsp-chains")
    are_there = threading.Barrier(n)

    def begin(_: int) -> None:
        torch.get_num_threads()  # takes the number of all threads, once
        torch.set_num_threads(1)
        are_there.wait()

    list(pool.map(begin, range(n)))
    torch.set_num_threads(n_torch)  # what a thread sets is also the number for threads that begin later
    return pool
