"""zsp.mcmc with stochastic-gradient kernels: mini-batches, scale, resuming, compiled steps, and errors that teach."""

import itertools
import warnings

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset, default_collate

import zsp
from tests.inference.training.graphs import interpreted  # noqa: F401
from tests.monte_carlo import assert_mean, assert_variance
from zsp.inference.log_density import LogDensity
from zsp.inference.sampling import base_run
from zsp.inference.sampling.stochastic.control_variates import ControlVariates
from zsp.inference.sampling.stochastic.density import BatchDensity, differentiate
from zsp.inference.sampling.stochastic.minibatches import minibatches_of
from zsp.inference.sampling.stochastic.psgld import PSGLD
from zsp.inference.sampling.stochastic.runner import StochasticRunner
from zsp.inference.sampling.stochastic.running import RunningPredictions
from zsp.inference.sampling.stochastic.schedules import CyclicalSchedule, Stage
from zsp.inference.sampling.stochastic.sghmc import SGHMC
from zsp.inference.sampling.stochastic.sgld import SGLD
from zsp.inference.sampling.stochastic.sgnht import SGNHT

N = 60
X = torch.linspace(-1, 1, N, dtype=torch.float64)[:, None] * torch.tensor([[1.0, 0.5]], dtype=torch.float64)
Y = torch.sin(3 * X[:, 0])

KERNELS = {
    "SGLD": SGLD(1e-3),
    "PSGLD": PSGLD(1e-3, curvature=True),
    "SGHMC": SGHMC(1e-3, n_iter_resample_v=7),
    "SGNHT": SGNHT(1e-3, variance_extra=0.1),
}


@zsp.meta_bayesian_net()
def regression(x, n_data=N):
    bn = zsp.BayesianNet()
    w = bn.normal("w", torch.zeros(2), std=1.0, group_ndims=1)
    noise = bn.half_normal("noise", torch.tensor(1.0))
    mean = bn.deterministic("mean", (x * w.unsqueeze(-2)).sum(-1))
    bn.normal("y", mean, std=(0.1 + noise).unsqueeze(-1), group_ndims=1, total_size=n_data)
    return bn


