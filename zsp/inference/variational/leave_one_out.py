r"""A multi-sample bound with one sample left out, for every sample at once: the baselines of VIMCO.

.. math:: \hat L_{-k} = \log \frac1K \Big(\sum_{j \ne k} w_j + \hat w_{-k}\Big)

with :math:`\hat w_{-k}` the arithmetic or the geometric mean of the other weights. The sums without :math:`w_k` are
made of the sums before and after it; taking :math:`w_k` off the whole sum would lose everything where it dominates.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

__all__ = ["leave_one_out_bounds"]


def leave_one_out_bounds(log_weights: Tensor, mean: Literal["geometric", "arithmetic"] = "geometric") -> Tensor:
    r"""The bounds :math:`\hat L_{-k}`, in time and memory linear in K.

    Args:
        log_weights: shape [K, ...], K at least 2.
        mean: what stands for the weight left out.

    Returns:
        A tensor of the same shape.

    Reference: Mnih and Rezende 2016, arXiv:1602.06725, section 2.6 and equation 10.
    """
    n_samples = log_weights.shape[0]
    log_sums = _logsumexp_of_others(log_weights)
    if mean == "arithmetic":  # (S + S / (K - 1)) / K = S / (K - 1)
        return log_sums - math.log(n_samples - 1)
    log_means = (log_weights.sum(0) - log_weights) / (n_samples - 1)
    return torch.logaddexp(log_sums, log_means) - math.log(n_samples)


def _logsumexp_of_others(log_weights: Tensor) -> Tensor:
    """log of the sum over all entries of the first axis but one, for every one of them."""
    nothing = torch.full_like(log_weights[:1], -math.inf)
    before = torch.logcumsumexp(log_weights[:-1], 0)
    after = torch.logcumsumexp(log_weights[1:].flip(0), 0).flip(0)
    return torch.logaddexp(torch.cat([nothing, before]), torch.cat([after, nothing]))
