"""Checks that teach: what was expected, what was got, how to mend it.

Nets call these at the first execution for given shapes and inside :func:`zsp.checked`; in a training loop they cost
nothing. Functions named after a mistake build its error; functions named ``check_...`` look for mistakes and raise.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.constraints import Constraint

from zsp.distributions.node_type import NodeType
from zsp.distributions.tensors import parameter_tensor
from zsp.execution import can_read_values

if TYPE_CHECKING:
    from zsp.bayesian_net import BayesianNet, Node

__all__ = ["NodeError", "diagnose"]


class NodeError(KeyError):
    """A name that is no node of the net; its text reads like any other message (a KeyError quotes its own)."""

    def __str__(self) -> str:
        return str(self.args[0])


# -- names ------------------------------------------------------------------------------------------------------------


def _net(bn: BayesianNet) -> str:
    return f"the net {bn._owner!r}" if bn._owner else "the net"


def _names(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"


def _suggestion(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def duplicate_name(bn: BayesianNet, name: str) -> ValueError:
    """A second node of the same name."""
    return ValueError(
        f"{_net(bn)} already has a node {name!r}, and node names are unique. Rename one of the two; "
        f"in a loop, number them: f'{name}{{i}}'."
    )


def unknown_node(bn: BayesianNet, name: str, *, only_stochastic: bool = False) -> NodeError:
    """Reading a node that is not there."""
    if name in bn._nodes:
        return NodeError(
            f"node {name!r} of {_net(bn)} is deterministic: it has a value, but no distribution and no log probability."
        )
    known = [n for n in bn._nodes if not only_stochastic or not isinstance(bn._nodes[n], Tensor)]
    what = "stochastic node" if only_stochastic else "node"
    return NodeError(
        f"{_net(bn)} has no {what} {name!r}; it has {_names(known)}.{_suggestion(str(name), known)}"
    )  # fmt: skip


def unknown_argument(row: NodeType, name: str, argument: str) -> TypeError:
    """A keyword that the node method does not have."""
    known = [*row.arguments, *sorted(row.options)]
    return TypeError(
        f"bn.{row.name}({name!r}, ...) has no argument {argument!r}; it takes {', '.join(row.arguments)} and the "
        f"options {', '.join(sorted(row.options))}.{_suggestion(argument, known)}"
    )


def unknown_observations(bn: BayesianNet, inputs: Iterable[str], latents: Iterable[str] = ()) -> ValueError:
    """Given values that no stochastic node took."""
    stochastic = [node.name for node in bn._stochastic_nodes()]
    unknown = [name for name in bn._observed if name not in stochastic]
    deterministic = [name for name in unknown if name in bn._nodes]
    if deterministic:
        return ValueError(
            f"{_names(deterministic)} cannot be observed: in {_net(bn)} it is a deterministic node, a function of the "
            f"others. Observe stochastic nodes: {_names(stochastic)}."
        )
    variational = [name for name in unknown if name in latents]
    if variational:
        return ValueError(
            f"the variational net has {_names(variational)}, but {_net(bn)} has no such node; its stochastic nodes are "
            f"{_names(stochastic)}.{_suggestion(variational[0], stochastic)} Every variational node needs a node of "
            "the same name in the model: rename it, or remove it."
        )
    known = [*stochastic, *inputs]
    takes = f" and its inputs {_names(inputs)}" if list(inputs) else ""
    return ValueError(
        f"observations were given for {_names(unknown)}, but {_net(bn)} has no such node; its stochastic nodes are "
        f"{_names(stochastic)}{takes}.{_suggestion(unknown[0], known)}"
    )


def forgotten_latents(bn: BayesianNet, names: list[str], variational: Iterable[str]) -> ValueError:
    """Latents of the model that are neither observed nor in the variational net."""
    return ValueError(
        f"the latent {_names(names)} of {_net(bn)} is neither observed nor in the variational net (which has "
        f"{_names(variational)}). Give it a variational node of that name, observe it, or, if it should be drawn from "
        f"the model itself, name it in from_prior=({names[0]!r},)."
    )


def no_stochastic_nodes(bn: BayesianNet) -> ValueError:
    """The log joint of a net without stochastic nodes."""
    return ValueError(
        f"{_net(bn)} has no stochastic node that its log joint could sum over (its nodes: {_names(bn._nodes)})."
    )


# -- declarations -----------------------------------------------------------------------------------------------------


def _kind(row: NodeType | None, dist: Distribution) -> str:
    return row.name if row is not None else type(dist).__name__


def check_declaration(
    bn: BayesianNet,
    row: NodeType | None,
    name: str,
    dist: Distribution,
    n_samples: Any,
    group_ndims: Any,
    total_size: Any,
    mask: Any,
) -> None:
    """The name and the options of a node."""
    if not isinstance(name, str):
        raise TypeError(
            f"a node's name comes first and is a string, but got {type(name).__name__}: bn.normal('z', mean, std=1.)."
        )
    if bn._execution is not None and name in bn._execution.input_names:
        raise input_and_node(bn._owner, name)
    kind = _kind(row, dist)
    n_batch = len(dist.batch_shape)
    if n_samples is not None and (not isinstance(n_samples, int) or n_samples < 1):
        raise ValueError(f"node {name!r} ({kind}): n_samples must be None or an integer of at least 1, got {n_samples!r}.")
    if not isinstance(group_ndims, int) or group_ndims < 0:
        raise ValueError(f"node {name!r} ({kind}): group_ndims must be an integer of at least 0, got {group_ndims!r}.")
    if group_ndims > n_batch:
        raise ValueError(
            f"node {name!r} ({kind}): group_ndims={group_ndims} sums the last {group_ndims} batch axes, but the "
            f"parameters give only {n_batch} (batch shape {list(dist.batch_shape)}, event shape "
            f"{list(dist.event_shape)}). Lower group_ndims, or give the parameters the missing axes."
        )
    if total_size is not None and (not isinstance(total_size, int) or total_size < 1):
        raise ValueError(
            f"node {name!r} ({kind}): total_size is the number of data in the whole set, an integer of at least 1, "
            f"got {total_size!r}."
        )
    if total_size is not None and n_batch == 0:
        raise ValueError(
            f"node {name!r} ({kind}): total_size={total_size} scales by total_size / n, n the size of the first batch "
            "axis, but the parameters have no batch axis. Give the parameters a data axis, or drop total_size."
        )
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = f"a {mask.dtype} tensor" if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"node {name!r} ({kind}): mask must be a boolean tensor, got {got}. Use mask=mask.bool().")
        if not _broadcasts_to(mask.shape, dist.batch_shape) and n_samples is None:
            raise ValueError(
                f"node {name!r} ({kind}): mask of shape {list(mask.shape)} does not broadcast to the batch shape "
                f"{list(dist.batch_shape)} of the node."
            )


def check_deterministic(bn: BayesianNet, name: str, tensor: Any) -> None:
    """The name and value of a deterministic node."""
    if not isinstance(name, str):
        raise TypeError(f"a node's name comes first and is a string, but got {type(name).__name__}.")
    if bn._execution is not None and name in bn._execution.input_names:
        raise input_and_node(bn._owner, name)


def input_and_node(owner: str, name: str) -> ValueError:
    """A name that is both a parameter of the model function and a node."""
    return ValueError(
        f"{name!r} is both a parameter of the model function {owner!r} and the name of a node in it, so that a mapping "
        f"with the key {name!r} would be ambiguous: keys that name parameters rebind inputs, the others observe nodes. "
        "Rename one of the two."
    )


def cannot_build(
    row: NodeType, name: str, args: tuple[Any, ...], parameters: dict[str, Any], error: Exception
) -> Exception:
    """A node whose distribution refused its parameters."""
    given = [*zip(row.arguments, args, strict=False), *parameters.items()]
    shown = ", ".join(f"{key}: {_show_argument(value)}" for key, value in given) or "nothing"
    text = str(error).strip().rstrip(".")
    kind = ValueError if isinstance(error, RuntimeError) else type(error)
    return kind(f"node {name!r} ({row.name}): {text}. Given: {shown}.")


def _show_argument(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"tensor {list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    text = repr(value)
    return text if len(text) <= 60 else f"{type(value).__name__}"


def check_parameters(row: NodeType, name: str, args: tuple[Any, ...], parameters: dict[str, Any]) -> None:
    """Parameters of the right dtype, on one device, that broadcast and satisfy their constraints."""
    try:
        bound = row.bind(args, parameters)
    except TypeError as error:
        raise TypeError(f"node {name!r} ({row.name}): {error}. It takes {', '.join(row.arguments)}.") from error
    tensors = {key: value for key, value in bound.items() if isinstance(value, Tensor)}
    _check_devices(row, name, tensors)
    _check_broadcast(row, name, tensors)
    read = can_read_values()
    for key, value in bound.items():
        constraint = row.constraints.get(key)
        if constraint is None or value is None:
            continue
        if isinstance(value, Tensor):
            if not value.is_floating_point() and not constraint.is_discrete:
                raise TypeError(
                    f"node {name!r} ({row.name}): {key} must be a floating-point tensor or a number, but it has dtype "
                    f"{_dtype(value.dtype)}. Convert it: {key}.float()."
                )
            if value.dim() < constraint.event_dim:
                raise ValueError(
                    f"node {name!r} ({row.name}): {key} must have at least {constraint.event_dim} "
                    f"axis{'' if constraint.event_dim == 1 else 'es'} (its last {constraint.event_dim} describe one "
                    f"event), but its shape is {list(value.shape)}."
                )
            if read:
                _check_values(f"node {name!r} ({row.name}): {key}", value.detach(), constraint)
        elif isinstance(value, (int, float)) and read:
            number = torch.tensor(float(value), dtype=torch.float64)
            _check_values(f"node {name!r} ({row.name}): {key}", number, constraint)
        elif not isinstance(value, (int, float)):
            raise TypeError(
                f"node {name!r} ({row.name}): {key} must be a tensor or a number, but got {type(value).__name__}. "
                f"Convert it: torch.as_tensor({key})."
            )


def _check_devices(row: NodeType, name: str, tensors: dict[str, Tensor]) -> None:
    devices = {key: value.device for key, value in tensors.items() if value.dim()}
    if len(set(devices.values())) > 1:
        where = ", ".join(f"{key} on {device}" for key, device in devices.items())
        raise ValueError(
            f"node {name!r} ({row.name}): the parameters are on different devices: {where}. Move them with .to(device)."
        )


def _check_broadcast(row: NodeType, name: str, tensors: dict[str, Tensor]) -> None:
    shapes = {}
    for key, value in tensors.items():
        constraint = row.constraints.get(key)
        if constraint is not None and value.dim() >= constraint.event_dim:
            shapes[key] = value.shape[: value.dim() - constraint.event_dim]
    try:
        torch.broadcast_shapes(*shapes.values())
    except RuntimeError:
        shown = " and ".join(f"{key} {list(shape)}" for key, shape in shapes.items())
        raise ValueError(
            f"node {name!r} ({row.name}): the parameters do not broadcast: their batch shapes are {shown}. Shapes are "
            "aligned from the right; sizes must be equal or 1. Insert an axis (tensor.unsqueeze(dim)) where one is "
            "missing."
        ) from None


_WORDS: tuple[tuple[Constraint, str], ...] = (
    (constraints.positive, "positive"),
    (constraints.nonnegative, "at least 0"),
    (constraints.unit_interval, "between 0 and 1"),
    (constraints.boolean, "0 or 1"),
    (constraints.nonnegative_integer, "a non-negative integer"),
    (constraints.positive_integer, "a positive integer"),
    (constraints.one_hot, "a one-hot vector"),
    (constraints.simplex, "a vector of non-negative numbers that sum to 1"),
    (constraints.lower_cholesky, "a lower triangular matrix with a positive diagonal"),
    (constraints.positive_definite, "a symmetric positive definite matrix"),
    (constraints.real, "a real number, not NaN"),
    (constraints.real_vector, "a vector of real numbers, not NaN"),
)


def _words(constraint: Constraint) -> str:
    for known, words in _WORDS:
        if constraint is known:
            return words
    if isinstance(constraint, constraints.integer_interval):
        return f"an integer from {_short(constraint.lower_bound)} to {_short(constraint.upper_bound)}"
    if isinstance(constraint, constraints.interval):
        return f"between {_short(constraint.lower_bound)} and {_short(constraint.upper_bound)}"
    described = getattr(constraint, "words", None)
    return described if isinstance(described, str) else f"in the support {constraint!r}"


def _short(bound: Any) -> str:
    if isinstance(bound, Tensor):
        return f"{bound.flatten()[0].item():g}" if bound.numel() == 1 else "its upper bound"
    return f"{bound:g}" if isinstance(bound, (int, float)) else str(bound)


def _check_values(what: str, value: Tensor, constraint: Constraint, hint: str = "", where: Tensor | None = None) -> None:
    """All of ``value`` (where ``where`` is True) satisfies the constraint; the error names the first bad one."""
    bad = ~constraint.check(value)
    if value.is_floating_point():
        nan = value.isnan()
        bad = bad | (nan.flatten(bad.dim()).any(-1) if nan.dim() > bad.dim() else nan)
    if where is not None:
        bad = bad & where
    if not bool(bad.any()):
        return
    index = tuple(int(i) for i in bad.nonzero()[0])
    at = f" at index {list(index)}" if index else ""
    n_bad, n = int(bad.sum()), bad.numel()
    count = f", {n_bad} of {n} are bad" if n > 1 else ""
    advice = f" {hint}" if hint else ""
    raise ValueError(
        f"{what} must be {_words(constraint)}, but it is {_show_value(value[index])}{at} (shape {list(value.shape)}"
        f"{count}).{advice}"
    )


def _show_value(value: Tensor) -> str:
    if value.dim() == 0:
        return f"{value.item():g}" if value.is_floating_point() else str(value.item())
    flat = [f"{x:g}" for x in value.flatten()[:6].tolist()]
    return f"[{', '.join(flat)}{', ...' if value.numel() > 6 else ''}]"


# -- given values -----------------------------------------------------------------------------------------------------


def as_tensor(name: str, value: Any, *, like: Distribution, dtype: torch.dtype | None) -> Tensor:
    """A given number, array or tensor-like as a tensor on the distribution's device."""
    parameter = parameter_tensor(like)
    device = parameter.device if parameter is not None else None
    tensor = getattr(value, "tensor", value)
    if isinstance(tensor, Tensor):
        return tensor
    try:
        plain = isinstance(value, (int, float))
        return torch.as_tensor(value, dtype=dtype if plain else None, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"the value given for node {name!r} must be a tensor, a number or an array, but got "
            f"{type(value).__name__}: {error}."
        ) from error


