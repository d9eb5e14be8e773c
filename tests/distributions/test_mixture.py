"""Mixtures of different families, of vectors and of counts; what is wrong with components is said."""

import numpy as np
import pytest
import scipy.special as sp
import scipy.stats as st
import torch
from torch.distributions import Independent, MixtureSameFamily, biject_to

import zsp
from tests.distributions.table import t
from tests.monte_carlo import assert_chi_square, assert_ks
from zsp.distributions import Cauchy, Exponential, InverseGamma, Mixture, MultivariateNormal, Normal, Poisson, Uniform

LOGITS = t([0.3, -0.5, 0.0])
WEIGHTS = sp.softmax(LOGITS.numpy())


def several() -> Mixture:
    return Mixture(LOGITS, [Normal(t(-1.0), t(0.5)), Cauchy(t(1.0), t(0.3)), Exponential(t(2.0))])


def reference() -> list:
    return [st.norm(-1.0, 0.5), st.cauchy(1.0, 0.3), st.expon(scale=0.5)]


def test_different_families():
    """The exponential is zero below zero: no NaN there, in the density or in its slope."""
    x = torch.linspace(-4, 6, 41, dtype=torch.float64, requires_grad=True)
    mixture = several()
    expected = np.log(sum(w * part.pdf(x.detach().numpy()) for w, part in zip(WEIGHTS, reference(), strict=True)))
    log_p = mixture.log_prob(x)
    np.testing.assert_allclose(log_p.detach(), expected, rtol=1e-10, atol=1e-10)
    (slope,) = torch.autograd.grad(log_p.sum(), x)
    assert slope.isfinite().all()
    assert_ks(
        mixture.sample((20_000,)).numpy(),
        lambda v: sum(w * part.cdf(v) for w, part in zip(WEIGHTS, reference(), strict=True)),
    )
    assert mixture.support.check(x).all() and not mixture.support.check(t(float("nan")))


def test_parameters_of_components_get_finite_gradients_outside_their_support():
    rate = t([2.0, 3.0]).requires_grad_()
    mixture = Mixture(t([0.0, 0.0]), [Normal(t(0.0), t(1.0)), InverseGamma(rate[0], rate[1])])
    (gradient,) = torch.autograd.grad(mixture.log_prob(t(-1.0)), rate)
    assert torch.equal(gradient, torch.zeros(2))
    torch.testing.assert_close(mixture.log_prob(t(-1.0)), t(np.log(0.5) + st.norm.logpdf(-1.0)))


def test_uniforms_on_different_intervals():
    components = Uniform(t([0.0, 2.0]), t([1.0, 3.0]))
    for mixture in (
        Mixture(t([0.0, 0.0]), components),
        Mixture(t([0.0, 0.0]), [Uniform(t(0.0), t(1.0)), Uniform(t(2.0), t(3.0))]),
    ):
        x = t([-0.5, 0.5, 1.5, 2.5, 3.5])
        inside = torch.tensor([False, True, False, True, False])
        assert torch.equal(mixture.support.check(x), inside)
        torch.testing.assert_close(mixture.log_prob(x).exp(), 0.5 * inside.double())
        assert mixture.support.check(mixture.sample((500,))).all()
        with pytest.raises(NotImplementedError):
            biject_to(mixture.support)


def test_vectors_as_torch_has_them():
    mean, tril = torch.randn(4, 3, 2), torch.eye(2) + torch.zeros(4, 3, 2, 2)
    ours = Mixture(torch.zeros(4, 3), MultivariateNormal(mean, scale_tril=tril))
    theirs = MixtureSameFamily(
        torch.distributions.Categorical(logits=torch.zeros(4, 3)),
        torch.distributions.MultivariateNormal(mean, scale_tril=tril),
    )
    x = ours.sample((5,))
    assert x.shape == (5, 4, 2) and ours.batch_shape == (4,) and ours.event_shape == (2,)
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x))
    torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(ours.variance, theirs.variance)
    independent = Mixture(torch.zeros(4, 3), Independent(torch.distributions.Normal(mean, 1.0), 1))
    torch.testing.assert_close(independent.log_prob(x), theirs.log_prob(x))
    assert independent.sample((5,)).shape == (5, 4, 2)


