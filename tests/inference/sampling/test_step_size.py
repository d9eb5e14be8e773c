"""Dual averaging step by step, and the search for the first step size."""

import math

import numpy as np
import pytest
import torch

from tests.inference.sampling.targets import METRICS, gaussian, gaussian_draws, gradient_of
from zsp.inference.sampling.kernel import Density
from zsp.inference.sampling.step_size import DualAveraging, find_step_size


def paper(first, acceptance_rates, target, gamma=0.05, t0=10, kappa=0.75):
    """Hoffman and Gelman 2014, algorithm 5, lines 14-16, one chain: (epsilon, epsilon-bar) after every iteration."""
    mu, error, log_average = math.log(10 * first), 0.0, 0.0
    for m, alpha in enumerate(acceptance_rates, 1):
        error = (1 - 1 / (m + t0)) * error + 1 / (m + t0) * (target - alpha)
        log_step_size = mu - math.sqrt(m) / gamma * error
        log_average = m**-kappa * log_step_size + (1 - m**-kappa) * log_average
        yield math.exp(log_step_size), math.exp(log_average)


@pytest.mark.parametrize("xp", [torch, np])
def test_dual_averaging_is_that_of_the_paper(xp):
    rates = torch.rand(30, 2)
    adaptation = DualAveraging.start(torch.tensor([0.3, 2.0]))
    if xp is np:
        adaptation, rates = DualAveraging(*(leaf.numpy() for leaf in adaptation)), rates.numpy()
    everywhere = xp.ones_like(adaptation.n_updates) > 0
    expected = [list(paper(first, rates[:, i].tolist(), 0.8)) for i, first in enumerate((0.3, 2.0))]
    for t in range(30):
        adaptation = adaptation.update(rates[t], 0.8, everywhere, 1.0, xp)
        for i in range(2):
            np.testing.assert_allclose(adaptation.value(xp)[i], expected[i][t][0], rtol=1e-12)
            np.testing.assert_allclose(math.exp(adaptation.log_average[i]), expected[i][t][1], rtol=1e-12)


def test_only_chains_whose_transition_ended_are_updated_and_none_outside_the_warm_up():
    adaptation = DualAveraging.start(torch.tensor([0.3, 2.0]))
    rate = torch.tensor([0.1, 0.1])
    one = adaptation.update(rate, 0.8, torch.tensor([True, False]), 1.0, torch)
    for new, old in zip(one, adaptation, strict=True):
        assert new[1] == old[1]
    assert one.n_updates.tolist() == [1, 0] and one.value(torch)[0] < 0.3 * 10
    none = adaptation.update(rate, 0.8, torch.tensor([True, True]), 0.0, torch)
    assert all(new.equal(old) for new, old in zip(none, adaptation, strict=True))


def test_the_average_stays():
    adaptation = DualAveraging.start(torch.tensor([0.3]))
    for rate in (0.2, 0.9, 0.95):
        adaptation = adaptation.update(torch.tensor([rate]), 0.8, torch.tensor([True]), 1.0, torch)
    finished = adaptation.finish()
    assert torch.allclose(finished.value(torch), adaptation.log_average.exp(), rtol=1e-14)
    assert finished.value(torch) != adaptation.value(torch)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
@pytest.mark.parametrize("first", [1e-4, 1e4])
def test_the_first_step_size_is_the_last_before_the_threshold(metric, first):
    position, momentum = gaussian_draws(40), torch.randn(40, 3)
    found = find_step_size(Density(gaussian), position, metric, torch.full((40,), first), momentum)

    def log_acceptance(step_size):
        step = step_size[:, None]
        value, gradient = gradient_of(gaussian, position)
        half = momentum + 0.5 * step * metric.pull(gradient)
        new_value, new_gradient = gradient_of(gaussian, position + step * metric.push(half))
        end = half + 0.5 * step * metric.pull(new_gradient)
        return new_value - value + 0.5 * momentum.square().sum(-1) - 0.5 * end.square().sum(-1)

    halvings = torch.log2(found / first)
    assert torch.allclose(halvings, halvings.round(), atol=1e-9), "doubled or halved only"
    assert (log_acceptance(found) >= math.log(0.8)).all()
    if first < 1:
        assert (log_acceptance(2 * found) < math.log(0.8)).all(), "twice as long would be too long"
    else:
        shorter = torch.stack([log_acceptance(found * 2**k) for k in range(1, 5)])
        assert (shorter < math.log(0.8)).all(), "the first that is short enough, coming from above"


def test_a_density_that_is_not_a_number_beyond_a_wall_shortens_the_step():
    def walled(position):
        return torch.where(position.abs().amax(-1) < 1, 0.0 * position.sum(-1), float("nan"))

    momentum = torch.randn(20, 3)
    found = find_step_size(Density(walled), torch.zeros(20, 3), METRICS["identity"], torch.full((20,), 8.0), momentum)
    assert ((found[:, None] * momentum).abs().amax(-1) < 1).all() and (found > 0).all()
