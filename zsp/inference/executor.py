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
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from zsp.inference.graph_rewrites import (
    fold_constants,
    fold_fixed_constants,
    group_logarithms,
    lift_constants,
    mutates,
    share_exponentials,
    sum_thin_products,
    unique_outputs,
    widen_products,
)

__all__ = [
    "CompileError",
    "CompiledFunction",
    "KeptTensorError",
    "Trace",
    "TracedFunction",
    "is_traced",
    "lower",
    "prepare",
    "stand_in",
    "trace",
]


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
        changed = {node.args[0] for node in self.graph.graph.nodes if mutates(node)}
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
        return _trace(function, [stand_in(leaf) for leaf in leaves], structure, for_compiler)


def prepare(traced: Trace, is_closure_fixed: bool) -> list[Tensor]:
    """Rewrite a traced graph as a compiler would not; returns its constants from then on.

    Args:
        traced: what was traced for the compiler; its graph is changed.
        is_closure_fixed: see :class:`CompiledFunction`.
    """
    constants = [constant.detach() for constant in traced.constants]
    with _explained():
        group_logarithms(traced.graph)
        if is_closure_fixed:
            share_exponentials(traced.graph)
            widen_products(traced.graph)
            sum_thin_products(traced.graph, len(constants))
            with torch.no_grad():
                constants = fold_fixed_constants(traced.graph, constants)
    return constants


def stand_in(leaf: Tensor) -> Tensor:
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
        with _quiet("torch._subclasses.fake_tensor"):
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


def lower(
    graph: torch.fx.GraphModule, examples: Sequence[Tensor], *, on_one_thread: bool = False
) -> Callable[[list[Tensor]], Sequence[Tensor]]:
    """The graph as Inductor's code.

    Args:
        graph: of ATen operations and loops.
        examples: its inputs.
        on_one_thread: whether what Inductor writes for the CPU runs on one thread, instead of on torch's.

    Raises:
        CompileError: if it cannot be compiled here.
    """
    with _explained():
        return _lower(graph, examples, on_one_thread)


def _lower(
    graph: torch.fx.GraphModule, examples: Sequence[Tensor], on_one_thread: bool
) -> Callable[[list[Tensor]], Sequence[Tensor]]:
    import torch._inductor.config as config
    from torch._guards import TracingContext, tracing
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    from zsp.inference import exponential_code, loop_code

    # all shapes are static, but without an environment for those that are not Inductor keeps no graph in its cache
    mode = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True)
    fakes = [mode.from_tensor(example.detach()) for example in examples]
    FakeTensorProp(graph, mode).propagate_dont_convert_inputs(*fakes)
    loops = graph.graph.find_nodes(op="call_function", target=torch.ops.higher_order.while_loop)
    for loop in loops:
        inputs = [node.meta["val"] for node in (*loop.args[2], *loop.args[3])]
        for part in loop.args[:2]:
            FakeTensorProp(getattr(graph, part.target), mode).propagate_dont_convert_inputs(*inputs)
    on_cpu = all(example.device.type == "cpu" for example in examples)
    options = {
        "size_asserts": False,
        "alignment_asserts": False,
        "fallback_random": True,
        "cpp_wrapper": on_cpu,
        "cpp.threads": 1 if on_one_thread else config.cpp.threads,
        "cpp.vec_isa_ok": True,  # what the processor has the compiler knows: trying it out takes eight seconds
        "cpp_wrapper_build_separate": on_cpu,  # calls need less optimisation than kernels: half of the time to compile
        # the parts of a loop are in the key under which its code is kept; so is what writes that code
        "unsafe_marked_cacheable_functions": {
            "torch.ops.higher_order.while_loop": f"{loop_code.VERSION} {exponential_code.VERSION}"
        },
    }
    with (
        tracing(TracingContext(mode)),
        config.patch(options),
        torch.no_grad(),
        _quiet("torch._inductor"),
        loop_code.loops_without_allocations() if on_cpu and loops else nullcontext(),
        exponential_code.exponentials_in_place(),
    ):
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
