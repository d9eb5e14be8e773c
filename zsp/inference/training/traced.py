"""A loss with its gradient as a graph, in which parameters and buffers are inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from zsp.inference.compilation.errors import CompileError
from zsp.inference.compilation.tracing import Trace, trace
from zsp.inference.training.eager import Loss, evaluate

__all__ = ["TracedLoss"]


class TracedLoss:
    """A loss and its gradient, traced for the shapes of one mini-batch.

    Args:
        loss: the loss.
        optimizer: of the parameters to train.
        batch: a mini-batch, a pytree of tensors.

    Attributes:
        parameters: those that have a gradient, in the optimizer's order.
        constants: the other tensors that the loss closes over.
        changed: the indices of those constants that the loss changes, the state of a batch norm for example.
        numbers: the metrics that are no tensors.
        names: those that are, in the order in which a call gives them.
        n_operations: the number of operations in the graph.
        n_flops: the floating-point operations of its matrix products and convolutions.

    Raises:
        CompileError: if the loss cannot be traced.
    """

    def __init__(self, loss: Loss, optimizer: torch.optim.Optimizer, batch: Any) -> None:
        candidates = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        self.numbers: dict[str, Any] = {}
        self.names: list[str] = []
        has_gradient: list[bool] = []

        def loss_and_gradients(batch: Any) -> list[Tensor]:
            value, metrics = evaluate(loss, batch)
            gradients = torch.autograd.grad(value, candidates, allow_unused=True)
            has_gradient[:] = [gradient is not None for gradient in gradients]
            self.names = [name for name, metric in metrics.items() if isinstance(metric, Tensor)]
            self.numbers = {name: metric for name, metric in metrics.items() if name not in self.names}
            return [value, *(metrics[name] for name in self.names), *(g for g in gradients if g is not None)]

        leaves = tree_flatten(batch)[0]
        if odd := next((type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor)), None):
            raise CompileError(f"mini-batches hold objects of type {odd}, not only tensors")
        self._trace = trace(loss_and_gradients, batch)
        self._n_leaves = len(leaves)
        self.parameters = [p for p, has in zip(candidates, has_gradient, strict=True) if has]
        self._sort_constants(self._trace)
        self.n_operations = self._trace.n_operations
        self.n_flops = _count_flops(self._trace)

    def _sort_constants(self, traced: Trace) -> None:
        """Tell parameters from other constants, and find where each goes in the graph."""
        place = {id(parameter): (True, i) for i, parameter in enumerate(self.parameters)}
        changed = {i - self._n_leaves for i in traced.changed}
        self.constants: list[Tensor] = []
        self.changed: list[int] = []
        self._places: list[tuple[bool, int]] = []
        for i, constant in enumerate(traced.constants):
            found = place.get(id(constant))
            if found is None:
                if i in changed:
                    self.changed.append(len(self.constants))
                found = (False, len(self.constants))
                self.constants.append(constant)
            elif i in changed:
                raise CompileError("the loss changes a parameter in place")
            self._places.append(found)
        self._require_apart()

    def _require_apart(self) -> None:
        """A tensor that changes from step to step must not be seen through another one."""
        moving = [*self.parameters, *(self.constants[i] for i in self.changed)]
        for tensor in moving:
            if not tensor.is_contiguous():
                raise CompileError(f"a parameter or buffer of shape {list(tensor.shape)} is not contiguous")
            for other in [*self.parameters, *self.constants]:
                if other is not tensor and _overlap(tensor, other):
                    raise CompileError(
                        f"the loss sees a parameter or buffer of shape {list(tensor.shape)} also through another "
                        "tensor on the same memory: through .data, or a view made outside the loss"
                    )

    def __call__(
        self, batch: Any, parameters: Sequence[Tensor], constants: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Run the graph with other values of the parameters and constants; those that change are changed in place.

        Returns:
            The loss, the metrics that are tensors, and the gradient with respect to each parameter.
        """
        given = [(parameters if is_parameter else constants)[i] for is_parameter, i in self._places]
        value, *rest = self._trace.graph(*tree_flatten(batch)[0], *given)
        return value, rest[: len(self.names)], rest[len(self.names) :]

    def same_as(self, other: TracedLoss) -> bool:
        """Whether two traces compute the same function."""
        return (
            self._trace.graph.code == other._trace.graph.code
            and self.numbers == other.numbers
            and all(a is b for a, b in zip(self.parameters, other.parameters, strict=True))
            and all(
                a is b or (a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b))
                for a, b in zip(self.constants, other.constants, strict=True)
            )
        )


def _overlap(first: Tensor, second: Tensor) -> bool:
    if first.device != second.device:
        return False
    (start, end), (other_start, other_end) = _extent(first), _extent(second)
    return start < other_end and other_start < end


def _extent(tensor: Tensor) -> tuple[int, int]:
    """The addresses of its first byte and behind its last."""
    if tensor.numel() == 0:
        return 0, 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _count_flops(traced: Trace) -> int:
    from torch.utils.flop_counter import flop_registry

    total = 0
    for node in traced.graph.graph.nodes:
        count = flop_registry.get(getattr(node.target, "overloadpacket", None))
        if count is not None:
            args, kwargs, out = torch.fx.node.map_arg(
                (node.args, node.kwargs, node), lambda argument: argument.meta["val"]
            )
            total += count(*args, **kwargs, out_val=out)
    return total
