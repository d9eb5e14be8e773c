"""Calibration checks: right routines and kernels pass, planted errors are found.

A right one fails with a probability of at most FALSE_ALARM = 1e-6 a test; every planted error must be found at that rate.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch

import zsp
from tests.monte_carlo import assert_mean, assert_variance
from zsp import check
from zsp.check.geweke import _z_scores
from zsp.check.simulation import Simulator

FALSE_ALARM = 1e-6
S = 0.8  # sd of the data


@zsp.meta_bayesian_net(scope="conjugate")
def conjugate(n=3):
    bn = zsp.BayesianNet()
    mu = bn.normal("mu", torch.zeros(2), std=1.0, group_ndims=1)
    bn.normal("y", mu.expand(n, 2), std=S, group_ndims=2)
    return bn


def posterior(y):
    """Mean and sd of mu given y of shape [..., n, 2]."""
    variance = 1 / (1 + y.shape[-2] / S**2)
    return variance * y.sum(-2) / S**2, math.sqrt(variance)


def exact(observed, n_draws=200, shift=0.0, scale=1.0):
    mean, std = posterior(observed["y"])
    return {"mu": mean + shift + scale * std * torch.randn(n_draws, 2)}


def sbc(inference, model=None, **options):
    options = {"n_simulations": 300, "false_alarm": FALSE_ALARM, "progress": False, **options}
    return check.sbc(conjugate() if model is None else model, inference, data="y", **options)


# -- simulation-based calibration -------------------------------------------------------------------------------------


def test_sbc_passes_exact_posterior_draws():
    result = sbc(exact)
    assert result.passed and result.failures == [] and result.problems() == []
    assert list(result.ranks) == ["mu[0]", "mu[1]", "log likelihood"]
    assert result.n_draws == 99 and result.n_simulations == 300
    for ranks in result.ranks.values():
        assert ranks.shape == (300,) and ranks.min() >= 0 and ranks.max() <= 99
    assert "passed at a false-alarm rate of 1e-06 for all together" in repr(result)


@pytest.mark.parametrize(
    "options, verdict",
    [
        ({"scale": 0.5}, "draws too narrow"),
        ({"scale": 2.0}, "draws too wide"),
        ({"shift": 0.4}, "draws too high"),
        ({"shift": -0.4}, "draws too low"),
    ],
)
def test_sbc_finds_wrong_posteriors(options, verdict):
    result = sbc(lambda observed: exact(observed, **options))
    assert not result.passed and {"mu[0]", "mu[1]"} <= set(result.failures)
    line = next(line for line in repr(result).splitlines() if line.startswith("mu[0]"))
    assert line.endswith(f"<- {verdict}"), line


def test_only_the_log_likelihood_notices_that_the_data_are_ignored():
    """Draws from the prior have uniform ranks of mu; Modrák et al. 2023, section 1."""
    result = sbc(lambda observed: {"mu": torch.randn(200, 2)})
    assert result.failures == ["log likelihood"]
    total = {"sum": lambda values: values["mu"].sum() + values["y"].sum()}
    more = sbc(lambda observed: {"mu": torch.randn(200, 2)}, quantities=total)
    assert "log likelihood" in more.failures and list(more.ranks)[-1] == "sum"


def test_sbc_of_correlated_chains_is_thinned_to_their_worth():
    """AR(1) draws of the exact posterior: ranks among all of them are not uniform, among thinned ones they are."""

    def inference(observed):
        mean, std = posterior(observed["y"])
        x = torch.randn(4, 400, 2)
        for t in range(1, 400):
            x[:, t] = 0.95 * x[:, t - 1] + math.sqrt(1 - 0.95**2) * x[:, t]
        return {"mu": mean + std * x}

    result = sbc(inference, n_simulations=150)
    assert result.passed and 9 < result.n_draws < 99 and result.problems() == []
    assert (result.ess < result.n_draws).sum() <= 0.05 * 150
    short = sbc(lambda observed: {"mu": inference(observed)["mu"][:, :100]}, n_draws=99, n_simulations=20)
    assert short.problems()[0].startswith("In 20 of 20 simulations the effective sample size is below the 99 draws")
    assert "! In 20 of 20" in repr(short)


def test_equal_values_are_ranked_by_chance():
    @zsp.meta_bayesian_net()
    def coin():
        bn = zsp.BayesianNet()
        z = bn.bernoulli("z", torch.tensor(0.3))
        bn.normal("y", z, std=1.0)
        return bn

    def inference(observed):
        y = observed["y"]
        logit = 0.3 + y - 0.5
        return {"z": torch.bernoulli(torch.sigmoid(logit).expand(200))}

    assert sbc(inference, coin()).passed
    assert not sbc(lambda observed: {"z": 1 - inference(observed)["z"]}, coin()).passed


def test_sbc_gives_another_seed_in_every_simulation_and_the_random_state_back():
    seeds = []

    def inference(observed, seed):
        seeds.append(seed)
        return exact(observed, 99)

    torch.manual_seed(5)
    first = sbc(inference, n_simulations=20)
    assert len(set(seeds)) == 20
    after = torch.rand(())
    torch.manual_seed(5)
    assert torch.rand(()) == after
    again = sbc(inference, n_simulations=20)
    assert all(again.ranks[name].equal(first.ranks[name]) for name in first.ranks)
    assert not sbc(inference, n_simulations=20, seed=1).ranks["mu[0]"].equal(first.ranks["mu[0]"])


def test_sbc_takes_draws_and_chains():
    def inference(observed):
        mean, std = posterior(observed["y"])
        return zsp.Draws({"mu": mean + std * torch.randn(2, 60, 2), "other": torch.zeros(2, 60)}, info={})

    result = sbc(inference, n_simulations=100, n_draws=49)
    assert result.passed and result.n_draws == 49


def test_all_simulations_in_one_call():
    def inference(observed):
        assert observed["y"].shape == (300, 3, 2)
        mean, std = posterior(observed["y"])
        return {"mu": mean[:, None, None] + std * torch.randn(300, 2, 60, 2)}

    assert sbc(inference, batched=True).passed
    shuffled = sbc(lambda observed: {"mu": inference(observed)["mu"].roll(1, 0)}, batched=True)
    assert not shuffled.passed, "every simulation must be given the draws of its own data"


def test_the_picture_has_a_band_for_every_quantity():
    result = sbc(lambda observed: exact(observed, scale=0.5))
    figure = result.plot(title="Calibration")
    assert [axes.get_title() for axes in figure.axes] == ["mu[0]", "mu[1]", "log likelihood"]
    assert len(result.plot(["mu[1]"]).axes) == 1
    with pytest.raises(ValueError, match=r"no ranks of 'mu', but of 'mu\[0\]', 'mu\[1\]', 'log likelihood'"):
        result.plot(["mu"])


@pytest.mark.parametrize(
    "inference, options, message",
    [
        (exact, {"data": "z"}, r"data names 'z', but the stochastic nodes of the model are 'mu', 'y'"),
        (exact, {"data": ["mu", "y"]}, r"none are latents"),
        (exact, {"latents": ["nu"]}, r"latents names 'nu', but the latents are 'mu'"),
        (exact, {"n_draws": 500}, r"n_draws=500, but inference gave 200 draws of 'mu' in all"),
        (exact, {"n_simulations": 1}, r"two simulations or more"),
        (lambda observed: {"nu": torch.zeros(10)}, {}, r"no draws of 'mu', but of 'nu'. Name the latents to judge"),
        (
            lambda observed: {"mu": torch.zeros(10)},
            {},
            r"shape \[chain, draw, \*\[2\]\] or .*, but inference gave \[10\]",
        ),
        (lambda observed: {"mu": torch.full((10, 2), math.nan)}, {}, r"'mu' in simulation 0 are not finite"),
        (exact, {"batched": True}, r"first axis of all draws is that of the 300 simulations, but 'mu' has shape \[200"),
        (exact, {"quantities": {"mu": lambda v: v["mu"]}}, r"a quantity must be a scalar .* 'mu' has shape \[2\]"),
    ],
)
def test_mistakes_in_sbc_are_named(inference, options, message):
    def wrapped(observed):
        if options.get("batched"):
            observed = {"y": observed["y"][0]}
        return inference(observed)

    options = {"data": "y", "progress": False, "n_simulations": 300, **options}
    with pytest.raises(ValueError, match=message):
        check.sbc(conjugate(), wrapped, **options)


def test_what_is_no_model_and_what_gives_no_draws():
    with pytest.raises(TypeError, match="must be a MetaBayesianNet, but got function"):
        check.sbc(lambda values: 0.0, exact, data="y")
    with pytest.raises(TypeError, match="a dict from names to draws, but it returned Tensor"):
        sbc(lambda observed: torch.zeros(10, 2))

    @zsp.meta_bayesian_net()
    def improper():
        bn = zsp.BayesianNet()
        mu = bn.flat("mu")
        bn.normal("y", mu, std=1.0)
        return bn

    with pytest.raises((ValueError, NotImplementedError), match=r"'mu' \(flat\)"):
        sbc(exact, improper())


# -- simulating -------------------------------------------------------------------------------------------------------


@zsp.meta_bayesian_net(scope="scaled")
def scaled(n=4):
    bn = zsp.BayesianNet()
    mu = bn.normal("mu", torch.tensor(0.0), std=1.0)
    scale = bn.log_normal("scale", torch.tensor(-0.5), std=0.5)
    bn.normal("y", mu.expand(n), std=scale, group_ndims=1)
    return bn


def test_simulated_values_follow_the_model():
    simulator = Simulator(scaled(), "y")
    latents, data = simulator.draw(20_000)
    assert not simulator._is_looped
    assert_mean(latents["mu"], 0.0)
    assert_variance(latents["mu"], 1.0)
    assert_mean(latents["scale"].log(), -0.5)
    residuals = (data["y"] - latents["mu"][:, None]) / latents["scale"][:, None]
    assert_mean(residuals, 0.0)
    assert_variance(residuals, 1.0)
    assert_mean(residuals[:, 0] * residuals[:, 1], 0.0)
    again = simulator.draw_data({"mu": torch.full((20_000,), 3.0), "scale": torch.full((20_000,), 0.1)})
    assert_mean(again["y"], 3.0)
    assert_variance(again["y"], 0.01)


def test_a_model_that_vmap_cannot_follow_is_run_in_a_loop():
    @zsp.meta_bayesian_net()
    def branching():
        bn = zsp.BayesianNet()
        z = bn.normal("z", torch.tensor(0.0), std=1.0)
        bn.normal("y", torch.tensor(5.0 if z > 0 else -5.0), std=1.0)
        return bn

    simulator = Simulator(branching(), "y")
    latents, data = simulator.draw(100)
    assert simulator._is_looped and ((latents["z"] > 0) == (data["y"] > 0)).all()


def test_numbers_drawn_outside_torch_are_drawn_anew():
    @zsp.meta_bayesian_net()
    def outside():
        bn = zsp.BayesianNet()
        z = bn.delta("z", torch.tensor(np.random.randn()))
        bn.normal("y", z, std=1.0)
        return bn

    latents, _ = Simulator(outside(), "y").draw(50)
    assert len(latents["z"].unique()) == 50


def test_the_log_density_of_many_data_sets_is_that_of_each():
    model = scaled()
    y = torch.randn(5, 4)
    f = zsp.LogDensity(model, {"y": y[0]})
    many = check.per_simulation(f, {"y": y})
    for chain in ((), (3,), (3, 2)):
        position = torch.randn(5, *chain, 2)
        each = torch.stack([f.rebind({"y": y[i]})(position[i]) for i in range(5)])
        np.testing.assert_allclose(many(position), each, rtol=1e-12)
        gradient = torch.autograd.grad(many(position.requires_grad_()).sum(), position)[0]
        assert gradient.shape == position.shape and gradient.abs().min() > 0


# -- kernels ----------------------------------------------------------------------------------------------------------


class State(NamedTuple):
    position: torch.Tensor
    log_density: torch.Tensor
    generator: torch.Generator


class RandomWalk:
    """Random-walk Metropolis, with errors to plant.

    missing Jacobian: `scale`, the second of two numbers, is sampled by its log, as if that had no Jacobian.
    forgotten term: proposals shrink towards 0, and the acceptance test forgets their densities.
    wrong scale: the acceptance test halves the difference of log densities.
    """

    def __init__(self, scale=0.7, error=None):
        self.scale, self.error = scale, error

    def _log_density(self, f, position):
        value = f(position)
        return value - position[..., 1] if self.error == "missing Jacobian" else value

    def init(self, log_density, position, *, seed):
        return State(position, self._log_density(log_density, position), torch.Generator().manual_seed(seed))

    def step(self, log_density, state, *, adapt=False):
        noise = torch.randn(state.position.shape, generator=state.generator)
        kept = 0.6 if self.error == "forgotten term" else 1.0
        proposal = kept * state.position + self.scale * noise
        value = self._log_density(log_density, proposal)
        log_ratio = value - state.log_density
        if self.error == "wrong scale":
            log_ratio = log_ratio / 2
        is_accepted = torch.rand(value.shape, generator=state.generator).log() < log_ratio
        position = torch.where(is_accepted[..., None], proposal, state.position)
        return State(position, torch.where(is_accepted, value, state.log_density), state.generator), is_accepted


ERRORS = ["missing Jacobian", "forgotten term", "wrong scale"]


def all_chains_at_once(kernel, n_simulations, n_chains=4, n_warmup=100, n_draws=400):
    """What a user of kernels writes: one run of [simulation, chain] chains."""

    def inference(observed, seed):
        log_density = zsp.LogDensity(scaled(), {"y": observed["y"][0]})
        f = check.per_simulation(log_density, observed)
        state = kernel.init(f, log_density.initial((n_simulations, n_chains)), seed=seed)
        positions = []
        for i in range(n_warmup + n_draws):
            state, _ = kernel.step(f, state)
            if i >= n_warmup:
                positions.append(state.position)
        return log_density.constrain(torch.stack(positions, 2))  # [simulation, chain, draw, ...]

    return inference


@pytest.mark.parametrize("error", [None, *ERRORS])
def test_sbc_of_a_kernel(error):
    kernel = RandomWalk(error=error)
    n = 1500 if error == "forgotten term" else 600  # the smallest of the errors
    result = sbc(all_chains_at_once(kernel, n), scaled(), batched=True, n_simulations=n)
    assert list(result.ranks) == ["mu", "scale", "log likelihood"]
    assert result.passed == (error is None), result


@pytest.mark.parametrize("error", [None, *ERRORS])
def test_geweke_of_a_kernel(error):
    result = check.geweke(RandomWalk(error=error), scaled(), data="y", false_alarm=FALSE_ALARM, n_rounds=40)
    assert list(result.z) == ["mu", "scale", "log likelihood"]
    assert result.passed == (error is None), result
    assert ("passed" in repr(result).splitlines()[0]) == (error is None)


def test_the_false_alarm_rate_of_geweke_s_test_is_the_one_stated():
    """Of a right kernel the z scores of 60 seeds are standard normal."""
    z = torch.tensor(
        [
            list(check.geweke(RandomWalk(), scaled(), data="y", n_chains=150, n_rounds=3, seed=seed).z.values())
            for seed in range(60)
        ]
    )
    assert_mean(z, 0.0)
    assert_variance(z, 1.0)


def test_geweke_of_a_model_whose_support_depends_on_a_latent():
    @zsp.meta_bayesian_net()
    def nested():
        bn = zsp.BayesianNet()
        top = bn.gamma("top", torch.tensor(3.0), torch.tensor(2.0))
        u = bn.uniform("u", torch.tensor(0.0), top)
        bn.normal("y", u, std=0.5)
        return bn

    class Forgetful(RandomWalk):
        """As if the transform of u were the one of its support at top = 1.5."""

        def _log_density(self, f, position):
            return f(position) - position[..., 0]  # log of the width, which is top

    result = check.geweke(RandomWalk(), nested(), data="y", false_alarm=FALSE_ALARM, n_rounds=40)
    assert result.passed, result
    assert not check.geweke(Forgetful(), nested(), data="y", false_alarm=FALSE_ALARM, n_rounds=40).passed


def test_the_data_are_drawn_anew_in_every_round():
    seen = []

    class Recording(RandomWalk):
        def init(self, log_density, position, *, seed):
            seen.append(log_density(torch.zeros_like(position)))
            return super().init(log_density, position, seed=seed)

    check.geweke(Recording(), scaled(), data="y", n_chains=10, n_rounds=3)
    assert len(seen) == 3
    assert all((a != b).all() for a, b in itertools.pairwise(seen)), "other data, another log density"


def test_z_scores_are_standard_normal_whatever_the_tails():
    """Of 1500 pairs of samples of one law, normal or Cauchy."""
    for transform in (lambda x: x, lambda x: torch.tan(math.pi * (torch.special.ndtr(x) - 0.5))):
        samples = transform(torch.randn(1500, 250))
        z = torch.tensor([_z_scores(row[:50], row[50:]) for row in samples])
        assert_mean(z, 0.0)
        assert_variance(z, 1.0)


def test_z_scores_see_location_and_spread():
    sample, reference = torch.randn(2000), torch.randn(8000)
    location, spread = _z_scores(sample + 0.2, reference)
    assert 5 < location < 11  # 0.89 * 0.2 * sqrt(2000) = 8.0
    location, spread = _z_scores(0.8 * sample, reference)
    assert abs(location) < 4 and spread < -6
    assert _z_scores(torch.ones(10), torch.ones(40)) == (0.0, 0.0)


def test_geweke_gives_the_random_state_back_and_repeats_itself():
    torch.manual_seed(3)
    first = check.geweke(RandomWalk(), scaled(), data="y", n_chains=50, n_rounds=2, seed=4)
    after = torch.rand(())
    torch.manual_seed(3)
    assert torch.rand(()) == after
    second = check.geweke(RandomWalk(), scaled(), data="y", n_chains=50, n_rounds=2, seed=4)
    assert first.z == second.z


def test_a_step_size_from_where_the_chain_is_leaves_nothing_as_it_is():
    class Searching(RandomWalk):
        adapt_step_size = True

        def init(self, log_density, position, *, seed):
            self.scale = 0.1 + position.abs().amax(-1, keepdim=True)
            return super().init(log_density, position, seed=seed)

    options = {"data": "y", "false_alarm": FALSE_ALARM, "n_rounds": 40}
    with pytest.raises(ValueError, match=r"looks for a step size where it begins.*adapt_step_size=False.*or init="):
        check.geweke(Searching(), scaled(), **options)
    kernel = Searching()
    assert not check.geweke(kernel, scaled(), init=kernel.init, **options).passed
    kernel = Searching(0.7)
    result = check.geweke(kernel, scaled(), init=lambda f, q, seed: RandomWalk.init(kernel, f, q, seed=seed), **options)
    assert result.passed, "with one that was found beforehand it does"


def test_mistakes_in_geweke_are_named():
    with pytest.raises(ValueError, match="n_chains, n_rounds and n_steps must be at least 1 .* got 0, 50, 1 and 0.01"):
        check.geweke(RandomWalk(), scaled(), data="y", n_chains=0)
    with pytest.raises(ValueError, match="data names 'x', but the stochastic nodes"):
        check.geweke(RandomWalk(), scaled(), data="x")

    class Broken(RandomWalk):
        def step(self, log_density, state, *, adapt=False):
            return state._replace(position=state.position * math.nan), None

    with pytest.raises(ValueError, match="led to values of 'mu' that are not finite"):
        check.geweke(Broken(), scaled(), data="y", n_chains=10)
