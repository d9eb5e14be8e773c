"""Network pieces that several models share."""

from __future__ import annotations

from torch import Tensor, nn

import zsp

__all__ = ["dense"]


def dense(name: str, x: Tensor, n_out: int) -> Tensor:
    """A fully connected layer of a decorated function: its weights are made at the first execution and then reused.

    ::

        h = torch.relu(dense("hidden", x, 500))

    Args:
        name: the layer's name, unique in the function.
        x: its input, shape [..., n_in].
        n_out: the size of its output.

    Returns:
        The layer's output, shape [..., n_out].
    """
    return zsp.module(name, nn.Linear, x.shape[-1], n_out)(x)
