"""Annealed importance sampling: weights whose mean is the evidence, and bounds that enclose it."""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Beta, Normal, constraints

import zsp
from tests.monte_carlo import FALSE_ALARM, assert_mean
from zsp.inference.annealing import AnnealingPath, linear, sigmoidal

STD = 0.3
Y = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


@zsp.meta_bayesian_net(scope="normal_normal")
def normal_normal(n_dims):
    bn = zsp.BayesianNet()
    z = bn.normal("z", torch.zeros(n_dims), std=1.0, group_ndims=1)
    bn.normal("y", z, std=STD, group_ndims=1)
    return bn


@zsp.meta_bayesian_net(scope="each")
def each(n):
    """The same with a latent for each of n data."""
    bn = zsp.BayesianNet()
    z = bn.normal("z", torch.zeros(n, 2), std=1.0, group_ndims=1)
    scale = bn.log_normal("scale", torch.zeros(n), std=1e-3)
    bn.normal("y", z * scale.unsqueeze(-1), std=STD, group_ndims=1)
    return bn


@zsp.meta_bayesian_net(scope="beta_binomial")
def beta_binomial():
    bn = zsp.BayesianNet()
    p = bn.beta("p", 2.0, 3.0)
    bn.binomial("y", p.logit(), 10)
    return bn


def evidence(y: Tensor) -> Tensor:
    return Normal(0.0, math.hypot(1.0, STD)).log_prob(y).sum(-1)


def posterior(y: Tensor, n: int) -> Tensor:
    variance = STD**2 / (1 + STD**2)
    return y / (1 + STD**2) + variance**0.5 * torch.randn(n, *y.shape)


def beta_binomial_evidence(y: float) -> float:
    lgamma, beta = math.lgamma, lambda a, b: math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    return lgamma(11) - lgamma(y + 1) - lgamma(11 - y) + beta(2 + y, 3 + 10 - y) - beta(2, 3)


def sampler(**options):
    return zsp.AIS(normal_normal(3), {"y": Y}, **{"kernel": zsp.HMC(n_leapfrogs=5), "n_temperatures": 60, **options})


def assert_encloses(below: zsp.AISResult, above: zsp.AISResult, exact: float | Tensor) -> None:
    """Log weights of a forward run are below the log evidence in the mean and those of a reverse run above it."""
    z = NormalDist().inv_cdf(1 - FALSE_ALARM)
    for sign, result in ((1, below), (-1, above)):
        error = result.log_weights.std(0) / len(result.log_weights) ** 0.5
        assert (sign * (exact - result.log_weights.mean(0)) > z * error).all(), (result.log_weights.mean(0), exact, error)


KERNELS = {
    "HMC": zsp.HMC(n_leapfrogs=5),
    "HMC, fixed": zsp.HMC(step_size=0.2, n_leapfrogs=5, adapt_step_size=False, adapt_mass=False),
    "NUTS": zsp.NUTS(max_tree_depth=4),
    "MAMS": zsp.MAMS(),
}


@pytest.mark.parametrize("name", KERNELS)
def test_weights_have_the_evidence_as_their_mean_and_enclose_it(name):
    n = {"NUTS": 300, "MAMS": 1000}.get(name, 2000)
    ais = sampler(kernel=KERNELS[name], n_chains=n)
    below, above = ais.forward(progress=False), ais.reverse({"z": posterior(Y, n)}, progress=False)
    exact = evidence(Y)
    assert_mean((below.log_weights - exact).exp(), 1.0)
    assert_mean((exact - above.log_weights).exp(), 1.0)
    assert below.ess > n / 5  # so that the two tests can fail
    assert_encloses(below, above, exact)
    for result in (below, above):
        assert abs(result.log_evidence - exact) < 5.3 * result.standard_error < 1.0
    assert below.acceptance_rate.shape == above.acceptance_rate.shape == (59,)


@pytest.mark.parametrize("schedule", ["linear", "adaptive", linear(60) ** 2])
def test_every_schedule_gives_the_evidence(schedule):
    ais = sampler(n_chains=1000, schedule=schedule)
    below = ais.forward(progress=False)
    assert_mean((below.log_weights - evidence(Y)).exp(), 1.0)
    temperatures = below.temperatures
    assert temperatures.shape == (61,) and temperatures[0] == 0 and temperatures[-1] == 1
    assert (temperatures.diff() > 0).all()


