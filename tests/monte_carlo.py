"""Statistical assertions whose tolerance follows from a stated false-alarm rate; never tuned."""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import scipy.stats
from torch import Tensor

__all__ = ["assert_chi_square", "assert_ks", "assert_less_variance", "assert_mean", "assert_variance"]

FALSE_ALARM = 1e-7  # a test; some hundreds of comparisons a run keep a run's rate under 1e-4


def assert_mean(
    draws: Tensor,
    expected: Tensor | float,
    *,
    ess: float | None = None,
    bias: float = 1e-12,
    false_alarm: float = FALSE_ALARM,
) -> None:
    """The mean over the first axis is ``expected``, component by component.

    Args:
        draws: shape [n, ...], with finite variance.
        expected: broadcastable with draws[0].
        ess: effective sample size; default n, for independent draws.
        bias: bound on what the draws are off by without noise (rounding, finite differences).
        false_alarm: for all components together; divided among them.
    """
    n = ess if ess is not None else draws.shape[0]
    error = draws.std(0) / n**0.5
    z = NormalDist().inv_cdf(1 - false_alarm / max(1, draws[0].numel()) / 2)
    difference = (draws.mean(0) - expected).abs()
    assert (difference <= z * error + bias * (1 + draws.abs().mean(0))).all(), (
        f"mean {draws.mean(0)}, expected {expected}, tolerance {z * error}"
    )


def assert_variance(draws: Tensor, expected: Tensor | float, *, false_alarm: float = FALSE_ALARM) -> None:
    """The variance of independent draws over the first axis is ``expected`` (finite fourth moments are assumed)."""
    n = draws.shape[0]
    squares = (draws - draws.mean(0)) ** 2 * (n / (n - 1))
    assert_mean(squares, expected, false_alarm=false_alarm)


def assert_less_variance(small: Tensor, large: Tensor, *, false_alarm: float = FALSE_ALARM) -> None:
    """Independent draws over the first axis have less variance than others, summed over the other axes (one-sided).

    The difference has to exceed what the draws' fourth moments make likely for two equal variances.
    """
    z = NormalDist().inv_cdf(1 - false_alarm)
    totals, errors = [], []
    for draws in (small, large):
        n = draws.shape[0]
        squares = ((draws - draws.mean(0)) ** 2 * (n / (n - 1))).reshape(n, -1).sum(1)
        totals.append(squares.mean())
        errors.append(squares.std() / n**0.5)
    tolerance = z * (errors[0] ** 2 + errors[1] ** 2) ** 0.5
    assert totals[0] + tolerance < totals[1], f"variances {totals[0]:.4g} and {totals[1]:.4g}, tolerance {tolerance:.2g}"


def assert_ks(draws: np.ndarray, cdf: Callable[[np.ndarray], np.ndarray], *, false_alarm: float = FALSE_ALARM):
    """Independent continuous scalar draws have this distribution function (Kolmogorov-Smirnov)."""
    result = scipy.stats.kstest(draws, cdf)
    assert result.pvalue > false_alarm, (
        f"KS distance {result.statistic} at {result.statistic_location}, {result.pvalue=}"
    )


def assert_chi_square(counts: np.ndarray, probabilities: np.ndarray, *, false_alarm: float = FALSE_ALARM):
    """Counts of independent draws in cells have these probabilities; what they lack of 1 is a further, empty cell.

    Cells with fewer than 5 expected draws are merged.
    """
    n = counts.sum()
    expected = n * probabilities
    is_rare = expected < 5
    observed = np.append(counts[~is_rare], counts[is_rare].sum())
    expected = np.append(expected[~is_rare], max(n - expected[~is_rare].sum(), 0.0))
    if expected[-1] < 5:  # too few in what is left over: a Poisson tail, then without its cell
        assert scipy.stats.poisson.sf(observed[-1] - 1, expected[-1]) > false_alarm, (observed[-1], expected[-1])
        observed, expected = observed[:-1], expected[:-1]
    statistic = ((observed - expected) ** 2 / expected).sum()
    p_value = scipy.stats.chi2.sf(statistic, max(1, len(observed) - 1))
    assert p_value > false_alarm, f"chi-square {statistic}, {p_value=}: counts {observed}, expected {expected}"
