r"""Rewrites of traced graphs: what a compiler asks for, and what it does not do by itself.

A compiler neither changes rounding nor knows what stays the same:

- :func:`group_logarithms`: the sum of :math:`\log(1 + e^{-|x|})`, of which logistic likelihoods are made, takes one
  logarithm for a group of terms instead of one for each.
- :func:`share_exponentials`: a logistic function takes the exponential of the logarithm beside it.
- :func:`widen_products`: a tall product of matrices becomes the transposed of a wide one.
- :func:`sum_thin_products`: a product of a few rows with a constant becomes a sum, to be fused with what is around it.
- :func:`fold_constants`, :func:`fold_fixed_constants`: what is the same in every call is computed once.

:func:`~zsp.inference.compilation.rows_last.put_rows_last` lays out what is computed for many rows, such as chains.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

__all__ = [
    "caller",
    "fill_vectors",
    "fold_constants",
    "fold_fixed_constants",
    "group_logarithms",
    "lift_constants",
    "mutates",
    "products_with_constants",
    "share_exponentials",
    "sum_thin_products",
    "widen_products",
    "written",
]

aten = torch.ops.aten

MAX_GROUP = 64  # 2 ** 64, the largest product of so many factors of at most 2, is a number in float32
MIN_GROUP = 4
MIN_WIDTH = 16  # groups lie side by side in a vector of the processor

GROUP = 4  # sums that a processor makes side by side: one alone would wait for each of its additions
MAX_ROWS = 16  # of a product that is a sum; a library is as fast with more
LINE = 64  # bytes of a line of the cache
MIN_SHARED = 8_192  # fewer exponentials are computed twice in the time in which they are written

COLUMNS = 16  # a multiple of the numbers in a vector of the processor
MOST_COLUMNS = 256  # of which a few rows lie in the first cache

MAX_CONSTANT = 16_777_216  # numbers in a matrix that is kept once more


def caller(graph: Graph) -> Callable[..., Node]:
    """A function that adds an operation to the graph."""

    def call(target: Any, *args: Any, **kwargs: Any) -> Node:
        node = graph.call_function(target, args, kwargs)
        node.meta["val"] = target(*map_arg(args, lambda argument: argument.meta["val"]), **kwargs)
        return node

    return call


def group_logarithms(graph: GraphModule) -> None:
    r"""Sum logarithms as logarithms of products, :math:`\sum_i \log(1 + u_i) = \log \prod_i (1 + u_i)`.

    This is done where :math:`u_i = e^{-|x_i|}` and the sum includes the last or the first axis, of a size that can be
    divided. The absolute error of such a sum grows from that of adding its terms by a rounding of each factor; a term
    below the rounding of 1 is lost.
    """
    for total in list(graph.graph.nodes):
        if total.target is not aten.sum.dim_IntList or total.kwargs:
            continue
        summand, axes, *keepdim = total.args
        value = summand.meta["val"]
        if value.dtype not in (torch.float32, torch.float64) or value.ndim == 0 or len(summand.users) > 1:
            continue
        groups, axis = _groups(value.shape, [axis % value.ndim for axis in axes])
        if not groups:
            continue
        terms = list(_terms(summand, 1))
        logarithms = [(sign, term) for sign, term in terms if _is_log1p_of_exp_of_minus_abs(term, value.shape)]
        others = [(sign, term) for sign, term in terms if (sign, term) not in logarithms]
        if not logarithms or (others and not any(term.meta["val"].shape == value.shape for _, term in others)):
            continue
        call = caller(graph.graph)
        with graph.graph.inserting_before(total):
            parts = []
            if others:
                parts.append((1, call(aten.sum.dim_IntList, _combine(others, call), axes, *keepdim)))
            for sign, logarithm in logarithms:
                factors = call(aten.add.Tensor, logarithm.args[0], 1)
                products = call(aten.prod.dim_int, call(aten.view.default, factors, groups), axis)
                logs = call(aten.log.default, products)
                parts.append((sign, call(aten.sum.dim_IntList, logs, axes, *keepdim)))
            result = _combine(parts, call)
        total.replace_all_uses_with(result)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _groups(shape: Sequence[int], axes: Sequence[int]) -> tuple[list[int], int]:
    """The shape in which terms of a sum over some axes lie in groups, and which axis is that of the terms of a group.

    The products of groups fill vectors of the processor. None are made if none are worth it.
    """
    last = len(shape) - 1
    n = shape[last if last in axes else 0]
    sizes = [size for size in range(MIN_GROUP, MAX_GROUP + 1) if n % size == 0]
    if last in axes:
        sizes = [size for size in sizes if n // size >= MIN_WIDTH]
        wide = [size for size in sizes if n // size >= 2 * MIN_WIDTH]  # the last vector, not full, counts for less
        size = max(wide or sizes, default=0)
        return ([*shape[:-1], size, n // size], last) if size else ([], 0)
    size = max(sizes, default=0)
    if size and 0 in axes and shape[last] >= MIN_WIDTH:
        return [n // size, size, *shape[1:]], 1
    return [], 0


def _terms(node: Node, sign: int) -> Iterator[tuple[int, Node]]:
    """The signed terms of a sum, as far as they are not needed elsewhere."""
    shape = node.meta["val"].shape
    if len(node.users) == 1 and not node.kwargs and all(isinstance(argument, Node) for argument in node.args):
        operands: tuple[Any, ...] = node.args
        if node.target is aten.neg.default:
            yield from _terms(operands[0], -sign)
            return
        if node.target in (aten.add.Tensor, aten.sub.Tensor) and all(
            operand.meta["val"].shape == shape and operand.meta["val"].dtype == node.meta["val"].dtype
            for operand in operands
        ):
            yield from _terms(operands[0], sign)
            yield from _terms(operands[1], sign if node.target is aten.add.Tensor else -sign)
            return
    yield sign, node


def _is_log1p_of_exp_of_minus_abs(node: Node, shape: torch.Size) -> bool:
    x = _argument_of(node, aten.log1p.default, aten.exp.default, aten.neg.default, aten.abs.default)
    return x is not None and node.meta["val"].shape == shape


def _argument_of(node: Node, *targets: Any) -> Node | None:
    """What these operations are applied to, the last one first; None if the node is no such chain."""
    for target in targets:
        if node.target is not target:
            return None
        node = node.args[0]  # type: ignore[assignment]
    return node


def _combine(terms: Sequence[tuple[int, Node]], call: Callable[..., Node]) -> Node:
    first_sign, result = terms[0]
    if first_sign < 0:
        result = call(aten.neg.default, result)
    for sign, term in terms[1:]:
        result = call(aten.add.Tensor if sign > 0 else aten.sub.Tensor, result, term)
    return result


def share_exponentials(graph: GraphModule) -> None:
    r"""Take :math:`\sigma(x) = 1 / (1 + u)`, or :math:`u / (1 + u)` if x < 0, where :math:`u = e^{-|x|}` is there."""
    nodes = list(graph.graph.nodes)
    for sigmoid in nodes:
        if sigmoid.target is not aten.sigmoid.default or not sigmoid.meta["val"].is_contiguous():
            continue
        if sigmoid.meta["val"].numel() < MIN_SHARED:
            continue
        (x,) = sigmoid.args
        same = [node for node in nodes if _argument_of(node, aten.exp.default, aten.neg.default, aten.abs.default) is x]
        if not same:
            continue
        call = caller(graph.graph)
        with graph.graph.inserting_before(min([sigmoid, *same], key=nodes.index)):
            u = written(call(aten.exp.default, call(aten.neg.default, call(aten.abs.default, x))), call)
        for node in same:
            node.replace_all_uses_with(u)
        with graph.graph.inserting_before(sigmoid):
            above = call(aten.reciprocal.default, call(aten.add.Tensor, u, 1))
            below = call(aten.mul.Tensor, u, above)
            sigmoid.replace_all_uses_with(call(aten.where.self, call(aten.lt.Scalar, x, 0), below, above))
    graph.graph.eliminate_dead_code()
    graph.recompile()


def written(node: Node, call: Callable[..., Node]) -> Node:
    """The same tensor, in memory: a compiler would compute it anew wherever it is used."""
    value = node.meta["val"]
    if not value.is_contiguous():
        node = call(aten.clone.default, node, memory_format=torch.contiguous_format)
    # a view that a compiler looks through only after it has written what it is of
    return call(aten.as_strided.default, node, list(value.shape), list(node.meta["val"].stride()))


def widen_products(graph: GraphModule, but: Collection[Node] = ()) -> None:
    """Make no product of matrices, but some, with more rows than columns, unless these fill the processor's vectors.

    Libraries take their time over tall and thin ones. What goes in and what comes out is written as it is, so that what
    is around the product is not computed column by column.
    """
    for node in list(graph.graph.nodes):
        if node.target is aten.mm.default and node not in but:
            rows, columns = node.meta["val"].shape
            if rows > columns > 1 and columns % COLUMNS:
                call = caller(graph.graph)
                with graph.graph.inserting_before(node):
                    first, second = (call(aten.permute.default, written(factor, call), [1, 0]) for factor in node.args)
                    result = written(call(aten.permute.default, call(aten.mm.default, second, first), [1, 0]), call)
                node.replace_all_uses_with(result)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def fill_vectors(columns: int) -> bool:
    """Whether few columns leave at most a quarter of the processor's vectors empty."""
    return COLUMNS <= columns <= MOST_COLUMNS and -columns % COLUMNS <= columns // 3