def check_given(row: NodeType | None, name: str, dist: Distribution, value: Tensor, dtype: torch.dtype | None) -> None:
    """A given value of the right shape, on the right device, and exactly representable in the node's dtype."""
    kind = _kind(row, dist)
    parameter = parameter_tensor(dist)
    if parameter is not None and parameter.dim() and value.device != parameter.device:
        raise ValueError(
            f"node {name!r} ({kind}): the value is on {value.device}, but the node's parameters are on "
            f"{parameter.device}. Move one of them with .to(device)."
        )
    event, batch = list(dist.event_shape), list(dist.batch_shape)
    n_event = len(event)
    if value.dim() < n_event or list(value.shape[value.dim() - n_event :]) != event:
        raise ValueError(
            f"node {name!r} ({kind}): the value has shape {list(value.shape)}, but one event of the node has shape "
            f"{event} and comes last: expected {_full_shape(batch, event)}."
        )
    own = value.shape[: value.dim() - n_event]
    try:
        torch.broadcast_shapes(own, dist.batch_shape)
    except RuntimeError:
        raise ValueError(
            f"node {name!r} ({kind}): the value has shape {list(value.shape)}, but the parameters give batch shape "
            f"{batch} and event shape {event}: expected {_full_shape(batch, event)}, with sample axes in front if "
            "there are any."
        ) from None
    if dtype is not None and value.dtype != dtype and can_read_values():
        converted = value.to(dtype)
        same = (converted.to(value.dtype) == value) | (value != value)
        if not bool(same.all()):
            index = tuple(int(i) for i in (~same).nonzero()[0])
            at = f" at index {list(index)}" if index else ""
            raise TypeError(
                f"node {name!r} ({kind}): the value has dtype {_dtype(value.dtype)} and the node {_dtype(dtype)}, and "
                f"{value[index].item()!r}{at} has no exact counterpart there. Convert it yourself, if the loss of "
                f"precision is meant: value.to({dtype}); or give the parameters in {_dtype(value.dtype)}."
            )