@pytest.mark.parametrize("y", [0.0, 7.0])
def test_a_constrained_latent(y):
    n = 1000
    ais = zsp.AIS(
        beta_binomial(), {"y": torch.tensor(y)}, kernel=zsp.HMC(n_leapfrogs=5), n_chains=n, n_temperatures=20
    )
    below = ais.forward(progress=False)
    above = ais.reverse({"p": Beta(2 + y, 13 - y).sample((n,))}, progress=False)
    exact = beta_binomial_evidence(y)
    assert_mean((below.log_weights - exact).exp(), 1.0)
    assert_mean((exact - above.log_weights).exp(), 1.0)
    assert_encloses(below, above, exact)
    # the weighted ends of the chains are draws from the posterior
    weights = (below.log_weights - below.log_evidence).exp()
    assert_mean(weights * (below.values["p"] - (2 + y) / 15), 0.0)


def test_a_support_that_depends_on_another_latent():
    @zsp.meta_bayesian_net(scope="nested")
    def nested():
        bn = zsp.BayesianNet()
        top = bn.gamma("top", 3.0, 1.0)
        u = bn.uniform("u", 0.0, top)
        bn.normal("y", u, std=0.5)
        return bn

    y = torch.tensor(2.5)
    tops = torch.linspace(1e-4, 40, 200_001)
    inner = Normal(0.0, 1.0).cdf((tops - y) / 0.5) - Normal(0.0, 1.0).cdf(-y / 0.5)
    exact = torch.trapezoid(torch.distributions.Gamma(3.0, 1.0).log_prob(tops).exp() * inner / tops, tops).log()
    ais = zsp.AIS(nested(), {"y": y}, kernel=zsp.HMC(n_leapfrogs=5), n_chains=500, n_temperatures=15)
    assert_mean((ais.forward(progress=False).log_weights - exact).exp(), 1.0, bias=1e-6)


def test_an_evidence_for_each_datum():
    y = torch.randn(4, 2)
    ais = zsp.AIS(each(4), {"y": y}, kernel=zsp.HMC(n_leapfrogs=5), n_chains=500, n_temperatures=40)
    below = ais.forward(progress=False)
    values = {"z": posterior(y, 500), "scale": torch.exp(1e-3 * torch.randn(500, 4))}
    above = ais.reverse(values, progress=False)
    exact = evidence(y)
    assert below.log_evidence.shape == below.ess.shape == below.standard_error.shape == (4,)
    assert below.log_weights.shape == (500, 4) and below.acceptance_rate.shape == (39, 4)
    assert {name: value.shape for name, value in below.values.items()} == {"z": (500, 4, 2), "scale": (500, 4)}
    assert_mean((below.log_weights - exact).exp(), 1.0, bias=1e-4)
    assert_encloses(below, above, exact)


def test_bounds_from_one_exact_draw_of_simulated_data():
    gaps = []
    for seed in range(60):
        torch.manual_seed(seed)
        bn = normal_normal(2).observe()
        ais = zsp.AIS(
            normal_normal(2), {"y": bn["y"].tensor}, kernel=zsp.HMC(n_leapfrogs=3), n_chains=4, n_temperatures=30
        )
        exact = evidence(bn["y"].tensor)
        below = ais.forward(seed=seed, progress=False).log_weights.mean()
        above = ais.reverse({"z": bn["z"].tensor}, seed=seed, progress=False).log_weights.mean()
        gaps.append(torch.stack([exact - below, above - exact]))
    gaps = torch.stack(gaps)
    assert (gaps.mean(0) > 4 * gaps.std(0) / len(gaps) ** 0.5).all()


def test_more_temperatures_tighten_both_bounds():
    gaps = []
    for n_temperatures in (10, 40, 160):
        ais = sampler(n_chains=200, n_temperatures=n_temperatures)
        below, above = ais.forward(progress=False), ais.reverse({"z": posterior(Y, 200)}, progress=False)
        gaps.append([float(evidence(Y) - below.log_weights.mean()), float(above.log_weights.mean() - evidence(Y))])
    for (more, more_above), (less, less_above) in itertools.pairwise(gaps):
        assert less < 0.5 * more and less_above < 0.5 * more_above


