"""The dependency graph of a net, questions to it, its formula; see :mod:`zsp.graph`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zsp import checks
from zsp.bayesian_net import BayesianNet
from zsp.checks.wording import quoted, suggestion
from zsp.graph.symbols import latex_symbol
from zsp.graph.tracing import Tracer
from zsp.node import Node

if TYPE_CHECKING:
    import networkx

    from zsp.graph.drawing import Picture
    from zsp.meta_bayesian_net import MetaBayesianNet

__all__ = [
    "Plate",
    "ancestors",
    "dependency_graph",
    "descendants",
    "draw",
    "factorization",
    "find_plates",
    "is_d_separated",
    "markov_blanket",
    "to_dot",
    "topological_order",
    "unchanged",
]


@dataclass(frozen=True)
class Plate:
    """A repeated axis: its size and the nodes that have it; several sizes for axes that the same nodes have."""

    sizes: tuple[int, ...]
    nodes: tuple[str, ...]

    @property
    def label(self) -> str:
        """The size as it is written in the plate's corner."""
        return " × ".join(map(str, self.sizes))


def dependency_graph(model: MetaBayesianNet, values: Mapping[str, Any] | None = None) -> networkx.DiGraph:
    """Execute a model once and say which node was computed from which; what ``model.graph(**values)`` calls.

    The random state and the buffers of modules, such as batch norm's, are as before afterwards.

    Args:
        model: the model.
        values: node or input name -> value, as ``observe`` takes them.

    Returns:
        The graph, with nodes in order of declaration.

    Raises:
        ValueError: as for ``observe``, and if the value of a node that has no draws is needed but not given.
    """
    import networkx

    view = model.bind()  # of its own record of checked shapes: only checked nets report to a tracer
    tracer = Tracer()
    with unchanged(model):
        bn = tracer.run(lambda: view._execute(values or {}))
    graph = networkx.DiGraph(name=model.scope)
    for order, (name, node) in enumerate(bn._nodes.items()):
        graph.add_node(name, **_attributes(node), order=order)
    for child, parents in tracer.parents(bn).items():
        graph.add_edges_from((parent, child) for parent in parents)
    _split_shapes(graph, bn)
    graph.graph["plates"] = find_plates(graph)
    return graph


def find_plates(graph: networkx.DiGraph) -> list[Plate]:
    """The repeated axes of a model, from the nodes' shapes.

    Two nodes share an axis if it stands at the same place of their batch shapes, counted from the first axis after the
    sample axes, and has the same size, more than 1, in both; axes that ``group_ndims`` sums count as well. An axis that
    at least two stochastic nodes share is a plate, and so are the axes of a stochastic node that shares none; a
    deterministic node is in the plate if it has the axis. Axes of the same nodes are one plate. Shapes cannot tell a
    coincidence: two different axes of equal size at the same place count as one. (Edit ``graph.graph["plates"]`` to
    draw others.)

    Args:
        graph: made by ``model.graph(...)``.

    Returns:
        The plates, an outer one before those inside it.
    """
    having: dict[tuple[int, int], list[str]] = {}
    for name, node in graph.nodes(data=True):
        for place, size in enumerate(node["batch_shape"]):
            if size > 1:
                having.setdefault((place, size), []).append(name)
    stochastic = {
        axis: [name for name in names if graph.nodes[name]["kind"] == "stochastic"] for axis, names in having.items()
    }
    in_shared = {name for names in stochastic.values() if len(names) > 1 for name in names}
    sizes: dict[tuple[str, ...], tuple[int, ...]] = {}
    for axis in sorted(having, key=lambda axis: (axis[0], -len(having[axis]))):
        owners = stochastic[axis]
        if len(owners) > 1 or (owners and owners[0] not in in_shared):
            nodes = tuple(having[axis])
            sizes[nodes] = (*sizes.get(nodes, ()), axis[1])
    return [Plate(size, nodes) for nodes, size in sizes.items()]


# -- questions to a graph ---------------------------------------------------------------------------------------------


