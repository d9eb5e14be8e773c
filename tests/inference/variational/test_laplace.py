import math

import pytest
import torch

import zsp
from tests.inference.variational.test_gaussian import X, Y, posterior, regression


def test_a_gaussian_posterior_is_exact():
    mean, precision, evidence = posterior()
    q, log_evidence, mode = zsp.laplace(regression(X), {"y": Y}, n_samples=6)
    torch.testing.assert_close(log_evidence, evidence, atol=1e-10, rtol=0)
    torch.testing.assert_close(torch.cat([mode["w"], mode["b"].unsqueeze(-1)]), mean, atol=1e-9, rtol=0)
    tril = q.family.scale_tril.detach()
    torch.testing.assert_close(tril @ tril.mT, torch.linalg.inv(precision), atol=1e-10, rtol=0)
    log_weights = zsp.elbo(regression(X), {"y": Y}, variational=q).tensor
    torch.testing.assert_close(log_weights, evidence.expand(6), atol=1e-10, rtol=0)


def test_it_follows_dtype():
    q, log_evidence, _ = zsp.laplace(regression(X.float()), {"y": Y.float()})
    assert log_evidence.dtype == torch.float32 and q.observe()["w"].dtype == torch.float32
    assert abs(log_evidence.item() - posterior()[2].item()) < 1e-4


@zsp.meta_bayesian_net(scope="poisson")
def poisson(n_data):
    bn = zsp.BayesianNet()
    rate = bn.gamma("rate", 2.0, 3.0)
    bn.poisson("y", rate.unsqueeze(-1).expand(*rate.shape, n_data), group_ndims=1)
    return bn


def test_a_positive_latent_by_hand():
    # unconstrained: f(x) = a x - b exp(x) + c with a = 2 + sum y, b = 3 + n; the mode is log(a / b), f'' there -a
    y = torch.tensor([1.0, 0.0, 3.0, 2.0])
    q, log_evidence, mode = zsp.laplace(poisson(4), {"y": y}, n_samples=20_000)
    a, b = 2.0 + 6.0, 3.0 + 4.0
    torch.testing.assert_close(mode["rate"], torch.tensor(a / b), atol=1e-9, rtol=0)
    torch.testing.assert_close(q.family.logstd.detach().exp(), torch.tensor([a**-0.5]), atol=1e-9, rtol=0)
    constant = 2 * math.log(3) - math.lgamma(2) - torch.lgamma(y + 1).sum().item()
    by_hand = a * math.log(a / b) - a + constant + 0.5 * math.log(2 * math.pi / a)
    assert abs(log_evidence.item() - by_hand) < 1e-10
    exact = math.lgamma(a) - a * math.log(b) + constant
    assert abs(log_evidence.item() - exact - (-1 / (12 * a))) < 1e-4  # Stirling's series
    stats = zsp.is_loglikelihood(poisson(4), {"y": y}, proposal=q, return_stats=True)
    assert abs(stats.log_likelihood.item() - exact) < 5.4 * stats.standard_error.item() < 0.05


def test_supports_that_depend_on_latents_and_training():
    @zsp.meta_bayesian_net(scope="nested")
    def model():
        bn = zsp.BayesianNet()
        theta = bn.gamma("theta", 5.0, 1.0)
        u = bn.uniform("u", 0.0, theta)
        bn.normal("y", u.unsqueeze(-1), std=torch.full((3,), 0.5), group_ndims=1)
        return bn

    observed = {"y": torch.tensor([1.0, 1.5, 2.0])}
    q, log_evidence, mode = zsp.laplace(model(), observed, n_samples=8)
    assert 0 < mode["u"] < mode["theta"]
    stats = zsp.is_loglikelihood(model(), observed, proposal=q, n_samples=20_000, return_stats=True)
    assert abs(log_evidence - stats.log_likelihood).item() < 0.3
    zsp.elbo(model(), observed, variational=q, axis=0).sgvb().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in q.parameters())


def test_a_callable_and_a_start():
    def log_joint(values):  # two modes, at 1 and -1
        w = values["w"]
        return -4 * (w.square() - 1).square() + w

    starts = {start: zsp.laplace(log_joint, {}, latents={"w": torch.tensor(0.0)}, init={"w": torch.tensor(start)})
              for start in (2.0, -2.0)}  # fmt: skip
    assert starts[2.0].mode["w"] > 0.9 and starts[-2.0].mode["w"] < -0.9
    root = starts[2.0].mode["w"]
    torch.testing.assert_close(-16 * root * (root**2 - 1) + 1, torch.tensor(0.0), atol=1e-6, rtol=0)


def test_what_has_no_mode_is_refused():
    def flat(values):
        return -values["a"].square() + 0.0 * values["b"]

    latents = {"a": torch.tensor(0.0), "b": torch.tensor(0.0)}
    with pytest.raises(ValueError, match="no strict maximum .* has the eigenvalue -?0, .*improper or flat"):
        zsp.laplace(flat, {}, latents=latents)

    def saddle(values):
        return -values["a"].square() + values["b"].square() - values["b"] ** 4

    with pytest.raises(ValueError, match="has the eigenvalue 2, .*saddle"):
        zsp.laplace(saddle, {}, latents=latents)
    assert abs(zsp.laplace(saddle, {}, latents=latents, init={"a": 0.1, "b": 0.1}).mode["b"].item() - 0.5**0.5) < 1e-6
    with pytest.raises(ValueError, match="nats below a maximum. Raise max_iterations"):
        zsp.laplace(
            lambda v: -((v["a"] - 1e3).square() + 1e-3).pow(0.55), {}, latents={"a": latents["a"]}, max_iterations=1
        )
    with pytest.raises(ValueError, match="derivatives of the log density are not finite"):
        zsp.laplace(lambda v: -v["a"].abs().sqrt(), {}, latents={"a": torch.tensor(0.0)})
