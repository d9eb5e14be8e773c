"""Runs a kernel's steps in blocks, eagerly or several in a compiled call."""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from zsp.inference.executor import CompiledFunction, CompileError
from zsp.inference.sampling.arrays import to_numpy, to_torch
from zsp.inference.sampling.kernel import Density, Kernel, Transitions, Tuning

__all__ = ["BLOCK", "Runner"]

BLOCK = 64
"""Steps whose random numbers are drawn at once, and after which draws are stored."""

OPERATIONS_PER_CALL = 1500
"""About how many operations a compiled call is to have: more of them save calls, and cost time to compile."""


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
        self._steps_per_call = 0
        self._compiled: dict[Any, tuple[CompiledFunction, TreeSpec]] = {}

    def block(self, state: Any, position: Tensor, tuning: Tuning) -> tuple[Any, Transitions | None]:
        """The state after a block of steps.

        Args:
            state: the kernel's.
            position: any tensor of the shape, dtype and device of the chains' positions.
            tuning: metric and adaptation.

        Returns:
            The new state, and what ended in the block, with a leading axis of steps; None if nothing did.
        """
        with torch.no_grad():
            noise = self._kernel.draw_noise(BLOCK, position, self._generator)
            if self.is_compiled:
                function = self._function(state, noise, tuning)
                if function is not None:
                    return self._compiled_block(function, state, noise, tuning)
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

    def _function(self, state: Any, noise: Any, tuning: Tuning) -> tuple[CompiledFunction, TreeSpec] | None:
        """The compiled function for a metric of this kind, and the structure of the transitions it returns."""
        leaves, structure = tree_flatten(tuning)
        kind = structure, *[leaf.shape for leaf in leaves]
        if kind not in self._compiled:
            start = time.perf_counter()
            try:
                if not self._steps_per_call:
                    self._steps_per_call = self._choose_steps_per_call(state, noise, tuning)
                self._compiled[kind] = self._compile(state, noise, tuning)
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
        return self._compiled[kind]

    def _choose_steps_per_call(self, state: Any, noise: Any, tuning: Tuning) -> int:
        """The largest power of two for which a call is not too large to compile; it depends on the model alone."""
        one = tree_map(lambda leaf: leaf[0], noise)
        n_operations = CompiledFunction.count_operations(
            lambda *arguments: self._kernel.advance(self._density, *arguments), state, one, tuning
        )
        n_steps = 1
        while n_steps < MAX_STEPS_PER_CALL and 2 * n_steps * n_operations <= OPERATIONS_PER_CALL:
            n_steps *= 2
        return n_steps

    def _compile(self, state: Any, noise: Any, tuning: Tuning) -> tuple[CompiledFunction, TreeSpec]:
        n_steps = self._steps_per_call
        structures: list[TreeSpec] = []

        def steps(state: Any, noise: Any, tuning: Tuning) -> tuple[Any, Any]:
            rows = []
            leaves, structure = tree_flatten(noise)
            for i in range(n_steps):
                one = tree_unflatten([leaf[i] for leaf in leaves], structure)
                state, ended = self._kernel.advance(self._density, state, one, tuning)
                rows.append(ended)
            stacked = tree_map(lambda *parts: torch.stack(parts), *rows)
            structures[:] = [tree_flatten(stacked)[1]]
            return state, stacked

        example = tree_map(lambda leaf: leaf[:n_steps], noise)
        return CompiledFunction(steps, state, example, tuning, is_closure_fixed=True), structures[0]

    def _compiled_block(
        self, function: tuple[CompiledFunction, TreeSpec], state: Any, noise: Any, tuning: Tuning
    ) -> tuple[Any, Transitions]:
        run, ended_structure = function[0].run, function[1]
        state_leaves, state_structure = tree_flatten(state)
        tuning_leaves = tree_flatten(tuning)[0]
        n_state = len(state_leaves)
        calls = [leaf.unflatten(0, (-1, self._steps_per_call)).unbind(0) for leaf in tree_flatten(noise)[0]]
        rows = []
        for call in zip(*calls, strict=True):
            out = run([*state_leaves, *call, *tuning_leaves])
            state_leaves = out[:n_state]
            rows.append(out[n_state:])
        columns = [torch.cat(parts) for parts in zip(*rows, strict=True)]
        return tree_unflatten(state_leaves, state_structure), tree_unflatten(columns, ended_structure)


MAX_STEPS_PER_CALL = 8
