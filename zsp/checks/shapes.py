"""One sample shape, one batch shape, or an error: log probabilities that are summed must fit.

With S the sample axes that a net declares, every node's log probability has shape S + B or B, with one B for all. A
scalar prior beside a likelihood of N data would otherwise be counted N times, silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from zsp.checks.wording import broadcasts_to, net_name

if TYPE_CHECKING:
    from zsp.bayesian_net import BayesianNet
    from zsp.node import Node

__all__ = ["check_one_batch_shape"]


def check_one_batch_shape(bn: BayesianNet, nodes: list[Node], terms: list[Tensor]) -> None:
    """Every log probability has shape S + B or B, with one S and one B in the net."""
    for node in nodes:
        _check_given_is_not_longer(node)
    samples = [node for node in nodes if node.with_samples and isinstance(node.value, Tensor)]
    sizes = {node.name: _leading_sizes(bn, node) for node in samples}
    if len(set(sizes.values())) > 1:
        (first, first_size), (second, second_size) = _two_different(sizes)
        raise ValueError(
            f"{net_name(bn)} has two sample shapes: node {first!r} has {list(first_size)} and node {second!r} has "
            f"{list(second_size)}. Give all nodes that declare a sample axis the same n_samples."
        )
    sample = next(iter(sizes.values()), ())
    splits: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    for node, term in zip(nodes, terms, strict=True):
        if node.with_samples:
            splits[node.name] = (tuple(term.shape[: len(sample)]), tuple(term.shape[len(sample) :]))
    batch = next(iter(splits.values()))[1] if splits else tuple(terms[0].shape)
    reference = next(iter(splits)) if splits else nodes[0].name
    for node, term in zip(nodes, terms, strict=True):
        shape = tuple(term.shape)
        fits = shape == sample + batch if node.with_samples else shape in (sample + batch, batch)
        if not fits:
            other = next((n, t) for n, t in zip(nodes, terms, strict=True) if n.name == reference)
            raise _batch_shapes_differ(bn, sample, other, (node, term))


def _leading_sizes(bn: BayesianNet, node: Node) -> tuple[int, ...]:
    n_axes = 1 if bn._sample_shape is None else len(bn._sample_shape)
    return tuple(node.value.shape[:n_axes])


def _two_different(sizes: Mapping[str, tuple[int, ...]]) -> tuple[tuple[str, Any], tuple[str, Any]]:
    items = list(sizes.items())
    return items[0], next(item for item in items if item[1] != items[0][1])


def _check_given_is_not_longer(node: Node) -> None:
    if not node.is_observed or node.with_samples or not isinstance(node.value, Tensor):
        return
    n_event = len(node.dist.event_shape)
    own = node.value.shape[: node.value.dim() - n_event]
    if broadcasts_to(own, node.dist.batch_shape):
        return
    event = list(node.dist.event_shape)
    raise ValueError(
        f"node {node.name!r} ({node.kind}): the given value has shape {list(node.value.shape)}, but its parameters "
        f"describe only batch shape {list(node.dist.batch_shape)} and event shape {event}, so that the value's other "
        "axes could be data or samples. If they are data, give the parameters a data axis (for example "
        f"mean.expand({list(own)})); if they are samples of one value, declare them: n_samples={own[0] if own else 1}."
    )


def _batch_shapes_differ(
    bn: BayesianNet, sample: tuple[int, ...], first: tuple[Node, Tensor], second: tuple[Node, Tensor]
) -> ValueError:
    def split(node: Node, term: Tensor) -> str:
        shape = tuple(term.shape)
        has = bool(sample) and (node.with_samples or (shape[: len(sample)] == sample and len(shape) > 0))
        own = list(shape[: len(sample)]) if has else []
        batch = list(shape[len(own) :])
        n_batch = len(node.dist.batch_shape) - node.group_ndims
        event = [*node.dist.batch_shape[n_batch:], *node.dist.event_shape]
        return f"{node.name!r} ({node.kind}) has sample {own}, batch {batch}, event {event}"

    (a, term_a), (b, term_b) = first, second
    longer, shorter = (b, a) if term_b.dim() >= term_a.dim() else (a, b)
    extra = abs(term_b.dim() - term_a.dim())
    has_sampled_parameters = bool(sample) and longer.dist.batch_shape[: len(sample)] == sample
    if longer.n_samples is not None and longer.group_ndims == 0 and extra and has_sampled_parameters:
        mend = (
            f"{longer.name!r} declares n_samples although its parameters already carry the sample axis: drop n_samples "
            "there (only nodes without sampled parents declare it)."
        )
    elif extra:
        mend = (
            f"If the last {'axis' if extra == 1 else f'{extra} axes'} of {longer.name!r} "
            f"{'is' if extra == 1 else 'are'} one event (data that share {shorter.name!r}), mark "
            f"{'it' if extra == 1 else 'them'} so: group_ndims={longer.group_ndims + extra} on {longer.name!r}. If "
            f"{shorter.name!r} should have that axis too, give its parameters the axis. If the first axis of "
            f"{longer.name!r} holds samples, declare n_samples."
        )
    else:
        mend = (
            "The two batch shapes must be equal: use group_ndims to make the axes that are not shared one event, or "
            "insert the missing axis into the parameters (tensor.unsqueeze(dim))."
        )
    return ValueError(
        f"log_joint of {net_name(bn)} needs log probabilities of one shape, sample + batch, but node "
        f"{split(a, term_a)}; node {split(b, term_b)}. Summed as they are, the smaller one would be counted once for "
        f"every element of the larger. {mend}"
    )
