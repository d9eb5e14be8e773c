"""Exact laws of ECDF counts, against scipy, enumeration and simulation."""

import itertools

import numpy as np
import pytest
import scipy.stats

from tests.monte_carlo import FALSE_ALARM
from zsp.inference.uniformity import chain_law, rank_law


def samples(n_repeats, n, n_ranks, seed=0):
    return np.random.default_rng(seed).integers(0, n_ranks, (n_repeats, n))


def chains(n_repeats, n, n_all, seed=0):
    """Ranks of the first n of n_all exchangeable draws."""
    generator = np.random.default_rng(seed)
    return np.stack([generator.permutation(n_all)[:n] for _ in range(n_repeats)])


@pytest.mark.parametrize("n, n_ranks", [(3, 4), (5, 3), (2, 7)])
def test_p_values_and_bands_of_a_small_law_by_enumeration(n, n_ranks):
    """All n_ranks^n outcomes: P(p <= a) <= a for every a, with equality at every p value that occurs."""
    law = rank_law(n, n_ranks)
    outcomes = [np.array(o) for o in itertools.product(range(n_ranks), repeat=n)]
    p_values = np.array([law.p_value(law.counts(outcome)) for outcome in outcomes])
    for p in np.unique(p_values.round(10)):
        assert np.mean(p_values <= p + 1e-9) == pytest.approx(p, abs=1e-9)
    for false_alarm in (0.3, 0.1, 0.02):
        lower, upper = law.band(false_alarm)
        left = [bool(((c := law.counts(outcome)) < lower).any() or (c > upper).any()) for outcome in outcomes]
        assert np.mean(left) <= false_alarm + 1e-12


def test_p_values_of_a_chain_s_ranks_by_enumeration():
    law = chain_law(3, 8)
    outcomes = [np.array(o) for o in itertools.combinations(range(8), 3)]
    p_values = np.array([law.p_value(law.counts(outcome)) for outcome in outcomes])
    for p in np.unique(p_values.round(10)):
        assert np.mean(p_values <= p + 1e-9) == pytest.approx(p, abs=1e-9)


def test_the_marginals_are_binomial_and_hypergeometric():
    law = rank_law(50, 20)
    np.testing.assert_allclose(law._lower_tail[4], scipy.stats.binom.cdf(range(51), 50, 5 / 20), atol=1e-12)
    law = chain_law(30, 120)
    at = law.places.tolist().index(int(law.places[40]))
    expected = scipy.stats.hypergeom.cdf(range(31), 120, law.places[at], 30)
    np.testing.assert_allclose(law._lower_tail[at], expected, atol=1e-12)


@pytest.mark.parametrize(
    "law, ranks",
    [
        (rank_law(200, 100), samples(4000, 200, 100)),
        (rank_law(60, 1000), samples(4000, 60, 1000)),  # more ranks than places
        (rank_law(150, 37), samples(4000, 150, 37)),
        (chain_law(100, 400), chains(4000, 100, 400)),
    ],
    ids=["200 of 100", "60 of 1000", "150 of 37", "a chain of four"],
)
def test_the_false_alarm_rate_is_the_one_stated(law, ranks):
    """Of 4000 uniform samples the share outside the 10% band, and of p values below 0.1, is not above 0.1 and near it."""
    counts = np.stack([law.counts(row) for row in ranks])
    lower, upper = law.band(0.1)
    n_left = int(((counts < lower) | (counts > upper)).any(1).sum())
    assert scipy.stats.binom.sf(n_left - 1, 4000, 0.1) > FALSE_ALARM, n_left
    assert n_left > 4000 * 0.06, "the band is not wider than it need be"
    p_values = np.array([law.p_value(row) for row in counts[:1000]])
    n_small = int((p_values <= 0.1).sum())
    assert scipy.stats.binom.sf(n_small - 1, 1000, 0.1) > FALSE_ALARM
    assert n_small > 1000 * 0.05
    inside = ~((counts < lower) | (counts > upper)).any(1)[:1000]
    assert (p_values[inside] > 0.1).all(), "inside the band of level a the p value is above a"


@pytest.mark.parametrize("shape", [(0.75, 0.75), (1.4, 1.4), (1.0, 1.2)], ids=["too narrow", "too wide", "shifted"])
def test_ranks_that_are_not_uniform_are_found(shape):
    """The ranks of a posterior that is somewhat too narrow, too wide or shifted, in 2000 simulations."""
    numbers = scipy.stats.beta(*shape).rvs(2000, random_state=np.random.default_rng(0))
    law = rank_law(2000, 100)
    assert law.p_value(law.counts((numbers * 100).astype(int))) < 1e-6


def test_a_constant_rank_has_no_chance():
    law = rank_law(100, 20)
    assert law.p_value(law.counts(np.full(100, 7))) < 1e-12
    lower, upper = law.band(0.01)
    assert (lower <= 100 * law.shares).all() and (upper >= 100 * law.shares).all() and lower[-1] == upper[-1] == 100
