r"""Importance sampling: the log evidence from weighted draws of a proposal.

.. math:: \log p(x) \approx \log \frac1K \sum_k w_k, \quad w_k = p(x, z_k) / q(z_k \mid x), \quad z_k \sim q
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from zsp.bayesian_net import BayesianNet
from zsp.inference.variational.objective import (
    LogJoint,
    Variational,
    execute_model,
    execute_variational,
    latent_values,
)

__all__ = ["ImportanceEstimate", "is_loglikelihood"]


class ImportanceEstimate(NamedTuple):
    """An importance-sampled log likelihood and how far to trust it; each of shape batch.

    Attributes:
        log_likelihood: the estimate, in nats. Its bias is negative and about minus half the squared standard error.
        standard_error: of the estimate, by the delta method: the weights' relative standard deviation over sqrt(K).
        ess: effective sample size of the weights, (sum w)^2 / sum w^2, at most K.
    """

    log_likelihood: Tensor
    standard_error: Tensor
    ess: Tensor


@overload
def is_loglikelihood(
    meta_bn: LogJoint,
    observed: Mapping[str, Any],
    *,
    proposal: Variational,
    axis: int | tuple[int, ...] | None = None,
    n_samples: int | None = None,
    chunk: int | None = None,
    return_stats: Literal[False] = False,
) -> Tensor: ...
@overload
def is_loglikelihood(
    meta_bn: LogJoint,
    observed: Mapping[str, Any],
    *,
    proposal: Variational,
    axis: int | tuple[int, ...] | None = None,
    n_samples: int | None = None,
    chunk: int | None = None,
    return_stats: Literal[True],
) -> ImportanceEstimate: ...
@torch.no_grad()
def is_loglikelihood(
    meta_bn: LogJoint,
    observed: Mapping[str, Any],
    *,
    proposal: Variational,
    axis: int | tuple[int, ...] | None = None,
    n_samples: int | None = None,
    chunk: int | None = None,
    return_stats: bool = False,
) -> Tensor | ImportanceEstimate:
    r"""Log likelihood :math:`\log p(x)` by importance sampling, without gradients.

    .. math:: \log \frac1K \sum_k p(x, z_k) / q(z_k \mid x), \quad z_k \sim q

    A lower bound on :math:`\log p(x)` in the mean, tight as K grows. The standard error is that of the draws made: a
    proposal that misses a part of the posterior, to be suspected where the effective sample size is near 1, biases the
    estimate downwards by more than it tells. ::

        zsp.is_loglikelihood(model, {"x": x}, proposal=q, axis=0, n_samples=5000, chunk=100)

    Args:
        meta_bn: the model, or a callable from one dict of values to the log joint.
        observed: node or input name -> value.
        proposal: the net to draw from; its nodes declare a sample axis with ``n_samples``. To draw more than one
            execution does, give something that executes it (a MetaBayesianNet, a reuse_variables function, a callable).
        axis: the sample axis, 0; may be left out.
        n_samples: K, the number of draws; default what one execution of the proposal draws.
        chunk: draws held in memory at a time; default K. The result does not depend on it but for rounding.
        return_stats: whether to return an :class:`ImportanceEstimate`, with standard error and effective sample size.

    Returns:
        The estimate in nats, of shape batch.

    Raises:
        ValueError: if the proposal declares no sample axis, or cannot give as many draws as are asked for.

    Reference: Burda et al. 2016, arXiv:1509.00519, section 5.
    """
    for name, number in (("n_samples", n_samples), ("chunk", chunk)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}.")
    sums = None
    n_drawn = 0
    for log_weights in _log_weights(meta_bn, observed, proposal, axis, n_samples, chunk):
        n_drawn += log_weights.shape[0]
        parts = torch.stack([torch.logsumexp(log_weights, 0), torch.logsumexp(2 * log_weights, 0)])
        sums = parts if sums is None else torch.logaddexp(sums, parts)
    assert sums is not None
    log_sum, log_sum_squares = sums
    estimate = log_sum - math.log(n_drawn)
    if not return_stats:
        return estimate
    ess = torch.exp(2 * log_sum - log_sum_squares)
    # var(w) / mean(w)^2 = K / ess - 1, up to the K / (K - 1) of the unbiased variance
    relative_variance = (n_drawn / ess - 1).clamp_min(0) * (n_drawn / max(n_drawn - 1, 1))
    return ImportanceEstimate(estimate, (relative_variance / n_drawn).sqrt(), ess)


def _log_weights(
    meta_bn: LogJoint,
    observed: Mapping[str, Any],
    proposal: Variational,
    axis: int | tuple[int, ...] | None,
    n_samples: int | None,
    chunk: int | None,
) -> Iterator[Tensor]:
    """Log weights of shape [at most chunk, *batch], n_samples of them in all."""
    remaining = n_samples
    while remaining is None or remaining > 0:
        size = min(n for n in (remaining, chunk, math.inf) if n is not None)
        bn = execute_variational(proposal, observed, None if size == math.inf else (int(size),))
        n_axes = len(bn._sample_axes())
        if n_axes != 1 or axis not in (None, 0, (0,), [0]):
            raise ValueError(
                f"is_loglikelihood averages over one sample axis, axis=0, but got axis={axis} and a proposal that "
                f"declares {n_axes or 'none'}. Declare it with n_samples=k on the proposal's nodes."
            )
        latents, sampled = latent_values(bn, observed, bn._sample_axes())
        log_q = bn.log_joint()
        n_drawn = bn._sample_axes()[0]
        if remaining is None:
            remaining = n_drawn
        if n_drawn < remaining and isinstance(proposal, BayesianNet):
            raise ValueError(
                f"n_samples={n_samples}, but the executed proposal holds {n_drawn} draws. Give a MetaBayesianNet, a "
                "reuse_variables function or a callable as the proposal, so that it can be executed again."
            )
        n_used = min(n_drawn, remaining)
        step = n_used if chunk is None else chunk
        for start in range(0, n_used, step):
            stop = min(start + step, n_used)
            part = {name: value[start:stop] if name in sampled else value for name, value in latents.items()}
            _, log_p = execute_model(meta_bn, observed, part, (stop - start,), sampled)
            part_of_log_q = log_q[start:stop]
            if log_p.shape != part_of_log_q.shape:
                raise ValueError(
                    f"the model's log joint has shape {list(log_p.shape)} and the proposal's "
                    f"{list(part_of_log_q.shape)}, but they must be equal: sample + batch. Use group_ndims to make "
                    "them so."
                )
            yield log_p - part_of_log_q
        remaining -= n_used