def _full_shape(batch: list[int], event: list[int]) -> str:
    return f"{batch + event}"


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_support(node: Node) -> None:
    """A given value inside the support."""
    support = _support(node.dist)
    if support is None or not isinstance(node.value, Tensor):
        return
    hint = node.row.hint if node.row is not None else ""
    value, where = node.value.detach(), node.mask
    if where is not None:
        value = torch.where(where.reshape(where.shape + (1,) * support.event_dim), value, feasible_value(node, value))
    _check_values(f"the value given for node {node.name!r} ({node.kind})", value, support, hint)


def _support(dist: Distribution) -> Constraint | None:
    try:
        return dist.support
    except (NotImplementedError, AttributeError):
        return None


def feasible_value(node: Node, value: Tensor) -> Tensor:
    """Some value inside the support, to stand where the mask hides the given one."""
    support = _support(node.dist)
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is constraints.simplex or getattr(support, "is_simplex", False):
        return torch.full_like(value, 1.0 / value.shape[-1])
    if support is constraints.one_hot:
        first = torch.zeros_like(value)
        first[..., 0] = 1
        return first
    for bound in ("lower_bound", "upper_bound"):
        if not hasattr(support, bound):
            break
    else:
        lower, upper = support.lower_bound, support.upper_bound  # type: ignore[union-attr]
        middle = lower if support.is_discrete else 0.5 * (lower + upper)  # type: ignore[union-attr]
        return torch.zeros_like(value) + middle
    if hasattr(support, "lower_bound"):
        offset = 0.0 if support.is_discrete else 1.0  # type: ignore[union-attr]
        return torch.zeros_like(value) + support.lower_bound + offset  # type: ignore[union-attr]
    return torch.zeros_like(value)


