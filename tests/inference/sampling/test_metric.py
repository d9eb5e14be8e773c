"""Mass matrices as maps, their running moments, and what they are estimated to be."""

import pytest
import torch

from tests.inference.sampling.targets import METRICS
from zsp.inference.sampling.metric import (
    Dense,
    Diagonal,
    LowRank,
    Moments,
    _geometric_mean,
    estimate_metric,
    unit_metric,
)


def covariance(n_dims):
    factor = torch.randn(n_dims, n_dims)
    return factor @ factor.mT / n_dims + 0.1 * torch.eye(n_dims)


def inverse_mass(metric, n_dims):
    """L L', from the map itself."""
    factor = metric.push(torch.eye(n_dims)).mT
    return factor @ factor.mT


def moments_of(draws, gradients, is_diagonal=False, n_parts=1):
    moments = Moments(draws.shape[1], is_diagonal, torch.device("cpu"))
    for part in zip(draws.tensor_split(n_parts), gradients.tensor_split(n_parts), strict=True):
        moments.add(*part)
    return moments


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_pull_is_the_adjoint_of_push_and_unpull_its_inverse(metric):
    a, b = torch.randn(2, 7, 3)
    assert torch.allclose((metric.push(a) * b).sum(-1), (a * metric.pull(b)).sum(-1), atol=1e-12)
    assert torch.allclose(metric.unpull(metric.pull(a)), a, atol=1e-12)
    assert torch.allclose(metric.push(a[0]), metric.push(a)[0], atol=1e-15), "maps of the last axis"


def test_the_inverse_mass_matrix_is_l_times_its_transpose():
    scale, directions, stretch = METRICS["low_rank"]
    middle = torch.eye(3) + directions @ torch.diag(stretch - 1) @ directions.mT
    factor = torch.diag(scale) @ middle
    assert torch.allclose(inverse_mass(METRICS["low_rank"], 3), factor @ factor.mT, atol=1e-12)
    factor = METRICS["dense"].factor
    assert torch.allclose(inverse_mass(METRICS["dense"], 3), factor @ factor.mT, atol=1e-12)
    assert torch.allclose(inverse_mass(METRICS["diagonal"], 3), METRICS["diagonal"].scale.diag() ** 2, atol=1e-12)


@pytest.mark.parametrize("n_parts", [1, 4])
def test_running_moments_are_those_of_all_draws(n_parts):
    draws, gradients = 1e3 + torch.randn(57, 4), 10 * torch.randn(57, 4)
    found = moments_of(draws, gradients, n_parts=n_parts).covariances()
    assert torch.allclose(found[0], draws.T.cov(), rtol=1e-9, atol=1e-12)
    assert torch.allclose(found[1], gradients.T.cov(), rtol=1e-9, atol=1e-12)
    diagonal = moments_of(draws.float(), gradients.float(), is_diagonal=True, n_parts=n_parts).covariances()
    assert diagonal[0].dtype == torch.float64, "sums of float32 draws are kept in float64"
    assert torch.allclose(diagonal[0], draws.float().double().var(0), rtol=1e-9)


def test_no_draws_change_nothing():
    moments = moments_of(torch.randn(5, 2), torch.randn(5, 2))
    before = moments.covariances()[0].clone()
    moments.add(torch.zeros(0, 2), torch.zeros(0, 2))
    assert moments.count == 5 and moments.covariances()[0].equal(before)


def test_the_geometric_mean_solves_its_equation():
    a, b = covariance(5), covariance(5)
    mean = _geometric_mean(a, b)
    assert torch.allclose(mean @ b @ mean, a, atol=1e-10)
    assert torch.allclose(mean, mean.mT, atol=1e-12) and (torch.linalg.eigvalsh(mean) > 0).all()


def test_the_geometric_mean_is_exact_on_a_normal_distribution_after_few_draws():
    sigma = covariance(6)
    draws = torch.randn(7, 6) @ torch.linalg.cholesky(sigma).mT
    gradients = -draws @ torch.linalg.inv(sigma)
    assert torch.allclose(_geometric_mean(draws.T.cov(), gradients.T.cov()), sigma, atol=1e-8)


def test_gradients_give_the_variances_of_independent_normals_exactly():
    """After two draws, where draws alone would need hundreds."""
    scale = torch.tensor([0.01, 1.0, 300.0])
    draws = scale * torch.randn(2, 3)
    metric = estimate_metric(
        moments_of(draws, -draws / scale**2, is_diagonal=True), "diagonal", "gradients", torch.float64
    )
    assert torch.allclose(metric.scale, scale, rtol=1e-12)


