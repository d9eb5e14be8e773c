"""How messages name nets, nodes, distributions and dtypes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch.distributions import Distribution

from zsp.distributions.node_type import NodeType

if TYPE_CHECKING:
    from zsp.bayesian_net import BayesianNet

__all__ = ["broadcasts_to", "dtype_name", "kind_of", "net_name", "quoted", "suggestion"]


def net_name(bn: BayesianNet) -> str:
    """The net, by its function's name where it has one."""
    return f"the net {bn._owner!r}" if bn._owner else "the net"


def quoted(names: Iterable[str]) -> str:
    """Names in quotes, separated by commas."""
    return ", ".join(repr(name) for name in names) or "none"


def suggestion(name: str, known: Iterable[str]) -> str:
    """The closest known name as a question, or nothing."""
    by_lower_case = {str(candidate).lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower_case, n=1)
    return f" Did you mean {by_lower_case[close[0]]!r}?" if close else ""


def kind_of(row: NodeType | None, dist: Distribution) -> str:
    """The name of a distribution as the user wrote it."""
    return row.name if row is not None else type(dist).__name__


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype without its module."""
    return str(dtype).removeprefix("torch.")


def broadcasts_to(shape: Iterable[int], target: Iterable[int]) -> bool:
    """Whether ``shape`` broadcasts to ``target`` without changing it."""
    shape, target = tuple(shape), tuple(target)
    try:
        return tuple(torch.broadcast_shapes(shape, target)) == target
    except RuntimeError:
        return False