def mcmc(observed=None, model=None, **options):
    options = {
        "kernel": SGLD(1e-3), "n_samples": 30, "n_warmup": 10, "n_chains": 2, "progress": False, "compile": False,
        **options,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return zsp.mcmc(model or regression(), observed or {"x": X, "y": Y}, **options)


def assert_same(first, second):
    assert list(first) == list(second)
    for name in first:
        assert torch.equal(first[name], second[name]), name
    for name in first.info:
        assert torch.equal(first.info[name], second.info[name]), name


def named(rows):
    return dict(zip(("x", "y"), default_collate(rows), strict=True))


def loader(shuffle=True, generator=None, batch_size=25):
    return DataLoader(
        TensorDataset(X, Y), batch_size=batch_size, shuffle=shuffle, collate_fn=named, generator=generator
    )


# -- what a mini-batch is ---------------------------------------------------------------------------------------------


def test_the_gradients_of_the_mini_batches_of_a_pass_average_to_that_of_all_data():
    model = regression()
    full = LogDensity(model, {"x": X, "y": Y})
    batch_density = BatchDensity(lambda q, batch: full.rebind(batch)(q))
    q = torch.randn(3, 3)
    value, gradient = BatchDensity(lambda q, batch: full(q)).at({})(q)
    minibatches = minibatches_of({"x": X, "y": Y}, 20, torch.Generator().manual_seed(0))
    (chunk,) = minibatches.take(3)
    assert sorted(chunk.inputs.flatten().tolist()) == list(range(N))
    for at in (batch_density.at, batch_density.traced_at):
        found = [at(batch)(q) for batch in chunk]
        assert torch.allclose(torch.stack([v for v, _ in found]).mean(0), value, rtol=1e-12)
        assert torch.allclose(torch.stack([g for _, g in found]).mean(0), gradient, rtol=1e-12, atol=1e-9)
        assert (found[0][1] - gradient).abs().max() > 0.1


def test_rows_are_taken_equally_often_across_the_ends_of_orders():
    minibatches = minibatches_of({"i": torch.arange(10)}, 4, torch.Generator().manual_seed(0))
    taken = torch.cat([batch["i"] for _ in range(4) for chunk in minibatches.take(5) for batch in chunk])
    assert taken.view(-1, 10).sort(1).values.eq(torch.arange(10)).all()  # every ten are all
    assert len({tuple(order) for order in taken.view(-1, 10).tolist()}) > 1
    shares = minibatches_of({"x": X}, 7, torch.Generator()).take(1)[0].fixed["x"]
    assert shares.data_ptr() == X.data_ptr()  # the data are not copied


def test_mini_batches_of_a_loader_are_those_of_a_loop_over_it():
    generator = torch.Generator().manual_seed(3)
    taken = minibatches_of(loader(generator=generator), None, torch.Generator()).take(7)
    assert [chunk.n_steps for chunk in taken] == [2, 1, 2, 1, 1]  # the last of a pass is smaller
    torch.Generator()
    generator.manual_seed(3)
    same = loader(generator=generator)
    expected = list(itertools.islice(itertools.chain(same, same, same), 7))
    for batch, other in zip((b for chunk in taken for b in chunk), expected, strict=True):
        assert torch.equal(batch["y"], other["y"])


def test_a_normal_mean_has_the_law_that_mini_batches_give_it():
    """SGLD on a conjugate normal mean: the mini-batches' noise is known, and with it the stationary variance."""
    data, n, size, eta = torch.linspace(-1, 1, 40), 40, 10, 0.04

    @zsp.meta_bayesian_net()
    def mean_of():
        bn = zsp.BayesianNet()
        mu = bn.normal("mu", torch.tensor(0.0), std=1.0)
        bn.normal("y", mu.unsqueeze(-1).expand(*mu.shape, size), std=1.0, group_ndims=1, total_size=n)
        return bn

    batches = [{"y": part} for part in data.view(4, 10)]  # always in this order: its sum is known at every step
    draws = mcmc(batches, mean_of(), kernel=SGLD(eta), n_chains=2000, n_samples=1, n_warmup=19)
    precision = 1 + n
    shrink, mean, variance = 1 - eta / 2 * precision, 0.0, 4 / 3  # uniform(-2, 2)
    for step in range(20):
        mean = shrink * mean + eta / 2 * 4 * float(batches[step % 4]["y"].sum())
        variance = shrink**2 * variance + eta
    assert_mean(draws["mu"][:, 0], mean)
    assert_variance(draws["mu"][:, 0], variance)
    assert variance > 1.5 / precision  # the bias of this step size is seen


@pytest.mark.parametrize("batch_size", [None, 20])
def test_draws_are_of_the_latents_in_their_own_space(batch_size):
    draws = mcmc(batch_size=batch_size, thin=3, keep_warmup=True)
    assert draws["w"].shape == (2, 30, 2) and draws["noise"].shape == (2, 30)
    assert (draws["noise"] > 0).all()
    assert draws.warmup.n_draws == 10
    assert set(draws.info) == {"log_density", "learning_rate"}
    assert draws.log_likelihood["y"].shape == (2, 30, N)
    assert ("mean" in draws) == (batch_size is None)


def test_all_chains_and_latents_have_noise_of_their_own():
    draws = mcmc(init={"w": torch.zeros(2, 2), "noise": torch.ones(2)}, n_warmup=0, batch_size=20)
    moves = torch.cat([draws["w"], draws["noise"][..., None]], -1)[:, 0]
    assert len(set(moves.flatten().tolist())) == 6


def test_thinning_keeps_every_so_many_of_the_same_chain():
    every = mcmc(batch_size=20, n_samples=30, kernel=KERNELS["SGHMC"])
    third = mcmc(batch_size=20, n_samples=10, thin=3, kernel=KERNELS["SGHMC"])
    assert torch.equal(every["w"][:, 2::3], third["w"])


# -- stopped and resumed ----------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("name", "data", "compile"),
    [(name, "rows", False) for name in KERNELS]
    + [("SGHMC", "loader", False), ("SGHMC", "all", False), ("SGHMC", "loader", True), ("SGHMC", "rows", True)],
)
def test_a_run_that_is_resumed_equals_one_that_was_not_stopped(name, data, compile, tmp_path, monkeypatch):
    kernel = KERNELS[name]

    def run(**options):
        observed = loader() if data == "loader" else None
        predict = RunningPredictions(lambda latents: {"m": latents["w"] + torch.randn(2)})
        size = 20 if data == "rows" else None
        draws = mcmc(
            observed, kernel=kernel, batch_size=size, n_samples=100, n_warmup=30, predict=predict, compile=compile,
            **options,
        )  # fmt: skip
        return draws, predict

    whole, predicted = run()
    path, write, n_written = tmp_path / "run.pt", base_run.write_checkpoint, []

    def stop(*arguments):
        write(*arguments)
        n_written.append(1)
        if len(n_written) == 2:
            raise Stop

    monkeypatch.setattr(base_run, "write_checkpoint", stop)
    with pytest.raises(Stop):
        run(checkpoint=path, checkpoint_every=10)
    monkeypatch.setattr(base_run, "write_checkpoint", write)
    torch.manual_seed(99)  # the caller's random state has no part in it
    resumed, again = run(checkpoint=path, checkpoint_every=10, resume=True)
    assert_same(whole, resumed)
    assert torch.equal(predicted.mean["m"], again.mean["m"]) and torch.equal(predicted.sd["m"], again.sd["m"])


