"""The run loop: what it keeps, in which order, from where, and what it says."""

import math
import warnings

import pytest
import scipy.stats
import torch
from torch.distributions import constraints
from torch.utils._pytree import tree_map
from tqdm.auto import tqdm

import zsp
from tests.inference.sampling.targets import gaussian, tuning
from tests.monte_carlo import assert_ks
from zsp.checks import NodeError
from zsp.inference.compilation.compiled_loop import CompiledLoop
from zsp.inference.sampling import run as run_module
from zsp.inference.sampling import runner
from zsp.inference.sampling.arrays import to_numpy
from zsp.inference.sampling.kernel import Density
from zsp.inference.sampling.metric import Identity
from zsp.inference.sampling.runner import MOST_STEPS, MOST_TRANSITIONS, Runner, choose_block
from zsp.inference.sampling.step_size import DualAveraging


def numbers(*values):
    """What is made while tests are collected is not yet float64 by default."""
    return torch.tensor(values, dtype=torch.float64)


DATA = {"y": numbers(1.2, -0.3, 2.5, 0.7)}


@zsp.meta_bayesian_net(scope="scaled")
def build_scaled(n=4):
    bn = zsp.BayesianNet()
    mu = bn.normal("mu", torch.tensor(0.0), std=2.0)
    scale = bn.gamma("scale", torch.tensor(3.0), torch.tensor(2.0))
    bn.deterministic("ratio", mu / scale)
    bn.normal("y", mu.expand(n), std=scale, group_ndims=1)
    return bn