def ancestors(graph: networkx.DiGraph, name: str) -> list[str]:
    """The nodes that ``name`` depends on, directly or not, in order of declaration."""
    import networkx

    return _ordered(graph, networkx.ancestors(graph, _known(graph, name)))


def descendants(graph: networkx.DiGraph, name: str) -> list[str]:
    """The nodes that depend on ``name``, directly or not, in order of declaration."""
    import networkx

    return _ordered(graph, networkx.descendants(graph, _known(graph, name)))


def markov_blanket(graph: networkx.DiGraph, name: str) -> list[str]:
    """Parents, children and the children's other parents: given them, ``name`` is independent of everything else."""
    import networkx

    return _ordered(graph, networkx.moral_graph(graph).neighbors(_known(graph, name)))


def is_d_separated(
    graph: networkx.DiGraph, first: str | Iterable[str], second: str | Iterable[str], *, given: str | Iterable[str] = ()
) -> bool:
    """Whether every path between two sets of nodes is blocked by ``given``, so that they are independent given it.

    Args:
        graph: made by ``model.graph(...)``.
        first: a name, or several.
        second: a name, or several.
        given: a name, or several; which nodes were observed in the execution does not matter here.

    Returns:
        True if they are d-separated, deterministic nodes counting as any other (see the top of this module).

    Raises:
        ValueError: if a node is in two of the three sets.

    Reference: Pearl 2009, Causality, 2nd edition, section 1.2.3.
    """
    import networkx

    sets = [
        {_known(graph, name) for name in ((names,) if isinstance(names, str) else names)}
        for names in (first, second, given)
    ]
    both = (sets[0] & sets[1]) | (sets[0] & sets[2]) | (sets[1] & sets[2])
    if both:
        name = _ordered(graph, both)[0]
        raise ValueError(f"d-separation is about three disjoint sets of nodes, but {name!r} is in two of them.")
    return bool(networkx.is_d_separator(graph, *sets))


def topological_order(graph: networkx.DiGraph) -> list[str]:
    """All nodes, parents before children; among those that could come next, the first one declared."""
    import networkx

    return list(networkx.lexicographical_topological_sort(graph, key=lambda name: graph.nodes[name]["order"]))


def factorization(graph: networkx.DiGraph, *, latex: bool = False) -> str:
    r"""The joint density as a product of conditionals, for example ``p(z, x) = p(z) p(x | z)``.

    A deterministic node has no density of its own: it may stand behind a bar, and its definition follows::

        p(w, y) = p(w) p(y | y_mean), y_mean = f(w)

    Args:
        graph: made by ``model.graph(...)``.
        latex: LaTeX instead of plain text, with Greek names as letters.

    Returns:
        The formula.
    """
    write = latex_symbol if latex else str
    bar = r" \mid " if latex else " | "

    def listed(names: Iterable[str]) -> str:
        return ", ".join(write(name) for name in names)

    factors, definitions = [], []
    names = topological_order(graph)
    stochastic = [name for name in names if graph.nodes[name]["kind"] == "stochastic"]
    for name in names:
        parents = _ordered(graph, graph.predecessors(name))
        if name in stochastic:
            factors.append(f"p({write(name)}{bar + listed(parents) if parents else ''})")
        else:
            constant = r"\text{constant}" if latex else "constant"
            definitions.append(f"{write(name)} = {f'f({listed(parents)})' if parents else constant}")
    product = (r" \, " if latex else " ").join(factors) or "1"
    joint = f"p({listed(stochastic)}) = {product}"
    return (r", \quad " if latex else ", ").join([joint, *definitions])