def test_adaptive_temperatures_go_where_the_path_is_steep():
    y = {"y": torch.tensor([8.0, -8.0, 8.0])}
    gaps = {}
    for schedule in ("linear", "adaptive"):
        kernel = zsp.HMC(n_leapfrogs=5, jitter=0.3)
        ais = zsp.AIS(normal_normal(3), y, kernel=kernel, n_chains=200, n_temperatures=50, schedule=schedule)
        below = ais.forward(progress=False)
        gaps[schedule] = float(evidence(y["y"]) - below.log_weights.mean())
    assert gaps["adaptive"] < 0.6 * gaps["linear"]
    assert below.temperatures[1] < 0.2 / 49  # the first steps from the prior are the smallest; a linear one is 1 / 49
    assert below.temperatures.diff()[:10].mean() < 0.2 * below.temperatures.diff()[-10:].mean()


def test_the_steps_from_the_posterior_itself_have_no_noise():
    @zsp.reuse_variables("exact")
    def exact_posterior(n_samples=1):
        bn = zsp.BayesianNet()
        mean, std = Y / (1 + STD**2), (STD**2 / (1 + STD**2)) ** 0.5
        bn.normal("z", mean, std=std, group_ndims=1, n_samples=n_samples)
        return bn

    below = sampler(proposal=exact_posterior, n_chains=8, n_temperatures=5).forward(progress=False)
    torch.testing.assert_close(below.log_weights, evidence(Y).expand(8), rtol=0, atol=1e-10)
    torch.testing.assert_close(below.ess, torch.tensor(8.0), rtol=0, atol=1e-9)


@pytest.mark.parametrize("batch", [False, True])
def test_from_a_variational_net(batch):
    y = torch.randn(3, 2)
    model, exact, n = (each(3), evidence(y), 500) if batch else (normal_normal(2), evidence(y[0]), 500)
    observed = {"y": y if batch else y[0]}
    q = zsp.mean_field(model, observed, n_samples=1, std=0.8)
    below = zsp.AIS(
        model, observed, kernel=zsp.HMC(n_leapfrogs=5), n_chains=n, n_temperatures=40, proposal=q
    ).forward(progress=False)
    assert below.log_weights.shape == (n, *exact.shape)
    # std=0.8 for the nearly fixed scale would need more steps, so that only the others have a known evidence
    if not batch:
        assert_mean((below.log_weights - exact).exp(), 1.0)


def test_one_temperature_is_importance_sampling_from_the_base():
    below = sampler(n_chains=4000, n_temperatures=1).forward(progress=False)
    assert below.acceptance_rate.shape == (0,)
    z = below.values["z"]
    expected = Normal(z, STD).log_prob(Y).sum(-1)
    torch.testing.assert_close(below.log_weights, expected)
    assert_mean((below.log_weights - evidence(Y)).exp(), 1.0)


def test_callables():
    latents = {"p": torch.tensor(0.5)}
    supports = {"p": constraints.unit_interval}
    prior = Beta(2.0, 3.0)
    binomial = torch.distributions.Binomial
    below = zsp.AIS(
        lambda v: prior.log_prob(v["p"]) + binomial(10, probs=v["p"], validate_args=False).log_prob(v["y"]),
        {"y": torch.tensor(7.0)},
        kernel=zsp.HMC(n_leapfrogs=5),
        n_chains=1000,
        n_temperatures=20,
        log_prior=lambda v: prior.log_prob(v["p"]),
        draw_prior=lambda n: {"p": prior.sample((n,))},
        latents=latents,
        supports=supports,
    ).forward(progress=False)
    assert_mean((below.log_weights - beta_binomial_evidence(7.0)).exp(), 1.0)