def test_draws_are_kept_in_checkpoints_too(tmp_path):
    whole = mcmc(batch_size=20, n_samples=80, keep_warmup=True)
    path = tmp_path / "run.pt"
    mcmc(batch_size=20, n_samples=80, keep_warmup=True, checkpoint=path, checkpoint_every=50)
    resumed = mcmc(batch_size=20, n_samples=80, keep_warmup=True, checkpoint=path, resume=True)
    assert_same(whole, resumed)
    assert_same(whole.warmup, resumed.warmup)
    with pytest.raises(ValueError, match="its kernel is 'SGLD.learning_rate=0.001.*that of this run is 'SGLD.*0.002"):
        mcmc(batch_size=20, n_samples=80, keep_warmup=True, checkpoint=path, resume=True, kernel=SGLD(2e-3))


def test_the_seed_makes_the_draws_and_the_callers_random_state_is_given_back():
    before = torch.get_rng_state()
    first = mcmc(loader())
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(5)
    assert_same(first, mcmc(loader()))
    assert not torch.equal(first["w"], mcmc(loader(), seed=1)["w"])


# -- compiled ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("name", "data"), [(name, "rows") for name in KERNELS] + [("SGHMC", "loader"), ("SGLD", "all")]
)
def test_compiled_steps_are_the_eager_ones(name, data, monkeypatch):
    kernel, n_compiled, run_compiled = KERNELS[name], [], StochasticRunner._run_compiled

    def counted(loop, state, noise, values, chunk):
        n_compiled.append(chunk.n_steps)
        return run_compiled(loop, state, noise, values, chunk)

    monkeypatch.setattr(StochasticRunner, "_run_compiled", staticmethod(counted))

    def run(compile):
        observed = loader(batch_size=20) if data == "loader" else None
        size = 20 if data == "rows" else None
        return mcmc(observed, kernel=kernel, batch_size=size, n_samples=20, n_warmup=0, compile=compile)

    eager = run(False)
    assert not n_compiled
    compiled = run(True)
    assert sum(n_compiled) >= 14 and max(n_compiled) > 1
    for name in eager:
        assert torch.allclose(eager[name], compiled[name], atol=1e-9, rtol=0), name
    for name in eager.info:
        assert torch.allclose(eager.info[name], compiled.info[name], rtol=1e-7), name


def test_steps_compiled_by_inductor_are_the_eager_ones():
    kernel = SGHMC(1e-3, n_iter_resample_v=4)
    eager = mcmc(batch_size=20, kernel=kernel, n_samples=20, n_warmup=0)
    compiled = mcmc(batch_size=20, kernel=kernel, n_samples=20, n_warmup=0, compile=True)
    assert torch.allclose(eager["w"], compiled["w"], atol=1e-9, rtol=0)


def test_a_model_that_cannot_be_compiled_runs_eagerly_and_says_so():
    def log_joint(values):
        if values["w"].sum() > 100:
            return values["w"].sum()
        return -0.5 * (values["w"] ** 2).sum() * len(values["x"])

    with pytest.warns(UserWarning, match="runs without compiled code, since the log density cannot be compiled"):
        zsp.mcmc(
            log_joint, [{"x": X}], kernel=SGLD(1e-3), n_samples=3, n_warmup=0, n_chains=1, progress=False,
            latents={"w": torch.zeros(2)}, compile=True,
        )  # fmt: skip


# -- control variates -------------------------------------------------------------------------------------------------