def to_dot(graph: networkx.DiGraph) -> str:
    """The graph in Graphviz's DOT language, for its own programs; plates that lie in each other become clusters.

    Args:
        graph: made by ``model.graph(...)``.

    Returns:
        The text of a ``.gv`` file.
    """
    from zsp.graph.layout import plate_tree

    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    lines = ["digraph {"]

    def write_plate(plate: Any, indent: str) -> None:
        for name in plate.own:
            node = graph.nodes[name]
            shape = "ellipse" if node["kind"] == "stochastic" else "diamond"
            filled = ", style=filled, fillcolor=lightgrey" if node["is_observed"] else ""
            lines.append(f"{indent}{quoted(name)} [shape={shape}{filled}];")
        for inner in plate.children:
            lines.append(f"{indent}subgraph {quoted(f'cluster_{len(lines)}')} {{")
            lines.append(f"{indent}  label={quoted(inner.label)}; labeljust=r; labelloc=b; style=rounded;")
            write_plate(inner, indent + "  ")
            lines.append(f"{indent}}}")

    write_plate(plate_tree(list(graph), graph.graph.get("plates", [])), "  ")
    lines += [f"  {quoted(parent)} -> {quoted(child)};" for parent, child in graph.edges]
    return "\n".join([*lines, "}"]) + "\n"


def draw(graph: networkx.DiGraph, path: str | Path | None = None) -> Picture:
    """Draw the graph as textbooks do: observed nodes shaded, deterministic ones as diamonds, repeated axes as plates.

    Needs no Graphviz (for a drawing by it see :func:`to_dot`). In a notebook the result shows itself.

    Args:
        graph: made by ``model.graph(...)``.
        path: where to write the picture, ending in ``.svg`` or ``.png`` (which needs matplotlib); None only returns it.

    Returns:
        The picture, with ``.svg()`` and ``.save(path)``.

    Raises:
        ValueError: for another ending.
    """
    from zsp.graph.drawing import Picture
    from zsp.graph.layout import lay_out

    picture = Picture(lay_out(graph))
    if path is not None:
        picture.save(path)
    return picture


# -- from a net to a graph --------------------------------------------------------------------------------------------


def _attributes(node: Node | Tensor) -> dict[str, Any]:
    value = node.value if isinstance(node, Node) else node
    shape = tuple(value.shape) if isinstance(value, Tensor) else None
    if isinstance(node, Node):
        return {
            "kind": "stochastic",
            "distribution": node.kind,
            "is_observed": node.is_observed,
            "group_ndims": node.group_ndims,
            "shape": shape,
        }
    return {"kind": "deterministic", "distribution": None, "is_observed": False, "group_ndims": 0, "shape": shape}


def _split_shapes(graph: networkx.DiGraph, bn: BayesianNet) -> None:
    """Split each node's shape into sample, batch and event axes; parents come before children."""
    sample = tuple(bn._sample_axes())
    has_sample: dict[str, bool] = {}
    for name, node in bn._nodes.items():
        event: tuple[int, ...] = ()
        own = False
        if isinstance(node, Node):
            event, own = tuple(node.dist.event_shape), node.with_samples
            batch = tuple(node.dist.batch_shape)
            if isinstance(node.value, Tensor):
                batch = tuple(torch.broadcast_shapes(node.value.shape[: node.value.dim() - len(event)], batch))
        else:
            batch = tuple(node.shape) if isinstance(node, Tensor) else ()
        inherited = any(has_sample[parent] for parent in graph.predecessors(name))
        has_sample[name] = bool(sample) and (own or inherited) and batch[: len(sample)] == sample
        n = len(sample) if has_sample[name] else 0
        graph.nodes[name].update(sample_shape=batch[:n], batch_shape=batch[n:], event_shape=event)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Restore the random state and the buffers of modules inside the model."""
    buffers = [
        (buffer, buffer.clone())
        for module in _inner_modules(model)
        for buffer in module._buffers.values()
        if buffer is not None
    ]
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        with torch.no_grad():
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


def _inner_modules(model: nn.Module) -> Iterator[nn.Module]:
    # not model.modules(), which stands for handing the parameters to somebody
    for module in model._modules.values():
        if module is not None:
            yield module
            yield from _inner_modules(module)


def _known(graph: networkx.DiGraph, name: str) -> str:
    if name not in graph:
        close = suggestion(str(name), graph)
        raise checks.NodeError(f"the graph has no node {name!r}; it has {quoted(graph)}.{close}")
    return name


def _ordered(graph: networkx.DiGraph, names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: graph.nodes[name]["order"])
