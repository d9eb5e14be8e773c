"""Compile a pure function of tensors into one call.

The function is traced to a flat graph of ATen operations, its calls of ``torch.autograd.grad`` included, and the graph
goes straight to Inductor: no guards, no handling of autograd or of mutation is left at run time, so that a call costs
microseconds more than its kernels. What the function closes over (a model's parameters, its data) is found in the
trace and passed at every call: its values may change in place between calls, its shapes may not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from zsp.inference.compilation.graph_rewrites import unique_outputs
from zsp.inference.compilation.lowering import lower, prepare
from zsp.inference.compilation.tracing import stand_in, trace

__all__ = ["CompiledFunction"]


class CompiledFunction:
    """A function of pytrees of tensors, compiled for the shapes and dtypes of ``examples``.

    It takes and returns the same pytrees as the function; its results carry no gradient. Random numbers that the
    function draws are those of torch's default generator, as in an eager run.

    Args:
        function: a function without branches on data. It may differentiate inside, and change its arguments, and what
            it closes over, in place; arguments that it changes must be contiguous.
        *examples: arguments as it will be called with.
        is_closure_fixed: whether what it closes over keeps its values, so that what follows from these alone is
            computed once; otherwise their values may change in place between calls.

    Attributes:
        n_operations: the number of operations in its graph, before they are fused.

    Raises:
        CompileError: if the function cannot be traced, or nothing here can compile it.
    """

    n_operations: int

    def __init__(self, function: Callable[..., Any], *examples: Any, is_closure_fixed: bool = False) -> None:
        traced = trace(function, *examples)
        self._constants, self._out = prepare(traced, is_closure_fixed), traced.structure
        self._changed = traced.changed
        self.n_operations = traced.n_operations
        leaves = [stand_in(leaf) for leaf in tree_flatten(examples)[0]]
        self._sources = unique_outputs(traced.graph)
        self._code = lower(traced.graph, [*leaves, *self._constants])

    @staticmethod
    def count_operations(function: Callable[..., Any], *examples: Any) -> int:
        """The number of operations in the function's graph, before they are fused.

        Raises:
            CompileError: if the function cannot be traced.
        """
        return trace(function, *examples).n_operations

    def __call__(self, *arguments: Any) -> Any:
        """Call it with arguments of the structure, shapes and dtypes of the examples."""
        return tree_unflatten(self.run(tree_flatten(arguments)[0]), self._out)

    def run(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        """From the leaves of the arguments to those of the result: for loops in which a pytree costs too much."""
        # the code was made for contiguous arguments and does not look at their strides
        given = [*[leaf.contiguous() for leaf in leaves], *self._constants]
        for i in self._changed:
            if i < len(leaves) and given[i] is not leaves[i]:
                raise ValueError(
                    f"argument {i} is changed in place and must be contiguous, but its strides are "
                    f"{leaves[i].stride()}."
                )
        made = self._code(list(given))
        return [made[i] if is_made else given[i] for is_made, i in self._sources]
