"""A rewrite of traced graphs: what is computed for many rows, from a product to the next one, with them side by side.

The gradient of a regression for many chains is a product of their positions with a matrix that is fixed, functions of
each number, and a product with the same matrix. With a row for each chain the second product adds up numbers that lie
side by side in a vector of the processor, which is slow. With the axis of rows last, a vector holds the same number of
several chains: both products multiply whole vectors with one number of the matrix, and add to whole vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from zsp.inference.compilation.graph_rewrites import caller, fill_vectors, products_with_constants, written

__all__ = ["put_rows_last"]

aten = torch.ops.aten


def put_rows_last(graph: GraphModule, n_constants: int) -> set[Node]:
    """Move the axis of rows to the end, from wide products of rows with one of the last inputs on.

    As far as what follows is a function of each number, a reduction over other axes, a view of them, or a product with
    one of the last inputs: behind that, the axis is put back.

    Returns:
        The products with rows last.
    """
    products = set(products_with_constants(graph, n_constants))
    turning = _Turning(graph.graph)
    for node in list(graph.graph.nodes):
        with graph.graph.inserting_before(node):
            if node in products:
                turning.multiply(node)
            elif node.op == "call_function":
                turning.follow(node)
    turning.put_back()
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return {turning.turned[node] for node in products if node in turning.turned}


class _Turning:
    """The nodes that are computed with their first axis, that of the rows, as the last one: they are turned.

    Attributes:
        turned: node -> what takes its place, with the axis of rows last.
    """

    def __init__(self, graph: Graph) -> None:
        self.turned: dict[Node, Node] = {}
        self._call: Callable[..., Node] = caller(graph)
        self._lightness: dict[tuple[Node, int], bool] = {}
        self._beside: dict[tuple[Node, int], Node] = {}

    def multiply(self, node: Node) -> None:
        """A product of rows with a matrix; the first one of wide ones begins."""
        first: Any = node.args[0]
        second: Any = node.args[1]
        rows, columns = node.meta["val"].shape
        if first in self.turned:
            right = self.turned[first]
        elif fill_vectors(rows) and rows < columns and node.meta["val"].device.type == "cpu":
            right = written(self._call(aten.permute.default, first, [1, 0]), self._call)
        else:
            return
        left = self._call(aten.permute.default, second, [1, 0])
        self.turned[node] = self._call(aten.mm.default, left, right)

    def follow(self, node: Node) -> None:
        """An operation on what is turned, if it can be."""
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or not any(source in self.turned for source in node.all_input_nodes):
            return
        if _is_pointwise(node):
            if value.ndim > 1 and all(self._is_like(source, value.ndim) for source in node.all_input_nodes):
                arguments, options = map_arg((node.args, node.kwargs), lambda source: self._aligned(source, value.ndim))
                self.turned[node] = self._call(node.target, *arguments, **options)
            return
        source: Any = node.args[0]
        before = source.meta["val"]
        if source not in self.turned or node.kwargs or node.all_input_nodes != [source]:
            return
        turned = self.turned[source]
        if node.target is aten.expand.default and value.shape == before.shape:
            self.turned[node] = turned
        elif node.target is aten.view.default and value.shape[0] == before.shape[0] and _is_dense(turned):
            self.turned[node] = self._call(aten.view.default, turned, [*value.shape[1:], value.shape[0]])
        elif node.target is aten.as_strided.default and _is_same(node) and _is_dense(turned):
            # see `written`
            dense = turned.meta["val"]
            self.turned[node] = self._call(aten.as_strided.default, turned, list(dense.shape), list(dense.stride()))
        elif node.target in (aten.sum.dim_IntList, aten.prod.dim_int):
            axes, *keepdim = node.args[1:]
            numbers = [axis % before.ndim - 1 for axis in (axes if isinstance(axes, list | tuple) else [axes])]
            if -1 in numbers:
                return
            axes = numbers if isinstance(axes, list | tuple) else numbers[0]
            result = self._call(node.target, turned, axes, *keepdim)
            if result.meta["val"].ndim > 1:
                self.turned[node] = result
            else:
                node.replace_all_uses_with(result)

    def put_back(self) -> None:
        """Give every other use the rows where they were, in memory: else those uses would be computed row by row."""
        for node, turned in self.turned.items():
            axes = range(turned.meta["val"].ndim)
            with turned.graph.inserting_before(node):
                before = written(self._call(aten.permute.default, turned, [axes[-1], *axes[:-1]]), self._call)
            node.replace_all_uses_with(before)

    def _is_like(self, node: Node, ndim: int) -> bool:
        """Whether a value can be had with its rows last, for what has so many axes, without moving many numbers."""
        return node.meta["val"].ndim == ndim if node in self.turned else self._is_light(node, ndim)

    def _is_light(self, node: Node, ndim: int) -> bool:
        """Whether a value has no more numbers than rows, or only repeats such ones, or is a function of such ones."""
        if (node, ndim) not in self._lightness:
            value = node.meta["val"]
            if value.ndim < ndim or value.shape[0] == 1 or value.numel() == value.shape[0]:
                is_light = value.ndim <= ndim
            else:
                is_light = (_is_pointwise(node) or node.target is aten.expand.default) and all(
                    self._is_light(source, ndim) for source in node.all_input_nodes
                )
            self._lightness[node, ndim] = is_light
        return self._lightness[node, ndim]

    def _aligned(self, node: Node, ndim: int) -> Node:
        """A value, to be broadcast with what has so many axes and is turned."""
        if node in self.turned:
            return self.turned[node]
        if (node, ndim) not in self._beside:
            self._beside[node, ndim] = self._align(node, ndim)
        return self._beside[node, ndim]

    def _align(self, node: Node, ndim: int) -> Node:
        value = node.meta["val"]
        if value.ndim == 0:
            return node
        if value.ndim == ndim and value.shape[0] > 1 and value.numel() > value.shape[0]:
            if node.target is aten.expand.default:
                return self._aligned(node.all_input_nodes[0], ndim)
            arguments, options = map_arg((node.args, node.kwargs), lambda source: self._aligned(source, ndim))
            return self._call(node.target, *arguments, **options)
        if value.ndim < ndim:
            node = self._call(aten.view.default, node, [1] * (ndim - value.ndim) + list(value.shape))
        return self._call(aten.permute.default, node, [*range(1, ndim), 0])


def _is_pointwise(node: Node) -> bool:
    return torch.Tag.pointwise in getattr(node.target, "tags", ())


def _is_dense(node: Node) -> bool:
    return bool(node.meta["val"].is_contiguous())


def _is_same(node: Node) -> bool:
    """Whether ``as_strided`` gives a tensor the shape and the strides that it has."""
    source, shape, strides = node.args[:3]
    value = source.meta["val"]  # type: ignore[union-attr]
    return len(node.args) == 3 and (list(value.shape), list(value.stride())) == (list(shape), list(strides))  # type: ignore[arg-type]
