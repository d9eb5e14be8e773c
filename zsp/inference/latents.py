"""The latents of a net: which nodes a routine samples, their shapes and supports, and which it must refuse."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

from zsp import checks
from zsp.bayesian_net import BayesianNet
from zsp.checks.wording import dtype_name, net_name, quoted, suggestion
from zsp.distributions import Empirical, Implicit
from zsp.distributions.supports import Point
from zsp.inference.bijectors import Bijector, NoBijectorError, bijector_of
from zsp.meta_bayesian_net import MetaBayesianNet
from zsp.node import LateValue, Node, UnavailableError

__all__ = ["Latent", "latents_of_callable", "latents_of_net"]


@dataclass(frozen=True)
class Latent:
    """A continuous unobserved variable.

    Attributes:
        name: of the node.
        shape: of its value.
        unconstrained_shape: of its value in the unconstrained space.
        bijector: from there onto the support that it had when it was looked at.
        dtype: of its value.
        device: of its value.
    """

    name: str
    shape: torch.Size
    unconstrained_shape: torch.Size
    bijector: Bijector
    dtype: torch.dtype
    device: torch.device

    @property
    def size(self) -> int:
        """How many unconstrained numbers it is."""
        return self.unconstrained_shape.numel()


def latents_of_net(
    meta_bn: MetaBayesianNet,
    observed: Mapping[str, Any],
    names: Iterable[str] | None,
    summed_out: Collection[str] = (),
) -> list[Latent]:
    """The net's unobserved stochastic nodes, in order of declaration.

    Args:
        meta_bn: the net; executed once with draws from the prior (more often where a node has no draws).
        observed: observed values and inputs.
        names: those to sample, which must be all of them; None asks for all.
        summed_out: names of discrete nodes that are not to be sampled.

    Raises:
        ValueError: if there are none, the names do not fit, or one of them cannot be sampled.
    """
    if isinstance(names, str):
        raise TypeError(f"latents must be a list of names, but got the string {names!r}; write [{names!r}].")
    stand_ins: dict[str, _StandIn] = {}
    while True:
        try:
            bn = meta_bn._execute({**observed, **stand_ins})
            break
        except UnavailableError as error:  # the value of a node without draws was needed
            if error.node in stand_ins:
                raise
            stand_ins[error.node] = _StandIn(error.node, *_dtype_and_device(meta_bn, observed))
    unobserved = [node for node in bn._stochastic_nodes() if not node.is_observed or node.name in stand_ins]
    nodes = [node for node in unobserved if node.name not in summed_out]
    if not nodes:
        raise ValueError(
            f"{net_name(bn)} has no latent to sample: all its stochastic nodes "
            f"({quoted(node.name for node in bn._stochastic_nodes())}) are observed. Leave those to be sampled out of "
            "the observed values."
        )
    if names is not None:
        _check_names(bn, list(names), nodes)
    for node in nodes:
        _require_plain(bn, node)
        if not isinstance(node.value, Tensor):  # a node without draws that no other node used
            node.value = _StandIn(node.name, *_dtype_and_device(meta_bn, observed)).value_of(node.dist)
    latents = [_latent(node.name, node.value, bijector_for(node.name, node.kind, node.dist)) for node in nodes]
    if summed_out and not all([latent.bijector.is_fixed for latent in latents]):
        _require_supports_apart(meta_bn, observed, bn, latents)
    return latents


def _require_supports_apart(
    meta_bn: MetaBayesianNet, observed: Mapping[str, Any], bn: BayesianNet, latents: list[Latent]
) -> None:
    """No support depends on another latent: where some are summed out, there is no one execution to take it from."""
    from zsp.graph import ancestors

    values = {node.name: node.value for node in bn._stochastic_nodes()}
    graph = meta_bn.graph(**{**observed, **values})
    for latent in latents:
        parents = [name for name in ancestors(graph, latent.name) if name in values and name not in observed]
        if parents and not latent.bijector.is_fixed:
            raise ValueError(
                f"the support of {latent.name!r} may depend on {quoted(parents)}, which is not possible where other "
                f"latents are summed out. Give {latent.name!r} a fixed support, and scale it where it is used."
            )


def latents_of_callable(
    latents: Any, supports: Mapping[str, Constraint] | None, observed: Mapping[str, Any]
) -> list[Latent]:
    """The latents of a log joint that is a plain function, from example tensors and supports.

    Raises:
        TypeError: if the latents are no mapping to floating-point tensors.
        ValueError: if names do not fit, or a support cannot be transformed to or does not fit its tensor.
    """
    if not isinstance(latents, Mapping):
        raise TypeError(
            "a callable does not tell which latents it has: give latents={name: example tensor of one chain's shape}, "
            f"but got {latents!r}."
        )
    supports = supports or {}
    unknown = [name for name in supports if name not in latents]
    if unknown:
        raise ValueError(
            f"supports names {quoted(unknown)}, but the latents are {quoted(latents)}.{suggestion(unknown[0], latents)}"
        )
    both = [name for name in latents if name in observed]
    if both:
        raise ValueError(f"{quoted(both)} is both observed and a latent: remove it from one of the two.")
    if not latents:
        raise ValueError("latents is empty: there is nothing to sample.")
    found = []
    for name, example in latents.items():
        example = torch.as_tensor(example)
        if not example.is_floating_point():
            raise TypeError(
                f"the example of latent {name!r} has dtype {dtype_name(example.dtype)}, but only floating-point "
                "latents can be sampled. Give a floating-point tensor, or sum a discrete latent out."
            )
        support = supports.get(name, torch.distributions.constraints.real)
        if example.dim() < support.event_dim:
            raise ValueError(
                f"the support {support!r} of latent {name!r} needs at least {support.event_dim} axes, but its example "
                f"has shape {list(example.shape)}."
            )
        if support.is_discrete:
            raise _discrete(name, repr(support))
        found.append(_latent(name, example, _known_bijector(name, support)))
    return found


def bijector_for(name: str, kind: str, dist: Distribution) -> Bijector:
    """The bijector onto the support of a node, or an error that says why it cannot be sampled.

    Raises:
        ValueError: if the distribution has no density, no known support or a discrete one.
    """
    if isinstance(dist, (Implicit, Empirical)) or not getattr(dist, "has_log_prob", True):
        raise ValueError(
            f"the latent {name!r} ({kind}) is known through samples only and has no density that could be sampled. "
            "Observe it, or give it a distribution with a density."
        )
    try:
        support: Any = dist.support
    except (NotImplementedError, AttributeError):
        support = None
    if not isinstance(support, Constraint):
        raise ValueError(
            f"the distribution of the latent {name!r} ({kind}) does not say its support, so that there is no map from "
            "the unconstrained space. Give its class a `support`, a torch.distributions.constraints object."
        )
    if isinstance(support, Point):
        raise ValueError(
            f"the latent {name!r} ({kind}) is certain, so that there is nothing to sample. Declare it with "
            f"bn.deterministic({name!r}, value), or observe it."
        )
    if support.is_discrete:
        raise _discrete(name, kind)
    return _known_bijector(name, support)


def _known_bijector(name: str, support: Constraint) -> Bijector:
    try:
        bijector = bijector_of(support)
    except NoBijectorError as error:
        raise ValueError(
            f"the latent {name!r} cannot be mapped to the unconstrained space: {error}. Register a transform with a "
            "log-Jacobian (torch.distributions.biject_to.register), or write the node as a function of others whose "
            "supports are known."
        ) from error
    for bound in bijector.bounds:
        if not bool(torch.as_tensor(bound).isfinite().all()):
            raise ValueError(
                f"the support of the latent {name!r} has an infinite bound, {support!r}: leave that bound out, or "
                "split the node into those with and those without it."
            )
    return bijector


def _discrete(name: str, kind: str) -> ValueError:
    return ValueError(
        f"the latent {name!r} ({kind}) is discrete, and a discrete variable has no gradient to follow. Sum it out, "
        f"with zsp.enumerate_latents(model, {name!r}) or, for labels, bn.mixture; or relax it with Gumbel noise: "
        "bn.bin_concrete instead of bernoulli, bn.concrete instead of categorical."
    )


def _check_names(bn: BayesianNet, names: list[str], nodes: list[Node]) -> None:
    """The given names are those of the unobserved nodes."""
    for name in names:
        node = bn._nodes.get(name)
        if not isinstance(node, Node):
            raise checks.unknown_node(bn, name, only_stochastic=True)
        if node not in nodes:
            raise ValueError(f"{name!r} is both observed and named in latents: remove it from one of the two.")
    left_out = [node.name for node in nodes if node.name not in names]
    if left_out:
        raise ValueError(
            f"{quoted(left_out)} of {net_name(bn)} is neither observed nor named in latents ({quoted(names)}). Add it "
            "to latents, or give it a value among the observed ones."
        )


def _require_plain(bn: BayesianNet, node: Node) -> None:
    """The node has no option under which its values have no density of their own."""
    if node.n_samples is not None:
        raise ValueError(
            f"the latent {node.name!r} ({node.kind}) declares n_samples={node.n_samples}, but a sampler adds the chain "
            "axis itself. Leave n_samples out of the model (make it an input whose value is None here)."
        )
    if node.mask is not None:
        raise ValueError(
            f"the latent {node.name!r} ({node.kind}) has a mask, and where it is False any value is as probable as any "
            "other. Declare only the elements that there are, or mask the data that depend on them instead."
        )
    if node.total_size is not None:
        raise ValueError(
            f"the latent {node.name!r} ({node.kind}) has total_size={node.total_size}: {net_name(bn)} holds a part of "
            "it only, which has no posterior of its own. Use all the data, or variational inference with zsp.elbo."
        )


def _latent(name: str, value: Tensor, bijector: Bijector) -> Latent:
    shape = value.shape
    return Latent(name, shape, bijector.unconstrained_shape(shape), bijector, value.dtype, value.device)


class _StandIn(LateValue):
    """A point of the support, in place of the draw of a node that has none."""

    def __init__(self, name: str, dtype: torch.dtype, device: torch.device) -> None:
        self._name = name
        self._like = torch.zeros((), dtype=dtype, device=device)

    @property
    def tensor(self) -> Tensor:
        """A tensor of the dtype and device that the value has."""
        return self._like

    def value_of(self, dist: Distribution) -> Tensor:
        """The image of zero."""
        bijector = bijector_for(self._name, type(dist).__name__.lower(), dist)
        shape = bijector.unconstrained_shape(dist.batch_shape + dist.event_shape)
        return bijector.constrain(self._like.new_zeros(shape))[0]


def _dtype_and_device(meta_bn: MetaBayesianNet, observed: Mapping[str, Any]) -> tuple[torch.dtype, torch.device]:
    """What the values of nodes without parameters follow: the observed values and the model's tensors."""
    inputs = [meta_bn._input(name) for name in meta_bn._inputs]
    tensors = [value for value in (*observed.values(), *inputs) if isinstance(value, Tensor)]
    tensors = [tensor for tensor in tensors if tensor.is_floating_point()]
    if not tensors:
        return torch.get_default_dtype(), torch.get_default_device()
    dtype = tensors[0].dtype
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype, tensors[0].device
