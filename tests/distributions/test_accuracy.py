"""Where the densities of other libraries lose their digits, and the several ways to give a parameter."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import scipy.stats as st
import torch
from torch.distributions import biject_to

import zsp
from tests.distributions.table import t
from tests.monte_carlo import assert_mean
from zsp.distributions import (
    Cauchy,
    ContinuousBernoulli,
    DiscretizedLogisticMixture,
    Geometric,
    LKJCholesky,
    NegativeBinomial,
    Normal,
    OrderedLogistic,
    TruncatedNormal,
    VonMises,
    Wishart,
)

F32 = {"dtype": torch.float32}


@pytest.mark.parametrize("logit", [1e-9, 1e-3, 0.0039, 0.19, 0.21, 1.0, 30.0, 60.0, 500.0])
def test_continuous_bernoulli_at_every_logit(logit: float):
    """Against 60 digits. torch's log density is off by 0.6 at 30 in float32, by 0.5 at 60 in float64."""
    with localcontext() as context:
        context.prec = 60
        exact = Decimal(logit) / 4 - ((Decimal(logit).exp() - 1) / Decimal(logit)).ln()
    for sign, x in ((1, 0.25), (-1, 0.75)):
        got = ContinuousBernoulli(t(sign * logit)).log_prob(t(x))
        assert abs(got.item() - float(exact)) < 1e-13 * max(1, logit)
        in_float32 = ContinuousBernoulli(torch.tensor(sign * logit, **F32)).log_prob(torch.tensor(x, **F32))
        assert abs(in_float32.item() - float(exact)) < 1e-6 * max(1, logit)


def test_continuous_bernoulli_draws_near_one_half_and_far_from_it():
    """A false alarm once in 1e7 runs for each of the logits."""
    for logit in (0.0, 1e-4, -9e-4, -1.1e-3, 40.0):
        dist = ContinuousBernoulli(t(logit))
        assert_mean(dist.sample((20_000,)), dist.mean)
        u = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
        torch.testing.assert_close(dist.cdf(dist.icdf(u)), u, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("concentration", [1e-3, 1.0, 99.0, 101.0, 700.0])
def test_von_mises_has_all_digits(concentration: float):
    """torch's polynomial is off by 7e-8."""
    x = torch.linspace(-3, 3, 9, dtype=torch.float64)
    k = t(concentration).requires_grad_()
    log_p = VonMises(t(0.5), k).log_prob(x)
    np.testing.assert_allclose(
        log_p.detach(), st.vonmises(concentration, 0.5).logpdf(x.numpy()), rtol=1e-12, atol=1e-12
    )
    (slope,) = torch.autograd.grad(log_p.sum(), k)
    ratio = torch.special.i1e(k) / torch.special.i0e(k)
    torch.testing.assert_close(slope, (torch.cos(x - 0.5) - ratio).sum().detach(), rtol=1e-9, atol=1e-9)


def test_von_mises_concentrated_in_float32():
    """Nearly normal with variance 1 / k; torch's is off by 0.07."""
    got = VonMises(torch.tensor(0.0, **F32), torch.tensor(1e6, **F32)).log_prob(torch.tensor(1e-3, **F32))
    assert abs(got.item() - st.norm(0, 1e-3).logpdf(1e-3)) < 1e-5


@pytest.mark.parametrize("total", [99.0, 101.0, 1e4, 1e7])
def test_negative_binomial_nears_a_poisson(total: float):
    """With mean 5. In float32 torch's is off by 2.7 at 1e7 failures."""
    x = np.arange(12)
    expected = st.nbinom(total, total / (total + 5)).logpmf(x)
    got = NegativeBinomial(t(total), t(np.log(5 / total))).log_prob(t(x))
    np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-7)
    logits = torch.tensor(math.log(5 / total), **F32)
    in_float32 = NegativeBinomial(torch.tensor(total, **F32), logits).log_prob(torch.tensor(x, **F32))
    np.testing.assert_allclose(in_float32, expected, rtol=1e-5, atol=2e-5)
    if total == 1e7:
        np.testing.assert_allclose(got, st.poisson(5).logpmf(x), atol=1e-5)


def test_geometric_with_a_near_certain_success():
    """torch's log probability is minus infinity from logits of 37 on."""
    torch.testing.assert_close(Geometric(t(40.0)).log_prob(t(3.0)), t(-120.0))


