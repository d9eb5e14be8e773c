r"""The dependency graph of a net: which nodes' values each node's parameters were really computed from.

.. math:: p(x_1, \dots, x_n) = \prod_i p(x_i \mid x_{\mathrm{parents}(i)})

::

    graph = model.graph(y=y)                  # a networkx.DiGraph, so that all of networkx works on it
    zsp.graph.is_d_separated(graph, "mu", "y", given=["theta"])
    zsp.graph.draw(graph, "eight_schools.svg")

The graph is found by executing the net once and following the values (:mod:`zsp.graph.tracing`), not by reading the
source: it is the graph of what this execution did. Edges are direct: from a node to those whose parameters (or tensor,
for a deterministic node) were computed from its value without passing through another named node. Where a value leaves
torch (``.item()``, ``float``, a branch, numpy), everything declared afterwards depends on it.

Attributes of a node of the graph: ``kind`` (``"stochastic"`` or ``"deterministic"``), ``distribution`` (the node
method's name), ``shape`` (None where there is no value), ``sample_shape``, ``batch_shape`` and ``event_shape`` (for a
deterministic node all axes after the sample axes are its batch), ``group_ndims``, ``is_observed`` and ``order`` (0 for
the first one declared). ``graph.graph["plates"]`` lists the repeated axes, see :func:`find_plates`.

Separation, blankets and orders are those of the plain directed graph: a deterministic node counts as any other node,
so that ``is_d_separated`` may miss independences that hold only because a node is a function of its parents
(D-separation of Geiger, Verma & Pearl 1990), and never reports one that does not hold.
"""

from zsp.graph.dependencies import (
    Plate,
    ancestors,
    dependency_graph,
    descendants,
    draw,
    factorization,
    find_plates,
    is_d_separated,
    markov_blanket,
    to_dot,
    topological_order,
)

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
]
