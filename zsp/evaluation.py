r"""How good predictions are: errors, log likelihood, calibration, intervals, uncertainty.

A prediction of a Bayesian model is a mixture over draws of its latents, and is judged as one:

.. math:: p(y \mid x, \mathcal D) \approx \frac1S \sum_s p(y \mid x, z_s), \quad z_s \sim p(z \mid \mathcal D)

Functions of predictions take the draws along the first axis; draws of several chains are flattened before:
``new["y"].flatten(0, 1)``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zsp.inference.chains import over_chains
from zsp.inference.draws import Draws
from zsp.inference.predictions import chunks_of_draws
from zsp.inference.variational.objective import Variational
from zsp.meta_bayesian_net import MetaBayesianNet

__all__ = [
    "CalibrationBins",
    "Entropy",
    "calibration_bins",
    "coverage",
    "entropy",
    "expected_calibration_error",
    "log_mean_exp",
    "predictive_interval",
    "predictive_log_prob",
    "rmse",
]


def rmse(prediction: Tensor, y: Tensor) -> Tensor:
    r"""Root mean squared error, :math:`\sqrt{\tfrac1n \sum_i (\hat y_i - y_i)^2}`.

    Args:
        prediction: of each value, the mean over the draws, shape [n, ...].
        y: the true values, same shape.

    Returns:
        A scalar, in the unit of y.

    Raises:
        ValueError: if the shapes differ; [n] and [n, 1] would broadcast to n x n differences.
    """
    _require_same_shape("prediction", prediction, "y", y)
    return (prediction - y).square().mean().sqrt()


def log_mean_exp(log_prob: Tensor) -> Tensor:
    r"""Log density of the mixture over draws, :math:`\log \tfrac1S \sum_s \exp(\ell_s)`.

    Args:
        log_prob: log p(y_i | z_s), shape [draw, n].

    Returns:
        The log density of each datum in nats, shape [n]. Its mean over n is the test log likelihood of the literature.
    """
    return log_prob.logsumexp(0) - math.log(log_prob.shape[0])


@torch.no_grad()
def predictive_log_prob(
    meta_bn: MetaBayesianNet,
    draws: Draws | Variational | Mapping[str, Any],
    observed: Mapping[str, Any],
    *,
    name: str = "y",
    n_samples: int | None = None,
    chunk: int | None = None,
) -> Tensor:
    r"""Log predictive density of each datum of new data: that of the mixture over the draws, noise included.

    .. math:: \log \frac1S \sum_s p(y_i \mid x_i, z_s)

    ::

        draws = zsp.mcmc(model, {"x": x, "y": y}, kernel=zsp.NUTS())
        log_likelihood = zsp.evaluation.predictive_log_prob(model, draws, {"x": x_test, "y": y_test}).mean()

    Args:
        meta_bn: the model.
        draws: as :func:`zsp.predict` takes them: :class:`zsp.Draws`, a variational net, or name -> draws of each
            latent.
        observed: inputs and the node ``name``, whose first axis is that of the data.
        name: the data's node.
        n_samples: the number of draws of a variational net; default what one execution draws.
        chunk: draws held in memory at a time; default all.

    Returns:
        Log densities in nats, shape [n]; never scaled by ``total_size``.

    Raises:
        ValueError: if ``observed`` lacks the node, names or shapes do not fit, or the node has no axis of data.
    """
    if name not in observed:
        raise ValueError(
            f"observed must hold the new values of {name!r}, whose density is asked for; it has "
            f"{', '.join(map(repr, observed)) or 'nothing'}."
        )

    def one(latents: dict[str, Tensor]) -> Tensor:
        terms = meta_bn._execute({**observed, **latents}).pointwise_log_prob(name)
        if terms.dim() == 0:
            raise ValueError(f"{name!r} is a single value without an axis of data: give {name!r} the shape [n, ...].")
        return terms.flatten(1).sum(1) if terms.dim() > 1 else terms  # a datum of several numbers is one event

    parts, n_draws = [], 0
    for axes, latents in chunks_of_draws(draws, observed, n_samples, chunk):
        parts.append(over_chains(one, latents, 1).logsumexp(0))
        n_draws = axes.numel()
    return torch.stack(parts).logsumexp(0) - math.log(n_draws)


# -- classes ----------------------------------------------------------------------------------------------------------


class CalibrationBins(NamedTuple):
    """Predictions grouped by their confidence, the probability of the most probable class.

    Attributes:
        confidence: the mean confidence in each bin, [bin]; its middle where the bin is empty.
        accuracy: the part of correct predictions in each bin, [bin]; NaN where it is empty.
        size: predictions in each bin, [bin].
        edges: of the bins, [bin + 1].
    """

    confidence: Tensor
    accuracy: Tensor
    size: Tensor
    edges: Tensor


def calibration_bins(probs: Tensor, labels: Tensor, *, n_bins: int = 15) -> CalibrationBins:
    """Confidence and accuracy of predicted classes, in bins of equal width; the material of a reliability diagram.

    Args:
        probs: predictive probabilities (their mean over the draws), shape [n, K]; or [n], of the label 1 against 0.
        labels: the true classes, shape [n].
        n_bins: of equal width between 0 and 1; a bin holds its right end.

    Raises:
        ValueError: if the shapes do not fit or ``probs`` are no probabilities.

    Reference: Guo et al. 2017, arXiv:1706.04599, section 2.
    """
    probs = torch.stack([1 - probs, probs], -1) if probs.dim() == 1 else probs
    _require_probabilities(probs)
    if probs.dim() != 2 or labels.shape != probs.shape[:1]:
        raise ValueError(
            f"probs must be [n, K] and labels [n], but their shapes are {list(probs.shape)} and {list(labels.shape)}. "
            "Take the mean over the draws first: probs.mean(0)."
        )
    if n_bins < 1:
        raise ValueError(f"n_bins must be at least 1, got {n_bins}.")
    confidence, predicted = probs.max(-1)
    edges = torch.linspace(0, 1, n_bins + 1, dtype=probs.dtype, device=probs.device)
    index = (torch.bucketize(confidence, edges) - 1).clamp(0, n_bins - 1)
    count = torch.bincount(index, minlength=n_bins)
    correct = torch.zeros_like(edges[1:]).index_add_(0, index, (predicted == labels).to(probs.dtype))
    total = torch.zeros_like(edges[1:]).index_add_(0, index, confidence)
    middle = (edges[1:] + edges[:-1]) / 2
    return CalibrationBins(torch.where(count > 0, total / count, middle), correct / count, count, edges)


def expected_calibration_error(probs: Tensor, labels: Tensor, *, n_bins: int = 15) -> Tensor:
    r"""Mean distance of confidence and accuracy over bins.

    .. math:: \sum_b \tfrac{n_b}{n} |\mathrm{acc}_b - \mathrm{conf}_b|

    Args:
        probs: predictive probabilities, shape [n, K]; or [n], of the label 1 against 0.
        labels: the true classes, shape [n].
        n_bins: of equal width.

    Returns:
        A scalar between 0 and 1.

    Reference: Guo et al. 2017, arXiv:1706.04599, equation 3.
    """
    bins = calibration_bins(probs, labels, n_bins=n_bins)
    gaps = torch.where(bins.size > 0, (bins.accuracy - bins.confidence).abs(), 0)
    return (gaps * bins.size).sum() / bins.size.sum()


class Entropy(NamedTuple):
    """The uncertainty of predicted classes in nats, split in two; each of shape [n].

    Attributes:
        total: the entropy of the mean prediction.
        expected: the mean entropy of the draws' predictions: noise that more data would not take away.
        mutual_information: their difference, what the label would tell about the latents: lack of data.
    """

    total: Tensor
    expected: Tensor
    mutual_information: Tensor


def entropy(probs: Tensor) -> Entropy:
    r"""Entropy of predictive class probabilities, and its part that is due to the draws' disagreement.

    .. math:: \mathrm{H}\bigl[\tfrac1S \textstyle\sum_s p_s\bigr]
        = \tfrac1S \textstyle\sum_s \mathrm{H}[p_s] + \mathrm{I}[y; z]

    On data far from the training data the total, and above all the mutual information, should rise.

    Args:
        probs: probabilities of K classes by each draw, shape [draw, n, K].

    Returns:
        Entropies in nats, each of shape [n].

    Raises:
        ValueError: if ``probs`` are no probabilities or lack the axis of the draws.

    Reference: Depeweg et al. 2018, arXiv:1710.07283, equation 3 and section 3.1.
    """
    _require_probabilities(probs)
    if probs.dim() < 3:
        raise ValueError(f"probs must be [draw, n, K], but its shape is {list(probs.shape)}.")
    total = torch.special.entr(probs.mean(0)).sum(-1)
    expected = torch.special.entr(probs).sum(-1).mean(0)
    return Entropy(total, expected, total - expected)


# -- intervals --------------------------------------------------------------------------------------------------------


def predictive_interval(draws: Tensor, level: float = 0.9) -> tuple[Tensor, Tensor]:
    """The central interval of draws: between their (1 - level) / 2 and (1 + level) / 2 quantiles.

    Args:
        draws: predictive draws, with noise, shape [draw, n, ...].
        level: the probability inside, between 0 and 1.

    Returns:
        Lower and upper ends, each [n, ...].

    Raises:
        ValueError: if the level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}.")
    ordered = draws.sort(0).values

    def quantile(probability: float) -> Tensor:
        place = probability * (draws.shape[0] - 1)
        below = min(int(place), draws.shape[0] - 2) if draws.shape[0] > 1 else 0
        above = min(below + 1, draws.shape[0] - 1)
        return torch.lerp(ordered[below], ordered[above], place - below)

    return quantile((1 - level) / 2), quantile((1 + level) / 2)


