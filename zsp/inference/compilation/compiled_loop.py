"""Compile a loop over steps into one call.

A step is traced to a flat graph of ATen operations, its calls of ``torch.autograd.grad`` included, and the loop around
it goes straight to Inductor: no guards, no handling of autograd or of mutation is left at run time. What the step
closes over (a model's parameters, its data) is found in the trace and passed at every call.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_flatten, tree_unflatten

from zsp.inference.compilation.errors import CompileError
from zsp.inference.compilation.graph_rewrites import caller, mutates
from zsp.inference.compilation.lowering import lower, prepare
from zsp.inference.compilation.tracing import stand_in, trace

__all__ = ["CompiledLoop"]

aten = torch.ops.aten

FOR_SEVERAL_THREADS = 2**21
"""Numbers that a step computes, in some 100 us, below which one thread is faster than several, which wait for each
other a few times in every step."""


class CompiledLoop:
    """A state that a pure function advances step by step, compiled into one call of as many steps as asked for.

    The function is traced and compiled once, however many steps there are, and in the steps nothing but its arithmetic
    is left, on the CPU not even an allocation. Its results carry no gradient.

    Args:
        step: from a state, the inputs of a step, and what is the same in all of them, to the next state and the outputs
            of the step; all of them pytrees of tensors. Without branches on data; it may differentiate inside, draw
            random numbers, those of torch's default generator, and change in place what is the same and what it closes
            over; arguments that it changes must be contiguous.
        most_steps: in a call.
        state: an example.
        inputs: those of one step, at least one tensor.
        fixed: what is the same in all steps of a call.
        goes_on: from the state after a step and what is fixed to whether another step may be made, a scalar tensor;
            default always.
        is_closure_fixed: whether what the step closes over keeps its values, so that what follows from these alone is
            computed once; otherwise their values may change in place between calls, their shapes may not.
        on_one_thread: whether a call keeps to the thread that makes it, as calls side by side should.

    Raises:
        CompileError: if the function cannot be traced, or nothing here can compile it.
    """

    def __init__(
        self,
        step: Callable[[Any, Any, Any], tuple[Any, Any]],
        most_steps: int,
        state: Any,
        inputs: Any,
        fixed: Any,
        *,
        goes_on: Callable[[Any, Any], Tensor] | None = None,
        is_closure_fixed: bool = False,
        on_one_thread: bool = False,
    ) -> None:
        self._most_steps = most_steps
        flag = () if goes_on is None else torch.ones((), dtype=torch.bool, device=tree_flatten(state)[0][0].device)
        self._flag = flag

        def flagged_step(flag_and_state: Any, inputs: Any, fixed: Any) -> Any:
            new, outputs = step(flag_and_state[1], inputs, fixed)
            return (() if goes_on is None else goes_on(new, fixed), new), outputs

        state = (flag, state)
        traced = trace(flagged_step, state, inputs, fixed)
        n_state, n_inputs = (len(tree_flatten(part)[0]) for part in (state, inputs))
        leaves = [stand_in(leaf) for leaf in tree_flatten((state, inputs, fixed))[0]]
        may_change = range(n_state + n_inputs, len(leaves) if is_closure_fixed else sys.maxsize)
        if any(i not in may_change for i in traced.changed):
            raise CompileError("the function changes tensors in place, its state or what was to stay: return them")
        self._constants = prepare(traced, is_closure_fixed)
        self._structure = traced.structure
        given = [*leaves, *self._constants]
        examples = [*tree_flatten((state, inputs, fixed))[0], *self._constants]
        for i in traced.changed:
            for j, other in enumerate(examples):
                if j != i and _overlap(examples[i], other):
                    raise CompileError(
                        f"the function changes a tensor of shape {list(examples[i].shape)} in place, which shares "
                        f"memory with another one that it uses, of shape {list(other.shape)}: make one of them a copy"
                    )
        self._n_state, self._changed = n_state, traced.changed
        self._carried = _carry(traced.graph, n_state, self._changed)
        moved = {*self._carried, *self._changed}
        same = [i for i in range(n_state) if i not in moved]
        rest = [i for i in range(n_state, len(given)) if i not in moved]
        self._order = [*self._carried, *self._changed, *rest, *same]
        one = [given[i] for i in self._order]
        n_carried = len(self._carried) + len(self._changed)
        n_before = n_carried + n_inputs
        inputs = [leaf.new_empty(most_steps, *leaf.shape) for leaf in one[n_carried:n_before]]
        arguments = [*one[:n_carried], *inputs, *one[n_before:]]
        self._zero = torch.zeros((), dtype=torch.int64)
        loop = _loop(traced.graph, most_steps, n_carried, n_inputs, has_flag=goes_on is not None)
        is_small = traced.n_numbers < FOR_SEVERAL_THREADS
        # what the caller has changed may also be used while it is computed
        places = _ends(loop)[0][2 + len(self._carried) : 2 + n_carried]
        self._code = lower(
            loop,
            [self._zero, self._zero, *arguments],
            on_one_thread=on_one_thread or is_small,
            given_away=[place.name for place in places],
        )

    def __call__(self, state: Any, inputs: Any, fixed: Any) -> tuple[Any, Any]:
        """The state after some steps, and the outputs of all of them.

        Args:
            state: of the structure, shapes and dtypes of the example.
            inputs: the same, with a leading axis of steps, at most ``most_steps``.
            fixed: the same as the example.

        Returns:
            The state, and the outputs with a leading axis of the steps that were made.
        """
        leaves = tree_flatten(((self._flag, state), inputs, fixed))[0]
        n_steps = len(leaves[self._n_state])
        if not 1 <= n_steps <= self._most_steps:
            raise ValueError(f"a call has at least 1 step and at most {self._most_steps}, got {n_steps}.")
        # the code was made for contiguous arguments and does not look at their strides
        given = [leaf.contiguous() for leaf in leaves] + self._constants
        for i in self._changed:
            if i < len(leaves) and given[i] is not leaves[i]:
                raise ValueError(
                    f"what is changed in place must be contiguous, but a tensor's strides are {leaves[i].stride()}."
                )
        index, *made = self._code([self._zero, self._zero + n_steps, *[given[i] for i in self._order]])
        end = given[: self._n_state]
        for i, leaf in zip(self._carried, made, strict=False):
            end[i] = leaf
        n_carried = len(self._carried) + len(self._changed)
        for i, leaf in zip(self._changed, made[len(self._carried) : n_carried], strict=True):
            given[i].copy_(leaf)
        n_made = int(index)
        outputs = [leaf[:n_made] for leaf in made[n_carried:]]
        (_, state), outputs = tree_unflatten([*end, *outputs], self._structure)
        return state, outputs


def _carry(body: GraphModule, n_state: int, changed: Sequence[int]) -> list[int]:
    """Which leaves of the state the body makes anew.

    It takes and returns these first, then the arguments that it changes in place, of which it returns the new values
    instead, for Inductor may change a copy of what a loop's body changes in place; it takes what is the same last.
    """
    arguments, results = _ends(body)
    carried = [i for i in range(n_state) if results[i] is not arguments[i]]
    new: dict[Node, Node] = {}
    for node in list(body.graph.nodes):
        if mutates(node):
            if node.target is not aten.copy_.default or node.users or node.args[0] in new:
                raise CompileError(f"the function changes a tensor in place by {node.target}")
            new[node.args[0]] = node.args[1]
            body.graph.erase_node(node)
    for i in changed:
        arguments[n_state].prepend(arguments[i])
    last = body.graph.find_nodes(op="placeholder")[-1]
    for i in reversed(range(n_state)):
        if i not in carried:
            last.append(arguments[i])
    (end,) = body.graph.find_nodes(op="output")
    returned: list[Node] = []
    call = caller(body.graph)
    with body.graph.inserting_before(end):
        for result in [results[i] for i in carried] + [new[arguments[i]] for i in changed] + results[n_state:]:
            # what is carried has a place of its own, as the arguments are laid out
            is_own = result not in arguments and result not in returned and result.meta["val"].is_contiguous()
            clone = partial(call, aten.clone.default, memory_format=torch.contiguous_format)
            returned.append(result if is_own else clone(result))
    end.args = (tuple(returned),)
    body.recompile()
    return carried


def _overlap(first: Tensor, second: Tensor) -> bool:
    """Whether some of the memory from the first to the last number of each is the same."""

    def bounds(tensor: Tensor) -> tuple[int, int]:
        last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
        return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()

    (begin, end), (other_begin, other_end) = bounds(first), bounds(second)
    return first.device == second.device and max(begin, other_begin) < min(end, other_end)


def _ends(graph: GraphModule) -> tuple[list[Node], list[Any]]:
    """The arguments and the results."""
    (end,) = graph.graph.find_nodes(op="output")
    return list(graph.graph.find_nodes(op="placeholder")), list(end.args[0])


def _loop(body: GraphModule, capacity: int, n_carried: int, n_inputs: int, *, has_flag: bool) -> GraphModule:
    """The body as a loop.

    Its arguments are zero, the number of steps, and the body's, whose inputs have a leading axis of steps; its results
    are the number of steps that were made, and those of the body, which have an axis of ``capacity`` unless they are
    carried. With ``has_flag`` the first of what is carried says whether to go on.
    """
    arguments, results = _ends(body)
    graph = Graph()
    index, stop, *given = (graph.placeholder(name) for name in ("index", "stop", *[node.name for node in arguments]))
    stores = []
    for value in (result.meta["val"] for result in results[n_carried:]):
        strides = [value.numel(), *torch.empty(value.shape, device="meta").stride()]
        like = {"dtype": value.dtype, "device": value.device}
        stores.append(graph.call_function(aten.empty_strided.default, ([capacity, *value.shape], strides), like))
    changing, same = [index, *stores, *given[:n_carried]], [stop, *given[n_carried:]]
    parts = {
        "goes_on": _condition(len(changing), len(same), 1 + len(stores) if has_flag else None),
        "step": _step(body, capacity, len(stores), n_carried, n_inputs),
    }
    functions = [graph.get_attr(name) for name in parts]
    loop = graph.call_function(torch.ops.higher_order.while_loop, (*functions, tuple(changing), tuple(same)))
    n_before = 1 + len(stores)
    order = [0, *range(n_before, n_before + n_carried), *range(1, n_before)]
    graph.output(tuple(graph.call_function(operator.getitem, (loop, i)) for i in order))
    return GraphModule(parts, graph)


def _condition(n_changing: int, n_same: int, flag: int | None) -> GraphModule:
    """Whether the first of what changes, the index, is below the first of what does not, the number of steps, and the
    flag, one of what changes, holds."""
    graph = Graph()
    arguments = [graph.placeholder(f"argument_{i}") for i in range(n_changing + n_same)]
    result = graph.call_function(aten.lt.Tensor, (arguments[0], arguments[n_changing]))
    if flag is not None:
        result = graph.call_function(aten.logical_and.default, (result, arguments[flag]))
    graph.output(result)
    return GraphModule({}, graph)


def _step(body: GraphModule, capacity: int, n_stores: int, n_carried: int, n_inputs: int) -> GraphModule:
    """The body for the row of its inputs that the index says; it writes its outputs to that row of the stores."""
    arguments, _ = _ends(body)
    graph = Graph()
    index = graph.placeholder("index")
    stores = [graph.placeholder(f"store_{i}") for i in range(n_stores)]
    carried = [graph.placeholder(node.name) for node in arguments[:n_carried]]
    graph.placeholder("stop")
    given = [graph.placeholder(node.name) for node in arguments[n_carried:]]
    row = graph.call_function(aten._local_scalar_dense.default, (index,))
    for comparison, bound in ((operator.ge, 0), (operator.lt, capacity)):
        is_within = graph.call_function(comparison, (row, bound))
        graph.call_function(aten._assert_scalar.default, (is_within, "the number of steps is too large"))
    inputs = [graph.call_function(aten.select.int, (node, 0, row)) for node in given[:n_inputs]]
    values = dict(zip(arguments, [*carried, *inputs, *given[n_inputs:]], strict=True))
    results: Any = graph.graph_copy(body.graph, values)
    for store, result in zip(stores, results[n_carried:], strict=True):
        graph.call_function(aten.copy_.default, (graph.call_function(aten.select.int, (store, 0, row)), result))
    graph.output((graph.call_function(aten.add.Tensor, (index, 1)), *stores, *results[:n_carried]))
    return GraphModule({}, graph)
