"""The scalar quantities that a picture of draws shows, by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from zsp.checks.wording import quoted, suggestion
from zsp.inference.problems import element_name

__all__ = ["divergent", "scalar_quantities"]


def scalar_quantities(
    draws: Mapping[str, Tensor], names: Sequence[str] | str | None, *, limit: int, what: str
) -> dict[str, Tensor]:
    """Every chosen scalar's draws.

    Args:
        draws: name -> [chain, draw, *shape].
        names: of nodes ("theta") or of their elements ("theta[3]"); default all nodes.
        limit: how many scalars can be shown.
        what: the picture, for messages.

    Returns:
        Name of the scalar -> [chain, draw], float64 on the CPU.

    Raises:
        ValueError: if a name is not there, values are not finite, or there are more scalars than ``limit``.
    """
    chosen = list(draws) if names is None else [names] if isinstance(names, str) else list(names)
    n_chosen = sum(math.prod(draws[name].shape[2:]) if name in draws else 1 for name in chosen)
    if not 0 < n_chosen <= limit:
        raise ValueError(
            f"{what} shows from 1 to {limit} quantities, but there are {n_chosen}. Name nodes or elements to look at, "
            "such as names=['mu', 'theta[0]']."
        )
    found: dict[str, Tensor] = {}
    for name in chosen:
        found.update(_elements(draws, name))
    for label, values in found.items():
        n_bad = int((~values.isfinite()).sum())
        if n_bad:
            raise ValueError(f"{n_bad} of the {values.numel()} draws of {label!r} are not finite.")
    return found


def divergent(draws: Mapping[str, Tensor]) -> Tensor | None:
    """Which draws ended a diverging trajectory, [chain, draw]; None where the kernel does not say."""
    info = getattr(draws, "info", None)
    if info is None or "is_divergent" not in info:
        return None
    return info["is_divergent"].cpu().bool()


def _elements(draws: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Label -> draws of all elements of a node, or of the one element that is named."""
    node = name if name in draws else name.rpartition("[")[0]
    if node not in draws:
        raise ValueError(f"there are no draws of {name!r}, but of {quoted(draws)}.{suggestion(node or name, draws)}")
    value = draws[node].detach().cpu().double()
    if value.dim() < 2:
        raise ValueError(f"draws must have shape [chain, draw, *shape], but {node!r} has {list(value.shape)}.")
    shape = value.shape[2:]
    flat = value.reshape(*value.shape[:2], math.prod(shape))
    labels = [element_name(node, shape, i) for i in range(math.prod(shape))]
    if node == name:
        return {label: flat[..., i] for i, label in enumerate(labels)}
    for i, label in enumerate(labels):
        if label.replace(" ", "") == name.replace(" ", ""):
            return {label: flat[..., i]}
    raise ValueError(f"there is no {name!r}: the shape of {node!r} is {list(shape)}.")
