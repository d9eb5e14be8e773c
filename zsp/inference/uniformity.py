r"""Whether numbers are uniform: simultaneous bands for their empirical distribution function, and exact p values.

The ECDF of n numbers is looked at in K places :math:`z_i`. There :math:`n F_n(z_i)` has a known law, and a band that
leaves out :math:`\gamma / 2` in each of its tails is left in some place with a probability :math:`\alpha(\gamma)`. That
is computed, not simulated: the counts between the places are a random walk whose steps are independent given that they
sum to n (Poisson ones for independent numbers, binomial ones for the ranks of one chain among the draws of all), so
that the probability of staying inside is a chain of convolutions.

Reference: Säilynoja, Bürkner & Vehtari 2022, arXiv:2103.10522, sections 2 and 3, where it is found by a recursion over
binomial laws, or by simulation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

__all__ = ["CountLaw", "chain_law", "rank_law"]

MAX_PLACES = 100


class CountLaw:
    """The joint law of how many of n numbers lie at or below each of K places; from :func:`rank_law`, for one.

    Args:
        n: how many numbers there are.
        places: for each place how many of the possible ranks lie at or below it, the last one all of them, [K].
        steps: for each place the log probabilities of 0, 1, ..., n numbers since the place before, free of the
            condition that all of them sum to n.
        log_total: the log probability that free steps sum to n.
        marginals: the log probabilities of 0, 1, ..., n numbers at or below each place, [K, n + 1].

    Attributes:
        n: as given.
        places: as given.
        shares: ``places`` as shares of all ranks, the ECDF that is expected.
    """

    def __init__(
        self, n: int, places: np.ndarray, steps: Sequence[np.ndarray], log_total: float, marginals: np.ndarray
    ) -> None:
        self.n = n
        self.places = places
        self.shares = places / places[-1]
        self._steps = steps
        self._log_total = log_total
        probabilities = np.exp(marginals)
        self._lower_tail = np.minimum(np.cumsum(probabilities, 1), 1.0)
        self._upper_tail = np.minimum(np.cumsum(probabilities[:, ::-1], 1)[:, ::-1], 1.0)

    def counts(self, ranks: np.ndarray) -> np.ndarray:
        """How many ranks, whole numbers from 0 on, lie below each place's number, [K]."""
        return np.searchsorted(np.sort(ranks), self.places, side="left")

    def band(self, false_alarm: float) -> tuple[np.ndarray, np.ndarray]:
        """The narrowest band of equal tails that the counts leave, anywhere, with at most this probability.

        Args:
            false_alarm: the probability, below 1.

        Returns:
            The smallest and the largest count inside, each [K].
        """
        # with these tails in each of K places it is left with at most, and in any one place with more than false_alarm
        low, high = math.log(false_alarm / (2 * len(self.places))), math.log(false_alarm)
        for _ in range(30):
            middle = (low + high) / 2
            if 1 - self._coverage(*self._inside(math.exp(middle))) <= false_alarm:
                low = middle
            else:
                high = middle
        return self._inside(math.exp(low))

    def p_value(self, counts: np.ndarray) -> float:
        """The probability that uniform numbers are somewhere as unlikely as these are in their most unlikely place.

        Args:
            counts: how many of the numbers lie at or below each place, [K].

        Returns:
            The exact probability (to about 1e-12): p is at most a with a probability of at most a.
        """
        here = np.arange(len(self.places))
        tail = min(self._lower_tail[here, counts].min(), self._upper_tail[here, counts].min())
        return min(1.0, max(0.0, 1 - self._coverage(*self._inside(tail * (1 + 1e-9)))))

    def _inside(self, tail: float) -> tuple[np.ndarray, np.ndarray]:
        """The smallest and largest counts beyond which there is at most this probability on either side."""
        return (self._lower_tail <= tail).sum(1), self.n - (self._upper_tail <= tail).sum(1)

    def _coverage(self, lower: np.ndarray, upper: np.ndarray) -> float:
        """The probability that every count lies in its interval."""
        start, walk, log_scale = 0, np.ones(1), 0.0
        for step, low, high in zip(self._steps, lower, upper, strict=True):
            low = max(low, start)
            if low > high:
                return 0.0
            ahead = np.convolve(walk, np.exp(step[: high - start + 1]))[low - start : high - start + 1]
            total = ahead.sum()
            if total <= 0:
                return 0.0
            start, walk, log_scale = low, ahead / total, log_scale + math.log(total)
        return min(1.0, math.exp(log_scale + math.log(walk[self.n - start]) - self._log_total))


def rank_law(n: int, n_ranks: int) -> CountLaw:
    """The law of n independent ranks, each uniform on 0, ..., n_ranks - 1.

    Args:
        n: how many ranks there are.
        n_ranks: how many values a rank can have.
    """
    places = _places(n_ranks)
    number = np.arange(n + 1)
    steps = [_log_poisson(number, n * size / n_ranks) for size in np.diff(places, prepend=0)]
    marginals = np.stack([_log_binomial(number, n, place / n_ranks) for place in places])
    return CountLaw(n, places, steps, float(_log_poisson(np.array(n), n)), marginals)


def chain_law(n: int, n_all: int) -> CountLaw:
    """The law of the ranks that n of the draws have among all, where all have one distribution.

    Args:
        n: the number of draws of one chain.
        n_all: the number of draws of all chains, this one's among them.
    """
    places = _places(n_all)
    number = np.arange(n + 1)
    share = n / n_all
    steps = [_log_binomial(number, int(size), share) for size in np.diff(places, prepend=0)]
    # hypergeometric: `number` of the first `place` ranks and the rest of the others
    marginals = np.stack(
        [
            _log_choose(place, number) + _log_choose(n_all - place, n - number) - _log_choose(n_all, np.array(n))
            for place in places
        ]
    )
    return CountLaw(n, places, steps, float(_log_binomial(np.array(n), n_all, share)), marginals)


def _places(n_ranks: int) -> np.ndarray:
    """At most 100 numbers of ranks, about evenly spaced, up to all of them."""
    n_places = min(n_ranks, MAX_PLACES)
    return np.ceil(np.arange(1, n_places + 1) * (n_ranks / n_places) - 1e-9).astype(int)


def _log_poisson(number: np.ndarray, rate: float) -> np.ndarray:
    return number * math.log(rate) - rate - _log_factorial(number)


def _log_binomial(number: np.ndarray, n: int, probability: float) -> np.ndarray:
    if probability >= 1:
        return np.where(number == n, 0.0, -math.inf)
    odds = number * math.log(probability) + (n - number) * math.log1p(-probability)
    return _log_choose(n, number) + odds


def _log_choose(n: int, number: np.ndarray) -> np.ndarray:
    """-inf where more are chosen than there are."""
    is_possible = (number >= 0) & (number <= n)
    safe = np.where(is_possible, number, 0)
    value = _log_factorial(np.array(n)) - _log_factorial(safe) - _log_factorial(n - safe)
    return np.where(is_possible, value, -math.inf)


def _log_factorial(number: np.ndarray) -> np.ndarray:
    return torch.lgamma(torch.as_tensor(number, dtype=torch.float64) + 1).numpy()
