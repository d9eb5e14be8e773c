"""Small tensor helpers that several distributions share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

__all__ = [
    "as_tensors",
    "broadcast_shape",
    "log_gamma_draw",
    "open_uniform",
    "parameter_tensor",
    "times_log",
    "value_dtype",
    "xlog1py",
    "xlogy",
]


def broadcast_shape(first: torch.Size, second: torch.Size) -> torch.Size:
    """The shape that two shapes broadcast to; the common cases cost no search (torch's own takes ten microseconds)."""
    if first == second or not second:
        return first
    if not first or second[-len(first) :] == first:
        return second
    if first[-len(second) :] == second:
        return first
    return torch.broadcast_shapes(first, second)


def as_tensors(*parameters: Any) -> tuple[Tensor, ...]:
    """The parameters as tensors; numbers follow the dtype and device of the first floating-point tensor among them."""
    if all(isinstance(parameter, Tensor) for parameter in parameters):
        return parameters
    for parameter in parameters:
        if isinstance(parameter, Tensor) and parameter.is_floating_point():
            dtype, device = parameter.dtype, parameter.device
            break
    else:
        dtype, device = torch.get_default_dtype(), None
        for parameter in parameters:
            if isinstance(parameter, Tensor):
                device = parameter.device
    return tuple(
        parameter if isinstance(parameter, Tensor) else torch.as_tensor(parameter, dtype=dtype, device=device)
        for parameter in parameters
    )


def xlogy(x: Tensor, y: Tensor) -> Tensor:
    """``x log y`` with 0 log 0 = 0, and finite derivatives there (torch's own derivative in y is NaN)."""
    return torch.xlogy(x, torch.where((x == 0) & (y == 0), 1.0, y))


def xlog1py(x: Tensor, y: Tensor) -> Tensor:
    """``x log(1 + y)`` with 0 log 0 = 0, and finite derivatives there."""
    return torch.special.xlog1py(x, torch.where((x == 0) & (y == -1), 0.0, y))


def times_log(count: Tensor, log_p: Tensor) -> Tensor:
    """``count * log_p`` with 0 log 0 = 0 also where ``log_p`` is minus infinity."""
    return count * torch.where((count == 0) & (log_p == -torch.inf), 0.0, log_p)


def open_uniform(shape: Sequence[int], like: Tensor) -> Tensor:
    """Uniform noise in the open interval (0, 1): its log and its logit are finite."""
    noise = torch.rand(tuple(shape), dtype=like.dtype, device=like.device)  # a multiple of eps / 2, below 1
    return noise.clamp(min=torch.finfo(like.dtype).eps / 2)


def log_gamma_draw(concentration: Tensor, shape: Sequence[int]) -> Tensor:
    r"""The logarithm of draws from Gamma(concentration, 1), differentiable in the concentration.

    A draw for a small concentration underflows, but not its logarithm: with :math:`g \sim \Gamma(a + 1)` and
    :math:`u \sim U(0, 1)`, :math:`g u^{1/a} \sim \Gamma(a)`.
    """
    concentration = concentration.expand(tuple(shape))
    small = concentration < 1
    draw = torch._standard_gamma(torch.where(small, concentration + 1, concentration)).log()
    boost = open_uniform(shape, concentration).log() / torch.where(small, concentration, 1.0)
    return draw + torch.where(small, boost, 0.0)


def parameter_tensor(dist: Distribution) -> Tensor | None:
    """A floating-point parameter of any distribution, whose dtype and device its draws follow; None if it has none.

    zsp's classes answer by a ``parameter`` attribute; others by their ``arg_constraints`` or by what they wrap.
    """
    parameter = getattr(dist, "parameter", None)
    if isinstance(parameter, Tensor):
        return parameter
    try:
        names = dict(dist.arg_constraints)
    except (NotImplementedError, TypeError):  # a class that declares none
        names = {}
    for name in sorted(names, key=lambda name: name not in dist.__dict__):  # no computed ones where one is stored
        parameter = getattr(dist, name, None)
        if isinstance(parameter, Tensor) and parameter.is_floating_point():
            return parameter
    for name in ("base_dist", "_component_distribution", "_mixture_distribution"):
        inner = getattr(dist, name, None)
        if isinstance(inner, Distribution) and (parameter := parameter_tensor(inner)) is not None:
            return parameter
    return None


def value_dtype(dist: Distribution) -> torch.dtype | None:
    """The dtype of a distribution's values: its own ``dtype``, or its parameters'; None if it has neither.

    torch's own Categorical draws int64, whatever its parameters are.
    """
    dtype = getattr(dist, "dtype", None)
    if isinstance(dtype, torch.dtype):
        return dtype
    parameter = parameter_tensor(dist)
    if parameter is None:
        return None
    inner = dist
    while "base_dist" in inner.__dict__:
        inner = inner.__dict__["base_dist"]
    return torch.int64 if isinstance(inner, torch.distributions.Categorical) else parameter.dtype