def test_a_model_that_does_not_broadcast():
    x = torch.tensor([[1.0, 0.5], [0.0, 1.0]])

    @zsp.meta_bayesian_net(scope="mixing")
    def mixing():
        bn = zsp.BayesianNet()
        w = bn.normal("w", torch.zeros(2), std=1.0, group_ndims=1)
        bn.normal("y", x @ w, std=STD, group_ndims=1)
        return bn

    y = torch.tensor([0.5, -1.0])
    covariance = x @ x.T + STD**2 * torch.eye(2)
    exact = torch.distributions.MultivariateNormal(torch.zeros(2), covariance).log_prob(y)
    ais = zsp.AIS(mixing(), {"y": y}, kernel=zsp.HMC(n_leapfrogs=3), n_chains=500, n_temperatures=30)
    assert_mean((ais.forward(progress=False).log_weights - exact).exp(), 1.0)


def test_a_decoder_agrees_with_importance_sampling():
    generator = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 6))

    @zsp.meta_bayesian_net(scope="decoder")
    def decoder(n, net):
        bn = zsp.BayesianNet()
        z = bn.normal("z", torch.zeros(n, 2), std=1.0, group_ndims=1)
        bn.bernoulli("x", 3 * net(z), group_ndims=1)
        return bn

    @zsp.reuse_variables("prior")
    def prior(n, n_samples=1):
        bn = zsp.BayesianNet()
        bn.normal("z", torch.zeros(n, 2), std=1.0, group_ndims=1, n_samples=n_samples)
        return bn

    model = decoder(n=5, net=generator)
    observed = {"x": model.observe()["x"].tensor, "n": 5}
    reference = zsp.is_loglikelihood(model, observed, proposal=prior, n_samples=20_000, return_stats=True)
    ais = zsp.AIS(model, observed, kernel=zsp.HMC(n_leapfrogs=5), n_chains=100, n_temperatures=50)
    below = ais.forward(progress=False)
    error = (below.standard_error**2 + reference.standard_error**2).sqrt()
    assert ((below.log_evidence - reference.log_likelihood).abs() < 6 * error).all()
    assert (below.standard_error < 0.1).all()


# -- a planted error is seen ------------------------------------------------------------------------------------------


def biased_mean_fails(ais: zsp.AIS) -> None:
    below = ais.forward(progress=False)
    with pytest.raises(AssertionError):
        assert_mean((below.log_weights - beta_binomial_evidence(7.0)).exp(), 1.0)


@pytest.mark.parametrize("error", ["no Jacobian", "other density", "always accept"])
def test_a_planted_error_is_seen(monkeypatch, error):
    kernel = zsp.HMC(step_size=1.5, n_leapfrogs=3, adapt_step_size=False, adapt_mass=False)
    ais = zsp.AIS(beta_binomial(), {"y": torch.tensor(7.0)}, kernel=kernel, n_chains=4000, n_temperatures=20)
    if error == "no Jacobian":
        monkeypatch.setattr(ais._path._log_density, "_execute", _without_jacobian(ais._path._log_density._execute))
    elif error == "other density":
        at = AnnealingPath.at
        monkeypatch.setattr(AnnealingPath, "at", lambda self, beta: at(self, beta**2))
    else:
        module = __import__("zsp.inference.sampling.hmc", fromlist=["Choice"])
        choice = module.Choice
        monkeypatch.setattr(module, "Choice", lambda accepted: choice(accepted | True))
    biased_mean_fails(ais)


def _without_jacobian(execute):
    def wrong(*args):
        log_joint, jacobians, bn = execute(*args)
        return log_joint, [], bn

    return wrong


# -- randomness, shapes, mistakes -------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_and_the_callers_random_state_stays():
    before = torch.get_rng_state()
    first = sampler(n_chains=4, n_temperatures=10).forward(seed=5, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again = sampler(n_chains=4, n_temperatures=10).forward(seed=5, progress=False)
    assert torch.equal(first.log_weights, again.log_weights)
    other = sampler(n_chains=4, n_temperatures=10).forward(seed=6, progress=False)
    assert not torch.equal(first.log_weights, other.log_weights)


def test_float32():
    y = Y.float()
    torch.set_default_dtype(torch.float32)
    below = zsp.AIS(
        normal_normal(3), {"y": y}, kernel=zsp.HMC(n_leapfrogs=5), n_chains=500, n_temperatures=60
    ).forward(progress=False)
    assert below.log_weights.dtype == torch.float32
    assert_mean((below.log_weights.double() - evidence(Y)).exp(), 1.0, bias=1e-5)


def test_a_progress_bar(capsys):
    sampler(n_chains=2, n_temperatures=5).forward()
    shown = capsys.readouterr().err
    assert "temperatures: 100%" in shown and "5/5" in shown
    sampler(n_chains=2, n_temperatures=5).forward(progress=False)
    assert capsys.readouterr().err == ""


def test_the_sigmoidal_schedule():
    found = sigmoidal(4, steepness=2.0)
    raw = [1 / (1 + math.exp(-2.0 * v)) for v in (-1, -0.5, 0, 0.5, 1)]
    expected = [(value - raw[0]) / (raw[-1] - raw[0]) for value in raw]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-15)


