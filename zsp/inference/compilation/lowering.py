"""From traced graphs to compiled code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from zsp.inference.compilation.errors import explained, quiet
from zsp.inference.compilation.graph_rewrites import (
    fold_fixed_constants,
    group_logarithms,
    share_exponentials,
    sum_thin_products,
    widen_products,
)
from zsp.inference.compilation.rows_last import put_rows_last
from zsp.inference.compilation.tracing import Trace

__all__ = ["lower", "prepare"]


def prepare(traced: Trace, is_closure_fixed: bool) -> list[Tensor]:
    """Rewrite a traced graph as a compiler would not; returns its constants from then on.

    Args:
        traced: what was traced for the compiler; its graph is changed.
        is_closure_fixed: see :class:`~zsp.inference.compilation.compiled_loop.CompiledLoop`.
    """
    constants = [constant.detach() for constant in traced.constants]
    with explained():
        if is_closure_fixed:
            with_rows_last = put_rows_last(traced.graph, len(constants))
        group_logarithms(traced.graph)
        if is_closure_fixed:
            share_exponentials(traced.graph)
            widen_products(traced.graph, with_rows_last)
            sum_thin_products(traced.graph, len(constants))
            with torch.no_grad():
                constants = fold_fixed_constants(traced.graph, constants)
    return constants


def lower(
    graph: torch.fx.GraphModule,
    examples: Sequence[Tensor],
    *,
    on_one_thread: bool = False,
    given_away: Sequence[str] = (),
) -> Callable[[list[Tensor]], Sequence[Tensor]]:
    """The graph as Inductor's code.

    Args:
        graph: of ATen operations and loops.
        examples: its inputs.
        on_one_thread: whether what Inductor writes for the CPU runs on one thread, instead of on torch's.
        given_away: the names of inputs whose places loops on the CPU may use for what they carry.

    Raises:
        CompileError: if it cannot be compiled here.
    """
    with explained():
        return _lower(graph, examples, on_one_thread, given_away)


def _lower(
    graph: torch.fx.GraphModule, examples: Sequence[Tensor], on_one_thread: bool, given_away: Sequence[str]
) -> Callable[[list[Tensor]], Sequence[Tensor]]:
    import torch._inductor.config as config
    from torch._guards import TracingContext, tracing
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.utils import parallel_num_threads
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    from zsp.inference.compilation import exponential_code, loop_code, product_code

    # all shapes are static, but without an environment for those that are not Inductor keeps no graph in its cache
    mode = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True)
    fakes = [mode.from_tensor(example.detach()) for example in examples]
    _FakeTensors(graph, mode).propagate_dont_convert_inputs(*fakes)
    loops = graph.graph.find_nodes(op="call_function", target=torch.ops.higher_order.while_loop)
    for loop in loops:
        inputs = [node.meta["val"] for node in (*loop.args[2], *loop.args[3])]
        for part in loop.args[:2]:
            _FakeTensors(getattr(graph, part.target), mode).propagate_dont_convert_inputs(*inputs)
    on_cpu = _are_on_cpu(examples)
    versions = " ".join(part.VERSION for part in (loop_code, product_code, exponential_code))
    options = {
        "size_asserts": False,
        "alignment_asserts": False,
        "fallback_random": True,
        "cpp_wrapper": on_cpu,
        "cpp.threads": 1 if on_one_thread else parallel_num_threads(),  # code is written, and kept, for that number
        "cpp.vec_isa_ok": True,  # what the processor has the compiler knows: trying it out takes eight seconds
        "cpp_wrapper_build_separate": on_cpu,  # calls need less optimisation than kernels: half of the time to compile
        # the parts of a loop are in the key under which its code is kept; so is what writes that code
        "unsafe_marked_cacheable_functions": {"torch.ops.higher_order.while_loop": f"{versions} {given_away}"},
    }
    with (
        tracing(TracingContext(mode)),
        config.patch(options),
        torch.no_grad(),
        quiet("torch._inductor"),
        loop_code.loops_without_allocations(given_away) if on_cpu and loops else nullcontext(),
        exponential_code.exponentials_in_place(),
    ):
        return compile_fx_inner(graph, fakes, cpp_wrapper=on_cpu)  # type: ignore[return-value]


class _FakeTensors(FakeTensorProp):
    """What the values in a graph look like; the parts of a loop are gone through apart, and need not be here."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is torch.ops.higher_order.while_loop:
            return tuple(torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device) for t in args[2])
        return super().call_function(target, args, kwargs)


def _are_on_cpu(examples: Sequence[Tensor]) -> bool:
    return all(example.device.type == "cpu" for example in examples)
