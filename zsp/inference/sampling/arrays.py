"""Kernels are written in what torch and numpy have in common.

Where values can be looked at on a CPU, a kernel's state is kept in numpy arrays, whose operations cost a third of
torch's on arrays this small; in compiled code and on other devices it is kept in tensors.
"""

from __future__ import annotations

from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from zsp.inference.compilation.tracing import is_traced

__all__ = ["Array", "Choice", "dot", "is_any", "kinetic", "library", "to_numpy", "to_torch"]

Array = Any
"""A tensor or a numpy array."""


def library(array: Array) -> Any:
    """The module whose functions take this array: ``torch`` or ``numpy``."""
    return numpy if isinstance(array, numpy.ndarray) else torch


def is_any(condition: Array) -> bool:
    """Whether a condition holds anywhere; where values cannot be looked at, it may."""
    if is_traced():
        return True
    # a tenth of the time of numpy's any()
    return bool(numpy.count_nonzero(condition) if isinstance(condition, numpy.ndarray) else condition.any())


def dot(first: Array, second: Array) -> Array:
    """Scalar products along the last axis."""
    if isinstance(first, numpy.ndarray):
        return numpy.vecdot(first, second)
    return torch.linalg.vecdot(first, second)


class Choice:
    """Chooses chain by chain: ``choice(new, old)`` is ``new`` where the condition holds, else ``old``.

    Args:
        condition: [chain].

    Attributes:
        is_empty: whether it is known to hold nowhere.
    """

    __slots__ = ("_column", "_condition", "_where", "is_empty")

    def __init__(self, condition: Array) -> None:
        self._condition = condition
        self._column = condition[:, None]
        self._where = library(condition).where
        self.is_empty = not is_any(condition)

    def __call__(self, new: Array, old: Array) -> Array:
        """Both [chain] or [chain, D]; the first may be a number."""
        if self.is_empty:
            return old
        return self._where(self._column if old.ndim == 2 else self._condition, new, old)


def kinetic(momentum: Array) -> Array:
    """The kinetic energy of momenta [..., D] that are standard normal."""
    return 0.5 * dot(momentum, momentum)


def to_numpy(tree: Any) -> Any:
    """A pytree with its tensors as numpy arrays that share their memory."""
    return tree_map(lambda leaf: leaf.numpy() if isinstance(leaf, Tensor) else leaf, tree)


def to_torch(tree: Any) -> Any:
    """A pytree with its numpy arrays as tensors that share their memory."""
    return tree_map(lambda leaf: torch.from_numpy(leaf) if isinstance(leaf, numpy.ndarray) else leaf, tree)
