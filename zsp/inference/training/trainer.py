"""Runs training steps, eagerly or several in a compiled call."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zsp.inference.compilation.errors import CompileError
from zsp.inference.training.batches import Chunk, Epoch
from zsp.inference.training.compiled import CompiledSteps
from zsp.inference.training.eager import (
    Loss,
    check,
    eager_step,
    random_state,
    set_random_state,
    trained_devices,
)
from zsp.inference.training.traced import TracedLoss
from zsp.inference.training.updates import Update, update_of

__all__ = ["Trainer"]


class Trainer:
    """Makes the steps of a run.

    Args:
        loss: the loss.
        optimizer: of the parameters to train.
        compile: whether to compile the steps; where that is not possible, they run eagerly after a warning.

    Attributes:
        steps_per_call: how many mini-batches :meth:`run` wants at a time.
        n_steps: the number of steps made.
        n_compiled_steps: how many of them ran in compiled calls.
    """

    def __init__(self, loss: Loss, optimizer: torch.optim.Optimizer, compile: bool) -> None:
        self._loss = loss
        self._optimizer = optimizer
        self._devices = trained_devices(optimizer)
        self._compiles = compile
        self._update: Update | None = None
        self._traced: TracedLoss | None = None
        self._compiled: CompiledSteps | None = None
        self._warned: set[str] = set()
        self.steps_per_call = 1
        self.n_steps = 0
        self.n_compiled_steps = 0

    def begin_epoch(self) -> None:
        """Between epochs others may have changed the optimizer."""
        if self._compiled is not None:
            with self._or_eagerly():
                self._compiled.gather()

    def run(self, chunk: Chunk, epoch: Epoch, where: tuple[int, int], is_checked: bool) -> dict[str, Any]:
        """Make the steps of a chunk.

        Args:
            chunk: mini-batches.
            epoch: what they are from.
            where: the index of the first one's step in its epoch, and the epoch's.
            is_checked: whether every node is checked in the first of these steps.

        Returns:
            The sums over the steps of the loss and the metrics, by name.
        """
        sums = None
        if self._is_compiled(chunk):
            sums = self._run_compiled(chunk, where, is_checked)
        if sums is None:
            sums = self._run_eagerly(chunk, where, is_checked)
        self.n_steps += chunk.n_steps
        if self._compiles and self._traced is None:
            self._trace(chunk, epoch)
        return sums

    def _run_eagerly(self, chunk: Chunk, where: tuple[int, int], is_checked: bool) -> dict[str, Any]:
        step, epoch = where
        sums: dict[str, Any] = {}
        for i, batch in enumerate(chunk):
            name = f"step {step + i} of epoch {epoch}"
            found = eager_step(self._loss, batch, self._optimizer, self._devices, name, is_checked and i == 0)
            sums = {name: value + sums[name] if name in sums else value for name, value in found.items()}
        return sums

    # -- compiled -----------------------------------------------------------------------------------------------------

    def _trace(self, chunk: Chunk, epoch: Epoch) -> None:
        """After the first step, when the optimizer has its state, see what is to be compiled."""
        with self._or_eagerly():
            update = update_of(self._optimizer)
            if isinstance(update, str):
                raise CompileError(update)
            self._update = update
            self._traced = self._trace_loss(chunk)
            if not self._traced.parameters:
                raise CompileError("the loss has no gradient with respect to the optimizer's parameters")
            if not self._traced.same_as(self._trace_loss(chunk)):
                raise CompileError("the loss is another function each time it is called")
            self.steps_per_call = steps_per_call(self._traced, epoch.n_steps)

    def _trace_loss(self, chunk: Chunk) -> TracedLoss:
        with self._keeping_random_state():
            return TracedLoss(self._loss, self._optimizer, chunk[0])

    def _is_compiled(self, chunk: Chunk) -> bool:
        """Whether a chunk can run compiled; the first one of full size is compiled for."""
        if not self._compiles or self._traced is None or self._update is None:
            return False
        if self._compiled is None and not chunk.is_ragged:
            with self._or_eagerly(), self._keeping_random_state():
                most = self.steps_per_call
                self._compiled = CompiledSteps(self._traced, self._optimizer, self._update, chunk, most)
                self._optimizer.zero_grad(set_to_none=True)
        if self._compiled is None:
            return False
        if self._compiled.fits(chunk):
            return True
        self._warn(
            "zsp.fit runs some mini-batches eagerly: they have other shapes than those that were compiled for. A "
            "batch_size that divides the number of data (or drop_last=True of a DataLoader) avoids it."
        )
        return False

    def _run_compiled(self, chunk: Chunk, where: tuple[int, int], is_checked: bool) -> dict[str, Any] | None:
        compiled = self._compiled
        assert compiled is not None
        before = random_state(self._devices)
        expected = self._checked_loss(chunk, where) if is_checked else None
        can_undo = is_checked or chunk.n_steps > 1  # a single step whose loss is not finite changes nothing
        result = compiled.run(chunk, can_undo)
        if result is not None:
            first, sums = result
            if expected is None or _close(first, expected) or not self._has_changed(chunk):
                self.n_compiled_steps += chunk.n_steps
                return sums
        if can_undo:
            compiled.undo()
        set_random_state(before, self._devices)
        return None  # eagerly an error is found and explained

    def _checked_loss(self, chunk: Chunk, where: tuple[int, int]) -> Tensor:
        """The first loss of a chunk, evaluated eagerly with every node checked, without a trace of it left."""
        assert self._compiled is not None
        buffers = self._compiled.buffers
        saved = [buffer.clone() for buffer in buffers]
        with self._keeping_random_state(), torch.no_grad():
            step, epoch = where
            value, _ = check(self._loss, chunk[0], self._optimizer, f"step {step} of epoch {epoch}")
            for buffer, old in zip(buffers, saved, strict=True):
                buffer.copy_(old)
        return value

    def _has_changed(self, chunk: Chunk) -> bool:
        """Whether the loss is no longer the function that was compiled."""
        assert self._traced is not None
        with self._or_eagerly():
            if self._traced.same_as(self._trace_loss(chunk)):
                return False
            raise CompileError(
                "the loss is no longer the function that was compiled. What changes from step to step must be a tensor "
                "that is changed in place"
            )
        return True

    @contextmanager
    def _or_eagerly(self) -> Iterator[None]:
        """Run eagerly from now on if something cannot be compiled, and say why."""
        try:
            yield
        except CompileError as error:
            self._compiles, self._compiled, self.steps_per_call = False, None, 1
            self._warn(f"zsp.fit(compile=True) runs eagerly: {error}.")

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=_frames_of_the_package())

    @contextmanager
    def _keeping_random_state(self) -> Iterator[None]:
        state = random_state(self._devices)
        try:
            yield
        finally:
            set_random_state(state, self._devices)


def _frames_of_the_package() -> int:
    """How many frames up the stack the caller of :func:`zsp.fit` is, seen from where a warning is given."""
    folder = str(Path(__file__).parents[2])
    frame, n = sys._getframe(1), 1
    while frame.f_back is not None and (
        frame.f_code.co_filename.startswith(folder) or "contextlib" in frame.f_code.co_filename
    ):
        frame, n = frame.f_back, n + 1
    return n


def _close(first: Tensor, second: Tensor) -> bool:
    """Whether two losses are equal up to rounding."""
    tolerance = torch.finfo(first.dtype).eps ** 0.5
    return bool(torch.isclose(first, second, rtol=tolerance, atol=tolerance))


_OPERATION, _FLOP = 0.5e-6, 2e-11
"""Rough seconds of a compiled operation, and of a floating-point operation: only orders of magnitude matter, and the
choice must not depend on a clock."""

_CALL = 0.3
"""Seconds of a call: its own time, and a copy of all parameters, do not count beside it, and who interrupts it does not
wait."""

_MOST_STEPS = 1000


def steps_per_call(traced: TracedLoss, n_steps: int | None) -> int:
    """At most how many steps a compiled call should make.

    Args:
        traced: the loss.
        n_steps: the number of steps in an epoch; None if it is not known or mini-batches come one at a time.
    """
    step = _FLOP * traced.n_flops + _OPERATION * (traced.n_operations + 12 * len(traced.parameters))
    return max(1, min(n_steps or 1, int(_CALL / step), _MOST_STEPS))