def sum_thin_products(graph: GraphModule, n_constants: int) -> None:
    """Write products of few rows with a matrix that is fixed, one of the last inputs, as sums.

    The matrix is laid out in blocks of columns, as wide as a line of the cache, so that all of it is read from its
    beginning to its end, once for GROUP rows that are summed side by side. A library copies the matrix first, which
    takes longer than a product of so few rows.
    """
    for node in products_with_constants(graph, n_constants):
        first, second = node.args
        value = node.meta["val"]
        (n_rows, n_terms), n_columns = first.meta["val"].shape, value.shape[1]
        is_thin = n_rows <= GROUP or (n_rows <= MAX_ROWS and n_rows % GROUP == 0)
        width, group = LINE // value.element_size(), min(n_rows, GROUP)
        n_groups, missing = n_rows // group, -n_columns % width
        if value.device.type != "cpu" or not is_thin or n_terms * (n_columns + missing) > MAX_CONSTANT:
            continue
        call = caller(graph.graph)
        with graph.graph.inserting_before(node):
            padded = call(aten.constant_pad_nd.default, second, [0, missing])
            blocks = call(aten.permute.default, call(aten.view.default, padded, [n_terms, -1, width]), [1, 0, 2])
            blocks = call(aten.clone.default, blocks, memory_format=torch.contiguous_format)
            blocks = call(aten.unsqueeze.default, blocks, 1)
            rows, sums = call(aten.view.default, written(first, call), [n_groups, group, n_terms]), []
            for i in range(group):
                row = call(aten.view.default, call(aten.select.int, rows, 1, i), [1, n_groups, n_terms, 1])
                block_sums = call(aten.sum.dim_IntList, call(aten.mul.Tensor, row, blocks), [2])
                row_sums = call(aten.reshape.default, call(aten.permute.default, block_sums, [1, 0, 2]), [n_groups, -1])
                sums.append(call(aten.slice.Tensor, row_sums, 1, 0, n_columns))
            result = call(aten.view.default, call(aten.cat.default, sums, 1), [n_rows, n_columns])
        node.replace_all_uses_with(result)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def products_with_constants(graph: GraphModule, n_constants: int) -> list[Any]:
    """The products whose second factor is one of the last inputs, or that transposed."""
    constants = _last_inputs(graph, n_constants)
    found = []
    for node in graph.graph.find_nodes(op="call_function", target=aten.mm.default):
        second: Any = node.args[1]
        while second.target in (aten.permute.default, aten.t.default, aten.detach.default):
            second = second.args[0]
        if second in constants:
            found.append(node)
    return found