def test_cauchy_in_the_tails():
    for dtype in (torch.float32, torch.float64):
        z = torch.tensor([1e3, 9.9e3, 1.01e4, 1e30], dtype=dtype)
        expected = -2 * np.log(z.double().numpy()) - np.log(np.pi)
        np.testing.assert_allclose(
            Cauchy(0.0, 1.0).log_prob(z), expected, rtol=1e-6 if dtype == torch.float32 else 1e-7
        )


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (1.0, 1.0 + 1e-9), (5.0, 5.5), (5.0, 30.0), (-40.0, 40.0)])
def test_truncated_normal_is_normalised(low: float, high: float):
    """Whatever the form that its mass is computed by."""
    x = torch.linspace(low, min(high, low + 20) if low > 0 else high, 200_001, dtype=torch.float64)
    density = TruncatedNormal(t(0.0), t(1.0), t(low), t(high)).log_prob(x).exp()
    assert abs(torch.trapezoid(density, x) - 1) < 1e-7


def test_the_quadrature_of_a_short_truncated_normal_is_that_of_numpy():
    from zsp.distributions.truncated_normal import _PLACES, _WEIGHTS

    places, weights = np.polynomial.legendre.leggauss(len(_PLACES))
    np.testing.assert_allclose(_PLACES, (1 + places) / 2, rtol=1e-13)
    np.testing.assert_allclose(_WEIGHTS, weights / 2, rtol=1e-13)


@pytest.mark.parametrize("value_shape", [(4, 3), (5, 4, 3), (3,)])
@pytest.mark.parametrize("loc_shape", [(4, 3), (3,), (4, 1), ()])
@pytest.mark.parametrize("scale", [0.7, t(0.7), t([0.5, 0.7, 2.0])])
def test_the_summed_log_density_of_a_normal(value_shape: tuple[int, ...], loc_shape: tuple[int, ...], scale):
    """It has a form of its own where the scale is a number; its value and gradients are those of the sum."""
    generator = torch.Generator().manual_seed(0)
    value, loc = (torch.randn(shape, dtype=torch.float64, generator=generator) for shape in (value_shape, loc_shape))
    leaves = [value.requires_grad_(), loc.requires_grad_()]
    dist = Normal(loc, scale)
    for axes in ((-1,), (-2, -1)):
        if len(axes) > max(len(value_shape), len(loc_shape)):
            continue
        ours = dist.summed_log_prob(value, axes)
        terms = st.norm(loc.detach().numpy(), np.asarray(scale)).logpdf(value.detach().numpy())
        np.testing.assert_allclose(ours.detach(), terms.sum(axes), rtol=1e-12)
        plain = torch.autograd.grad(dist.log_prob(value).sum(), leaves)
        for gradient, other in zip(torch.autograd.grad(ours.sum(), leaves), plain, strict=True):
            np.testing.assert_allclose(gradient, other, rtol=1e-12)


@pytest.mark.parametrize("given", ["number", "tensor", "logarithm"])
def test_the_density_of_a_draw_of_a_normal(given: str):
    dist = {
        "number": Normal(torch.zeros(4, 3), 2.0),
        "tensor": Normal(torch.zeros(4, 3), t([0.5, 0.7, 2.0])),
        "logarithm": Normal(torch.zeros(4, 3), log_scale=t([0.5, 0.7, 2.0])),
    }[given]
    for sample_shape in ((), (5,)):
        draw = dist.rsample(sample_shape)
        for axes in ((), (-1,), (-2, -1)):
            expected = dist.log_prob(draw).sum(axes) if axes else dist.log_prob(draw)
            np.testing.assert_allclose(dist.log_prob_of_draw(draw, axes), expected, rtol=1e-12)


def test_the_draws_of_a_normal_depend_on_the_seed_and_not_on_the_layout_of_its_mean():
    draws = []
    for loc in (torch.zeros(40, 30), torch.zeros(30, 40).t(), torch.zeros(40, 1), torch.zeros(30)):
        torch.manual_seed(0)
        draws.append(Normal(loc, torch.ones(40, 30)).rsample())
    assert all(torch.equal(draw, draws[0]) for draw in draws)


