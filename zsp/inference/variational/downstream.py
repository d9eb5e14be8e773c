r"""What lies downstream of a draw: the terms of log p and log q that it can change.

The score of a draw need only be multiplied by these: given the nodes that the draw was made from, the others are
constants, and a score times a constant has mean zero. A term of log q changes with the draws that its node's parameters
were computed from, directly or through other draws; a term of log p with its own value and the values that its node's
parameters were computed from. Both relations are found by following the values of one execution (:mod:`zsp.graph`).

Reference: Schulman et al. 2015, arXiv:1506.05254, theorem 1; Ranganath et al. 2014, arXiv:1401.0118, section 3.1.
"""

from __future__ import annotations

import functools
import types
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zsp.bayesian_net import BayesianNet
from zsp.execution import FIRST, can_read_values, checked
from zsp.node import Node
from zsp.variables import FunctionModule

__all__ = ["Dependencies", "Downstream", "Parents", "changed_by", "find_parents", "parents_in_order"]

Parents = Mapping[str, frozenset[str]]
"""Node name -> the names of the nodes that its parameters were computed from, in order of declaration."""


class Downstream(NamedTuple):
    """What changes with a draw.

    Attributes:
        latents: the nodes of the variational net that change with it, itself included.
        values: the nodes of the model whose values change with it.
        conditionals: the nodes of the model whose parameters change with it.
    """

    latents: frozenset[str]
    values: frozenset[str]
    conditionals: frozenset[str]


def changed_by(
    name: str, in_variational: Parents, in_model: Parents, latents: frozenset[str], data: frozenset[str]
) -> Downstream:
    """What changes with the draw of ``name``, a node of the variational net or one that the model draws itself.

    Args:
        name: the node.
        in_variational: the variational net's nodes and their parents.
        in_model: the model's.
        latents: the stochastic nodes of the variational net, whose values the model was given.
        data: the observed nodes of the model, whose values do not change.
    """
    moved = {name} if name in latents else set()
    for child, parents in in_variational.items():
        if not moved.isdisjoint(parents):
            moved.add(child)
    # a latent that is no node of the model is one of its inputs: nobody knows where it goes
    everywhere = not (moved & latents).issubset(in_model)
    values: set[str] = set()
    conditionals: set[str] = set()
    for child, parents in in_model.items():
        is_conditional = everywhere or not values.isdisjoint(parents)
        if is_conditional:
            conditionals.add(child)
        if child in latents or child in data:
            is_moved = child in moved and child in latents
        else:  # deterministic, or drawn by the model
            is_moved = child == name or is_conditional
        if is_moved:
            values.add(child)
    return Downstream(frozenset(moved), frozenset(values), frozenset(conditionals))


class Dependencies:
    """The dependencies of an executed model and an executed variational net on each other.

    Args:
        meta_bn: the model; a callable has no nodes.
        bn: its execution; None for a callable.
        variational: the executed variational net, whose draws the model was given.
        observed: the other values that the model was given.

    Attributes:
        in_model: the model's nodes and their parents; empty for a callable.
    """

    def __init__(
        self, meta_bn: Any, bn: BayesianNet | None, variational: BayesianNet, observed: Mapping[str, Any]
    ) -> None:
        rerun = variational._rerun
        self._latents = frozenset([node.name for node in variational._stochastic_nodes()])
        self._in_variational = find_parents(variational, None if rerun is None else lambda: rerun({}))
        self.in_model: Parents = {}
        self._data: frozenset[str] = frozenset()
        if bn is None:
            return
        nodes = bn._stochastic_nodes()
        self._data = frozenset([n.name for n in nodes if n.is_observed and n.name not in self._latents])

        def execute_model_again() -> BayesianNet:
            latents = {node.name: node.value for node in variational._stochastic_nodes()}
            return meta_bn._execute(
                {**observed, **latents},
                sample_shape=bn._sample_shape,
                with_samples=bn._with_samples,
                excluded=bn._excluded,
                latents=latents,
            )

        self.in_model = find_parents(bn, execute_model_again)

    def changed_by(self, name: str) -> Downstream:
        """What changes with the draw of ``name``."""
        return changed_by(name, self._in_variational, self.in_model, self._latents, self._data)

    def prior_depends_on(self, name: str) -> bool:
        """Whether what the prior of a latent is conditioned on changes with the latent itself."""
        return name in self.changed_by(name).conditionals


