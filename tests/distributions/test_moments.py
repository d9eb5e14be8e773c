"""Means, variances, distribution functions and entropies against scipy, and divergences against Monte Carlo.

The comparisons with scipy are exact. Those with Monte Carlo have a false-alarm rate of 1e-7 each, and a fixed seed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.special as sp
import scipy.stats as st
import torch
from torch.distributions import kl_divergence

import zsp.distributions as zd
from tests.distributions.table import CASES, Case, t
from tests.monte_carlo import assert_mean

BY_NAME = {case.name: case for case in CASES}

# (parameters of one batch element) -> scipy's distribution
FROZEN: dict[str, Any] = {
    "normal": lambda p: st.norm(p["mean"], p["std"]),
    "half_normal": lambda p: st.halfnorm(scale=p["scale"]),
    "log_normal": lambda p: st.lognorm(p["std"], scale=np.exp(p["mean"])),
    "truncated_normal": lambda p: st.truncnorm(
        (p["minval"] - p["mean"]) / p["std"], (p["maxval"] - p["mean"]) / p["std"], loc=p["mean"], scale=p["std"]
    ),
    "uniform": lambda p: st.uniform(p["minval"], p["maxval"] - p["minval"]),
    "laplace": lambda p: st.laplace(p["loc"], p["scale"]),
    "logistic": lambda p: st.logistic(p["loc"], p["scale"]),
    "gumbel": lambda p: st.gumbel_r(p["loc"], p["scale"]),
    "student_t": lambda p: st.t(p["df"], p["loc"], p["scale"]),
    "cauchy": lambda p: st.cauchy(p["loc"], p["scale"]),
    "half_cauchy": lambda p: st.halfcauchy(scale=p["scale"]),
    "pareto": lambda p: st.pareto(p["alpha"], scale=p["scale"]),
    "exponential": lambda p: st.expon(scale=1 / p["rate"]),
    "gamma": lambda p: st.gamma(p["alpha"], scale=1 / p["beta"]),
    "inverse_gamma": lambda p: st.invgamma(p["alpha"], scale=p["beta"]),
    "chi2": lambda p: st.chi2(p["df"]),
    "beta": lambda p: st.beta(p["alpha"], p["beta"]),
    "dirichlet": lambda p: st.dirichlet(p["alpha"]),
    "bernoulli": lambda p: st.bernoulli(sp.expit(p["logits"])),
    "binomial": lambda p: st.binom(int(p["n_experiments"]), sp.expit(p["logits"])),
    "geometric": lambda p: st.geom(sp.expit(p["logits"]), loc=-1),
    "negative_binomial": lambda p: st.nbinom(p["total_count"], sp.expit(-p["logits"])),
    "poisson": lambda p: st.poisson(p["rate"]),
}
# moments that are not those of a number, or are not defined, and entropies that neither library has
SKIPPED = {
    ("cauchy", "mean"), ("cauchy", "variance"), ("half_cauchy", "mean"), ("half_cauchy", "variance"),
    ("poisson", "entropy"), ("negative_binomial", "entropy"), ("truncated_normal", "entropy"),
}  # fmt: skip
SCIPY = {"mean": "mean", "variance": "var", "entropy": "entropy"}


@pytest.mark.parametrize("name", FROZEN)
def test_moments_are_those_of_scipy(name: str):
    case, frozen = BY_NAME[name], FROZEN[name]
    dist = case.build()
    for ours, theirs in SCIPY.items():
        if (name, ours) in SKIPPED:
            continue
        got = getattr(dist, ours)
        got = got() if callable(got) else got
        for i in range(3):
            expected = np.asarray(getattr(frozen(case.element(i)), theirs)(), dtype=float)
            np.testing.assert_allclose(got[i].numpy(), expected, rtol=1e-7, atol=1e-9, err_msg=f"{ours} {i}")


@pytest.mark.parametrize("name", sorted({case.name for case in CASES if case.cdf is not None and case.values is None}))
def test_distribution_functions_are_the_reference(name: str):
    case = BY_NAME[name]
    dist, values = case.build(), case.draws(50)
    try:
        got = dist.cdf(values)
    except NotImplementedError:
        assert name in {"beta", "student_t", "fold_normal", "bin_concrete", "von_mises"}, "torch's class has a cdf"
        return
    for i in range(3):
        np.testing.assert_allclose(got[:, i], case.cdf(case.element(i), values[:, i].numpy()), rtol=1e-7, atol=1e-9)
    try:
        back = dist.icdf(got)
    except NotImplementedError:
        return
    keep = (got > 1e-6) & (got < 1 - 1e-6)
    torch.testing.assert_close(back[keep], values[keep], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "name",
    [
        "zero_inflated_poisson", "zero_inflated_negative_binomial", "mixture", "low_rank_multivariate_normal", "wishart",
        "continuous_bernoulli", "truncated_normal", "onehot_categorical", "multinomial",
        "matrix_variate_normal_cholesky", "negative_binomial",
    ],
)  # fmt: skip
def test_moments_are_those_of_draws(name: str):
    """2e4 draws: an error of 3 percent of a deviation would be seen (false alarm 1e-7 each)."""
    dist = BY_NAME[name].build()
    torch.manual_seed(7)
    draws = dist.sample((20_000,))
    assert_mean(draws, dist.mean)
    assert_mean((draws - dist.mean) ** 2, dist.variance)


def test_moments_of_a_multivariate_student_t():
    dist = zd.MultivariateStudentT(t([0.5, 1.5, 30.0]), t([1.0, -1.0]), t([[2.0, 0.0], [0.3, 0.5]]))
    assert dist.mean[0].isnan().all() and torch.equal(dist.mean[1], t([1.0, -1.0]))
    assert dist.variance[0].isnan().all() and dist.variance[1].isinf().all()
    torch.testing.assert_close(dist.variance[2], t([4.0, 0.34]) * (30 / 28))


def test_truncated_normal_far_in_a_tail():
    """Beyond 38 deviations the distribution function is zero in float64; there it nears an exponential of rate a."""
    a = 1e4
    dist = zd.TruncatedNormal(t(0.0), t(1.0), low=t(a))
    torch.manual_seed(0)
    excess = (dist.sample((20_000,)) - a) * a
    assert_mean(excess, 1.0, bias=1e-5)
    torch.testing.assert_close(dist.log_prob(t(a + 1 / a)), t(np.log(a) - 1.0), rtol=0, atol=2e-8)
    torch.testing.assert_close(dist.cdf(t(a + 1 / a)), t(1 - np.exp(-1.0)), rtol=1e-7, atol=0)
    torch.testing.assert_close(dist.mean, t(a + 1 / a), rtol=1e-11, atol=0)
    below = zd.TruncatedNormal(t(0.0), t(1.0), high=t(-a))
    torch.testing.assert_close(below.log_prob(t(-a - 1 / a)), dist.log_prob(t(a + 1 / a)))


def test_truncated_normal_bounds_are_one_sided_or_none():
    """With no bounds it is the normal; the support of one bound has a transform onto it."""
    x = torch.linspace(-5, 5, 11)
    free = zd.TruncatedNormal(0.5, 2.0)
    torch.testing.assert_close(free.log_prob(x), zd.Normal(0.5, 2.0).log_prob(x))
    torch.testing.assert_close(free.cdf(x), zd.Normal(0.5, 2.0).cdf(x))
    for bounds in ({"low": 1.0}, {"high": 1.0}):
        dist = zd.TruncatedNormal(0.5, 2.0, **bounds)
        transform = torch.distributions.biject_to(dist.support)
        assert (
            dist.support.check(transform(x)).all()
            and not dist.support.check(torch.tensor(1.0) - 2 * ("low" in bounds) + 1).all()
        )
        assert dist.support.check(dist.sample((1000,))).all()
        u = torch.linspace(-30, 30, 60_001)
        y = transform(u)
        total = (dist.log_prob(y) + transform.log_abs_det_jacobian(u, y)).exp().sum() * 1e-3
        assert abs(total - 1) < 1e-5


# -- bijections -------------------------------------------------------------------------------------------------------

FREE_ENTRIES = {
    "wishart": lambda y: y[torch.tril(torch.ones(2, 2)) == 1],
    "lkj_cholesky": lambda y: y[[1, 2, 2], [0, 0, 1]],
}
WITH_JACOBIAN = [
    case.name for case in CASES if case.values is None and not case.discrete and case.name not in ("delta", "exp_concrete", "dirichlet", "concrete")
]  # fmt: skip  # those three are vectors on a simplex; their Jacobians are tested by integration


@pytest.mark.parametrize("name", WITH_JACOBIAN)
def test_the_log_jacobian_of_a_support_is_autograds(name: str):
    case = BY_NAME[name]
    dist = case.build()
    transform = torch.distributions.biject_to(dist.expand((3,)).support)
    u = transform.inv(case.draws(1)[0])
    got = transform.log_abs_det_jacobian(u, transform(u))
    got = got.flatten(1).sum(-1) if got.dim() > 1 else got
    free = FREE_ENTRIES.get(name, lambda y: y)
    for i in range(3):

        def of_element(v, i=i):
            return free(transform(torch.cat([u[:i], v[None], u[i + 1 :]]))[i]).flatten()

        jacobian = torch.autograd.functional.jacobian(of_element, u[i])
        jacobian = jacobian.reshape(-1, max(1, u[i].numel()))
        torch.testing.assert_close(got[i], torch.linalg.slogdet(jacobian).logabsdet, rtol=1e-8, atol=1e-8)


# -- divergences ------------------------------------------------------------------------------------------------------

# row -> parameters of the second distribution; the first has those of the table
SECOND: dict[str, dict[str, Any]] = {
    "normal": {"mean": t(0.5), "std": t(1.5)},
    "half_normal": {"scale": t(0.7)},
    "log_normal": {"mean": t(0.5), "std": t(1.5)},
    "uniform": {"minval": t(-1.5), "maxval": t(40.0)},
    "laplace": {"loc": t(0.5), "scale": t(1.5)},
    "exponential": {"rate": t(0.8)},
    "gumbel": {"loc": t(0.5), "scale": t(1.5)},
    "cauchy": {"loc": t(0.5), "scale": t(1.5)},
    "half_cauchy": {"scale": t(0.7)},
    "pareto": {"scale": t(0.2), "alpha": t(1.5)},
    "gamma": {"alpha": t(1.5), "beta": t(0.8)},
    "inverse_gamma": {"alpha": t(1.5), "beta": t(0.8)},
    "chi2": {"df": t(3.0)},
    "beta": {"alpha": t(1.5), "beta": t(0.8)},
    "dirichlet": {"alpha": t([1.5, 0.8, 1.0])},
    "continuous_bernoulli": {"logits": t(0.7)},
    "bernoulli": {"logits": t(0.7)},
    "categorical": {"logits": t([0.3, 0.0, -0.5])},
    "onehot_categorical": {"logits": t([0.3, 0.0, -0.5])},
    "binomial": {"logits": t(0.7), "n_experiments": torch.tensor([4, 10, 7])},
    "geometric": {"logits": t(-0.5)},
    "poisson": {"rate": t(4.0)},
    "multivariate_normal": {"mean": t([0.5, 0.0]), "cov": t([[2.0, 0.3], [0.3, 1.0]])},
    "multivariate_normal_cholesky": {"mean": t([0.5, 0.0]), "cov_tril": t([[1.5, 0.0], [0.3, 1.0]])},
    "low_rank_multivariate_normal": {"mean": t([0.5, 0.0]), "cov_factor": t([[0.5], [1.0]]), "cov_diag": t([1.0, 2.0])},
    "matrix_variate_normal_cholesky": {
        "mean": t([[0.3, 0.0, 0.1], [0.0, 0.2, 0.0]]),
        "u_tril": t([[1.2, 0.0], [0.3, 1.0]]),
        "v_tril": t([[1.0, 0.0, 0.0], [0.3, 1.5, 0.0], [0.0, 0.2, 1.1]]),
    },
}  # fmt: skip


def pair(name: str) -> tuple[Case, Any, Any]:
    case = BY_NAME[name]
    return case, case.build(), case.row.build(**SECOND[name])


@pytest.mark.parametrize("name", SECOND)
def test_divergences_are_the_mean_log_ratio(name: str):
    """By 2e4 draws of the first; the standard error is below 5 percent of the divergence, or below 0.02 nats."""
    _, p, q = pair(name)
    torch.manual_seed(8)
    draws = p.sample((20_000,))
    ratio = p.log_prob(draws) - q.log_prob(draws)
    got = kl_divergence(p, q)
    assert got.shape == (3,)
    assert (ratio.std(0) / 20_000**0.5 < (0.05 * got).clamp(min=0.02)).all()
    assert_mean(ratio, got, bias=1e-9)


@pytest.mark.parametrize("name", SECOND)
def test_divergences_from_itself_are_zero(name: str):
    case, p, _ = pair(name)
    torch.testing.assert_close(kl_divergence(p, case.build()), torch.zeros(3), rtol=0, atol=1e-12)


def test_divergences_where_the_support_is_larger_are_infinite():
    assert kl_divergence(zd.Pareto(0.1, 1.0), zd.Pareto(1.0, 1.0)) == torch.inf
    assert kl_divergence(zd.Uniform(0.0, 2.0), zd.Uniform(0.0, 1.0)) == torch.inf
    with pytest.raises(NotImplementedError, match="equal total_count"):
        kl_divergence(zd.Binomial(3, 0.0), zd.Binomial(4, 0.0))
