"""Mistakes in values: shapes, dtypes, devices, supports, and log probabilities that are not finite."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.constraints import Constraint

from zsp.checks.wording import dtype_name, kind_of
from zsp.distributions.node_type import NodeType
from zsp.distributions.tensors import parameter_tensor
from zsp.execution import can_read_values

if TYPE_CHECKING:
    from zsp.node import Node

__all__ = ["as_tensor", "check_given", "check_log_prob", "check_support", "check_values", "feasible_value"]


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


def check_values(what: str, value: Tensor, constraint: Constraint, hint: str = "") -> None:
    """All of ``value`` satisfies the constraint; the error names the first bad one."""
    bad = ~constraint.check(value)
    if value.is_floating_point():
        nan = value.isnan()
        bad = bad | (nan.flatten(bad.dim()).any(-1) if nan.dim() > bad.dim() else nan)
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
    kind = kind_of(row, dist)
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
            f"{event} and comes last: expected {batch + event}."
        )
    own = value.shape[: value.dim() - n_event]
    try:
        torch.broadcast_shapes(own, dist.batch_shape)
    except RuntimeError:
        raise ValueError(
            f"node {name!r} ({kind}): the value has shape {list(value.shape)}, but the parameters give batch shape "
            f"{batch} and event shape {event}: expected {batch + event}, with sample axes in front if "
            "there are any."
        ) from None
    if dtype is not None and value.dtype != dtype and can_read_values():
        converted = value.to(dtype)
        same = (converted.to(value.dtype) == value) | (value != value)
        if not bool(same.all()):
            index = tuple(int(i) for i in (~same).nonzero()[0])
            at = f" at index {list(index)}" if index else ""
            raise TypeError(
                f"node {name!r} ({kind}): the value has dtype {dtype_name(value.dtype)} and the node "
                f"{dtype_name(dtype)}, and {value[index].item()!r}{at} has no exact counterpart there. Convert it "
                f"yourself, if the loss of precision is meant: value.to({dtype}); or give the parameters in "
                f"{dtype_name(value.dtype)}."
            )


def check_support(node: Node) -> None:
    """A given value inside the support."""
    support = _support(node.dist)
    if support is None or not isinstance(node.value, Tensor):
        return
    hint = node.row.hint if node.row is not None else ""
    value, where = node.value.detach(), node.mask
    if where is not None:
        value = torch.where(where.reshape(where.shape + (1,) * support.event_dim), value, feasible_value(node, value))
    check_values(f"the value given for node {node.name!r} ({node.kind})", value, support, hint)


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
