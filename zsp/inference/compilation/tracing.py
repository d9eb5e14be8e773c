"""Trace pure functions of tensors to graphs of operations."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from zsp.inference.compilation.errors import CompileError, KeptTensorError, explained, quiet
from zsp.inference.compilation.graph_rewrites import lift_constants, mutates

__all__ = ["Trace", "is_traced", "stand_in", "trace"]


def is_traced() -> bool:
    """Whether the running code is being traced, so that its values cannot be looked at."""
    return torch._C._len_torch_dispatch_stack() > 0


class Trace(NamedTuple):
    """A function of tensors as a graph of ATen operations.

    Attributes:
        graph: a module from the leaves of the arguments, then ``constants``, to the leaves of the result. Where the
            function changes tensors in place, the graph ends with copies into them.
        constants: the tensors that the function closes over, the very objects.
        structure: the result's.
    """

    graph: torch.fx.GraphModule
    constants: list[Tensor]
    structure: TreeSpec

    @property
    def n_operations(self) -> int:
        """The number of operations, before they are fused."""
        return sum(node.op == "call_function" for node in self.graph.graph.nodes)

    @property
    def n_numbers(self) -> int:
        """How many numbers it computes; those of a product of matrices count as often as they are added to."""
        count = 0
        for node in self.graph.graph.nodes:
            value, schema = node.meta.get("val"), getattr(node.target, "_schema", None)
            is_view = schema is not None and any(result.alias_info is not None for result in schema.returns)
            if node.op == "call_function" and isinstance(value, Tensor) and not is_view:
                is_product = node.target in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default)
                count += value.numel() * (node.args[0].meta["val"].shape[-1] if is_product else 1)
        return count

    @property
    def changed(self) -> list[int]:
        """The indices of those inputs of the graph that it changes in place, in the order in which it does."""
        inputs = [node for node in self.graph.graph.nodes if node.op == "placeholder"]
        changed = dict.fromkeys(node.args[0] for node in self.graph.graph.nodes if mutates(node))
        return [inputs.index(node) for node in changed]


def trace(function: Callable[..., Any], *examples: Any, for_compiler: bool = True) -> Trace:
    """Trace a function of pytrees of tensors for the shapes and dtypes of ``examples``, without running it.

    Args:
        function: the function.
        *examples: arguments as it will be called with.
        for_compiler: whether to take operations apart that a compiler fuses again, or to keep them whole.

    Raises:
        CompileError: if that is not possible, for example because the function looks at values.
    """
    leaves, structure = tree_flatten(examples)
    with explained():
        return _trace(function, [stand_in(leaf) for leaf in leaves], structure, for_compiler)


def stand_in(leaf: Tensor) -> Tensor:
    """A contiguous tensor that looks like ``leaf`` and is one of its own: a trace tells inputs apart by identity."""
    return torch.empty(leaf.shape, dtype=leaf.dtype, device=leaf.device)


def _trace(function: Callable[..., Any], leaves: Sequence[Tensor], structure: TreeSpec, for_compiler: bool) -> Trace:
    from torch.fx.experimental.proxy_tensor import make_fx

    decompositions: dict[Any, Callable[..., Any]] = {}
    if for_compiler:
        from torch._inductor.decomposition import select_decomp_table

        decompositions = {op: how for op, how in select_decomp_table().items() if not _is_random(op)}
        decompositions[torch.ops.aten.addmm.default] = _addmm
        decompositions[torch.ops.aten.bmm.default] = _bmm
        decompositions[torch.ops.aten.bernoulli.default] = _bernoulli
        decompositions[torch.ops.aten.pow.Scalar] = _power_of_number
    result: list[TreeSpec] = []

    watch = _Watch()

    def flat(*flat_arguments: Tensor) -> list[Tensor]:
        with watch:
            out, spec = tree_flatten(function(*tree_unflatten(flat_arguments, structure)))
        result[:] = [spec]
        return [tensor.detach() for tensor in out]

    def make_graph(traced: Callable[..., Any], arguments: Sequence[Tensor]) -> torch.fx.GraphModule:
        make = make_fx(traced, decomposition_table=decompositions, tracing_mode="fake", _allow_non_fake_inputs=True)
        with quiet("torch._subclasses.fake_tensor"):
            return make(*arguments)

    graph = make_graph(flat, leaves)
    watch.require_nothing_kept()
    _require_static(graph)
    constants = lift_constants(graph, len(leaves))
    if any(mutates(node) for node in graph.graph.nodes):
        graph = make_graph(torch.func.functionalize(graph, remove="mutations"), [*leaves, *constants])
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return Trace(graph, constants, result[0])


class _Watch(TorchDispatchMode):
    """Undoes what a traced function does to tensors that it closes over, for operations among these alone are executed;
    refuses what a graph cannot repeat."""

    def __init__(self) -> None:
        super().__init__()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self._made: list[weakref.ref[Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable:
            for tensor in tree_flatten((args, kwargs))[0]:
                if isinstance(tensor, Tensor) and not isinstance(tensor, FakeTensor) and id(tensor) not in self._before:
                    with _disable_current_modes():
                        self._before[id(tensor)] = (tensor, tensor.detach().clone())
        elif func is torch.ops.aten._local_scalar_dense.default and not isinstance(args[0], FakeTensor):
            raise CompileError(
                "the function reads a number off a tensor that it closes over, which may change: keep it a tensor"
            )
        result = func(*args, **(kwargs or {}))
        self._made.extend(weakref.ref(made) for made in tree_flatten(result)[0] if isinstance(made, FakeTensor))
        return result

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        with _disable_current_modes(), torch.no_grad():
            for tensor, before in self._before.values():
                tensor.detach().copy_(before)

    def require_nothing_kept(self) -> None:
        """After the trace nobody may hold a tensor made in it: it has no value."""
        if any(made() is not None for made in self._made):
            gc.collect()
            if any(made() is not None for made in self._made):
                raise KeptTensorError(
                    "a function that is compiled keeps tensors that it makes, in an attribute, a list or a global, "
                    "where stand-ins without values are now: it runs only while it is traced. Return them instead, or "
                    "change in place a tensor that was there before (buffer.copy_(...))."
                )


def _require_static(graph: torch.fx.GraphModule) -> None:
    """Refuse numbers and shapes that depend on the values of tensors."""
    numbers = (torch.SymInt, torch.SymFloat, torch.SymBool)
    for node in graph.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, numbers) or (
            isinstance(value, Tensor) and any(isinstance(n, numbers) for n in value.shape)
        ):
            raise CompileError(
                "in the function a number or a shape depends on the values of tensors, as with .item() or a mask as an "
                "index: keep numbers tensors, and choose by torch.where"
            )


def _is_random(operation: Any) -> bool:
    """Whether it draws random numbers; taken apart, it would draw others."""
    return torch.Tag.nondeterministic_seeded in getattr(operation, "tags", ())


def _bernoulli(probs: Tensor) -> Tensor:
    """Draws, from the very random numbers that torch's own function takes; Inductor's takes others in float64."""
    dtype = torch.float64 if probs.dtype == torch.float64 else torch.float32
    return (torch.rand(probs.shape, dtype=dtype, device=probs.device) < probs).to(probs.dtype)


def _addmm(added: Tensor, first: Tensor, second: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """With the sum apart, to be fused with what follows; the library's would first copy a bias into every row."""
    product = torch.mm(first, second)
    product = product if alpha == 1 else alpha * product
    return product + (added if beta == 1 else beta * added)


def _bmm(first: Tensor, second: Tensor) -> Tensor:
    """Products of matrices with one row or column each as sums, to be fused with what is around them."""
    if first.shape[2] == 1:
        return first * second
    if 1 in (first.shape[1], second.shape[2]):
        return (first.unsqueeze(-1) * second.unsqueeze(1)).sum(2)
    return NotImplemented


def _power_of_number(base: float, exponent: Tensor) -> Tensor:
    """``2 ** n``; Inductor's C++ call of torch's own takes integers for floats and writes beyond its result."""
    dtype = torch.result_type(base, exponent)
    return torch.pow(torch.full((), base, dtype=dtype, device=exponent.device), exponent)
