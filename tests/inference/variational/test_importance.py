"""Importance sampling of the log likelihood against exact evidence."""

import math

import numpy as np
import pytest
import torch

import zsp
from tests.inference.variational.test_elbo import conjugate, data, log_evidence, posterior


@zsp.meta_bayesian_net(scope="proposal")
def proposal(mean, std, n_samples=10):
    bn = zsp.BayesianNet()
    bn.normal("z", mean, std=std, n_samples=n_samples)
    return bn


def setting(inflate=1.0, n_samples=10):
    x = data()
    mean, std = posterior(x)
    return x, conjugate(4, 3), proposal(mean, torch.full((4,), inflate * std), n_samples)


def test_the_exact_posterior_gives_the_evidence_with_one_draw():
    x, model, q = setting(n_samples=1)
    estimate = zsp.is_loglikelihood(model, {"x": x}, proposal=q, axis=0, return_stats=True)
    np.testing.assert_allclose(estimate.log_likelihood, log_evidence(x), atol=1e-10)
    np.testing.assert_allclose(estimate.ess, np.ones(4), atol=1e-10)


def test_an_inexact_proposal_gives_the_evidence_within_its_standard_error():
    torch.manual_seed(0)
    x, model, q = setting(inflate=2.0)
    estimate = zsp.is_loglikelihood(model, {"x": x}, proposal=q, n_samples=20_000, chunk=3_000, return_stats=True)
    z = ((estimate.log_likelihood - log_evidence(x)) / estimate.standard_error).abs()
    assert z.max() < 5.6  # false alarm 1e-7 over four z-tests
    assert 0 < estimate.standard_error.max() < 0.01
    # weights of a proposal with twice the posterior's scale: ESS / K = sqrt(2 * 4 - 1) / 4 for a Gaussian
    np.testing.assert_allclose(estimate.ess / 20_000, math.sqrt(7) / 4, rtol=0.02)


def test_the_standard_error_is_the_spread_of_repeated_estimates():
    torch.manual_seed(0)
    x, model, q = setting(inflate=2.0, n_samples=200)
    runs = [zsp.is_loglikelihood(model, {"x": x}, proposal=q, return_stats=True) for _ in range(400)]
    spread = torch.stack([run.log_likelihood for run in runs]).std(0)
    claimed = torch.stack([run.standard_error for run in runs]).mean(0)
    # the relative standard error of a standard deviation of 400 is 1 / sqrt(800) = 0.035; five of them
    np.testing.assert_allclose(claimed, spread, rtol=0.2)


def test_chunks_of_an_executed_proposal_change_nothing():
    x, model, q = setting(inflate=1.5, n_samples=10)
    executed = q.observe()
    whole = zsp.is_loglikelihood(model, {"x": x}, proposal=executed, axis=0)
    for chunk in (1, 3, 10, 50):
        parts = zsp.is_loglikelihood(model, {"x": x}, proposal=executed, axis=0, chunk=chunk)
        np.testing.assert_allclose(parts, whole, atol=1e-12)
    by_hand = model({"z": executed["z"].tensor.unsqueeze(0)[0], "x": x, "n_samples": 10}) - executed.log_joint()
    np.testing.assert_allclose(whole, torch.logsumexp(by_hand, 0) - math.log(10), atol=1e-12)


@pytest.mark.parametrize(("n_samples", "chunk", "n_calls"), [(25, 10, 3), (20, None, 1), (None, None, 1), (5, 7, 1)])
def test_as_many_draws_as_asked_for(n_samples, chunk, n_calls):
    x, model, q = setting()
    sizes = []

    def counted(values):
        sizes.append(values["z"].shape[0])
        return model({**values, "n_samples": 1})

    zsp.is_loglikelihood(counted, {"x": x}, proposal=q, n_samples=n_samples, chunk=chunk)
    assert sum(sizes) == (n_samples or 10) and len(sizes) == n_calls


def test_callables_that_execute_the_proposal():
    x, model, q = setting()

    @zsp.reuse_variables("q")
    def reusable():
        return q.observe()

    for variational in (reusable, lambda: q.observe()):
        sizes = zsp.is_loglikelihood(model, {"x": x}, proposal=variational, n_samples=25, return_stats=True)
        assert sizes.log_likelihood.shape == (4,)


def test_no_gradients_are_kept():
    x, model, _ = setting()
    mean = torch.zeros(4, requires_grad=True)
    assert not zsp.is_loglikelihood(model, {"x": x}, proposal=proposal(mean, torch.ones(4))).requires_grad


def test_requests_that_cannot_be_met():
    x, model, q = setting()
    with pytest.raises(ValueError, match="the executed proposal holds 10 draws"):
        zsp.is_loglikelihood(model, {"x": x}, proposal=q.observe(), n_samples=20)
    with pytest.raises(ValueError, match="a proposal that declares none. Declare it with n_samples=k"):
        zsp.is_loglikelihood(model, {"x": x}, proposal=q.bind(n_samples=None))
    with pytest.raises(ValueError, match="n_samples must be at least 1, got 0"):
        zsp.is_loglikelihood(model, {"x": x}, proposal=q, n_samples=0)
    with pytest.raises(ValueError, match="axis=1"):
        zsp.is_loglikelihood(model, {"x": x}, proposal=q, axis=1)
