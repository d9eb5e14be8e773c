"""Factorisations that fail in some chains only: what is no number there, instead of an error for all of them.

A covariance that is not positive definite to rounding makes ``torch.linalg.cholesky`` raise, in whichever chain of a
batch it comes up. A step that leads there has to be rejected in that chain, as one to any place without a density.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["FailuresAreNaN"]

WITH_INFO: Mapping[Any, Callable[..., tuple[Tensor, Tensor]]] = {
    torch.linalg.cholesky: torch.linalg.cholesky_ex,
    torch.linalg.inv: torch.linalg.inv_ex,
    torch.linalg.solve: torch.linalg.solve_ex,
}


class FailuresAreNaN(TorchFunctionMode):
    """Inside it, the result of a factorisation that fails is NaN, matrix by matrix, and nothing is raised."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        options = options or {}
        if function not in WITH_INFO or options.get("out") is not None:
            return function(*arguments, **options)
        result, info = WITH_INFO[function](*arguments, **options)
        is_good = (info == 0).reshape(info.shape + (1,) * (result.dim() - info.dim()))
        return torch.where(is_good, result, math.nan)
