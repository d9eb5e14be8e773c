"""Runs a kernel's steps in blocks, eagerly or each block in a compiled call."""

from __future__ import annotations

import math
import time
import warnings
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from zsp.inference.compiled_loop import CompiledLoop
from zsp.inference.executor import CompileError
from zsp.inference.sampling.arrays import to_numpy, to_torch
from zsp.inference.sampling.kernel import Density, Kernel, Transitions, Tuning

__all__ = ["Runner", "choose_block"]

MOST_STEPS = 256
"""Steps of a block: in longer ones drawing random numbers and storing draws take less of the time."""

MOST_TRANSITIONS = 64
"""Transitions of a block, about: after them the progress is shown, and a checkpoint may be written."""

LONGEST_CALL = 0.5
"""Seconds of a compiled call, about, unless a single step takes longer."""


def choose_block(n_left: int, n_made: int, n_steps: int) -> int:
    """How many steps to take next, so that what is left is made and little more.

    Args:
        n_left: transitions that the slowest chain has to make.
        n_made: those it has made so far.
        n_steps: in so many steps.
    """
    per_transition = max(1.0, n_steps / n_made) if n_made else 1.0
    return min(MOST_STEPS, math.ceil(min(n_left, MOST_TRANSITIONS) * per_transition))


class Runner:
    """Advances chains by blocks of steps.

    Args:
        kernel: the kernel.
        density: the log density, packed.
        generator: of the random numbers.
        is_compiled: whether to compile; what cannot be compiled runs eagerly, with a warning that says why.

    Attributes:
        compile_seconds: how long compiling has taken so far.
    """

    def __init__(self, kernel: Kernel, density: Density, generator: torch.Generator, is_compiled: bool) -> None:
        self._kernel = kernel
        self._density = density
        self._generator = generator
        self.is_compiled = is_compiled
        self.compile_seconds = 0.0
        self._is_traced = False
        self._loops: dict[Any, CompiledLoop] = {}
        self._steps_per_call = 1

    def block(self, state: Any, position: Tensor, tuning: Tuning, n_steps: int) -> tuple[Any, Transitions | None]:
        """The state after a block of steps.

        Args:
            state: the kernel's.
            position: any tensor of the shape, dtype and device of the chains' positions.
            tuning: metric and adaptation.
            n_steps: at most MOST_STEPS.

        Returns:
            The new state, and what ended in the block, with a leading axis of steps; None if nothing did.
        """
        with torch.no_grad():
            noise = self._kernel.draw_noise(n_steps, position, self._generator)
            if self.is_compiled:
                loop = self._loop(state, noise, tuning)
                if loop is not None:
                    return self._compiled_block(loop, state, noise, tuning)
            if not self._is_traced:
                self._is_traced = True
                self._density.trace(position)
            return self._eager_block(state, noise, tuning)

    def _eager_block(self, state: Any, noise: Any, tuning: Tuning) -> tuple[Any, Transitions | None]:
        leaves, structure = tree_flatten(noise)
        on_cpu = leaves[0].device.type == "cpu"
        if on_cpu:
            leaves, state, tuning = to_numpy((leaves, state, tuning))
        rows = []
        with numpy.errstate(all="ignore"):  # a diverging trajectory overflows
            for step in zip(*leaves, strict=True):
                state, ended = self._kernel.advance(self._density, state, tree_unflatten(step, structure), tuning)
                if ended is not None:
                    rows.append(ended)
        if on_cpu:
            state = to_torch(tree_map(numpy.asarray, state))
        if not rows:
            return state, None
        if on_cpu:
            return state, to_torch(tree_map(lambda *parts: numpy.stack(parts), *rows))
        return state, tree_map(lambda *parts: torch.stack(parts), *rows)

    def _loop(self, state: Any, noise: Any, tuning: Tuning) -> CompiledLoop | None:
        """The compiled block for a metric of this kind."""
        leaves, structure = tree_flatten(tuning)
        kind = structure, *[leaf.shape for leaf in leaves]
        if kind not in self._loops:
            start = time.perf_counter()
            try:
                self._loops[kind] = CompiledLoop(
                    lambda *arguments: self._kernel.advance(self._density, *arguments), MOST_STEPS, state,
                    tree_map(lambda leaf: leaf[0], noise), tuning, is_closure_fixed=True,
                )  # fmt: skip
            except CompileError as error:
                warnings.warn(
                    f"zsp.mcmc runs without compiled code, since the log density cannot be compiled: {error}. "
                    "compile=False says that this is meant.",
                    stacklevel=2,
                )
                self.is_compiled = False
                return None
            finally:
                self.compile_seconds += time.perf_counter() - start
        return self._loops[kind]

    def _compiled_block(self, loop: CompiledLoop, state: Any, noise: Any, tuning: Tuning) -> tuple[Any, Transitions]:
        """In calls of so many steps that an interrupt, which waits for their end, waits for less than a second."""
        leaves, structure = tree_flatten(noise)
        first, rows = 0, []
        while first < len(leaves[0]):
            start = time.perf_counter()
            part = [leaf[first : first + self._steps_per_call] for leaf in leaves]
            state, ended = loop(state, tree_unflatten(part, structure), tuning)
            rows.append(ended)
            first += self._steps_per_call
            seconds = time.perf_counter() - start
            if seconds < LONGEST_CALL / 2:
                self._steps_per_call = min(2 * self._steps_per_call, MOST_STEPS)
            elif seconds > LONGEST_CALL:
                self._steps_per_call = max(self._steps_per_call // 2, 1)
        return state, rows[0] if len(rows) == 1 else tree_map(lambda *parts: torch.cat(parts), *rows)