def sample(kernel=None, model=None, observed=None, **options):
    """A short, silent, eager run; what so few draws are warned of is not looked at."""
    options = {"n_samples": 20, "n_warmup": 30, "n_chains": 4, "progress": False, "compile": False, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return zsp.mcmc(
            build_scaled() if model is None else model, DATA if observed is None else observed,
            kernel=kernel or zsp.NUTS(), **options,
        )  # fmt: skip


def same(draws, other):
    return (
        list(draws) == list(other)
        and list(draws.info) == list(other.info)
        and all(draws[name].equal(other[name]) for name in draws)
        and all(draws.info[name].equal(other.info[name]) for name in draws.info)
    )


def correlated(values):
    return gaussian(values["x"])


def interrupt_after(monkeypatch, n_blocks, error=KeyboardInterrupt):
    """Ctrl-C, from the n-th block of steps on."""
    block, seen = Runner.block, []

    def interrupted(self, *arguments):
        seen.append(self)
        if len(seen) > n_blocks:
            raise error
        return block(self, *arguments)

    monkeypatch.setattr(Runner, "block", interrupted)


# -- what is kept -----------------------------------------------------------------------------------------------------


def test_draws_have_the_nodes_in_their_own_space_and_the_log_likelihood_of_each_datum():
    draws = sample()
    assert {name: list(draws[name].shape) for name in draws} == {"mu": [4, 20], "scale": [4, 20], "ratio": [4, 20]}
    assert draws.deterministic == ("ratio",) and (draws["scale"] > 0).all()
    assert draws["ratio"].equal(draws["mu"] / draws["scale"])
    assert draws.observed["y"].equal(DATA["y"]) and draws.warmup is None
    expected = torch.distributions.Normal(draws["mu"][..., None], draws["scale"][..., None]).log_prob(DATA["y"])
    torch.testing.assert_close(draws.log_likelihood["y"], expected)
    assert all(value.shape == (4, 20) for value in draws.info.values())


def test_the_reported_log_density_is_that_of_the_draw():
    """Each row of the report belongs to the draw beside it."""
    draws = sample(zsp.NUTS(mass_matrix="dense"), keep_warmup=True)
    log_density = zsp.LogDensity(build_scaled(), DATA)
    for part in (draws, draws.warmup):
        position = log_density.unconstrain({"mu": part["mu"], "scale": part["scale"]})
        torch.testing.assert_close(part.info.log_density, log_density(position), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kernel", [zsp.NUTS(), zsp.ChEES()], ids=lambda kernel: type(kernel).__name__)
def test_thinning_keeps_every_third_transition_of_the_same_run(kernel):
    every = sample(kernel, n_samples=60)
    third = sample(kernel, n_samples=20, thin=3)
    assert third["mu"].shape == (4, 20)
    for name in every:
        assert third[name].equal(every[name][:, 2::3])
    for name in every.info:
        assert third.info[name].equal(every.info[name][:, 2::3])


@pytest.mark.parametrize("n_warmup", [1, 30, 160])
def test_the_warm_up_is_kept_on_request_and_changes_nothing(n_warmup):
    without, kept = sample(n_warmup=n_warmup), sample(n_warmup=n_warmup, keep_warmup=True)
    assert same(without, kept) and without.warmup is None
    assert kept.warmup.n_draws == n_warmup and kept.warmup.n_chains == 4 and list(kept.warmup) == list(kept)
    assert (kept.warmup["scale"] > 0).all() and (kept.warmup.info.n_leapfrogs > 0).all(), "no row is left empty"
    assert (kept.info.step_size == kept.info.step_size[:, :1]).all(), "what is adapted stays, afterwards"
    if n_warmup > 1:
        assert (kept.warmup.info.step_size[:, 1:] != kept.warmup.info.step_size[:, :-1]).any(1).all()


def test_without_a_warm_up_the_step_size_is_the_one_given():
    draws = sample(zsp.NUTS(step_size=0.25), n_warmup=0, keep_warmup=True)
    assert (draws.info.step_size == 0.25).all() and draws.warmup is None


@pytest.mark.parametrize("most_momenta", [1000, 3])
@pytest.mark.parametrize("compile", [False, True])
def test_each_chain_keeps_its_first_transitions_whatever_the_others_do(monkeypatch, most_momenta, compile):
    """Chains of long trajectories make fewer transitions in the same steps: none is left out, none comes twice, also
    where a block ends early because a chain is out of momenta."""

    def choose(*given):
        n_steps, n_momenta = choose_block(*given)
        return n_steps, min(n_momenta, most_momenta)

    monkeypatch.setattr(run_module, "choose_block", choose)
    kernel = zsp.NUTS(step_size=0.3, mass_matrix="identity")
    begin = {"x": torch.randn(5, 3)}
    options = {"latents": {"x": torch.zeros(3)}, "init": begin, "n_chains": 5, "n_samples": 40, "n_warmup": 0}
    draws = sample(kernel, correlated, {}, seed=2, compile=compile, **options)

    generator = torch.Generator().manual_seed(2)
    density, fixed = Density(gaussian), to_numpy(tuning(Identity()))
    state = kernel.begin(density, begin["x"], Identity(), DualAveraging.start(torch.full((5,), 0.3)), generator)
    state = to_numpy(state)
    made: list[list[torch.Tensor]] = [[] for _ in range(5)]
    n_steps = n_early = 0
    while (n_made := min(map(len, made))) < 40:
        n_more, n_momenta = choose(40 - n_made, n_made, max(map(len, made)), n_steps, MOST_STEPS)
        noise = to_numpy(kernel.draw_noise(n_more, begin["x"], generator))
        fixed = fixed._replace(momenta=to_numpy(kernel.draw_momenta(n_momenta, begin["x"], generator)))
        state = state._replace(n_begun=0 * state.n_begun)
        for i in range(n_more):
            if (state.n_begun == n_momenta).any():
                n_early += 1
                break
            n_steps += 1
            state, ended = kernel.advance(density, state, tree_map(lambda leaf, i=i: leaf[i], noise), fixed)
            for chain in [] if ended is None else ended.is_done.nonzero()[0]:
                made[chain].append(torch.from_numpy(ended.position[chain].copy()))
    assert max(map(len, made)) > 42, "some chains were ahead"
    assert (n_early > 0) == (most_momenta == 3)
    expected = torch.stack([torch.stack(own[:40]) for own in made])
    torch.testing.assert_close(draws["x"], expected, rtol=1e-8, atol=1e-8)


# -- random numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [zsp.NUTS(), zsp.HMC(), zsp.ChEES()], ids=lambda kernel: type(kernel).__name__)
def test_a_seed_is_a_run_and_the_caller_s_random_state_is_given_back(kernel):
    before = torch.get_rng_state()
    first = sample(kernel, seed=3)
    assert torch.get_rng_state().equal(before)
    torch.rand(7)
    assert same(first, sample(kernel, seed=3))
    other = sample(kernel, seed=4)
    assert not (first["mu"] == other["mu"]).any()
    assert not (first["mu"][0] == first["mu"][1:]).any(), "every chain has random numbers of its own"


# -- beginnings -------------------------------------------------------------------------------------------------------


def test_chains_begin_where_init_says_in_the_nodes_own_space():
    begin = {"mu": torch.tensor([-3.0, 0.0, 1.0, 4.0]), "scale": torch.tensor([0.1, 1.0, 2.0, 30.0])}
    tiny = zsp.HMC(step_size=1e-9, n_leapfrogs=1, adapt_step_size=False, adapt_mass=False)
    draws = sample(tiny, init=begin, n_samples=1, n_warmup=0)
    for name, value in begin.items():
        torch.testing.assert_close(draws[name][:, 0], value, rtol=1e-6, atol=1e-6)


def test_chains_begin_uniformly_where_nothing_is_said():
    """Between -2 and 2 in the unconstrained space, which is the logarithm for a positive node."""
    tiny = zsp.HMC(step_size=1e-9, n_leapfrogs=1, adapt_step_size=False, adapt_mass=False)
    draws = sample(tiny, n_chains=2000, n_samples=1, n_warmup=0)
    uniform = scipy.stats.uniform(-2, 4).cdf
    assert_ks(draws["mu"][:, 0].numpy(), uniform)
    log_density = zsp.LogDensity(build_scaled(), DATA)
    position = log_density.unconstrain({name: draws[name][:, 0] for name in ("mu", "scale")})
    for column in position.T:
        assert_ks(column.numpy(), uniform)


def test_beginnings_without_a_density_are_drawn_again():
    """Half of all beginnings are outside: the chains begin inside, and stay there."""

    def half(values):
        x = values["x"]
        return torch.where(x[0] > 0, -0.5 * x.square().sum(), -math.inf)

    draws = sample(zsp.NUTS(), half, {}, latents={"x": torch.zeros(2)}, n_chains=20)
    assert (draws["x"][..., 0] > 0).all()


# -- what can be sampled ----------------------------------------------------------------------------------------------


def test_a_callable_with_supports_is_sampled_in_them():
    """x ~ Gamma(3, 2) and p ~ Beta(2, 5), without their constants: every 8th draw of 64 chains, against both laws."""

    def log_joint(values):
        assert values["x"].shape == () and values["a"] == 3.0, "one chain's values, latents and observed together"
        x, p = values["x"], values["p"]
        return (values["a"] - 1) * x.log() - 2 * x + p[0].log() + 4 * (1 - p[0]).log()

    draws = sample(
        zsp.NUTS(), log_joint, {"a": 3.0}, latents={"x": torch.zeros(()), "p": torch.zeros(1)},
        supports={"x": constraints.positive, "p": constraints.unit_interval}, n_chains=64, n_warmup=150, n_samples=25, thin=8,
    )  # fmt: skip
    assert draws["p"].shape == (64, 25, 1) and draws.deterministic == () and not draws.log_likelihood
    assert_ks(draws["x"].flatten().numpy(), scipy.stats.gamma(3, scale=1 / 2).cdf)
    assert_ks(draws["p"].flatten().numpy(), scipy.stats.beta(2, 5).cdf)


def test_the_log_density_of_a_model_and_of_its_callable_give_the_same_draws():
    def log_joint(values):
        prior = torch.distributions.Normal(0.0, 2.0).log_prob(values["mu"])
        prior = prior + torch.distributions.Gamma(3.0, 2.0).log_prob(values["scale"])
        return prior + torch.distributions.Normal(values["mu"], values["scale"]).log_prob(values["y"]).sum()

    by_net = sample(n_warmup=5, n_samples=5)
    by_callable = sample(
        None, log_joint, latents={"mu": torch.zeros(()), "scale": torch.zeros(())},
        supports={"scale": constraints.positive}, n_warmup=5, n_samples=5,
    )  # fmt: skip
    for name in ("mu", "scale"):
        torch.testing.assert_close(by_net[name], by_callable[name], rtol=1e-8, atol=1e-8)


def test_one_chain_of_a_callable_that_sums_over_everything():
    """One chain's sum over all axes is the right number without the chain axis."""
    options = {"latents": {"x": torch.zeros(2)}, "n_chains": 1, "n_samples": 5, "n_warmup": 10}
    for kernel in (zsp.NUTS(), zsp.HMC()):
        draws = sample(kernel, lambda values: -0.5 * values["x"].square().sum(), {}, **options)
        assert draws["x"].shape == (1, 5, 2)
        torch.testing.assert_close(draws.info.log_density, -0.5 * draws["x"].square().sum(-1))


def test_named_latents_are_sampled_in_the_order_of_the_net():
    draws = sample(latents=["scale", "mu"])
    assert same(draws, sample())
    fixed = sample(latents=["mu"], observed={**DATA, "scale": torch.tensor(0.5)})
    assert list(fixed) == ["mu", "ratio"] and fixed["ratio"].equal(fixed["mu"] / 0.5)


def test_a_key_of_the_observed_values_rebinds_an_input():
    more = {"y": torch.randn(50) + 7.0, "n": 50}
    draws = sample(observed=more, n_warmup=100)
    assert (draws["mu"] - more["y"].mean()).abs().mean() < 1.0


def test_float32_stays_float32():
    torch.set_default_dtype(torch.float32)  # given back by the fixture
    draws = sample(zsp.NUTS(mass_matrix="dense"), observed={"y": DATA["y"].float()}, n_warmup=60)
    assert {value.dtype for value in draws.values()} == {torch.float32}
    assert draws.info.log_density.dtype == torch.float32 and draws["mu"].isfinite().all()


# -- interrupts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("thin", [1, 4])
def test_an_interrupt_returns_the_draws_that_were_made(thin, monkeypatch):
    options = {"n_samples": 400, "n_warmup": 10, "thin": thin, "keep_warmup": True}
    whole = sample(**options)
    interrupt_after(monkeypatch, 8)
    with pytest.warns(UserWarning, match=r"interrupted: \d+ draws of each chain were made and are returned") as caught:
        part = zsp.mcmc(build_scaled(), DATA, kernel=zsp.NUTS(), n_chains=4, progress=False, compile=False, **options)
    assert caught[0].filename == __file__
    n = part.n_draws
    assert 0 < n < 400 and str(n) in str(caught[0].message)
    assert same(part, whole.select(draws=slice(n)))
    assert same(part.warmup, whole.warmup)


@pytest.mark.parametrize("compile", [False, True])
def test_slow_steps_show_their_progress_and_are_not_lost(compile, monkeypatch):
    """Parts of a block are seen as they are made, and returned after Ctrl-C in the middle of it."""
    monkeypatch.setattr(runner, "LONGEST_CALL", 0.0)
    options = {"kernel": zsp.HMC(step_size=0.2), "n_warmup": 0, "n_samples": 40, "n_chains": 4, "compile": compile}
    whole = sample(**options)
    seen = []

    def update(self, n=1):
        seen.append(n)
        if len(seen) == 25:
            raise KeyboardInterrupt

    monkeypatch.setattr(tqdm, "update", update)
    with pytest.warns(UserWarning, match="interrupted: 25 draws of each chain were made and are returned"):
        part = zsp.mcmc(build_scaled(), DATA, progress=False, **options)
    assert same(part, whole.select(draws=slice(25)))
    assert seen == list(range(1, 26)), "what a bar is to be moved by that does not move"


def test_an_interrupt_in_the_warm_up_is_one(monkeypatch):
    interrupt_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt, match="interrupted in the warm-up, before there was a draw to return"):
        sample(n_warmup=500)


# -- eager and compiled -----------------------------------------------------------------------------------------------


def test_compiled_chains_are_the_eager_ones():
    """Over 20 transitions, in float64 to 1e-9; what runs compiled is a call of several steps with its noise outside."""
    begin = {"x": torch.randn(3, 3)}
    options = {
        "latents": {"x": torch.zeros(3)}, "init": begin, "n_chains": 3, "n_samples": 20, "n_warmup": 0,
    }  # fmt: skip
    kernel = zsp.NUTS(step_size=0.4, mass_matrix="identity", max_tree_depth=5)
    eager, compiled = (sample(kernel, correlated, {}, compile=compile, **options) for compile in (False, True))
    assert eager.info.tree_depth.max() > 1
    for name in eager.info:
        torch.testing.assert_close(compiled.info[name], eager.info[name], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(compiled["x"], eager["x"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("compile, length, expected", [("auto", 999, False), ("auto", 1000, True), (False, 9999, False)])
def test_auto_compiles_by_the_length_of_the_run_alone(compile, length, expected, monkeypatch):
    seen = []

    class Asked(Exception):
        pass

    def init(self, kernel, density, generator, n_numbers, is_compiled):
        seen.append(is_compiled)
        raise Asked

    monkeypatch.setattr(Runner, "__init__", init)
    with pytest.raises(Asked):
        sample(n_warmup=length - 100, n_samples=50, thin=2, compile=compile)
    assert seen == [expected]


def test_what_cannot_be_compiled_runs_eagerly_and_says_why():
    def looking(values):
        x = values["x"]
        return -0.5 * x.square().sum() * float(2.0 if x.sum().item() < 1e9 else 1.0)

    options = {"latents": {"x": torch.zeros(2)}, "n_chains": 1, "n_samples": 5, "n_warmup": 0, "progress": False}
    with pytest.warns(UserWarning, match="runs without compiled code, since .* compile=False says that this is meant"):
        draws = zsp.mcmc(looking, {}, kernel=zsp.NUTS(step_size=0.3), compile=True, **options)
    assert same(draws, sample(zsp.NUTS(step_size=0.3), looking, {}, **options | {"compile": False}))


# -- what is shown and said -------------------------------------------------------------------------------------------


def test_the_progress_bar_shows_the_step_size_and_the_divergences(capsys):
    sample(progress=True)
    shown = capsys.readouterr().err
    assert "mcmc, sampling: 100%" in shown and "50/50" in shown and "step size=" in shown and "divergences=0" in shown
    sample()
    assert capsys.readouterr().err == ""


def test_what_is_wrong_with_the_draws_is_said_at_the_caller_s_line():
    with pytest.warns(UserWarning, match="The effective sample size is below 400") as caught:
        zsp.mcmc(build_scaled(), DATA, kernel=zsp.NUTS(), n_samples=20, n_warmup=20, progress=False, compile=False)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"n_samples": 0}, ValueError, "n_samples must be a whole number of at least 1, got 0"),
        ({"n_warmup": -1}, ValueError, "n_warmup must be a whole number of at least 0, got -1"),
        ({"n_chains": 2.5}, ValueError, "n_chains must be a whole number of at least 1, got 2.5"),
        ({"thin": True}, ValueError, "thin must be a whole number of at least 1, got True"),
        ({"kernel": zsp.NUTS}, TypeError, r"kernel must be a kernel such as zsp.NUTS\(\), got <class"),
        ({"resume": True}, ValueError, "resume=True needs the checkpoint file to go on from: checkpoint=path"),
        ({"compile": "yes"}, ValueError, "compile must be True, False or 'auto', got 'yes'"),
        ({"latents": ["mu", "sclae"]}, NodeError, "has no stochastic node 'sclae'; .* Did you mean 'scale'"),
        ({"latents": "mu"}, TypeError, r"latents must be a list of names, but got the string 'mu'; write \['mu'\]"),
        (
            {"init": {"mu": numbers(0, 0, 0), "scale": numbers(1, 1, 1)}}, ValueError,
            r"init must hold a value for each of the 4 chains, \[chain, \*shape\], but its chain axes are \[3\]",
        ),
        ({"init": {"mu": numbers(0, 0, 0, 0)}}, ValueError, "'scale'"),
        ({"init": {"mu": numbers(0, 0, 0, 0), "scale": numbers(1, 1, -1, 1)}}, ValueError, "'scale'"),
        (
            {"init": {"mu": numbers(0, 0, 0, 1e200), "scale": numbers(1, 1, 1, 1)}}, ValueError,
            "not finite where init lets a chain begin",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_named(options, error, message):
    with pytest.raises(error, match=message):
        sample(options.pop("kernel", None), **options)


def test_a_density_that_is_never_finite_is_looked_into():
    with pytest.raises(ValueError, match=r"\(-inf\) or its gradient is not finite in 100 tries of a random beginning"):
        sample(None, lambda values: -math.inf * values["x"].square().sum(), {}, latents={"x": torch.zeros(2)})

    @zsp.meta_bayesian_net()
    def broken():
        bn = zsp.BayesianNet()
        mu = bn.normal("mu", torch.tensor(0.0), std=1.0)
        bn.normal("y", mu, std=mu * math.nan)
        return bn

    with pytest.raises(ValueError, match="'y'.*std|std.*'y'"):
        sample(None, broken(), {"y": torch.tensor(0.0)})


# -- blocks -----------------------------------------------------------------------------------------------------------


def test_a_block_is_as_long_as_what_is_left():
    most = 300
    assert choose_block(1000, 0, 0, 0, most) == (MOST_TRANSITIONS, MOST_TRANSITIONS)
    assert choose_block(25, 0, 0, 0, most) == (25, 25)
    assert choose_block(25, 75, 75, 75, most) == (25, 25), "a transition a step: exactly"
    assert choose_block(10, 100, 100, 350, most) == (35, 21)  # 1.3 times the ten expected, and eight
    assert choose_block(10, 100, 200, 350, most) == (35, 34), "as many as the fastest chain may begin"
    assert choose_block(500, 100, 100, 310, most) == (3.1 * MOST_TRANSITIONS // 1 + 1, 92)
    assert choose_block(500, 100, 100, 10_000, most) == (most, 12)
    assert choose_block(1, 1, 1, 1, most) == (1, 1)


def test_the_warmup_of_a_kernel_with_a_transition_a_step_has_the_length_asked_for(monkeypatch):
    made = []
    block = Runner.block

    def counting(self, state, position, tuning, n_steps, n_trajectories):
        made.append(n_steps)
        return block(self, state, position, tuning, n_steps, n_trajectories)

    monkeypatch.setattr(Runner, "block", counting)
    sample(zsp.HMC(), n_warmup=150, n_samples=70)
    assert sum(made) == 220


def test_a_block_that_is_made_in_several_calls_is_the_same(monkeypatch):
    """Slow steps are made one in a call, so that an interrupt need not wait for all of them."""
    made = []
    call = CompiledLoop.__call__

    def counting(self, state, inputs, fixed):
        made.append(len(inputs.momentum))
        return call(self, state, inputs, fixed)

    monkeypatch.setattr(CompiledLoop, "__call__", counting)
    options = {"n_warmup": 0, "n_samples": 30, "compile": True}
    fast = sample(zsp.HMC(step_size=0.2), **options)
    assert max(made) > 1
    made.clear()
    monkeypatch.setattr(runner, "LONGEST_CALL", 0.0)
    assert same(sample(zsp.HMC(step_size=0.2), **options), fast)
    assert made == [1] * 30


# -- how long it took -------------------------------------------------------------------------------------------------


def test_the_time_of_each_part_is_told_and_saved(tmp_path, monkeypatch):
    """By a clock that ticks once a look: a block takes one tick more than the compiling in it."""
    ticks = iter(range(10_000))
    monkeypatch.setattr("zsp.inference.sampling.run.time.perf_counter", lambda: float(next(ticks)))
    kernel = zsp.HMC(step_size=0.2, adapt_mass=False)
    draws = sample(kernel, n_warmup=2 * MOST_TRANSITIONS, n_samples=3 * MOST_TRANSITIONS, keep_warmup=True)
    assert draws.seconds == {"warmup": 2.0, "sampling": 3.0, "compile": 0.0}
    draws.save(tmp_path / "draws.npz")
    assert zsp.Draws.load(tmp_path / "draws.npz").seconds == draws.seconds == draws.thin(2).seconds
    assert zsp.Draws.concatenate([draws, draws]).seconds["sampling"] == 6.0


def test_a_resumed_run_has_taken_the_time_of_both(tmp_path, monkeypatch):
    ticks = iter(range(10_000))
    monkeypatch.setattr("zsp.inference.sampling.run.time.perf_counter", lambda: float(next(ticks)))
    options = {
        "kernel": zsp.HMC(step_size=0.2, adapt_mass=False), "n_warmup": 0, "n_samples": 5 * MOST_TRANSITIONS,
        "checkpoint": tmp_path / "run.pt", "checkpoint_every": 1, "resume": True,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError):
        interrupt_after(patch, 3, RuntimeError)
        sample(**options)
    assert sample(**options).seconds == {"warmup": 0.0, "sampling": 5.0, "compile": 0.0}
