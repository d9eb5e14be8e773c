"""Compile a pure function of tensors into one call.

The function is traced to a flat graph of ATen operations, its calls of ``torch.autograd.grad`` included, and the graph
goes straight to Inductor: no guards, no handling of autograd or of mutation is left at run time, so that a call costs
microseconds more than its kernels. What the function closes over (a model's parameters, its data) is found in the
trace and passed at every call: its values may change in place between calls, its shapes may not.
"""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

__all__ = ["CompileError", "CompiledFunction", "KeptTensorError", "Trace", "TracedFunction", "is_traced", "trace"]


class CompileError(RuntimeError):
    """A function cannot be compiled here; the message says why."""


class KeptTensorError(RuntimeError):
    """A function kept a tensor of a trace, which has no value, so that it cannot just be run eagerly instead."""


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
    def changed(self) -> list[int]:
        """The indices of those inputs of the graph that it changes in place."""
        inputs = [node for node in self.graph.graph.nodes if node.op == "placeholder"]
        changed = {node.args[0] for node in self.graph.graph.nodes if _mutates(node)}
        return [i for i, node in enumerate(inputs) if node in changed]


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
        traced = trace(function, *examples, for_compiler=False)
        self._constants = traced.constants
        with torch.no_grad():
            _compute_once(traced.graph, self._constants)
        self._forward = traced.graph.forward

    @torch.no_grad()
    def __call__(self, *arguments: Tensor) -> Sequence[Tensor]:
        """Call it with tensors of the examples' shapes and dtypes."""
        return self._forward(*arguments, *self._constants)


class CompiledFunction:
    """A function of pytrees of tensors, compiled for the shapes and dtypes of ``examples``.

    It takes and returns the same pytrees as the function; its results carry no gradient. Random numbers that the
    function draws are those of torch's default generator, as in an eager run.

    Args:
        function: a function without branches on data. It may differentiate inside, and change its arguments, and what
            it closes over, in place; arguments that it changes must be contiguous.
        *examples: arguments as it will be called with.

    Attributes:
        n_operations: the number of operations in its graph, before they are fused.

    Raises:
        CompileError: if the function cannot be traced, or nothing here can compile it.
    """

    n_operations: int

    def __init__(self, function: Callable[..., Any], *examples: Any) -> None:
        traced = trace(function, *examples)
        self._constants, self._out = [constant.detach() for constant in traced.constants], traced.structure
        self._changed = traced.changed
        self.n_operations = traced.n_operations
        leaves = [_stand_in(leaf) for leaf in tree_flatten(examples)[0]]
        with _explained():
            self._sources = _unique_outputs(traced.graph)
            self._code = _lower(traced.graph, [*leaves, *self._constants])

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
    with _explained():
        return _trace(function, [_stand_in(leaf) for leaf in leaves], structure, for_compiler)


def _stand_in(leaf: Tensor) -> Tensor:
    """A contiguous tensor that looks like ``leaf`` and is one of its own: a trace tells inputs apart by identity."""
    return torch.empty(leaf.shape, dtype=leaf.dtype, device=leaf.device)


@contextmanager
def _explained() -> Iterator[None]:
    """Say in one line why something here failed."""
    try:
        yield
    except (CompileError, KeptTensorError):
        raise
    except Exception as error:
        if type(error).__name__ == "GuardOnDataDependentSymNode":
            raise CompileError(
                "the function branches on the value of a tensor: choose by torch.where instead"
            ) from error
        first = (str(error).strip() or "no message").splitlines()[0]
        raise CompileError(f"{type(error).__name__}: {first}") from error


def _trace(function: Callable[..., Any], leaves: Sequence[Tensor], structure: TreeSpec, for_compiler: bool) -> Trace:
    from torch.fx.experimental.proxy_tensor import make_fx

    decompositions: dict[Any, Callable[..., Any]] = {}
    if for_compiler:
        from torch._inductor.decomposition import select_decomp_table

        decompositions = {op: how for op, how in select_decomp_table().items() if not _is_random(op)}
        decompositions[torch.ops.aten.addmm.default] = _addmm
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
        with _quiet("torch._subclasses.fake_tensor"):
            return make(*arguments)

    graph = make_graph(flat, leaves)
    watch.require_nothing_kept()
    _require_static(graph)
    constants = _lift_constants(graph, len(leaves))
    if any(_mutates(node) for node in graph.graph.nodes):
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


def _power_of_number(base: float, exponent: Tensor) -> Tensor:
    """``2 ** n``; Inductor's C++ call of torch's own takes integers for floats and writes beyond its result."""
    dtype = torch.result_type(base, exponent)
    return torch.pow(torch.full((), base, dtype=dtype, device=exponent.device), exponent)