@zsp.meta_bayesian_net(scope="neighbours")
def neighbours():
    bn = zsp.BayesianNet()
    z = bn.normal("z", torch.zeros(3), std=1.0)
    bn.normal("y", z + z.roll(1, -1), std=1.0)
    return bn


@zsp.meta_bayesian_net(scope="improper")
def improper():
    bn = zsp.BayesianNet()
    z = bn.flat("z")
    bn.normal("y", z, std=1.0)
    return bn


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"kernel": "hmc"}, TypeError, "kernel must be a kernel such as zsp.HMC"),
        ({"kernel": zsp.MCLMC()}, ValueError, "MCLMC has no Metropolis test"),
        ({"n_chains": 0}, ValueError, "n_chains must be at least 1, got 0"),
        ({"n_temperatures": 0}, ValueError, "n_temperatures must be at least 1, got 0"),
        ({"schedule": "cosine"}, ValueError, "schedule must be 'linear'.*got 'cosine'"),
        ({"schedule": torch.tensor([0.0, 0.5, 0.4, 1.0]), "n_temperatures": 3}, ValueError, "must grow from 0 to 1"),
        ({"schedule": linear(5)}, ValueError, r"n_temperatures=60 steps, with 61 numbers, but got shape \[6\]"),
        ({"log_prior": lambda v: 0.0}, ValueError, "log_prior, a density, and draw_prior.*go together"),
        ({"meta_bn": lambda v: v["z"].sum(), "latents": {"z": torch.zeros(3)}}, ValueError, "a callable does not tell its prior"),
        ({"meta_bn": neighbours(), "observed": {"y": torch.zeros(3)}}, ValueError, "depends on the latents of another.*group_ndims=1"),
    ],
)  # fmt: skip
def test_mistakes(options, error, text):
    arguments = {"meta_bn": normal_normal(3), "observed": {"y": Y}, "kernel": zsp.HMC(), "n_temperatures": 60}
    arguments.update(options)
    with pytest.raises(error, match=text):
        zsp.AIS(arguments.pop("meta_bn"), arguments.pop("observed"), **arguments)


def test_a_prior_that_cannot_be_drawn_from_or_is_not_known():
    ais = zsp.AIS(improper(), {"y": torch.tensor(0.0)}, kernel=zsp.HMC(), n_chains=2, n_temperatures=3)
    with pytest.raises(ValueError, match="the prior cannot be drawn from: node 'z' .*flat.*proposal="):
        ais.forward(progress=False)
    model = normal_normal(3)
    model.log_joint = lambda bn: bn.log_joint()
    with pytest.raises(ValueError, match="a log_joint of its own.*proposal="):
        zsp.AIS(model, {"y": Y}, kernel=zsp.HMC())


def test_values_that_do_not_fit():
    ais = sampler(n_chains=4, n_temperatures=3)
    with pytest.raises(ValueError, match=r"given for 'z' have shape \[5, 3\], but \[4, 3\] is expected"):
        ais.reverse({"z": torch.zeros(5, 3)}, progress=False)
    with pytest.raises(ValueError, match="'w' is no latent"):
        ais.reverse({"z": torch.zeros(3), "w": torch.zeros(3)}, progress=False)
    fixed = zsp.mean_field(normal_normal(3), {"y": Y}, n_samples=7).observe()
    with pytest.raises(ValueError, match="must draw every latent once for each of the 4 chains"):
        sampler(n_chains=4, n_temperatures=3, proposal=fixed).forward(progress=False)
