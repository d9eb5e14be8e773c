"""Importance weights in log space: their mean, and their normalisation over the samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["log_mean_exp", "normalized_weights", "require_axis"]


def log_mean_exp(log_weights: Tensor, axes: tuple[int, ...]) -> Tensor:
    """log of the mean of the weights over ``axes``."""
    n_samples = math.prod([log_weights.shape[a] for a in axes])
    return torch.logsumexp(log_weights, axes) - math.log(n_samples)


def normalized_weights(log_weights: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The weights divided by their sum over ``axes``."""
    return (log_weights - torch.logsumexp(log_weights, axes, keepdim=True)).exp()


def require_axis(what: str, axis: int | tuple[int, ...] | None) -> tuple[int, ...]:
    """The sample axes as a tuple; an error where there are none.

    Args:
        what: the objective, for the message.
        axis: as given by the user.
    """
    if axis is None or axis == ():
        raise ValueError(
            f"{what} weighs several samples against one another: say which axis they are on. Declare it with "
            "n_samples=k on the variational net's nodes, and pass axis=0."
        )
    return (axis,) if isinstance(axis, int) else tuple(axis)