def test_ordered_logistic_far_out():
    """Neighbouring cutpoints far from the predictor: the difference of two sigmoids that are both 1."""
    dist = OrderedLogistic(t(-100.0), t([0.0, 1e-8]))
    expected = -100.0 + math.log(1e-8)
    assert abs(dist.log_prob(t(1.0)).item() - expected) < 1e-6
    with pytest.raises(ValueError, match="cutpoints"):
        zsp.BayesianNet().ordered_logistic("y", 0.0, torch.tensor([1.0, 0.0]))


def test_discretized_logistic_sums_to_one_at_every_scale():
    levels = torch.arange(256, dtype=torch.float64)
    for log_scale in (-15.0, -7.0, -2.0, 3.0, 30.0):
        for loc in (-1.0, 0.013, 1.2):
            dist = DiscretizedLogisticMixture(t([0.0, 0.5]), t([loc, 0.3]), t([log_scale, -3.0]))
            assert abs(dist.log_prob(levels).logsumexp(0)) < 1e-12
    assert DiscretizedLogisticMixture(t([0.0]), t([5.0]), t([-3.0])).sample((9,)).eq(255).all()


def test_a_wishart_is_given_once_and_all_forms_agree():
    cov = t([[2.0, 0.4], [0.4, 0.5]])
    bn = zsp.BayesianNet()
    with pytest.raises(ValueError, match="cov and precision were given"):
        bn.wishart("x", 3.0, cov=cov, precision=cov)
    with pytest.raises(ValueError, match="none was given"):
        bn.wishart("x", 3.0)
    forms = [Wishart(3.0, cov), Wishart(3.0, precision_matrix=cov.inverse())]
    forms.append(Wishart(3.0, scale_tril=torch.linalg.cholesky(cov)))
    x = forms[0].sample((5,))
    for form in forms:
        torch.testing.assert_close(form.log_prob(x), forms[0].log_prob(x))
        torch.testing.assert_close(form.covariance_matrix, cov)
    np.testing.assert_allclose(forms[0].entropy(), st.wishart(3, cov.numpy()).entropy())


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_the_bijection_to_positive_definite_matrices(rows: int):
    """With a batch; and a matrix in float32 is in the support."""
    transform = biject_to(Wishart.support)
    u = torch.randn(5, rows * (rows + 1) // 2, dtype=torch.float64)
    x = transform(u)
    assert x.shape == (5, rows, rows) and Wishart.support.check(x).all()
    assert Wishart.support.check(transform(u.float())).all() and not Wishart.support.check(-x).any()
    torch.testing.assert_close(transform.inv(x), u)
    assert transform.log_abs_det_jacobian(u, x).shape == (5,)
    at = torch.tril_indices(rows, rows)
    for i in range(5):
        jacobian = torch.autograd.functional.jacobian(lambda v: transform(v)[at[0], at[1]], u[i])
        torch.testing.assert_close(transform.log_abs_det_jacobian(u, x)[i], torch.linalg.slogdet(jacobian).logabsdet)


def test_lkj_correlations_are_beta():
    """Each correlation of d rows is 2 Beta(a, a) - 1 with a = eta + (d - 2) / 2 (Lewandowski et al. 2009)."""
    eta, d = 1.5, 5
    draws = LKJCholesky(d, t(eta)).sample((20_000,))
    correlation = draws @ draws.mT
    a = eta + (d - 2) / 2
    for i, j in ((1, 0), (4, 0), (4, 3)):
        result = st.kstest((correlation[:, i, j].numpy() + 1) / 2, st.beta(a, a).cdf)
        assert result.pvalue > 1e-7  # the rate of false alarms, for each of the three
    with pytest.raises(ValueError, match="whole number from 2 on"):
        LKJCholesky(1)


def test_a_flow_is_a_chain_of_transforms():
    from torch.distributions.transforms import AffineTransform, ExpTransform

    bn = zsp.BayesianNet()
    base = zsp.distributions.Normal(torch.zeros(4, requires_grad=True), 1.0)
    x = bn.flow("x", base, [AffineTransform(1.0, 2.0), ExpTransform()], n_samples=3)
    assert x.shape == (3, 4) and x.requires_grad
    expected = zsp.distributions.LogNormal(torch.ones(4), 2.0)
    torch.testing.assert_close(bn.cond_log_prob("x"), expected.log_prob(x))
    with pytest.raises(ValueError, match="image of the transforms"):
        zsp.BayesianNet({"x": -torch.ones(4)}).flow("x", base, ExpTransform())
