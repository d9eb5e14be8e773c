"""Runs a kernel's steps in blocks, eagerly or each block in a compiled call."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from zsp.inference.compilation.compiled_loop import CompiledLoop
from zsp.inference.compilation.errors import CompileError
from zsp.inference.compilation.tracing import trace
from zsp.inference.sampling.arrays import to_numpy, to_torch
from zsp.inference.sampling.kernel import Density, Kernel, Momenta, Rows, Transitions, Tuning
from zsp.inference.sampling.side_by_side import Block, Parts, SideBySide, number_of_parts, together

__all__ = ["Runner", "choose_block"]

LEAST_STEPS, MOST_STEPS, MOST_NUMBERS = 16, 512, 2**20
"""Steps of the longest block, in which drawing random numbers and storing draws take little of the time; fewer where
it would hold more numbers than that in an array of positions."""

MOST_TRANSITIONS = 64
"""Transitions of a block, about: after them a checkpoint may be written. The random numbers of a block are drawn at its
beginning and its draws taken at its end, so that what they are does not depend on the time that they take."""

FOR_SIDE_BY_SIDE = 2**21
"""Numbers that a gradient of all chains computes, in some 100 us, below which chains side by side on threads gain
nothing."""

LONGEST_CALL = 0.5
"""Seconds of a piece of a block, about, unless a single step takes longer."""


def choose_block(n_left: int, n_made: int, most_made: int, n_steps: int, most_steps: int) -> tuple[int, int]:
    """How many steps to take next, so that what is left is made and little more, and how many trajectories may begin.

    Args:
        n_left: transitions that the slowest chain has to make.
        n_made: those it has made so far.
        most_made: those that the fastest chain has.
        n_steps: in so many steps.
        most_steps: of a block.
    """
    per_transition = max(1.0, n_steps / n_made) if n_made else 1.0
    n_next = min(most_steps, math.ceil(min(n_left, MOST_TRANSITIONS) * per_transition))
    fastest = min(1.0, most_made / n_steps) if n_made else 1.0
    return n_next, min(n_next, math.ceil(1.3 * fastest * n_next) + 8)


class Runner:
    """Advances chains by blocks of steps.

    Args:
        kernel: the kernel.
        density: the log density, packed.
        generator: of the random numbers.
        n_numbers: in the positions of all chains.
        is_compiled: whether to compile; what cannot be compiled runs eagerly, with a warning that says why.

    Attributes:
        most_steps: of a block.
        compile_seconds: how long compiling has taken so far.
    """

    def __init__(
        self, kernel: Kernel, density: Density, generator: torch.Generator, n_numbers: int, is_compiled: bool
    ) -> None:
        self.most_steps = min(MOST_STEPS, max(LEAST_STEPS, MOST_NUMBERS // n_numbers))
        self._kernel = kernel
        self._density = density
        self._generator = generator
        self.is_compiled = is_compiled
        self.compile_seconds = 0.0
        self._is_traced = False
        self._blocks: dict[Any, Block] = {}
        self._steps_per_call = 1

    def block(
        self, state: Any, position: Tensor, tuning: Tuning, n_steps: int, n_trajectories: int
    ) -> Iterator[tuple[Any, Rows | None, int]]:
        """A block of steps, in pieces that take less than a second; to be gone through without gradients.

        Args:
            state: the kernel's.
            position: any tensor of the shape, dtype and device of the chains' positions.
            tuning: metric and adaptation.
            n_steps: at most ``most_steps``.
            n_trajectories: for which momenta are drawn, if the kernel takes them so: the block ends early when a chain
                has begun so many. On a GPU, which would have to wait for that to be known, as many as there are steps.

        Yields:
            After each piece the new state; the transitions that ended in it, None if none did; and the number of its
            steps.
        """
        noise = self._kernel.draw_noise(n_steps, position, self._generator)
        if position.device.type != "cpu":
            n_trajectories = n_steps
        momenta = self._kernel.draw_momenta(n_trajectories, position, self._generator)
        if momenta:
            state = state._replace(n_begun=0 * state.n_begun)
            tuning = tuning._replace(momenta=momenta)
        block = self._block(state, noise, tuning, position) if self.is_compiled else None
        if block is not None:
            return self._compiled_pieces(block, state, noise, tuning)
        if not self._is_traced:
            self._is_traced = True
            self._density.trace(position)
        return self._eager_pieces(state, noise, tuning)

    def close(self) -> None:
        """End what runs beside this; there are no blocks any more."""
        for block in self._blocks.values():
            if isinstance(block, SideBySide):
                block.close()

    def _eager_pieces(self, state: Any, noise: Any, tuning: Tuning) -> Iterator[tuple[Any, Rows | None, int]]:
        leaves, structure = tree_flatten(noise)
        on_cpu = leaves[0].device.type == "cpu"
        if on_cpu:
            leaves, state, tuning = to_numpy((leaves, state, tuning))
        stack = numpy.stack if on_cpu else torch.stack
        steps = [tree_unflatten(step, structure) for step in zip(*leaves, strict=True)]
        n_left = len(steps)
        while n_left:
            state, rows, n_made = self._eager_piece(state, steps[-n_left:], tuning)
            n_left = n_left - n_made if _may_go_on(state, tuning) else 0
            ended = tree_map(lambda *leaves: stack(leaves), *rows).rows() if rows else None
            yield to_torch(tree_map(numpy.asarray, state)) if on_cpu else state, ended, n_made

    def _eager_piece(self, state: Any, steps: list[Any], tuning: Tuning) -> tuple[Any, list[Transitions], int]:
        """Some of the steps: the state, what ended, and how many they are."""
        rows = []
        n_made = 0
        end = time.monotonic() + LONGEST_CALL
        with numpy.errstate(all="ignore"):  # a diverging trajectory overflows
            for step in steps:
                state, ended = self._kernel.advance(self._density, state, step, tuning)
                n_made += 1
                if ended is not None:
                    rows.append(ended)
                    if not _may_go_on(state, tuning):
                        break
                if time.monotonic() > end:
                    break
        return state, rows, n_made

    def _block(self, state: Any, noise: Any, tuning: Tuning, position: Tensor) -> Block | None:
        """The compiled block for a metric of this kind."""
        leaves, structure = tree_flatten(tuning.metric)
        kind = structure, *[leaf.shape for leaf in leaves]
        if kind not in self._blocks:
            start = time.perf_counter()
            try:
                self._blocks[kind] = self._compile(state, noise, tuning, position)
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
        return self._blocks[kind]

    def _compile(self, state: Any, noise: Any, tuning: Tuning, position: Tensor) -> Block:
        goes_on = None
        if tuning.momenta:
            values = tuning.momenta.values
            if values.device.type == "cpu":
                goes_on = _may_go_on
            most = Momenta.of(values.new_empty(self.most_steps, *values.shape[1:]))
            tuning = tuning._replace(momenta=most)
        arguments = (state, tree_map(lambda leaf: leaf[0], noise), tuning)
        n_parts = self._choose_parts(position)
        if n_parts == 1:
            return together(self._compile_loop(arguments, goes_on))
        parts = Parts(n_parts, self._kernel.chain_axes or {})
        of_one = (parts.of_state(state)[0], parts.of_chains(arguments[1], 0)[0], parts.of_tuning(tuning)[0])
        return SideBySide(self._compile_loop(of_one, goes_on, on_one_thread=True), parts)

    def _compile_loop(self, arguments: tuple[Any, Any, Tuning], goes_on: Any, **options: Any) -> CompiledLoop:
        return CompiledLoop(
            lambda *given: self._kernel.advance(self._density, *given), self.most_steps, *arguments,
            goes_on=goes_on, is_closure_fixed=True, **options,
        )  # fmt: skip

    def _choose_parts(self, position: Tensor) -> int:
        """Into how many parts to divide the chains, each on a thread of its own."""
        n_parts = number_of_parts(len(position), torch.get_num_threads())
        if position.device.type != "cpu" or self._kernel.chain_axes is None or n_parts == 1:
            return 1
        if trace(self._density, position).n_numbers < FOR_SIDE_BY_SIDE:
            return 1
        self._density(position[: len(position) // n_parts])  # finds out how the model runs over so many chains
        return n_parts

    def _compiled_pieces(
        self, block: Block, state: Any, noise: Any, tuning: Tuning
    ) -> Iterator[tuple[Any, Rows, int]]:
        """A call each: an interrupt waits for its end."""
        leaves, structure = tree_flatten(noise)
        n_steps, is_over = 0, False
        while not is_over:
            start = time.monotonic()
            piece = [leaf[n_steps : n_steps + self._steps_per_call] for leaf in leaves]
            state, rows, n_made = block(state, tree_unflatten(piece, structure), tuning)
            n_steps += n_made
            is_over = n_steps == len(leaves[0]) or not _may_go_on(state, tuning)
            seconds = time.monotonic() - start
            if seconds < LONGEST_CALL / 2:
                self._steps_per_call = min(2 * self._steps_per_call, self.most_steps)
            elif seconds > LONGEST_CALL:
                self._steps_per_call = max(self._steps_per_call // 2, 1)
            yield state, rows, n_made


def _may_go_on(state: Any, tuning: Tuning) -> Any:
    """Whether every chain has a momentum left for its next trajectory."""
    return not tuning.momenta or tuning.momenta.suffice(state.n_begun)
