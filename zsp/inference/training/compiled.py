"""Training steps, their updates included, in a compiled loop that changes parameters and state in place."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from zsp.inference.compilation.compiled_loop import CompiledLoop
from zsp.inference.compilation.errors import CompileError
from zsp.inference.training.batches import Chunk
from zsp.inference.training.traced import TracedLoss
from zsp.inference.training.updates import Update

__all__ = ["CompiledSteps"]


class CompiledSteps:
    """A compiled loop of training steps.

    A step whose loss is finite changes the parameters, the optimizer's state and what the loss changes; another one
    leaves everything as it was.

    Args:
        traced: the loss.
        optimizer: an optimizer with state, that is, after its first step.
        update: its update.
        chunk: an example of the mini-batches of a call.
        most_steps: in a call.

    Raises:
        CompileError: if this cannot be compiled.
    """

    def __init__(
        self, traced: TracedLoss, optimizer: torch.optim.Optimizer, update: Update, chunk: Chunk, most_steps: int
    ) -> None:
        self._traced = traced
        self._optimizer = optimizer
        self._update = update
        self._shapes = chunk.shapes
        self._device = traced.parameters[0].device
        self._layout = self._find_layout()
        self.gather()
        inputs = (self._coefficients(1)[0], chunk.inputs_of(0))
        fixed = (self._values, self._constants, chunk.fixed)
        self._loop = CompiledLoop(self._step_of(chunk.pick), most_steps, (), inputs, fixed)
        self._before: list[Tensor] = []

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

    def _coefficients(self, n_steps: int) -> Tensor:
        """What the updates of a call need, of shape [step, bucket, coefficient]."""
        groups = self._optimizer.param_groups
        rows = [
            [self._update.coefficients(groups[i], step + k + 1) for i, step in self._buckets] for k in range(n_steps)
        ]
        return torch.tensor(rows, dtype=torch.float64).to(self._device)

    # -- what is compiled ---------------------------------------------------------------------------------------------

    def _step_of(self, pick: Any) -> Any:
        traced, groups = self._traced, self._optimizer.param_groups

        def step(nothing: Any, inputs: Any, fixed: Any) -> tuple[Any, list[Tensor]]:
            (coefficients, of_batch), (values, constants, of_all_batches) = inputs, fixed
            with torch.no_grad():
                before = [constants[i].clone() for i in traced.changed]
                now = self._split(values)
                parameters = [parameter for parameter, *_ in now]
                loss, metrics, gradients = traced(pick(of_all_batches, of_batch), parameters, constants)
                is_finite = loss.isfinite()
                for tensors, gradient, (i, bucket, _) in zip(now, gradients, self._layout, strict=True):
                    new = self._updated(groups[i], tensors, gradient, coefficients[bucket], is_finite)
                    for value, changed in zip(tensors, new, strict=True):
                        value.copy_(changed)
                for i, old in zip(traced.changed, before, strict=True):
                    constants[i].copy_(torch.where(is_finite, constants[i], old))
                return nothing, [loss, *metrics]

        return step

    def _updated(
        self, group: Any, tensors: list[Tensor], gradient: Tensor, coefficients: Tensor, is_finite: Tensor
    ) -> list[Tensor]:
        """A parameter and its state after a step, as they were where the loss is not finite."""

        def chosen(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(is_finite, new, old)

        n_shaped = 1 + len(self._update.state_names(group))
        (parameter, *state), counter = tensors[:n_shaped], tensors[n_shaped:]
        given = tuple(coefficients.to(parameter.dtype).unbind())
        new_state = self._update.new_state(group, parameter, gradient, tuple(state), given)
        # the parameter comes from the state as it is kept, so that compiled code reads what was before once only
        kept = tuple(chosen(new, old) for new, old in zip(new_state, state, strict=True))
        new = self._update.new_parameter(group, parameter, gradient, kept, given)
        return [chosen(new, parameter), *kept, *[chosen(count + 1, count) for count in counter]]

    def _split(self, values: list[Tensor]) -> list[list[Tensor]]:
        rest = iter(values)
        return [[next(rest) for _ in range(n)] for n in self._n_values]

    # -- running ------------------------------------------------------------------------------------------------------

    def fits(self, chunk: Chunk) -> bool:
        """Whether a chunk looks like the one that was compiled for."""
        return bool(chunk.shapes == self._shapes)

    def run(self, chunk: Chunk, can_undo: bool) -> tuple[Tensor, dict[str, Any]] | None:
        """Make the steps of a chunk.

        Args:
            chunk: mini-batches.
            can_undo: whether to keep what :meth:`undo` needs.

        Returns:
            The first loss, and the sums over the steps of the loss and the metrics; None if a loss was not finite.
        """
        self._before = [tensor.clone() for tensor in self._changing] if can_undo else []
        inputs = (self._coefficients(chunk.n_steps), chunk.inputs)
        _, measured = self._loop((), inputs, (self._values, self._constants, chunk.fixed))
        losses = measured[0]
        if not losses.isfinite().all():
            return None
        self._count(chunk.n_steps)
        sums = dict(zip(("loss", *self._traced.names), (values.sum(0) for values in measured), strict=True))
        numbers = {name: value * chunk.n_steps for name, value in self._traced.numbers.items()}
        return losses[0], {**sums, **numbers}

    def undo(self) -> None:
        """Set everything back to what it was before the last call."""
        for tensor, before in zip(self._changing, self._before, strict=True):
            tensor.copy_(before)

    def _count(self, n_steps: int) -> None:
        if self._update.counts_steps:
            self._buckets = [(i, step + n_steps) for i, step in self._buckets]

    @property
    def buffers(self) -> list[Tensor]:
        """What the loss changes."""
        return [self._constants[i] for i in self._traced.changed]

    @property
    def _changing(self) -> list[Tensor]:
        """All tensors that a call changes."""
        return [*self._values, *self.buffers]