def coverage(interval: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
    """The part of values that lie in their predictive intervals; near the intervals' level if these are honest.

    Args:
        interval: lower and upper ends, each of y's shape; see :func:`predictive_interval`.
        y: the true values.

    Returns:
        A scalar between 0 and 1; the standard error of a coverage c of n independent values is sqrt(c (1 - c) / n).

    Raises:
        ValueError: if the shapes differ.
    """
    lower, upper = interval
    _require_same_shape("the interval's end", lower, "y", y)
    _require_same_shape("the interval's end", upper, "y", y)
    return ((lower <= y) & (y <= upper)).to(lower.dtype).mean()


def _require_same_shape(name: str, a: Tensor, other: str, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"{name} has shape {list(a.shape)}, but {other} has {list(b.shape)}: they must be equal.")


def _require_probabilities(probs: Tensor) -> None:
    total = probs.sum(-1)
    tolerance = 100 * torch.finfo(probs.dtype).eps ** 0.75
    if bool((probs < 0).any()) or not bool(((total - 1).abs() < tolerance).all()):
        worst = total.flatten()[(total - 1).abs().flatten().argmax()].item()
        raise ValueError(
            f"probs must be at least 0 and sum to 1 over the last axis, but some sum to {worst:g} or are negative. "
            "Logits become probabilities by .softmax(-1)."
        )
