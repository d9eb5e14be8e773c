"""Diagnostics against ArviZ's own, against closed forms of an autoregressive process, and against their definitions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from zsp.inference import diagnostics


def ar1(n_chains, n_draws, phi, *shape, seed=0):
    """Stationary N(0, 1) chains with autocorrelation phi^t."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n_chains, n_draws, *shape, generator=generator, dtype=torch.float64)
    for t in range(1, n_draws):
        x[:, t] = phi * x[:, t - 1] + math.sqrt(1 - phi**2) * x[:, t]
    return x


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shifted():
    return normal(4, 60, 3) + torch.arange(4)[:, None, None]


def stuck():
    x = normal(4, 50)
    x[2] = 0.7
    return x


def with_nan():
    x = normal(2, 40, 3)
    x[1, 7, 1] = math.nan
    return x


def with_infinity():
    x = normal(2, 40, 2)
    x[0, 3, 1] = math.inf
    return x


DRAWS = {
    "independent": normal(4, 100, 3),
    "two axes": normal(4, 100, 2, 3),
    "slow": ar1(4, 500, 0.95, 2),
    "antithetic": ar1(4, 300, -0.7, 2),
    "very antithetic": ar1(2, 101, -0.99),
    "odd": ar1(3, 101, 0.5, 2),
    "one chain": ar1(1, 200, 0.8, 2),
    "one chain, odd": normal(1, 33),
    "many chains": normal(64, 20),
    "four draws": normal(4, 4, 3),
    "five draws": normal(4, 5, 3),
    "six draws": normal(2, 6, 3),
    "seven draws": normal(2, 7, 3),
    "eight draws": normal(2, 8, 3),
    "three draws": normal(4, 3, 3),
    "Cauchy": normal(4, 250, 2) / normal(4, 250, 2, seed=1),
    "different places": shifted(),
    "one stuck chain": stuck(),
    "discrete": normal(4, 100, 2).mul(2).round(),
    "binary": (normal(4, 100) > 0.3).double(),
    "trend": normal(4, 200) + torch.linspace(-3, 3, 200, dtype=torch.float64),
    "large": normal(4, 100) * 1e-3 + 1e6,
    "NaN": with_nan(),
    "infinite": with_infinity(),
    "constant": torch.full((4, 50, 2), 3.0, dtype=torch.float64),
    "of float32": normal(4, 100, 2).float(),
}
METHODS = {
    "rhat": lambda az, x: az.rhat(x),
    "ess_bulk": lambda az, x: az.ess(x, method="bulk"),
    "ess_tail": lambda az, x: az.ess(x, method="tail", prob=(0.05, 0.95)),
    "ess_mean": lambda az, x: az.ess(x, method="mean"),
    "ess_sd": lambda az, x: az.ess(x, method="sd"),
    "mcse_mean": lambda az, x: az.mcse(x, method="mean"),
    "mcse_sd": lambda az, x: az.mcse(x, method="sd"),
}


def by_arviz(function, draws):
    """ArviZ's value for each element of the shape, in float64."""
    arviz = pytest.importorskip("arviz")
    values = draws.double().numpy().reshape(*draws.shape[:2], -1)
    with np.errstate(all="ignore"):
        each = [float(function(arviz, values[..., i])) for i in range(values.shape[-1])]
    return np.reshape(each, draws.shape[2:])