def test_draws_alone_give_shrunk_variances_as_in_stan():
    draws = torch.randn(20, 3)
    metric = estimate_metric(moments_of(draws, draws, is_diagonal=True), "diagonal", "draws", torch.float64)
    expected = 20 / 25 * draws.var(0) + 1e-3 * 5 / 25
    assert torch.allclose(metric.scale**2, expected, rtol=1e-12)


@pytest.mark.parametrize("mass_estimate", ["gradients", "draws"])
def test_dense_is_the_cholesky_factor_of_the_covariance(mass_estimate):
    sigma = covariance(4)
    draws = torch.randn(200_000, 4) @ torch.linalg.cholesky(sigma).mT
    moments = moments_of(draws, -draws @ torch.linalg.inv(sigma))
    metric = estimate_metric(moments, "dense", mass_estimate, torch.float64)
    assert isinstance(metric, Dense) and metric.factor.tril().equal(metric.factor)
    # the error of draws alone is theirs: 1 / sqrt(n)
    found = inverse_mass(metric, 4)
    assert torch.allclose(found, sigma, atol=1e-4 if mass_estimate == "gradients" else 0.02)


def test_low_rank_stretches_the_directions_that_need_it():
    """A normal distribution with a long and a short direction, both oblique: what is left is nearly round."""
    basis = torch.linalg.qr(torch.randn(8, 8)).Q
    values = torch.tensor([100.0, 0.01, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    sigma = basis * values @ basis.mT
    draws = torch.randn(400, 8) @ torch.linalg.cholesky(sigma).mT
    metric = estimate_metric(
        moments_of(draws, -draws @ torch.linalg.inv(sigma)), "low_rank", "gradients", torch.float64
    )
    assert isinstance(metric, LowRank)
    # what is left to the sampler has a condition number near 1, instead of 10,000
    factor = metric.push(torch.eye(8)).mT
    left = torch.linalg.eigvalsh(torch.linalg.solve(factor, torch.linalg.solve(factor, sigma).mT))
    assert left.max() / left.min() < 8


def test_low_rank_is_diagonal_where_nothing_is_correlated():
    scale = torch.tensor([0.1, 1.0, 20.0])
    draws = scale * torch.randn(1000, 3)
    metric = estimate_metric(moments_of(draws, -draws / scale**2), "low_rank", "gradients", torch.float64)
    assert not metric.directions.any()
    assert torch.allclose(inverse_mass(metric, 3), (scale**2).diag(), rtol=1e-9)


@pytest.mark.parametrize("n_dims", [3, 50])
@pytest.mark.parametrize("mass_matrix", ["diagonal", "dense", "low_rank", "identity"])
def test_a_run_begins_with_the_identity_in_the_form_of_its_estimates(mass_matrix, n_dims):
    position = torch.randn(2, n_dims)
    unit = unit_metric(mass_matrix, position)
    for way in (unit.push, unit.pull, unit.unpush, unit.unpull):
        torch.testing.assert_close(way(position), position, rtol=0, atol=1e-12)
    if mass_matrix == "identity":
        return
    for n_draws in (5, 500):  # estimates of another rank are of the same shapes, for which code was compiled
        draws = torch.randn(n_draws, n_dims) @ torch.randn(n_dims, n_dims)
        moments = moments_of(draws, -draws, is_diagonal=mass_matrix == "diagonal")
        metric = estimate_metric(moments, mass_matrix, "draws", position.dtype)
        assert type(metric) is type(unit)
        assert [leaf.shape for leaf in metric] == [leaf.shape for leaf in unit]


@pytest.mark.parametrize("mass_matrix", ["diagonal", "dense", "low_rank"])
@pytest.mark.parametrize("mass_estimate", ["gradients", "draws"])
def test_a_window_with_fewer_draws_than_dimensions_gives_a_usable_metric(mass_matrix, mass_estimate):
    draws = torch.randn(3, 10)
    draws[:, 0] = 1.0  # a chain that did not move there
    moments = moments_of(draws, -draws, is_diagonal=mass_matrix == "diagonal")
    metric = estimate_metric(moments, mass_matrix, mass_estimate, torch.float32)
    pushed = metric.push(torch.eye(10, dtype=torch.float32))
    assert pushed.dtype == torch.float32 and pushed.isfinite().all()
    assert torch.linalg.matrix_rank(pushed.double()) == 10
    assert isinstance(metric, {"diagonal": Diagonal, "dense": Dense, "low_rank": LowRank}[mass_matrix])