# -- log probabilities ------------------------------------------------------------------------------------------------


def check_log_prob(node: Node, log_prob: Tensor, *, strict: bool) -> None:
    """A log probability without NaN; if ``strict`` also finite."""
    detached = log_prob.detach()
    bad = ~detached.isfinite() if strict else detached.isnan()
    if not bool(bad.any()):
        return
    index = tuple(int(i) for i in bad.nonzero()[0])
    at = f" at index {list(index)}" if index else ""
    parameters = ", ".join(f"{k} {_range(v)}" for k, v in _node_parameters(node).items())
    raise ValueError(
        f"the log probability of node {node.name!r} ({node.kind}) is {detached[index].item():g}{at} (shape "
        f"{list(log_prob.shape)}, {int(bad.sum())} of {bad.numel()} are bad). Its value {_range(node.value)}; its "
        f"parameters: {parameters or 'none'}."
    )


def _node_parameters(node: Node) -> dict[str, Tensor]:
    if node.row is not None and node.arguments is not None:
        named = node.row.bind(*node.arguments)
        return {
            key: value if isinstance(value, Tensor) else torch.tensor(float(value))
            for key, value in named.items()
            if isinstance(value, (Tensor, int, float)) and not isinstance(value, bool)
        }
    parameters = {}
    for key in getattr(node.dist, "arg_constraints", {}):
        value = getattr(node.dist, key, None)
        if isinstance(value, Tensor):
            parameters[key] = value
    return parameters