def find_parents(bn: BayesianNet, execute_again: Callable[[], BayesianNet] | None) -> Parents:
    """Which nodes each node's parameters were computed from.

    Found by executing the net once more, with the same names and shapes, and following its values. What was found is
    kept with the net's function, and united for all shapes that were met, so that a step costs a look-up. The order
    of declaration is used instead (every node counts as computed from all before it: never wrong, but more variance)
    where that is not possible: for a net made outside a decorated function, one that branches on values, so that the
    next execution may differ, and in compiled or transformed code before the first eager execution.

    Args:
        bn: the executed net.
        execute_again: gives another execution with the same values; None where there is no way to.
    """
    module = _module_of(bn)
    if module is None or execute_again is None:
        return parents_in_order(bn)
    names = tuple(bn._nodes)
    known = module._known_dependencies.get(names)
    if can_read_values():
        shapes = _shapes(bn)
        if known is None or bn._checks == FIRST or shapes not in known.shapes:
            known = _trace(bn, module, execute_again).united(known, shapes)
            module._known_dependencies[names] = known
    return parents_in_order(bn) if known is None else known.parents


def parents_in_order(bn: BayesianNet) -> Parents:
    """Every node counted as computed from all that were declared before it."""
    names = list(bn._nodes)
    return {name: frozenset(names[:i]) for i, name in enumerate(names)}


def _module_of(bn: BayesianNet) -> FunctionModule | None:
    """The module whose function declared the net."""
    rerun = bn._rerun  # a partial of its method; spelled so that torch.compile can follow
    if isinstance(rerun, functools.partial) and isinstance(rerun.func, types.MethodType):
        module = rerun.func.__self__
        return module if isinstance(module, FunctionModule) else None
    return None


class _Known(NamedTuple):
    """What is known of the nets of one module whose nodes have the same names."""

    parents: dict[str, frozenset[str]]
    shapes: frozenset[Any]

    def united(self, other: _Known | None, shapes: Any) -> _Known:
        before = {} if other is None else other.parents
        parents = {name: found | before.get(name, frozenset()) for name, found in self.parents.items()}
        return _Known(parents, frozenset((shapes,)) | (frozenset() if other is None else other.shapes))


def _shapes(bn: BayesianNet) -> tuple[Any, ...]:
    values = (node.value if isinstance(node, Node) else node for node in bn._nodes.values())
    return tuple([value.shape if isinstance(value, Tensor) else None for value in values])


def _trace(bn: BayesianNet, module: FunctionModule, execute_again: Callable[[], BayesianNet]) -> _Known:
    from zsp.graph.dependencies import unchanged
    from zsp.graph.tracing import Tracer

    tracer = Tracer(follows_indices=False)
    try:
        with unchanged(module), torch.no_grad(), checked():
            again = tracer.run(execute_again)
    except Exception as error:
        warnings.warn(
            f"the dependencies of {module.scope!r} could not be followed ({type(error).__name__}: {error}); every node "
            "counts as computed from all that were declared before it, which costs variance, not correctness.",
            stacklevel=2,
        )
        return _Known(dict(parents_in_order(bn)), frozenset())
    if tracer.has_read_values or tuple(again._nodes) != tuple(bn._nodes):
        return _Known(dict(parents_in_order(bn)), frozenset())
    found = tracer.parents(again)
    return _Known({name: frozenset(parents) for name, parents in found.items()}, frozenset())
