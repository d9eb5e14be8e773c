"""The bridge to ArviZ, in both of its worlds: InferenceData up to 0.23, DataTree from 1.0 on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from zsp.checks.wording import quoted, suggestion
from zsp.extras import require

if TYPE_CHECKING:
    from zsp.inference.draws import Draws

__all__ = ["information_criterion", "to_arviz"]

#: What ArviZ calls the kernels' reports.
SAMPLE_STATS = {"is_divergent": "diverging", "n_leapfrogs": "n_steps", "log_density": "lp"}

Coords = Mapping[str, Sequence[Any]]
Dims = Mapping[str, Sequence[str]]


def to_arviz(draws: Draws, *, coords: Coords | None = None, dims: Dims | None = None) -> Any:
    """Draws as ArviZ's own container; see :meth:`zsp.Draws.to_arviz`."""
    arviz = require("arviz", extra="arviz", purpose="to_arviz")
    groups = _groups(draws)
    coords = {name: list(values) for name, values in (coords or {}).items()}
    dims = {name: list(axes) for name, axes in (dims or {}).items()}
    _check_dims(groups, coords, dims)
    if arviz.__version__.startswith("0."):
        return arviz.from_dict(**groups, coords=coords, dims=dims, save_warmup=True)
    return arviz.from_dict(groups, coords=coords, dims=dims, save_warmup=True)


def information_criterion(draws: Draws, criterion: str, name: str | None, options: Mapping[str, Any]) -> Any:
    """``arviz.loo`` or ``arviz.waic`` of one observed node."""
    arviz = require("arviz", extra="arviz", purpose=f"draws.{criterion}()")
    known = list(draws.log_likelihood)
    if not known:
        raise ValueError(
            f"{criterion}() needs the pointwise log likelihood, but these draws hold none: their model was a plain "
            "function, or observed no node."
        )
    if name is None and len(known) > 1:
        raise ValueError(f"{criterion}() judges one observed node, but there are {quoted(known)}: give one as name=.")
    if name is not None and name not in known:
        raise ValueError(f"there is no observed node {name!r}, but {quoted(known)}.{suggestion(name, known)}")
    function = vars(arviz).get(criterion)  # ArviZ 1.x answers for a name that is gone, with a warning
    if function is None:
        raise NotImplementedError(
            f"ArviZ {arviz.__version__} has no {criterion} any more. draws.loo() estimates the same, and says where it "
            "fails."
        )
    return function(to_arviz(draws), var_name=name or known[0], **options)


def _groups(draws: Draws) -> dict[str, dict[str, np.ndarray]]:
    """Everything that the draws hold, by ArviZ's names; empty groups are left out."""
    groups = {
        "posterior": _arrays(draws),
        "sample_stats": _arrays({SAMPLE_STATS.get(name, name): value for name, value in draws.info.items()}),
        "log_likelihood": _arrays(draws.log_likelihood),
        "observed_data": _arrays(draws.observed),
    }
    if draws.warmup is not None:
        of_warmup = _groups(draws.warmup)
        for group in ("posterior", "sample_stats", "log_likelihood"):
            groups[f"warmup_{group}"] = of_warmup.get(group, {})
    return {name: arrays for name, arrays in groups.items() if arrays}


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    arrays = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        arrays[name] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return arrays


def _check_dims(groups: Mapping[str, Mapping[str, np.ndarray]], coords: Coords, dims: Dims) -> None:
    """ArviZ passes over a name that it does not find; here it is an error."""
    shapes: dict[str, tuple[int, ...]] = {}
    for group, arrays in groups.items():
        n_leading = 0 if group == "observed_data" else 2
        for name, array in arrays.items():
            shapes.setdefault(name, array.shape[n_leading:])
    used = set()
    for name, axes in dims.items():
        if name not in shapes:
            raise ValueError(f"dims names {name!r}, but there are {quoted(shapes)}.{suggestion(name, shapes)}")
        if len(axes) > len(shapes[name]):
            raise ValueError(f"dims gives {name!r} the axes {quoted(axes)}, but its shape is {list(shapes[name])}.")
        for axis, size in zip(axes, shapes[name], strict=False):
            used.add(axis)
            if axis in coords and len(coords[axis]) != size:
                raise ValueError(
                    f"the axis {axis!r} of {name!r} has {size} elements, but coords gives it {len(coords[axis])}."
                )
    if unknown := [axis for axis in coords if axis not in used]:
        raise ValueError(
            f"coords names the axis {unknown[0]!r}, but dims gives it to no node; dims has {quoted(sorted(used))}."
            f"{suggestion(unknown[0], used)}"
        )