def test_control_variates_have_no_noise_at_the_centre_and_none_on_average():
    model = regression()
    full, center, q = LogDensity(model, {"x": X, "y": Y}), torch.randn(1, 3), torch.randn(3, 3)
    parts = [(20, full.rebind({"x": x, "y": y})) for x, y in zip(X.split(20), Y.split(20), strict=True)]
    control = ControlVariates.of_parts([*parts[:1], (40, full.rebind({"x": X[20:], "y": Y[20:]}))], center)
    at = ControlVariates.at(full, center)
    assert torch.allclose(at.gradient, control.gradient) and torch.allclose(at.value, control.value)
    value, gradient = differentiate(full, center)
    found = [differentiate(control(part), center) for _, part in parts]
    for v, g in found:
        assert torch.allclose(v, value) and torch.allclose(g, gradient)
    plain = [differentiate(part, center)[1] for _, part in parts]
    assert (plain[0] - gradient).abs().max() > 0.1
    value, gradient = differentiate(full, q)
    found = [differentiate(control(part), q) for _, part in parts]
    assert torch.allclose(torch.stack([v for v, _ in found]).mean(0), value)
    assert torch.allclose(torch.stack([g for _, g in found]).mean(0), gradient)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_where_data_differ_in_their_means_only_control_variates_remove_all_noise(kernel):
    @zsp.meta_bayesian_net()
    def normal_means(x):
        bn = zsp.BayesianNet()
        mu = bn.normal("mu", torch.zeros(2), std=1.0, group_ndims=1)
        bn.normal("y", mu.unsqueeze(-2) + x, std=1.0, group_ndims=2, total_size=N)
        return bn

    observed = {"x": torch.zeros(N, 1), "y": torch.stack([Y, 2 * Y], 1)}
    options = {"kernel": kernel, "n_samples": 20, "model": normal_means()}
    whole = mcmc(observed, **options)
    reduced = mcmc(observed, batch_size=7, control_variates={"mu": torch.tensor([0.3, -0.2])}, **options)
    plain = mcmc(observed, batch_size=7, **options)
    assert torch.allclose(whole["mu"], reduced["mu"], atol=1e-10)
    assert not torch.allclose(whole["mu"], plain["mu"], atol=1e-3)
    batches = [{name: value[i : i + 25] for name, value in observed.items()} for i in range(0, N, 25)]
    streamed = mcmc(batches, control_variates={"mu": torch.zeros(2)}, **options)
    assert torch.allclose(whole["mu"], streamed["mu"], atol=1e-10)


def test_mini_batches_that_do_not_end_have_no_control_variates():
    class Endless:
        def __iter__(self):
            return iter(lambda: {"x": X[:20], "y": Y[:20]}, None)

    center = {"w": torch.zeros(2), "noise": torch.tensor(0.5)}
    with pytest.raises(ValueError, match=r"all data, total_size=60, but the mini-batches go on.*to 80 or more.*ends"):
        mcmc(Endless(), control_variates=center)


def test_control_variates_in_a_loop_of_ones_own():
    full = LogDensity(regression(), {"x": X, "y": Y})

    def log_density(position):
        return full(torch.cat([position["w"], position["s"].unsqueeze(-1)], -1))

    center = {"w": torch.zeros(3, 2), "s": torch.zeros(3)}
    reduced = ControlVariates.at(log_density, center)(log_density)
    kernel = SGHMC(1e-3)
    position = {"w": torch.randn(3, 2), "s": torch.randn(3)}
    state, other = kernel.init(log_density, position, seed=0), kernel.init(reduced, position, seed=0)
    for _ in range(3):
        state, info = kernel.step(log_density, state)
        other, same = kernel.step(reduced, other)
    assert torch.allclose(state.position["w"], other.position["w"], atol=1e-10)
    assert torch.allclose(info.log_density, same.log_density)


# -- schedules --------------------------------------------------------------------------------------------------------


def test_cycles_explore_without_noise_and_keep_what_they_sample():
    schedule = CyclicalSchedule(20, exploration=0.75)
    kernel = SGLD(1e-3, schedule=schedule)
    draws = mcmc(kernel=kernel, n_samples=15, n_warmup=0)
    rates = draws.info.learning_rate[0]
    expected = torch.tensor([1e-3 * schedule(step).factor for step in range(60) if step % 20 >= 15])
    assert torch.allclose(rates, expected)
    assert schedule(0) == Stage(1.0, 0.0, False) and schedule(15).temperature == 1.0
    same = {"w": torch.ones(2, 2), "noise": torch.ones(2)}
    only = mcmc(kernel=kernel, n_samples=5, n_warmup=0, init=same)
    state = kernel.init(lambda q: -0.5 * (q * q).sum(-1), torch.ones(4, 3), seed=0)
    for _ in range(15):
        state, _ = kernel.step(lambda q: -0.5 * (q * q).sum(-1), state)
    assert (state.position == state.position[0, 0]).all()  # no noise yet
    state, _ = kernel.step(lambda q: -0.5 * (q * q).sum(-1), state)
    assert len(set(state.position.flatten().tolist())) == 12
    assert not torch.equal(only["w"][0], only["w"][1])


