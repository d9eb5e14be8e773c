"""Makes the steps of stochastic-gradient chains in blocks, eagerly or with their mini-batches in a compiled loop."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from zsp.inference.compilation.compiled_loop import CompiledLoop
from zsp.inference.compilation.errors import CompileError
from zsp.inference.sampling.stochastic.density import BatchDensity
from zsp.inference.sampling.stochastic.kernel import Noise, StochasticGradientKernel
from zsp.inference.sampling.stochastic.minibatches import Minibatches
from zsp.inference.training.batches import Chunk

__all__ = ["Block", "StochasticRunner"]

MOST_STEPS = 64
"""Steps whose random numbers are drawn at once."""

MOST_NUMBERS = 16_000_000
"""Random numbers that are drawn at once, unless a single step needs more."""


class Block(NamedTuple):
    """What some steps made."""

    state: Any  # the kernel's, after them
    positions: list[Tensor]  # [chain, D] after each
    info: Any  # the kernel's named tuple, each [step, chain]


class StochasticRunner:
    """Advances chains by blocks of steps.

    Args:
        kernel: the kernel.
        density: the log density of a mini-batch, packed.
        minibatches: where they come from.
        generator: of the chains' random numbers.
        is_compiled: whether to compile; what cannot be compiled runs eagerly, with a warning that says why.
    """

    def __init__(
        self,
        kernel: StochasticGradientKernel,
        density: BatchDensity,
        minibatches: Minibatches,
        generator: torch.Generator,
        is_compiled: bool,
    ) -> None:
        self._kernel = kernel
        self._density = density
        self._minibatches = minibatches
        self._generator = generator
        self._is_compiled = is_compiled
        self._compiled: tuple[CompiledLoop, Any] | None = None
        self._numbers: dict[Any, tuple[list[Any], Tensor]] = {}

    def block_length(self, step: int, position: Tensor) -> int:
        """How many steps to make from ``step`` on: as many as memory allows, to where velocities are drawn anew.

        It depends on nothing else, so that a run that goes on from a checkpoint makes the same blocks.
        """
        n_steps = max(1, min(MOST_STEPS, MOST_NUMBERS // position.numel()))
        period = self._kernel.n_iter_resample_v
        return min(n_steps, period - step % period) if period else n_steps

    def block(self, state: Any, step: int, n_steps: int) -> Block:
        """Make steps.

        Args:
            state: the kernel's.
            step: the number of the first of them.
            n_steps: how many, at most ``block_length``.
        """
        with torch.no_grad():
            state = self._kernel.enter(state, step, self._generator)
            noise = self._kernel.draw_noise(n_steps, state.position, self._generator)
            coefficients, values = self._coefficients(step, n_steps, state.position)
            parts: list[Block] = []
            done = 0
            for chunk in self._minibatches.take(n_steps):
                span = slice(done, done + chunk.n_steps)
                part_of_noise = tree_map(lambda leaf, span=span: leaf[span], noise)
                parts.append(self._run(state, part_of_noise, coefficients[span], values[span], chunk))
                state = parts[-1].state
                done += chunk.n_steps
        if len(parts) == 1:
            return parts[0]
        info = type(parts[0].info)(*map(torch.cat, zip(*(part.info for part in parts), strict=True)))
        return Block(state, [position for part in parts for position in part.positions], info)

    def _coefficients(self, step: int, n_steps: int, like: Tensor) -> tuple[list[Any], Tensor]:
        """The numbers of each step, and the same as a tensor [step, coefficient]."""
        key = n_steps if self._kernel.schedule is None else None
        if key in self._numbers:
            return self._numbers[key]
        coefficients = [self._kernel.coefficients_at(step + i) for i in range(n_steps)]
        found = coefficients, torch.tensor(coefficients, dtype=like.dtype, device=like.device)
        if key is not None:
            self._numbers[key] = found
        return found

    def _run(self, state: Any, noise: Noise, coefficients: list[Any], values: Tensor, chunk: Chunk) -> Block:
        if self._is_compiled:
            if self._compiled is None:
                self._compile(state, noise, type(coefficients[0]), values, chunk)
            if self._compiled is not None and self._compiled[1] == chunk.shapes:
                return self._run_compiled(self._compiled[0], state, noise, values, chunk)
        positions, rows = [], []
        steps = tree_map(lambda leaf: leaf.unbind(0), noise)
        for i, batch in enumerate(chunk):
            one = Noise(steps.normal[i], steps.sign[i] if isinstance(noise.sign, Tensor) else ())
            state, info = self._kernel.advance(self._density.traced_at(batch), state, one, coefficients[i])
            positions.append(state.position)
            rows.append(info)
        return Block(state, positions, type(rows[0])(*map(torch.stack, zip(*rows, strict=True))))

    # -- compiled -----------------------------------------------------------------------------------------------------

    def _compile(self, state: Any, noise: Noise, kind: Any, values: Tensor, chunk: Chunk) -> None:
        def step(state: Any, inputs: Any, fixed: Any) -> Any:
            noise, values, of_batch = inputs
            derivatives = self._density.at(chunk.pick(fixed, of_batch))
            state, info = self._kernel.advance(derivatives, state, noise, kind(*values.unbind()))
            return state, (state.position, info)

        inputs = tree_map(lambda leaf: leaf[0], (noise, values, chunk.inputs))
        try:
            loop = CompiledLoop(step, self.block_length(0, state.position), state, inputs, chunk.fixed)
        except CompileError as error:
            self._give_up(error)
            return
        self._compiled = loop, chunk.shapes

    def _give_up(self, error: CompileError) -> None:
        warnings.warn(
            f"zsp.mcmc runs without compiled code, since the log density cannot be compiled: {error}. compile=False "
            "says that this is meant.",
            stacklevel=2,
        )
        self._is_compiled = False

    @staticmethod
    def _run_compiled(loop: CompiledLoop, state: Any, noise: Noise, values: Tensor, chunk: Chunk) -> Block:
        state, (positions, info) = loop(state, (noise, values, chunk.inputs), chunk.fixed)
        return Block(state, list(positions.unbind(0)), info)