def lift_constants(graph: GraphModule, n_inputs: int) -> list[Tensor]:
    """Make the tensors that the graph holds its last inputs, and return them."""
    lifted: dict[int, Node] = {}
    constants: list[Tensor] = []
    nodes = list(graph.graph.nodes)
    last = nodes[n_inputs - 1] if n_inputs else None
    for node in nodes:
        if node.op != "get_attr":
            continue
        value = getattr(graph, node.target)
        if id(value) not in lifted:
            with graph.graph.inserting_after(last):
                last = graph.graph.placeholder(f"constant_{n_inputs + len(constants)}")
            last.meta = node.meta
            lifted[id(value)] = last
            constants.append(value)
        node.replace_all_uses_with(lifted[id(value)])
        graph.graph.erase_node(node)
    graph.recompile()
    return constants


def fold_constants(graph: GraphModule, constants: Sequence[Tensor]) -> None:
    """Compute now what is the same in every call: what depends on no value of an input, and views of constants.

    Such are the ones that a gradient begins with, and all that is multiplied with them; a matrix transposed. The
    constants' values may change, so that only views of them are the same.
    """
    computed: dict[Node, Tensor] = {}
    given = dict(zip(_last_inputs(graph, len(constants)), constants, strict=True))
    is_view: set[Node] = set(given)
    for node in _pure_operations(graph):
        value, inputs = node.meta["val"], node.all_input_nodes
        if node.target in FILLED:
            computed[node] = torch.full(value.shape, FILLED[node.target], dtype=value.dtype, device=value.device)
        elif any(source in is_view for source in inputs):
            if len(inputs) == 1 and node.target._schema.returns[0].alias_info is not None:  # type: ignore[union-attr]
                computed[node] = _evaluate(node, {**given, **computed})
                is_view.add(node)
        elif all(source in computed for source in inputs):
            computed[node] = _evaluate(node, computed)
        elif (same := _same_as(node, computed)) is not None:
            node.replace_all_uses_with(same)
    _replace(graph, computed, computed)