def test_a_schedule_may_be_any_function_of_the_step():
    draws = mcmc(kernel=SGLD(1e-3, schedule=lambda step: 1 / (1 + step)), n_samples=5, n_warmup=2)
    assert torch.allclose(draws.info.learning_rate[0], 1e-3 / torch.arange(3.0, 8.0))
    with pytest.raises(ValueError, match="at least 0, but for step 3 it returned -1"):
        mcmc(kernel=SGLD(1e-3, schedule=lambda step: -1 if step == 3 else 1.0))


# -- streaming predictions --------------------------------------------------------------------------------------------


def test_running_predictions_are_the_moments_of_the_draws():
    def function(latents):
        return {"f": latents["w"].sum(-1, keepdim=True) * latents["noise"][:, None]}

    predictions = RunningPredictions(function)
    options = {"batch_size": 20, "n_samples": 40, "n_chains": 3}
    last = mcmc(predict=predictions, **options)
    draws = mcmc(**options)
    f = draws["w"].sum(-1, keepdim=True) * draws["noise"][..., None]
    assert last.n_draws == 1 and torch.equal(last["w"][:, 0], draws["w"][:, -1])
    assert predictions.n_draws == 40
    assert torch.allclose(predictions.mean["f"], f.mean((0, 1)))
    assert torch.allclose(predictions.chain_mean["f"], f.mean(1))
    assert torch.allclose(predictions.sd["f"], f.flatten(0, 1).std(0, correction=0))
    within, between = f.var(1).mean(0), f.mean(1).var(0)
    assert torch.allclose(predictions.r_hat["f"], (39 / 40 + between / within).sqrt())


def test_predictions_of_a_model_at_other_inputs():
    model, x_test = regression(), X[:5]
    predictions = RunningPredictions(lambda latents: zsp.predict(model, latents, {"x": x_test}, names=["mean"]))
    mcmc(model=model, batch_size=20, predict=predictions, n_samples=5)
    assert predictions.mean["mean"].shape == (5,)
    with pytest.raises(ValueError, match="the 2 chains as their first axis, but 'f' has shape \\[3\\]"):
        mcmc(predict=RunningPredictions(lambda latents: {"f": torch.zeros(3)}))
    with pytest.raises(TypeError, match="predict must be zsp.RunningPredictions\\(function\\)"):
        mcmc(predict=lambda latents: latents)


# -- mistakes ---------------------------------------------------------------------------------------------------------


def test_a_mini_batch_without_total_size_is_refused():
    with pytest.raises(ValueError, match="'y' is observed in mini-batches.*the prior would count too much. Give.*total_size=60"):
        mcmc(model=regression(n_data=None), batch_size=20)
    with pytest.raises(ValueError, match="total_size=N, the number of all data"):
        mcmc(loader(), regression(n_data=None))
    with pytest.raises(ValueError, match="'y' has total_size=50, but there are 60 data in observed: make it total_size=60"):
        mcmc(model=regression(n_data=50), batch_size=20)
    mcmc(model=regression(n_data=None))  # all data need none


def test_mistakes_with_mini_batches_are_explained():
    with pytest.raises(TypeError, match="NUTS needs the gradient of all data in every step, but got batch_size="):
        mcmc(kernel=zsp.NUTS(), batch_size=20)
    with pytest.raises(TypeError, match="NUTS needs .* got an iterable of mini-batches.*zsp.SGHMC\\(learning_rate\\)"):
        mcmc([{"x": X, "y": Y}], kernel=zsp.NUTS())
    with pytest.raises(TypeError, match="a mini-batch must be a dict from .* but got a list.*batch_size=100.*collate_fn"):
        mcmc(DataLoader(TensorDataset(X, Y), batch_size=20))
    with pytest.raises(TypeError, match="'n_data' is a int. Bind .* to the model: model.bind\\(n_data=...\\)"):
        mcmc({"x": X, "y": Y, "n_data": N}, batch_size=20)
    with pytest.raises(ValueError, match="gave no mini-batch after the first 2: it can be gone through only once"):
        mcmc(iter([{"x": X, "y": Y}] * 2))
    with pytest.raises(ValueError, match="observed gave no mini-batch. Give a DataLoader"):
        zsp.mcmc(regression(), iter([]), kernel=SGLD(1e-3))
    with pytest.raises(ValueError, match="batch_size divides a mapping of tensors"):
        mcmc(loader(), batch_size=20)
    with pytest.raises(ValueError, match="at most the number of data, 60, got 100"):
        mcmc(batch_size=100)