def _range(value: Any) -> str:
    if not isinstance(value, Tensor) or not value.numel():
        return "is empty"
    value = value.detach()
    n_bad = int((~value.isfinite()).sum()) if value.is_floating_point() else 0
    if value.numel() == 1:
        return f"is {value.item():g}"
    finite = value[value.isfinite()] if n_bad else value
    ends = f"from {finite.min().item():g} to {finite.max().item():g}" if finite.numel() else "not finite anywhere"
    return f"goes {ends}{f' with {n_bad} not finite' if n_bad and finite.numel() else ''}"


def _broadcasts_to(shape: Iterable[int], target: Iterable[int]) -> bool:
    shape, target = tuple(shape), tuple(target)
    try:
        return tuple(torch.broadcast_shapes(shape, target)) == target
    except RuntimeError:
        return False


def check_one_batch_shape(bn: BayesianNet, nodes: list[Node], terms: list[Tensor]) -> None:
    """Every log probability has shape S + B or B, with one S and one B in the net."""
    for node in nodes:
        _check_given_is_not_longer(node)
    samples = [node for node in nodes if node.with_samples and isinstance(node.value, Tensor)]
    sizes = {node.name: _leading_sizes(bn, node) for node in samples}
    if len(set(sizes.values())) > 1:
        (first, first_size), (second, second_size) = _two_different(sizes)
        raise ValueError(
            f"{_net(bn)} has two sample shapes: node {first!r} has {list(first_size)} and node {second!r} has "
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
    if _broadcasts_to(own, node.dist.batch_shape):
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
        grouped = list(node.dist.batch_shape[len(node.dist.batch_shape) - node.group_ndims :]) if node.group_ndims else []
        return f"{node.name!r} ({node.kind}) has sample {own}, batch {batch}, event {grouped + list(node.dist.event_shape)}"

    (a, term_a), (b, term_b) = first, second
    longer, shorter, term = (b, a, term_b) if term_b.dim() >= term_a.dim() else (a, b, term_a)
    extra = abs(term_b.dim() - term_a.dim())
    if longer.n_samples is not None and longer.group_ndims == 0 and extra and longer.dist.batch_shape[: len(sample)] == sample:
        mend = (
            f"{longer.name!r} declares n_samples although its parameters already carry the sample axis: drop n_samples "
            "there (only nodes without sampled parents declare it)."
        )
    elif extra:
        mend = (
            f"If the last {'axis' if extra == 1 else f'{extra} axes'} of {longer.name!r} {'is' if extra == 1 else 'are'} "
            f"one event (data that share {shorter.name!r}), mark {'it' if extra == 1 else 'them'} so: "
            f"group_ndims={longer.group_ndims + extra} on {longer.name!r}. If {shorter.name!r} should have that axis too, "
            f"give its parameters the axis. If the first axis of {longer.name!r} holds samples, declare n_samples."
        )
    else:
        mend = (
            "The two batch shapes must be equal: use group_ndims to make the axes that are not shared one event, or "
            "insert the missing axis into the parameters (tensor.unsqueeze(dim))."
        )
    return ValueError(
        f"log_joint of {_net(bn)} needs log probabilities of one shape, sample + batch, but node {split(a, term_a)}; "
        f"node {split(b, term_b)}. Summed as they are, the smaller one would be counted once for every element of the "
        f"larger. {mend}"
    )


# -- looking for the cause --------------------------------------------------------------------------------------------


def diagnose(objective: Any) -> None:
    """Find the node that makes an objective (or a net's log joint) not finite.

    Looks at every stochastic node of the executed nets in order: parameters that break their constraints, values off
    the support, log probabilities that are not finite. Use it in a training loop of your own::

        bound = zsp.elbo(model, {"x": x}, variational=q)
        loss = bound.sgvb().mean()
        if not loss.isfinite():
            zsp.diagnose(bound)

    Args:
        objective: an objective such as :func:`zsp.elbo` gives, or a :class:`zsp.BayesianNet`.

    Raises:
        ValueError: naming the node, its parameter and the first bad value, if there is one.
    """
    nets = [objective] if hasattr(objective, "_stochastic_nodes") else [objective.variational, objective.bn]
    for bn in nets:
        if bn is None:
            continue
        for node in bn._stochastic_nodes():
            if node.row is not None and node.arguments is not None:
                check_parameters(node.row, node.name, *node.arguments)
            if not isinstance(node.value, Tensor):
                continue
            if node.value.is_floating_point() and node.mask is None:
                what = f"the value of node {node.name!r} ({node.kind})"
                _check_values(what, node.value.detach(), constraints.real)
            if node.is_observed:
                check_support(node)
            check_log_prob(node, bn._log_prob(node), strict=True)
