"""Run a pure function of tensors from its graph, without a compiler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from zsp.inference.compilation.graph_rewrites import fold_constants
from zsp.inference.compilation.tracing import trace

__all__ = ["TracedFunction"]


class TracedFunction:
    """A function of tensors that runs from its graph, operation by operation.

    No compiler is needed. What it saves is Python: that of the function, and of autograd, which has already been done.

    Args:
        function: from tensors to a tuple of tensors; pure, without branches on data. It may differentiate inside.
        *examples: tensors as it will be called with.

    Raises:
        CompileError: if the function cannot be traced.
    """

    def __init__(self, function: Callable[..., Any], *examples: Tensor) -> None:
        from torch._functorch.compile_utils import fx_graph_cse

        traced = trace(function, *examples, for_compiler=False)
        self._constants = traced.constants
        with torch.no_grad():
            fold_constants(traced.graph, self._constants)
        traced.graph.graph = fx_graph_cse(traced.graph.graph)  # a derivative repeats operations: twice x for x * x
        self._forward = _as_python(traced.graph)

    def __call__(self, *arguments: Tensor) -> Sequence[Tensor]:
        """Call it with tensors of the examples' shapes and dtypes."""
        if torch.is_grad_enabled():
            with torch.no_grad():
                return self._forward(*arguments, *self._constants)
        return self._forward(*arguments, *self._constants)


def _as_python(graph: torch.fx.GraphModule) -> Callable[..., Sequence[Tensor]]:
    """The graph as a Python function that looks nothing up, which takes up to a third of a small graph's time."""
    known: dict[str, Any] = {}

    def expression(argument: Any) -> str:
        if isinstance(argument, torch.fx.Node):
            return argument.name
        if isinstance(argument, list | tuple):
            parts = "".join(f"{expression(part)}, " for part in argument)
            return f"[{parts}]" if isinstance(argument, list) else f"({parts})"
        name = f"known_{len(known)}"
        known[name] = argument
        return name

    parameters, lines = [], []
    last_use = {source: node for node in graph.graph.nodes for source in node.all_input_nodes}
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            parameters.append(node.name)
        elif node.op == "get_attr":
            known[node.name] = getattr(graph, node.target)
        elif node.op == "output":
            lines.append(f"return {expression(node.args[0])}")
        else:
            operation = expression(getattr(node.target, "_op", node.target))
            given = [expression(argument) for argument in node.args]
            given += [f"{key}={expression(argument)}" for key, argument in node.kwargs.items()]
            lines.append(f"{node.name} = {operation}({', '.join(given)})")
            done = [source.name for source in node.all_input_nodes if last_use[source] is node]
            if done := [name for name in done if name not in known]:
                lines.append(f"del {', '.join(done)}")  # its memory is free for what follows
    body = "\n    ".join(lines)
    exec(f"def forward({', '.join(parameters)}):\n    {body}", known)
    return known["forward"]  # type: ignore[no-any-return]
