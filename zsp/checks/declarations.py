"""Mistakes in the declaration of a node: its options and its parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from zsp.checks.names import input_and_node
from zsp.checks.values import check_values
from zsp.checks.wording import broadcasts_to, dtype_name
from zsp.distributions.lean import Lean
from zsp.distributions.node_type import NodeType
from zsp.execution import can_read_values

if TYPE_CHECKING:
    from zsp.bayesian_net import BayesianNet
    from zsp.node import Node

__all__ = ["cannot_build", "check_declaration", "check_deterministic", "check_fit", "check_parameters"]


def check_declaration(bn: BayesianNet, node: Node) -> None:
    """The name and the options of a node."""
    name: Any = node.name
    dist, n_samples, group_ndims = node.dist, node.n_samples, node.group_ndims
    total_size, mask = node.total_size, node.mask
    if not isinstance(name, str):
        raise TypeError(
            f"a node's name comes first and is a string, but got {type(name).__name__}: bn.normal('z', mean, std=1.)."
        )
    if bn._execution is not None and name in bn._execution.input_names:
        raise input_and_node(bn._owner, name)
    kind = node.kind
    n_batch = len(dist.batch_shape)
    if n_samples is not None and (not isinstance(n_samples, int) or n_samples < 1):
        raise ValueError(
            f"node {name!r} ({kind}): n_samples must be None or an integer of at least 1, got {n_samples!r}."
        )
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
        if not broadcasts_to(mask.shape, dist.batch_shape) and n_samples is None:
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
                    f"{dtype_name(value.dtype)}. Convert it: {key}.float()."
                )
            if value.dim() < constraint.event_dim:
                raise ValueError(
                    f"node {name!r} ({row.name}): {key} must have at least {constraint.event_dim} "
                    f"axis{'' if constraint.event_dim == 1 else 'es'} (its last {constraint.event_dim} describe one "
                    f"event), but its shape is {list(value.shape)}."
                )
            if read:
                check_values(f"node {name!r} ({row.name}): {key}", value.detach(), constraint)
        elif isinstance(value, (int, float)) and read:
            number = torch.tensor(float(value), dtype=torch.float64)
            check_values(f"node {name!r} ({row.name}): {key}", number, constraint)
        elif not isinstance(value, (int, float)):
            raise TypeError(
                f"node {name!r} ({row.name}): {key} must be a tensor or a number, but got {type(value).__name__}. "
                f"Convert it: torch.as_tensor({key})."
            )


def check_fit(row: NodeType, name: str, dist: Distribution, dtype: torch.dtype | None = None) -> None:
    """Parameters that fit one another and the value's dtype, where the distribution asks for more than each alone."""
    if dtype is not None and not dtype.is_floating_point and dist.has_rsample:
        raise ValueError(
            f"node {name!r} ({row.name}): straight_through gives the draw a gradient, which a value of dtype "
            f"{dtype_name(dtype)} cannot carry. Leave dtype out, or straight_through."
        )
    fit = dist.parameters_fit() if isinstance(dist, Lean) and can_read_values() else None
    if fit is None or bool(fit[0].all()):
        return
    index = [int(i) for i in (~fit[0]).nonzero()[0]]
    raise ValueError(f"node {name!r} ({row.name}): {fit[1]}, but it is not{f' at index {index}' if index else ''}.")


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