def _mutates(node: torch.fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _lift_constants(graph: torch.fx.GraphModule, n_inputs: int) -> list[Tensor]:
    """Make the tensors that the graph holds its last inputs, and return them."""
    lifted: dict[int, torch.fx.Node] = {}
    constants: list[Tensor] = []
    nodes = list(graph.graph.nodes)
    last = nodes[n_inputs - 1] if n_inputs else None
    for node in nodes:
        if node.op != "get_attr":
            continue
        value = getattr(graph, node.target)
        if id(value) not in lifted:
            with graph.graph.inserting_after(last):
                last = graph.graph.placeholder(f"constant_{len(constants)}")
            last.meta = node.meta
            lifted[id(value)] = last
            constants.append(value)
        node.replace_all_uses_with(lifted[id(value)])
        graph.graph.erase_node(node)
    graph.recompile()
    return constants


def _compute_once(graph: torch.fx.GraphModule, constants: Sequence[Tensor]) -> None:
    """Compute now what is the same in every call: what depends on no value of an input, and views of constants.

    Such are the ones that a gradient begins with, and all that is multiplied with them; a matrix transposed.
    """
    aten = torch.ops.aten
    nodes = graph.graph.nodes
    placeholders = [node for node in nodes if node.op == "placeholder"]
    given = dict(zip(placeholders[len(placeholders) - len(constants) :], constants, strict=True)) if constants else {}
    computed: dict[torch.fx.Node, Tensor] = {}  # as values, or as views of constants
    is_view: set[torch.fx.Node] = set(given)
    for node in list(nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if node.target is aten.detach.default:
            node.replace_all_uses_with(node.args[0])
            continue
        schema, inputs = node.target._schema, node.all_input_nodes
        tags = node.target.tags
        if schema.is_mutable or torch.Tag.nondeterministic_seeded in tags or len(schema.returns) != 1:
            continue
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            continue
        if node.target is aten.ones_like.default:
            computed[node] = torch.ones(value.shape, dtype=value.dtype, device=value.device)
        elif any(source in is_view for source in inputs):
            # the constants' values may change, so that only views of them are the same
            if len(inputs) == 1 and schema.returns[0].alias_info is not None:
                computed[node] = _evaluate(node, {**given, **computed})
                is_view.add(node)
        elif all(source in computed for source in inputs):
            computed[node] = _evaluate(node, computed)
    for i, (node, tensor) in enumerate(computed.items()):
        if any(user not in computed for user in node.users):
            graph.register_buffer(f"computed_{i}", tensor)
            with graph.graph.inserting_before(node):
                node.replace_all_uses_with(graph.graph.get_attr(f"computed_{i}"))
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _evaluate(node: torch.fx.Node, values: dict[torch.fx.Node, Tensor]) -> Tensor:
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    result: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
    return result


def _unique_outputs(graph: torch.fx.GraphModule) -> list[tuple[bool, int]]:
    """Make the graph return each of its results once and none of its inputs, and say where each output is then found.

    Inductor takes for granted that the results of a graph are tensors of their own.

    Returns:
        For each output whether the graph makes it, and its index among the graph's results or inputs.
    """
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    made: list[torch.fx.Node] = []
    sources = []
    for node in output.args[0]:
        if node in inputs:
            sources.append((False, inputs.index(node)))
        else:
            if node not in made:
                made.append(node)
            sources.append((True, made.index(node)))
    output.args = (tuple(made),)
    graph.recompile()
    return sources


def _lower(graph: torch.fx.GraphModule, examples: Sequence[Tensor]) -> Callable[[list[Tensor]], Sequence[Tensor]]:
    """The graph as Inductor's code."""
    import torch._inductor.config as config
    from torch._guards import TracingContext, tracing
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    mode = FakeTensorMode()
    fakes = [mode.from_tensor(example.detach()) for example in examples]
    FakeTensorProp(graph, mode).propagate_dont_convert_inputs(*fakes)
    on_cpu = all(example.device.type == "cpu" for example in examples)
    options = {"size_asserts": False, "alignment_asserts": False, "fallback_random": True, "cpp_wrapper": on_cpu}
    with tracing(TracingContext(mode)), config.patch(options), torch.no_grad(), _quiet("torch._inductor"):
        return compile_fx_inner(graph, fakes, cpp_wrapper=on_cpu)  # type: ignore[return-value]


class _quiet:
    """Nothing but errors from a library's logger; nothing at all from one that reports exceptions that are raised."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def __enter__(self) -> None:
        self._level = self._logger.level
        self._logger.setLevel(logging.CRITICAL)

    def __exit__(self, *error: object) -> None:
        self._logger.setLevel(self._level)
