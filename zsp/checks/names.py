"""Mistakes in names: of nodes, observations, latents, inputs and arguments."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor

from zsp.checks.wording import net_name, quoted, suggestion
from zsp.distributions.node_type import NodeType

if TYPE_CHECKING:
    from zsp.bayesian_net import BayesianNet

__all__ = [
    "NodeError",
    "duplicate_name",
    "forgotten_latents",
    "input_and_node",
    "no_stochastic_nodes",
    "unknown_argument",
    "unknown_node",
    "unknown_observations",
]


class NodeError(KeyError):
    """A name that is no node of the net; its text reads like any other message (a KeyError quotes its own)."""

    def __str__(self) -> str:
        return str(self.args[0])


def duplicate_name(bn: BayesianNet, name: str) -> ValueError:
    """A second node of the same name."""
    return ValueError(
        f"{net_name(bn)} already has a node {name!r}, and node names are unique. Rename one of the two; "
        f"in a loop, number them: f'{name}{{i}}'."
    )


def unknown_node(bn: BayesianNet, name: str, *, only_stochastic: bool = False) -> NodeError:
    """Reading a node that is not there."""
    if name in bn._nodes:
        return NodeError(
            f"node {name!r} of {net_name(bn)} is deterministic: it has a value, but no distribution and no log "
            "probability."
        )
    known = [n for n in bn._nodes if not only_stochastic or not isinstance(bn._nodes[n], Tensor)]
    what = "stochastic node" if only_stochastic else "node"
    return NodeError(
        f"{net_name(bn)} has no {what} {name!r}; it has {quoted(known)}.{suggestion(str(name), known)}"
    )  # fmt: skip


def unknown_argument(row: NodeType, name: str, argument: str) -> TypeError:
    """A keyword that the node method does not have."""
    known = [*row.arguments, *sorted(row.options)]
    return TypeError(
        f"bn.{row.name}({name!r}, ...) has no argument {argument!r}; it takes {', '.join(row.arguments)} and the "
        f"options {', '.join(sorted(row.options))}.{suggestion(argument, known)}"
    )


def unknown_observations(bn: BayesianNet, inputs: Iterable[str], latents: Iterable[str] = ()) -> ValueError:
    """Given values that no stochastic node took."""
    stochastic = [node.name for node in bn._stochastic_nodes()]
    unknown = [name for name in bn._observed if name not in stochastic]
    deterministic = [name for name in unknown if name in bn._nodes]
    if deterministic:
        return ValueError(
            f"{quoted(deterministic)} cannot be observed: in {net_name(bn)} it is a deterministic node, a function of "
            f"the others. Observe stochastic nodes: {quoted(stochastic)}."
        )
    variational = [name for name in unknown if name in latents]
    if variational:
        return ValueError(
            f"the variational net has {quoted(variational)}, but {net_name(bn)} has no such node; its stochastic nodes "
            f"are {quoted(stochastic)}.{suggestion(variational[0], stochastic)} Every variational node needs a node of "
            "the same name in the model: rename it, or remove it."
        )
    known = [*stochastic, *inputs]
    takes = f" and its inputs {quoted(inputs)}" if list(inputs) else ""
    return ValueError(
        f"observations were given for {quoted(unknown)}, but {net_name(bn)} has no such node; its stochastic nodes are "
        f"{quoted(stochastic)}{takes}.{suggestion(unknown[0], known)}"
    )


def forgotten_latents(bn: BayesianNet, names: list[str], variational: Iterable[str]) -> ValueError:
    """Latents of the model that are neither observed nor in the variational net."""
    return ValueError(
        f"the latent {quoted(names)} of {net_name(bn)} is neither observed nor in the variational net (which has "
        f"{quoted(variational)}). Give it a variational node of that name, observe it, or, if it should be drawn from "
        f"the model itself, name it in from_prior=({names[0]!r},)."
    )


def no_stochastic_nodes(bn: BayesianNet) -> ValueError:
    """The log joint of a net without stochastic nodes."""
    return ValueError(
        f"{net_name(bn)} has no stochastic node that its log joint could sum over (its nodes: {quoted(bn._nodes)})."
    )


def input_and_node(owner: str, name: str) -> ValueError:
    """A name that is both a parameter of the model function and a node."""
    return ValueError(
        f"{name!r} is both a parameter of the model function {owner!r} and the name of a node in it, so that a mapping "
        f"with the key {name!r} would be ambiguous: keys that name parameters rebind inputs, the others observe nodes. "
        "Rename one of the two."
    )