@pytest.mark.parametrize("draws", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_equal_to_arviz(method, draws):
    ours = getattr(diagnostics, method)(draws)
    assert ours.dtype == torch.float64 and ours.shape == draws.shape[2:]
    np.testing.assert_allclose(ours, by_arviz(METHODS[method], draws), rtol=1e-6)


@pytest.mark.parametrize("prob", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("draws", [DRAWS["slow"], DRAWS["odd"], DRAWS["Cauchy"]], ids=["slow", "odd", "Cauchy"])
def test_ess_of_a_quantile_is_arviz_s(draws, prob):
    expected = by_arviz(lambda az, x: az.ess(x, method="quantile", prob=prob), draws)
    np.testing.assert_allclose(diagnostics.ess_quantile(draws, prob), expected, rtol=1e-6)


@given(
    n_chains=st.integers(1, 6),
    n_draws=st.integers(4, 40),
    phi=st.floats(-0.95, 0.98),
    seed=st.integers(0, 1000),
    digits=st.sampled_from([0, 1, 12]),
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_equal_to_arviz_for_any_shape(n_chains, n_draws, phi, seed, digits):
    draws = ar1(n_chains, n_draws, phi, 2, seed=seed).round(decimals=digits)
    for method, function in METHODS.items():
        np.testing.assert_allclose(
            getattr(diagnostics, method)(draws), by_arviz(function, draws), rtol=1e-6, err_msg=method
        )


def test_bfmi_is_arviz_s_and_its_definition():
    energy = ar1(3, 400, 0.9) + torch.arange(3)[:, None]
    ours = diagnostics.bfmi(energy)
    steps, centred = energy[:, 1:] - energy[:, :-1], energy - energy.mean(1, keepdim=True)
    np.testing.assert_allclose(ours, steps.square().mean(1) / (centred.square().sum(1) / 399), rtol=1e-12)
    arviz = pytest.importorskip("arviz")
    np.testing.assert_allclose(ours, np.asarray(arviz.bfmi(energy.numpy())), rtol=1e-6)


def test_the_statistics_are_the_single_functions():
    for name in ("slow", "odd", "one chain", "two axes", "NaN", "discrete"):
        draws = DRAWS[name]
        table = diagnostics.statistics(draws)
        for column in ("mcse_mean", "mcse_sd", "ess_bulk", "ess_tail"):
            np.testing.assert_allclose(table[column], getattr(diagnostics, column)(draws), rtol=1e-12, err_msg=name)
        np.testing.assert_allclose(table["r_hat"], diagnostics.rhat(draws), rtol=1e-12)
        np.testing.assert_allclose(table["mean"], draws.mean((0, 1)), rtol=1e-12)
        np.testing.assert_allclose(table["sd"], draws.flatten(0, 1).std(0), rtol=1e-12)


def test_few_draws_have_a_mean_and_no_diagnostics():
    table = diagnostics.statistics(torch.tensor([[1.0, 2.0, 6.0]]))
    assert table["mean"] == 3.0 and table["sd"] == pytest.approx(7**0.5)
    assert all(table[column].isnan() for column in ("mcse_mean", "mcse_sd", "ess_bulk", "ess_tail", "r_hat"))
    alone = diagnostics.statistics(torch.tensor([[1.5]]))
    assert alone["mean"] == 1.5 and alone["sd"].isnan()
    assert diagnostics.statistics(torch.zeros(4, 0, 2))["mean"].isnan().tolist() == [True, True]


@pytest.mark.parametrize("phi", [-0.5, 0.0, 0.5, 0.9])
def test_the_ess_of_an_autoregressive_process(phi):
    """The mean's variance is (1 + phi) / (1 - phi) times that of independent draws, and x^2 has phi^2 for phi.

    Over 400 elements the mean of the estimates is within 4% of the truth, which a factor forgotten would not be.
    """
    draws = ar1(4, 2000, phi, 400)
    size = 4 * 2000
    ratio = (1 - phi) / (1 + phi)
    assert diagnostics.ess_mean(draws).mean().item() == pytest.approx(size * ratio, rel=0.04)
    assert diagnostics.ess_bulk(draws).mean().item() == pytest.approx(size * ratio, rel=0.04)
    ratio_of_squares = (1 - phi**2) / (1 + phi**2)
    assert diagnostics.ess_sd(draws).mean().item() == pytest.approx(size * ratio_of_squares, rel=0.04)


def test_the_standard_errors_are_those_of_repeated_runs():
    """Over 1000 runs the means' and sds' true standard deviations, whose own relative error is 2.2%, within 5 of those."""
    draws = ar1(4, 500, 0.6, 1000)
    means, sds = draws.mean((0, 1)), draws.flatten(0, 1).std(0)
    assert diagnostics.mcse_mean(draws).mean().item() == pytest.approx(means.std().item(), rel=0.11)
    assert diagnostics.mcse_sd(draws).mean().item() == pytest.approx(sds.std().item(), rel=0.11)


def test_ranks_are_averaged_among_equal_draws():
    draws = torch.tensor([[3.0, 1.0, 3.0, 2.0, 3.0, 1.0]])
    ranks = stats.rankdata(draws.numpy())
    expected = stats.norm.ppf((ranks - 0.375) / 6.25)
    np.testing.assert_allclose(diagnostics.normal_scores(draws[None])[0], expected.reshape(1, 6), rtol=1e-12)


def test_the_result_does_not_depend_on_the_blocks(monkeypatch):
    draws = ar1(4, 101, 0.7, 7)
    whole = diagnostics.statistics(draws)
    for block in (1, 500, 1000):
        monkeypatch.setattr(diagnostics, "BLOCK", block)
        for name, values in diagnostics.statistics(draws).items():
            np.testing.assert_allclose(values, whole[name], rtol=1e-12, err_msg=name)


def test_whole_numbers_booleans_and_gradients_are_taken():
    numbers = torch.randint(0, 50, (4, 100))
    assert diagnostics.ess_bulk(numbers) == diagnostics.ess_bulk(numbers.double())
    assert diagnostics.ess_mean(numbers > 20) == diagnostics.ess_mean((numbers > 20).double())
    assert not diagnostics.rhat(normal(4, 100).requires_grad_()).requires_grad
    half = normal(4, 100).bfloat16()
    assert diagnostics.ess_bulk(half) == diagnostics.ess_bulk(half.double())


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"draws must have shape \[chain, draw, \*shape\], but got \[100\]"):
        diagnostics.rhat(torch.randn(100))
    with pytest.raises(ValueError, match=r"energies of shape \[chain, draw\], but got \[4, 10, 2\]"):
        diagnostics.bfmi(torch.randn(4, 10, 2))
    with pytest.raises(ValueError, match="prob must lie between 0 and 1, got 5"):
        diagnostics.ess_quantile(torch.randn(4, 100), 5)
    with pytest.raises(ValueError, match="draws must be real"):
        diagnostics.ess_bulk(torch.zeros(4, 100, dtype=torch.complex64))