def test_counts():
    mixture = Mixture(LOGITS[:2], Poisson(t([1.0, 12.0])))
    weights = sp.softmax(LOGITS[:2].numpy())
    cells = np.arange(60)
    probabilities = weights[0] * st.poisson(1.0).pmf(cells) + weights[1] * st.poisson(12.0).pmf(cells)
    np.testing.assert_allclose(mixture.log_prob(t(cells)).exp(), probabilities, rtol=1e-10)
    draws = mixture.sample((20_000,)).numpy()
    assert_chi_square(np.bincount(draws.astype(int), minlength=60)[:60], probabilities)
    assert mixture.support.is_discrete and not mixture.support.check(t(0.5))


def test_a_list_equals_one_batched_distribution():
    loc, scale, x = t([0.0, 1.0, -2.0]), t([1.0, 0.5, 2.0]), torch.linspace(-3, 3, 7, dtype=torch.float64)
    one = Mixture(LOGITS, Normal(loc, scale))
    many = Mixture(LOGITS, [Normal(m, s) for m, s in zip(loc, scale, strict=True)])
    torch.testing.assert_close(one.log_prob(x), many.log_prob(x))
    torch.testing.assert_close(one.cdf(x), many.cdf(x))
    torch.testing.assert_close(one.mean, many.mean)
    torch.testing.assert_close(one.variance, many.variance)
    assert many.support is torch.distributions.constraints.real
    assert many.expand((4,)).sample((2,)).shape == (2, 4)


def test_the_tails_are_in_log_space():
    """Where every component's density underflows."""
    x = t(1e3).requires_grad_()
    log_p = Mixture(t([0.0, 0.0]), Normal(t([0.0, 1.0]), t(1.0))).log_prob(x)
    torch.testing.assert_close(log_p, t(st.norm.logpdf(999.0) + np.log(0.5)))
    (slope,) = torch.autograd.grad(log_p, x)
    torch.testing.assert_close(slope, t(-999.0))


def test_components_of_different_kinds_under_transforms():
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)

    def log_p(loc, value):
        return Mixture(LOGITS[:2], [Normal(loc, t(1.0)), Exponential(t(2.0))]).log_prob(value)

    expected = torch.stack([log_p(t(0.3), value) for value in x])
    torch.testing.assert_close(torch.func.vmap(lambda value: log_p(t(0.3), value))(x), expected)
    torch.testing.assert_close(torch.compile(log_p, fullgraph=True, backend="aot_eager")(t(0.3), x), expected)
    gradient = torch.func.grad(lambda loc: log_p(loc, x).sum())(t(0.3))
    loc = t(0.3).requires_grad_()
    torch.testing.assert_close(gradient, torch.autograd.grad(log_p(loc, x).sum(), loc)[0])


def test_a_node():
    bn = zsp.BayesianNet({"y": torch.linspace(-2, 2, 6)})
    bn.mixture("x", torch.zeros(2), [Normal(0.0, 1.0), Cauchy(0.0, 1.0)], n_samples=3)
    bn.mixture("y", torch.zeros(6, 2), Normal(torch.zeros(6, 2), 1.0), group_ndims=1)
    assert bn["x"].shape == (3,) and bn.cond_log_prob("y").shape == ()


@pytest.mark.parametrize(
    ("components", "text"),
    [
        (Normal(torch.zeros(2), 1.0), r"last batch axis is 3, but .* has batch shape \[2\]"),
        (Normal(0.0, 1.0), "give a list"),
        ([Normal(0.0, 1.0)] * 2, "list of 3 distributions with one event shape, but got 2"),
        ([Normal(0.0, 1.0)] * 2 + [MultivariateNormal(torch.zeros(2), torch.eye(2))], r"event shapes \[\[\], \[2\]\]"),
        ([Normal(0.0, 1.0)] * 2 + [Poisson(1.0)], "all discrete or all continuous"),
    ],
)
def test_wrong_components_are_named(components, text):
    with pytest.raises(ValueError, match=text):
        Mixture(LOGITS, components)
