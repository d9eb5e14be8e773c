"""Errors, log likelihood, calibration, intervals and uncertainty, against scikit-learn, scipy and closed forms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp
from sklearn.metrics import mean_squared_error
from torch import nn

import zsp
from tests.monte_carlo import assert_mean
from zsp import evaluation, models


def test_rmse_is_scikit_learns():
    a, b = torch.randn(50), torch.randn(50)
    assert evaluation.rmse(a, b).item() == pytest.approx(mean_squared_error(b, a) ** 0.5, abs=1e-12)
    with pytest.raises(ValueError, match=r"prediction has shape \[50\], but y has \[50, 1\]: they must be equal"):
        evaluation.rmse(a, b[:, None])


# -- log likelihood ---------------------------------------------------------------------------------------------------


def linear(n_out: int = 1) -> zsp.MetaBayesianNet:
    net = nn.Sequential(nn.Linear(2, n_out), *([nn.Flatten(0)] if n_out == 1 else []))
    return models.bayesian(net, likelihood=models.GammaNoiseLikelihood(), total_size=1000)


@pytest.mark.parametrize("n_out", [1, 3])
@pytest.mark.parametrize("chunk", [None, 3])
def test_predictive_density_is_that_of_the_mixture(n_out, chunk):
    """Each datum, of one number or three, is one event: the mixture is over draws of its whole density."""
    draws = {
        "0.weight": torch.randn(8, n_out, 2),
        "0.bias": torch.randn(8, n_out),
        "noise_precision": torch.rand(8) + 1,
    }
    x, y = torch.randn(5, 2), torch.randn(5) if n_out == 1 else torch.randn(5, n_out)
    found = evaluation.predictive_log_prob(linear(n_out), draws, {"x": x, "y": y}, chunk=chunk)
    mean = torch.einsum("sod,nd->sno", draws["0.weight"], x) + draws["0.bias"][:, None]
    scale = draws["noise_precision"].rsqrt().numpy()[:, None, None]
    each = stats.norm.logpdf(y.reshape(5, n_out).numpy(), mean.numpy(), scale).sum(-1)
    expected = logsumexp(each, axis=0, b=1 / 8)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(evaluation.log_mean_exp(torch.as_tensor(each)).numpy(), expected, atol=1e-12)


def test_predictive_density_of_a_conjugate_model_is_the_students():
    """Exact draws of the posterior: the estimate is within its Monte Carlo error of the closed form."""

    @zsp.meta_bayesian_net()
    def model(n):
        bn = zsp.BayesianNet()
        precision = bn.gamma("precision", torch.tensor(3.0), 2.0)
        bn.normal("y", torch.zeros(n), std=precision.rsqrt(), group_ndims=1)
        return bn

    draws = {"precision": torch.distributions.Gamma(3.0, 2.0).sample((20_000,))}
    y = torch.tensor([-2.0, 0.1, 1.0])
    density = torch.distributions.Normal(0, draws["precision"][:, None].rsqrt()).log_prob(y).exp()
    exact = torch.as_tensor(stats.t.pdf(y.numpy(), df=6, scale=(2 / 3) ** 0.5))
    assert_mean(density, exact)
    found = evaluation.predictive_log_prob(model(n=3), draws, {"y": y})
    torch.testing.assert_close(found, density.mean(0).log())
    assert (density.std(0) / 20_000**0.5 / exact < 0.01).all()


def test_predictive_density_of_draws_and_of_a_variational_net():
    x, y = torch.randn(20, 2), torch.randn(20)
    model = models.bayesian(nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)), likelihood=models.NormalLikelihood(1.0))
    q = zsp.laplace(model, {"x": x, "y": y}, n_samples=1).variational
    new = {"x": torch.randn(4, 2), "y": torch.randn(4)}
    from_q = evaluation.predictive_log_prob(model, q, new, n_samples=4000, chunk=500)
    features = torch.cat([x, torch.ones(20, 1)], 1)
    covariance = torch.linalg.inv(features.T @ features + torch.eye(3))
    mean = covariance @ features.T @ y
    x_new = torch.cat([new["x"], torch.ones(4, 1)], 1)
    mean, variance = x_new @ mean, (x_new @ covariance * x_new).sum(-1)
    exact = torch.distributions.Normal(mean, (1 + variance).sqrt()).log_prob(new["y"]).exp()
    # the second moment of N(y | f, 1), f ~ N(mean, variance), whose square is N(y | f, 1/2) / (2 sqrt pi)
    square = torch.distributions.Normal(mean, (0.5 + variance).sqrt()).log_prob(new["y"]).exp() / (4 * torch.pi) ** 0.5
    error = ((square - exact**2) / 4000).sqrt()
    assert ((from_q.exp() - exact).abs() < 5.6 * error).all()  # 1e-7 for the four
    assert (error < 0.02).all()
    values = q.bind(n_samples=6).observe().get(["0.weight", "0.bias"])
    latents = {name: value.tensor for name, value in zip(["0.weight", "0.bias"], values, strict=True)}
    draws = zsp.Draws({name: value.unflatten(0, (2, 3)) for name, value in latents.items()}, info={})
    torch.testing.assert_close(
        evaluation.predictive_log_prob(model, draws, new), evaluation.predictive_log_prob(model, latents, new)
    )


def test_predictive_density_needs_data():
    draws = {"0.weight": torch.randn(8, 1, 2), "0.bias": torch.randn(8, 1), "noise_precision": torch.rand(8)}
    with pytest.raises(
        ValueError, match="observed must hold the new values of 'y', whose density is asked for; it has 'x'"
    ):
        evaluation.predictive_log_prob(linear(), draws, {"x": torch.randn(5, 2)})

    @zsp.meta_bayesian_net()
    def scalar():
        bn = zsp.BayesianNet()
        bn.normal("y", bn.normal("z", torch.tensor(0.0), std=1.0), std=1.0)
        return bn

    with pytest.raises(
        ValueError, match=r"'y' is a single value without an axis of data: give 'y' the shape \[n, ...\]"
    ):
        evaluation.predictive_log_prob(scalar(), {"z": torch.randn(3)}, {"y": torch.tensor(1.0)})


# -- calibration ------------------------------------------------------------------------------------------------------


def test_calibration_error_by_hand():
    """Three bins: two predictions at 0.6 of which one is right, two at 0.9 that are wrong; the lowest bin is empty."""
    probs = torch.tensor([[0.6, 0.4], [0.4, 0.6], [0.9, 0.1], [0.1, 0.9]])
    labels = torch.tensor([0, 0, 1, 0])
    bins = evaluation.calibration_bins(probs, labels, n_bins=3)
    assert bins.size.tolist() == [0, 2, 2]
    torch.testing.assert_close(bins.confidence, torch.tensor([1 / 6, 0.6, 0.9]))
    torch.testing.assert_close(bins.accuracy[1:], torch.tensor([0.5, 0.0]))
    assert evaluation.expected_calibration_error(probs, labels, n_bins=3).item() == pytest.approx(0.5 * 0.1 + 0.5 * 0.9)
    half = evaluation.calibration_bins(torch.tensor([[0.5, 0.5]]), torch.tensor([0]), n_bins=2)
    assert half.size.tolist() == [1, 0]  # a bin holds its right end
    binary = evaluation.expected_calibration_error(probs[:, 1], labels, n_bins=3)
    assert binary.item() == pytest.approx(0.5 * 0.1 + 0.5 * 0.9)


def test_calibration_error_is_that_of_a_loop_over_the_bins():
    probs, labels = torch.randn(500, 4).mul(2).softmax(-1), torch.randint(4, (500,))
    confidence, predicted = (part.numpy() for part in probs.max(-1))
    edges, expected = np.linspace(0, 1, 11), 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            right = (predicted == labels.numpy())[inside].mean()
            expected += inside.mean() * abs(right - confidence[inside].mean())
    found = evaluation.expected_calibration_error(probs, labels, n_bins=10)
    assert found.item() == pytest.approx(expected, abs=1e-12)


def test_labels_drawn_from_the_probabilities_are_calibrated():
    probs = torch.randn(40_000, 3).mul(2).softmax(-1)
    labels = torch.distributions.Categorical(probs).sample()
    bins = evaluation.calibration_bins(probs, labels, n_bins=10)
    used = bins.size > 100
    error = (bins.confidence * (1 - bins.confidence) / bins.size).sqrt()
    assert used.sum() >= 6
    assert ((bins.accuracy - bins.confidence).abs() < 5.8 * error)[used].all()  # 1e-7 for all ten bins
    assert ((bins.accuracy**2 - bins.confidence).abs() > 5.8 * error)[used][:4].any()


def test_mistakes_in_probabilities():
    with pytest.raises(ValueError, match="probs must be at least 0 and sum to 1.*Logits become probabilities"):
        evaluation.calibration_bins(torch.randn(5, 3), torch.zeros(5))
    with pytest.raises(ValueError, match=r"probs must be \[n, K\] and labels \[n\], but.*\[5, 3\] and \[4\]"):
        evaluation.calibration_bins(torch.ones(5, 3) / 3, torch.zeros(4))
    with pytest.raises(ValueError, match="n_bins must be at least 1, got 0"):
        evaluation.calibration_bins(torch.ones(5, 2) / 2, torch.zeros(5), n_bins=0)
    with pytest.raises(ValueError, match=r"probs must be \[draw, n, K\], but its shape is \[5, 2\]"):
        evaluation.entropy(torch.ones(5, 2) / 2)


# -- entropy ----------------------------------------------------------------------------------------------------------


def test_entropy_and_its_parts():
    probs = torch.randn(6, 5, 3).softmax(-1)
    found = evaluation.entropy(probs)
    np.testing.assert_allclose(found.total.numpy(), stats.entropy(probs.mean(0).numpy(), axis=-1), atol=1e-12)
    np.testing.assert_allclose(found.expected.numpy(), stats.entropy(probs.numpy(), axis=-1).mean(0), atol=1e-12)
    torch.testing.assert_close(found.mutual_information, found.total - found.expected)
    sure = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])  # two draws that are sure of different classes
    total, expected, information = evaluation.entropy(sure)
    assert expected.item() == 0
    assert total.item() == information.item() == pytest.approx(np.log(2))


# -- intervals --------------------------------------------------------------------------------------------------------


def test_intervals_are_between_quantiles_and_cover_as_they_say():
    draws = torch.randn(2001, 7)
    low, high = evaluation.predictive_interval(draws, 0.8)
    torch.testing.assert_close(low, draws.quantile(0.1, 0))
    torch.testing.assert_close(high, draws.quantile(0.9, 0))
    one = evaluation.predictive_interval(draws[:1], 0.8)
    assert torch.equal(one[0], draws[0]) and torch.equal(one[1], draws[0])
    y = torch.tensor([-5.0, 0, 0, 0, 0, 0, 5.0])
    assert evaluation.coverage((low, high), y).item() == pytest.approx(5 / 7)
    n = 20_000
    y = torch.randn(n)
    ends = torch.full((n,), stats.norm.ppf(0.1)), torch.full((n,), stats.norm.ppf(0.9))
    found = evaluation.coverage(ends, y)
    assert abs(found.item() - 0.8) < 5.4 * (0.16 / n) ** 0.5
    with pytest.raises(ValueError, match="level must be between 0 and 1, got 90"):
        evaluation.predictive_interval(draws, 90)
    with pytest.raises(ValueError, match=r"the interval's end has shape \[7\], but y has \[7, 1\]"):
        evaluation.coverage((low, high), torch.zeros(7, 1))


def test_reliability_plot_shows_bins_and_the_error():
    probs, labels = torch.randn(300, 3).softmax(-1), torch.randint(3, (300,))
    figure = zsp.plots.reliability(probs, labels, n_bins=5, title="Reliability")
    (axes,) = figure.axes
    bins = evaluation.calibration_bins(probs, labels, n_bins=5)
    used = bins.size > 0
    line = axes.containers[-1].lines[0] if hasattr(axes.containers[-1], "lines") else axes.lines[-1]
    np.testing.assert_allclose(line.get_xdata(), bins.confidence[used].numpy())
    np.testing.assert_allclose(line.get_ydata(), bins.accuracy[used].numpy())
    error = evaluation.expected_calibration_error(probs, labels, n_bins=5).item()
    assert f"ECE {error:.3f}" in " ".join(text.get_text() for text in axes.get_legend().get_texts())
