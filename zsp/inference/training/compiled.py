"""Several training steps, their updates included, in one compiled call that changes parameters and state in place."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from zsp.inference.compilation.compiled_function import CompiledFunction
from zsp.inference.compilation.errors import CompileError
from zsp.inference.training.batches import Chunk
from zsp.inference.training.traced import TracedLoss
from zsp.inference.training.updates import Update

__all__ = ["CompiledSteps"]


class CompiledSteps:
    """A compiled call that makes some training steps.

    If all losses in it are finite, it changes the parameters, the optimizer's state and what the loss changes; if not,
    it leaves everything as it was.

    Args:
        traced: the loss.
        optimizer: an optimizer with state, that is, after its first step.
        update: its update.
        chunk: an example of the mini-batches of a call.

    Raises:
        CompileError: if this cannot be compiled.
    """

    def __init__(self, traced: TracedLoss, optimizer: torch.optim.Optimizer, update: Update, chunk: Chunk) -> None:
        self._traced = traced
        self._optimizer = optimizer
        self._update = update
        self._n_steps = chunk.n_steps
        self._structure, self._shapes = chunk.structure, _shapes(chunk)
        self._device = traced.parameters[0].device
        self._layout = self._find_layout()
        self.gather()
        coefficients = self._coefficients()
        self._function = CompiledFunction(
            self._steps_of(chunk.pick), chunk.arguments, self._values, traced.constants, coefficients
        )

    # -- the optimizer's state ----------------------------------------------------------------------------------------

    def _find_layout(self) -> list[tuple[int, int, Hashable]]:
        """For each parameter the index of its group, that of its coefficients, and the group's variant."""
        found = []
        buckets: dict[tuple[int, float], int] = {}
        group_of = {id(p): i for i, group in enumerate(self._optimizer.param_groups) for p in group["params"]}
        for parameter in self._traced.parameters:
            i_group = group_of[id(parameter)]
            group = self._optimizer.param_groups[i_group]
            state = self._optimizer.state.get(parameter, {})
            missing = [name for name in self._update.state_names(group) if state.get(name) is None]
            if missing:
                raise CompileError(f"the optimizer has no {missing[0]!r} yet of a parameter")
            step = float(state["step"]) if self._update.counts_steps else 0.0
            bucket = buckets.setdefault((i_group, step), len(buckets))
            found.append((i_group, bucket, self._update.variant(group)))
        self._buckets = list(buckets)
        return found

    def gather(self) -> None:
        """Look up the optimizer's state, which others may have replaced since the last call.

        Raises:
            CompileError: if the optimizer's options or its parameters are no longer those that were compiled.
        """
        if self._find_layout() != self._layout:
            raise CompileError("the optimizer's options are no longer those that were compiled")
        self._values: list[Tensor] = []
        self._n_values: list[int] = []
        for parameter, (i_group, _, _) in zip(self._traced.parameters, self._layout, strict=True):
            state = self._optimizer.state.get(parameter, {})
            names = self._update.state_names(self._optimizer.param_groups[i_group])
            tensors = [parameter.detach(), *(state[name] for name in names)]
            if any(not t.is_contiguous() or t.dtype != parameter.dtype for t in tensors) or parameter.is_complex():
                shape = list(parameter.shape)
                raise CompileError(f"a parameter of shape {shape} or its state is not contiguous and real")
            if self._update.counts_steps:
                tensors.append(state["step"])
            self._values.extend(tensors)
            self._n_values.append(len(tensors))
        self._constants = [constant.detach() for constant in self._traced.constants]

    def _coefficients(self) -> Tensor:
        """What the updates of a call need, of shape [bucket, step, coefficient]."""
        groups = self._optimizer.param_groups
        rows = [
            [self._update.coefficients(groups[i], step + k + 1) for k in range(self._n_steps)]
            for i, step in self._buckets
        ]
        return torch.tensor(rows, dtype=torch.float64).to(self._device)

    # -- what is compiled ---------------------------------------------------------------------------------------------

    def _steps_of(self, pick: Any) -> Any:
        traced, update, groups = self._traced, self._update, self._optimizer.param_groups

        def steps(
            arguments: Any, values: list[Tensor], constants: list[Tensor], coefficients: Tensor
        ) -> tuple[Tensor, Tensor, list[Tensor]]:
            with torch.no_grad():
                before = [constants[i].clone() for i in traced.changed]
                now = self._split(values)
                measured = []
                for step in range(self._n_steps):
                    parameters = [parameter for parameter, *_ in now]
                    loss, metrics, gradients = traced(pick(arguments, step), parameters, constants)
                    measured.append([loss, *metrics])
                    updated = []
                    for (parameter, *state), gradient, (i, bucket, _) in zip(now, gradients, self._layout, strict=True):
                        given = tuple(coefficients[bucket, step].to(parameter.dtype).unbind())
                        counter = [state.pop() + 1] if update.counts_steps else []
                        new, new_state = update(groups[i], parameter, gradient, tuple(state), given)
                        updated.append([new, *new_state, *counter])
                    now = updated
                losses = torch.stack([loss for loss, *_ in measured])
                is_finite = losses.isfinite().all()
                for value, new in zip(values, (tensor for tensors in now for tensor in tensors), strict=True):
                    value.copy_(torch.where(is_finite, new, value))
                for i, old in zip(traced.changed, before, strict=True):
                    constants[i].copy_(torch.where(is_finite, constants[i], old))
                sums = [torch.stack(list(column)).sum(0) for column in zip(*measured, strict=True)]
                return is_finite, losses[0].clone(), sums

        return steps

    def _split(self, values: list[Tensor]) -> list[list[Tensor]]:
        rest = iter(values)
        return [[next(rest) for _ in range(n)] for n in self._n_values]

    # -- running ------------------------------------------------------------------------------------------------------

    def fits(self, chunk: Chunk) -> bool:
        """Whether a chunk looks like the one that was compiled for."""
        return (
            chunk.n_steps == self._n_steps
            and (chunk.structure is self._structure or chunk.structure == self._structure)
            and all(isinstance(leaf, Tensor) for leaf in chunk.leaves)
            and _shapes(chunk) == self._shapes
        )

    def run(self, chunk: Chunk) -> tuple[Tensor, dict[str, Any]] | None:
        """Make the steps of a chunk.

        Returns:
            The first loss, and the sums over the steps of the loss and the metrics; None if a loss was not finite, and
            then nothing has changed.
        """
        given = [*chunk.leaves, *self._values, *self._constants, self._coefficients()]
        is_finite, first, *sums = self._function.run(given)
        if not is_finite.item():
            return None
        if self._update.counts_steps:
            self._buckets = [(i, step + self._n_steps) for i, step in self._buckets]
        numbers = {name: value * self._n_steps for name, value in self._traced.numbers.items()}
        return first, {**dict(zip(("loss", *self._traced.names), sums, strict=True)), **numbers}

    @property
    def buffers(self) -> list[Tensor]:
        """What the loss changes."""
        return [self._constants[i] for i in self._traced.changed]

    @property
    def changing(self) -> list[Tensor]:
        """All tensors that a call changes."""
        return [*self._values, *self.buffers]


def _shapes(chunk: Chunk) -> list[Hashable]:
    return [(leaf.shape, leaf.dtype, leaf.device) for leaf in chunk.leaves]
