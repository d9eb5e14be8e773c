r"""Score-function terms: the gradient that reaches the distribution of a draw which is not differentiable.

.. math:: \nabla_\phi \mathbb{E}_{q_\phi(d)}[f(d)] = \mathbb{E}[(f(d) - b) \nabla_\phi \log q_\phi(d)]

for any baseline b that does not depend on d. Here f is the sum of the terms downstream of d, and b a moving mean, a
tensor (a neural net of the data) or the mean over the other samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from zsp.bayesian_net import BayesianNet
from zsp.checks.wording import broadcasts_to, quoted
from zsp.inference.variational.moving_mean import MovingMean
from zsp.node import Node

__all__ = ["Baseline", "Score", "advantages", "baseline_cost", "score_nodes", "score_of", "sums"]

Baseline = Tensor | Mapping[str, Tensor]
"""One tensor for all nodes, or node name -> tensor; each broadcasts to sample + batch."""


class Score(NamedTuple):
    """A draw without gradient.

    Attributes:
        name: the node.
        log_prob: log probability of the draw, unscaled and unmasked; of shape sample + batch, or batch for one draw
            shared by all samples.
        signal: what the draw brought: the sum of the terms downstream of it, a constant of shape sample + batch.
    """

    name: str
    log_prob: Tensor
    signal: Tensor


def score_nodes(bn: BayesianNet | None, variational: BayesianNet) -> list[tuple[BayesianNet, Node]]:
    """The draws without gradient: those of the variational net, then those that the model drew itself."""
    nets = [variational] if bn is None or not bn._n_drawn else [variational, bn]
    return [
        (net, node)
        for net in nets
        for node in net._stochastic_nodes()
        if not node.is_reparameterized and not node.is_observed
    ]


def score_of(bn: BayesianNet, node: Node) -> Tensor:
    """log probability of the draw: not scaled, and not masked, for a masked draw may still be used elsewhere."""
    if node.mask is None:
        return bn._log_prob(node)
    log_prob = node.dist.log_prob(node.value)
    return log_prob.sum(tuple(range(-node.group_ndims, 0))) if node.group_ndims else log_prob


def sums(values: Sequence[Tensor], chosen: Sequence[frozenset[int]], like: Tensor) -> list[Tensor]:
    """The sum of the chosen values, for every choice, as constants of the shape of ``like``.

    Later choices are computed first and reused in earlier ones that contain them, so that a chain of nodes, each with
    all terms after it downstream, costs one addition a term.
    """
    constants = [value.detach() for value in values]
    done: list[tuple[frozenset[int], Tensor]] = []
    for choice in reversed(chosen):
        base, total = next((d for d in reversed(done) if d[0] <= choice), (frozenset(), None))
        for i in sorted(choice - base):
            total = constants[i] if total is None else total + constants[i]
        done.append((choice, torch.zeros_like(like) if total is None else total))
    return [total.expand(like.shape) for _, total in reversed(done)]


def advantages(
    scores: Sequence[Score],
    axis: int | tuple[int, ...] | None,
    *,
    variance_reduction: bool = True,
    baseline: Baseline | None = None,
    moving_mean: MovingMean | None = None,
) -> list[Tensor]:
    """The signals less their baselines, as constants, except for the gradient of ``baseline``.

    Args:
        scores: the draws.
        axis: the sample axes.
        variance_reduction: whether there is a baseline at all.
        baseline: as given by the user.
        moving_mean: likewise; with neither, the mean over the other samples is the baseline.
    """
    if not variance_reduction:
        if baseline is not None or moving_mean is not None:
            raise ValueError("variance_reduction=False takes no baseline: leave out baseline and moving_mean.")
        return [score.signal for score in scores]
    if baseline is None and moving_mean is None:
        return [_leave_one_out(score, axis) for score in scores]
    centred = [score.signal for score in scores]
    if baseline is not None:
        tensors = _baselines(scores, baseline)
        centred = [signal - tensor for signal, tensor in zip(centred, tensors, strict=True)]
    if moving_mean is not None and scores:
        means = moving_mean(centred)
        centred = [signal - mean.to(signal.dtype) for signal, mean in zip(centred, means, strict=True)]
    return centred


def baseline_cost(centred: Iterable[Tensor], like: Tensor) -> Tensor:
    r"""What a learnt baseline minimises, :math:`\frac12 \sum_d (\text{signal}_d - b_d)^2`."""
    total = torch.zeros_like(like)
    for signal in centred:
        total = total + 0.5 * signal.square()
    return total


def _leave_one_out(score: Score, axis: int | tuple[int, ...] | None) -> Tensor:
    """The signal less the mean of the other samples' signals."""
    axes = () if axis is None else (axis,) if isinstance(axis, int) else tuple(axis)
    n_samples = math.prod([score.signal.shape[a] for a in axes])
    is_shared = score.log_prob.dim() < score.signal.dim()
    if n_samples < 2 or is_shared:
        if not score.log_prob.requires_grad:
            return score.signal
        why = "its one draw is shared by all samples" if is_shared else f"there is one (axis={axis})"
        raise ValueError(
            "the leave-one-out baseline is the mean over the other samples of axis, but for node "
            f"{score.name!r} {why}. Draw more (n_samples=k on the variational net's nodes, axis=0), or give another "
            "baseline: moving_mean=zsp.MovingMean(), made once and kept, or baseline=a tensor. "
            "variance_reduction=False goes without."
        )
    return (score.signal - score.signal.mean(axes, keepdim=True)) * (n_samples / (n_samples - 1))


def _baselines(scores: Sequence[Score], baseline: Baseline) -> list[Tensor]:
    names = [score.name for score in scores]
    if not names:
        raise ValueError(
            "a baseline is given, but every draw is differentiable, so that no node needs one. Declare those whose "
            "score should be used with is_reparameterized=False, or leave the baseline out."
        )
    if isinstance(baseline, Mapping):
        if set(baseline) != set(names):
            raise ValueError(
                f"baseline has tensors for {quoted(baseline)}, but the nodes that need one are {quoted(names)}: those "
                "whose draws are not differentiable. Give one for each, or one tensor for all."
            )
        tensors = [baseline[name] for name in names]
    else:
        tensors = [baseline] * len(scores)
    for score, tensor in zip(scores, tensors, strict=True):
        shape = score.signal.shape
        if not broadcasts_to(tensor.shape, shape):
            raise ValueError(
                f"the baseline of {score.name!r} has shape {list(tensor.shape)}, but it must broadcast to the "
                f"objective's shape, sample + batch {list(shape)}."
            )
    return tensors