def test_a_step_that_leaves_the_numbers_is_explained():
    with pytest.raises(ValueError, match="in step \\d+ . of 2 chains left the numbers.*learning_rate \\(10\\) has to be small"):
        mcmc(kernel=SGLD(10.0), n_warmup=200, batch_size=20)


def test_a_bad_value_anywhere_in_the_data_is_found_before_the_first_step():
    @zsp.meta_bayesian_net()
    def counts():
        bn = zsp.BayesianNet()
        rate = bn.gamma("rate", torch.tensor(2.0), torch.tensor(1.0))
        bn.poisson("y", rate.unsqueeze(-1), group_ndims=1, total_size=N)
        return bn

    y = torch.ones(N)
    y[37] = 1.5
    with pytest.raises(ValueError, match="'y'"):
        mcmc({"y": y}, counts(), batch_size=10)


def test_a_thermostat_that_stands_still_is_told():
    def log_joint(values):
        return -0.5 * (values["w"] ** 2).sum()

    with pytest.warns(UserWarning, match="SGNHT stands still in some dimensions of 2 of 2 chains: a thermostat is at"):
        zsp.mcmc(
            log_joint, {}, latents={"w": torch.zeros(3)}, kernel=SGNHT(1e-3, variance_extra=0.1), n_chains=2,
            n_samples=50, n_warmup=100, progress=False, init={"w": torch.full((2, 3), 200.0)},
        )  # fmt: skip
    with pytest.warns(UserWarning, match="have not settled in 2 of 2 chains.*info.temperature.*should be 1"):
        zsp.mcmc(
            log_joint, {}, latents={"w": torch.zeros(3)}, kernel=SGNHT(1e-3, variance_extra=0.1), n_chains=2,
            n_samples=50, n_warmup=0, progress=False, init={"w": torch.full((2, 3), 10.0)},
        )  # fmt: skip


def test_an_interrupted_run_returns_what_it_has(monkeypatch):
    from zsp.inference.sampling.stochastic import run as module

    advance, calls = module.StochasticRun.advance, []

    def interrupted_after_two(self):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        advance(self)

    monkeypatch.setattr(module.StochasticRun, "advance", interrupted_after_two)
    with pytest.warns(UserWarning, match="interrupted: 118 draws of each chain"):
        draws = zsp.mcmc(
            regression(), {"x": X, "y": Y}, kernel=SGLD(1e-3), n_samples=1000, n_warmup=10, progress=False
        )
    assert draws.n_draws == 118


def test_a_schedule_is_a_function():
    with pytest.raises(TypeError, match=r"schedule must be a function .*zsp.PolynomialSchedule\(1000\).*got 0.1"):
        SGLD(1e-3, schedule=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGLD(0.0), "learning_rate must be positive and finite, got 0.0"),
        (lambda: PSGLD(1e-3, decay=1.0), "decay must be at least 0 and less than 1, got 1.0"),
        (lambda: SGHMC(1e-3, friction=0.1, variance_estimate=0.2), "variance_estimate must be from 0 to friction \\(0.1\\)"),
        (lambda: SGHMC(1e-3, friction=2.5, second_order=False), "friction must be less than 2 for the first-order"),
        (lambda: SGHMC(1e-3, n_iter_resample_v=2.5), "n_iter_resample_v must be a whole number of steps, or None"),
        (lambda: SGNHT(1e-3, tune_rate=-1.0), "tune_rate must be at least 0 and finite"),
        (lambda: CyclicalSchedule(1), "period must be a whole number of at least 2 steps"),
        (lambda: CyclicalSchedule(10, exploration=0.95), "exploration must be from 0 to 0.9"),
    ],
)
def test_options_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