FILLED = {aten.ones_like.default: 1, aten.zeros_like.default: 0, aten.new_ones.default: 1, aten.new_zeros.default: 0}
"""What is made from a tensor's shape alone, and the number that it is filled with."""

NEUTRAL = {aten.add.Tensor: 0, aten.sub.Tensor: 0, aten.mul.Tensor: 1}


def _same_as(node: Node, computed: Mapping[Node, Tensor]) -> Node | None:
    """The argument that an operation hands on as it is: expanded to its own shape, plus zero, times one."""
    first, *others = node.args
    is_handed_on = node.target is aten.expand.default
    if node.target in NEUTRAL and len(others) == 1 and not node.kwargs:
        filled = computed.get(others[0])  # type: ignore[arg-type]
        is_handed_on = filled is not None and bool((filled == NEUTRAL[node.target]).all())
    if not is_handed_on or not isinstance(first, Node):
        return None
    before, after = first.meta["val"], node.meta["val"]
    return first if (before.shape, before.dtype) == (after.shape, after.dtype) else None


def fold_fixed_constants(graph: GraphModule, constants: Sequence[Tensor]) -> list[Tensor]:
    """Compute now what depends on constants alone, whose values stay; a matrix transposed is then one of its own.

    Returns:
        The constants of the new graph.
    """
    computed: dict[Node, Tensor] = dict(zip(_last_inputs(graph, len(constants)), constants, strict=True))
    n_inputs = sum(node.op == "placeholder" for node in graph.graph.nodes)
    depends = dict.fromkeys(computed)  # in order, for code is found again by the text of its graph
    for node in _pure_operations(graph):
        inputs = node.all_input_nodes
        if not all(source in computed for source in inputs):
            continue
        is_padded = node.target is aten.constant_pad_nd.default
        if not is_padded and node.meta["val"].numel() > max([FEW, *[computed[source].numel() for source in inputs]]):
            continue  # one that is expanded, which costs nothing, would be read from memory
        computed[node] = _evaluate(node, computed)
        if any(source in depends for source in inputs):
            depends[node] = None
    made: dict[Node, Tensor] = {}
    kept: list[tuple[Tensor, Node]] = []
    for node in depends:
        value = computed[node].contiguous()
        # a step transposes the same matrix in each of its gradients: once in memory, it stays in the caches
        same, first = next((other for other in kept if _are_same(value, other[0])), (value, node))
        if first is node:
            kept.append((value, node))
        if node.op != "placeholder" and first.op == "placeholder":
            node.replace_all_uses_with(first)
        elif node.op != "placeholder":
            made[node] = same
    _replace(graph, made, computed)
    return [*constants, *lift_constants(graph, n_inputs)]


def _are_same(first: Tensor, second: Tensor) -> bool:
    """Whether two contiguous tensors are alike, bit for bit."""
    look_same = (first.shape, first.dtype, first.device) == (second.shape, second.dtype, second.device)
    return look_same and torch.equal(first.reshape(-1).view(torch.uint8), second.reshape(-1).view(torch.uint8))


FEW = 1024  # elements of a tensor that is read as fast as computed


def _last_inputs(graph: GraphModule, n: int) -> list[Node]:
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    return inputs[len(inputs) - n :]


def _pure_operations(graph: GraphModule) -> Iterator[Node]:
    """Operations with one result that depends on their arguments alone; those that copy nothing are taken out."""
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if node.target is aten.detach.default:
            node.replace_all_uses_with(node.args[0])
            continue
        schema = node.target._schema
        is_random = torch.Tag.nondeterministic_seeded in node.target.tags
        if not schema.is_mutable and not is_random and isinstance(node.meta.get("val"), Tensor):
            yield node


def _replace(graph: GraphModule, made: Mapping[Node, Tensor], computed: Mapping[Node, Tensor]) -> None:
    """Hold those tensors in the graph that are used by what is not computed."""
    for i, (node, tensor) in enumerate(made.items()):
        if any(user not in computed for user in node.users):
            graph.register_buffer(f"computed_{i}", tensor)
            with graph.graph.inserting_before(node):
                held = graph.graph.get_attr(f"computed_{i}")
            held.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(held)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _evaluate(node: Node, values: dict[Node, Tensor]) -> Tensor:
    args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
    result: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
    return result


def mutates(node: Node) -> bool:
    """Whether an operation changes one of its arguments in place."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable
