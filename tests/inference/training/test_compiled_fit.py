"""Compiled training against eager training: numbers, random numbers, state, errors, and what cannot be compiled.

Most tests run the graph that would be compiled as it is, operation by operation; a few compile it.
"""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import zsp
from tests.inference.training.graphs import interpreted  # noqa: F401
from zsp.inference.compilation.compiled_loop import CompiledLoop
from zsp.inference.training import trainer


@pytest.fixture
def calls_of(monkeypatch):
    """Set the number of steps in a call."""
    return lambda n: monkeypatch.setattr(trainer, "steps_per_call", lambda traced, n_steps: n)


# -- problems ---------------------------------------------------------------------------------------------------------


class Problem:
    """A loss and its parameters, made anew for every run."""

    def __init__(self, kind=torch.optim.SGD, **options):
        torch.manual_seed(0)
        self.modules = self.make()
        self.optimizer = kind(self.modules.parameters(), **{"lr": 0.01, **options})

    def make(self):
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))

    @property
    def data(self):
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(24, 3, generator=generator, dtype=torch.float64)
        return {"x": x, "y": x.sum(-1, keepdim=True).sin()}

    def loss(self, batch):
        noise = torch.randn(batch["x"].shape) * 0.1
        error = (self.modules(batch["x"] + noise) - batch["y"]).square()
        return error.mean(), {"largest": error.max(), "size": len(batch["x"])}

    def fit(self, **options):
        options = {"epochs": 3, "batch_size": 4, "progress": False, **options}
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            return zsp.fit(self.loss, self.data, optimizer=self.optimizer, **options)


class VAE(Problem):
    """With Bernoulli draws in the loss, normal draws and Bernoulli draws in the nets."""

    def make(self):
        @zsp.meta_bayesian_net(scope="model", reuse_variables=True)
        def model(n):
            bn = zsp.BayesianNet()
            z = bn.normal("z", torch.zeros(n, 2), std=1.0, group_ndims=1)
            bn.bernoulli("x", zsp.module("logits", nn.Linear, 2, 5)(z), group_ndims=1, dtype=torch.float64)
            return bn

        @zsp.reuse_variables("q")
        def q(x):
            bn = zsp.BayesianNet()
            h = torch.tanh(zsp.module("hidden", nn.Linear, 5, 4)(x))
            mean, logstd = zsp.module("mean", nn.Linear, 4, 2)(h), zsp.module("logstd", nn.Linear, 4, 2)(h)
            bn.normal("z", mean, logstd=logstd, n_samples=3, group_ndims=1)
            return bn

        self.model, self.q = model(4).materialize(), q.materialize(torch.zeros(4, 5))
        return nn.ModuleList([self.model, self.q])

    @property
    def data(self):
        return {"x": torch.rand(24, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)}

    def loss(self, batch):
        x = torch.bernoulli(batch["x"])
        bound = zsp.elbo(self.model, {"x": x}, variational=self.q(x), axis=0)
        return bound.sgvb().mean(), {"elbo": bound.mean()}


class Convolutions(Problem):
    """With weights whose strides can be read in more than one order, and buffers."""

    def make(self):
        first = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh()
        layers = *first, nn.ConvTranspose2d(4, 1, 2), nn.ConvTranspose2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(32, 1)
        return nn.Sequential(*layers)

    @property
    def data(self):
        x = torch.randn(24, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        return {"x": x, "y": x.sum((1, 2, 3))[:, None].sin()}


def assert_same_run(first, second, rtol=1e-9, atol=1e-11):
    """Two problems after training, and their histories."""
    (problem, history), (other, other_history) = first, second
    for (name, a), b in zip(problem.modules.state_dict().items(), other.modules.state_dict().values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=name)
    for a, b in zip(problem.optimizer.state.values(), other.optimizer.state.values(), strict=True):
        assert set(a) == set(b)
        for name in a:
            if a[name] is not None:
                np.testing.assert_allclose(a[name], b[name], rtol=rtol, atol=atol, err_msg=name)
    assert history.n_steps == other_history.n_steps and set(history) == set(other_history)
    for name in history:
        np.testing.assert_allclose(history[name], other_history[name], rtol=rtol, err_msg=name)


def both(make, **options):
    """The same problem trained eagerly and compiled."""
    eager, compiled = make(), make()
    first = eager.fit(**options)
    second = compiled.fit(compile=True, **options)
    assert first.n_compiled_steps == 0
    return (eager, first), (compiled, second)


# -- numbers ----------------------------------------------------------------------------------------------------------


def test_compiled_with_several_steps_a_call_equals_eager(calls_of):
    calls_of(2)
    eager, compiled = both(lambda: VAE(torch.optim.Adam), epochs=9)
    assert_same_run(eager, compiled)
    assert compiled[1].n_steps == 54 and compiled[1].n_compiled_steps == 53  # the first step of a run makes the state


def test_convolutions_compiled_with_several_steps_a_call_equal_eager(calls_of):
    calls_of(5)
    eager, compiled = both(Convolutions)
    assert compiled[1].n_compiled_steps == 17
    assert_same_run(eager, compiled)


def test_compiled_in_float32(calls_of):
    torch.set_default_dtype(torch.float32)
    calls_of(1)

    class Single(Problem):
        @property
        def data(self):
            return {name: value.float() for name, value in super().data.items()}

    eager, compiled = both(Single)
    assert_same_run(eager, compiled, rtol=1e-4, atol=1e-5)
    assert compiled[1].n_compiled_steps == 17
    assert all(p.dtype == torch.float32 for p in compiled[0].modules.parameters())


@pytest.mark.parametrize("n", [1, 4])
def test_random_numbers_come_in_the_order_of_an_eager_run(interpreted, calls_of, n):
    calls_of(n)
    eager, compiled = both(VAE, epochs=5)  # the last one begins with a check
    assert_same_run(eager, compiled)
    # six steps an epoch, the first of a run and those left over eager
    assert compiled[1].n_compiled_steps == 29


def test_the_same_seed_gives_the_same_run_and_the_callers_state_is_given_back(interpreted, calls_of):
    calls_of(3)
    state = torch.get_rng_state()
    first, second, other = Problem(), Problem(), Problem()
    torch.set_rng_state(state)
    first.fit(compile=True, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    second.fit(compile=True, seed=3)
    other.fit(compile=True, seed=4)
    a, b, c = (torch.cat([p.flatten() for p in problem.modules.parameters()]) for problem in (first, second, other))
    assert torch.equal(a, b) and not torch.equal(a, c)


OPTIMIZERS = [
    (torch.optim.SGD, {}),
    (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.5, "maximize": True, "lr": 1e-4}),
    (torch.optim.Adam, {"amsgrad": True, "weight_decay": 0.1, "betas": (0.5, 0.9)}),
    (torch.optim.AdamW, {"lr": torch.tensor(0.02), "maximize": True}),
    (torch.optim.AdamW, {"weight_decay": 0.3, "foreach": True}),
]


@pytest.mark.parametrize("kind, options", OPTIMIZERS)
def test_optimizers(interpreted, calls_of, kind, options):
    calls_of(2)
    eager, compiled = both(lambda: Problem(kind, **options))
    assert_same_run(eager, compiled)
    assert compiled[1].n_compiled_steps == 3 * 6 - 1


def test_parameter_groups_unused_and_frozen_parameters(interpreted, calls_of):
    calls_of(2)

    class Groups(Problem):
        def __init__(self):
            super().__init__(torch.optim.AdamW)
            self.modules.append(nn.Linear(1, 1))
            unused = nn.Parameter(torch.ones(2))
            frozen = nn.Parameter(torch.ones(2), requires_grad=False)
            self.optimizer = torch.optim.AdamW(
                [
                    {"params": self.modules[0].parameters(), "lr": 0.1, "weight_decay": 0.0},
                    {"params": [*self.modules[2].parameters(), unused, frozen], "amsgrad": True},
                    {"params": self.modules[3].parameters(), "betas": (0.3, 0.5)},
                ],
                lr=0.01,
            )
            self.unused = [unused, frozen]

    eager, compiled = both(Groups)
    assert_same_run(eager, compiled)
    assert compiled[1].n_compiled_steps == 17
    assert all(torch.equal(p.detach(), torch.ones(2)) for p in compiled[0].unused)


def test_parameters_that_are_shared_by_modules(interpreted, calls_of):
    calls_of(2)

    class Tied(Problem):
        def make(self):
            first, second = nn.Linear(3, 3), nn.Linear(3, 3)
            second.weight = first.weight
            return nn.Sequential(first, nn.Tanh(), second, nn.Linear(3, 1))

    assert_same_run(*both(Tied))


def test_buffers_that_the_loss_changes(interpreted, calls_of):
    calls_of(2)

    class Normed(Problem):
        def make(self):
            return nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 1))

    eager, compiled = both(Normed, epochs=5)
    assert_same_run(eager, compiled)
    assert compiled[0].modules[1].num_batches_tracked == 30


# -- state ------------------------------------------------------------------------------------------------------------


def test_learning_rate_schedules_do_not_compile_again(interpreted, calls_of, monkeypatch):
    calls_of(2)
    made = []
    init = CompiledLoop.__init__
    monkeypatch.setattr(CompiledLoop, "__init__", lambda *args, **options: (made.append(1), init(*args, **options))[1])

    class Scheduled(Problem):
        def fit(self, **options):
            scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.3)
            return super().fit(validation=lambda: scheduler.step() or {}, **options)

    eager, compiled = both(Scheduled, epochs=4)
    assert_same_run(eager, compiled)
    assert compiled[0].optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * 0.3**4) and len(made) == 1


@pytest.mark.parametrize("kind, options", [OPTIMIZERS[1], OPTIMIZERS[3]])
def test_stopped_and_resumed_from_saved_state(interpreted, calls_of, kind, options):
    calls_of(3)
    results = []
    for compile in (False, True):
        first, resumed = Problem(kind, **options), Problem(kind, **options)
        first.fit(compile=compile)
        resumed.modules.load_state_dict(first.modules.state_dict())
        resumed.optimizer.load_state_dict(first.optimizer.state_dict())
        results.append((resumed, resumed.fit(compile=compile, seed=1)))
    assert_same_run(*results)


def test_the_optimizers_state_may_be_replaced_between_epochs(interpreted, calls_of):
    calls_of(3)

    class Reset(Problem):
        def fit(self, **options):
            saved = []

            def validation():
                saved.append({"model": self.modules.state_dict(), "optimizer": self.optimizer.state_dict()})
                self.optimizer.load_state_dict(saved[-1]["optimizer"])  # other tensors, the same values
                return {}

            return super().fit(validation=validation, **options)

    assert_same_run(*both(Reset))


def test_validation_sees_the_current_parameters(interpreted, calls_of):
    calls_of(3)
    seen = []

    class Watched(Problem):
        def fit(self, **options):
            view = self.modules[0].weight.detach()  # the same memory all along

            def validation():
                seen.append((view.clone(), next(iter(self.optimizer.state.values()))["step"].item()))  # Adam's
                return {"norm": view.norm()}

            return super().fit(validation=validation, **options)

    eager, compiled = both(lambda: Watched(torch.optim.Adam))
    assert_same_run(eager, compiled)
    for (a, n), (b, m) in zip(seen[:3], seen[3:], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)
        assert n == m
    assert [n for _, n in seen[:3]] == [6, 12, 18]


def test_no_stale_gradient_is_left(interpreted):
    problem = Problem()
    problem.fit(compile=True)
    assert all(p.grad is None for p in problem.modules.parameters())


# -- data -------------------------------------------------------------------------------------------------------------


def test_a_data_loader_that_draws_random_numbers(interpreted):
    class Loaded(Problem):
        @property
        def data(self):
            x = super().data["x"]

            class Batches:
                def __iter__(self):
                    for _ in range(5):
                        yield {"x": x[torch.randint(len(x), (4,))], "y": torch.randn(4, 1)}

            return Batches()

        def fit(self, **options):
            return super().fit(batch_size=None, **options)

    eager, compiled = both(Loaded)
    assert_same_run(eager, compiled)
    assert compiled[1].n_compiled_steps == 14


@pytest.mark.parametrize("shuffle", [False, True])
def test_all_data_at_once(interpreted, shuffle):
    eager, compiled = both(Problem, epochs=30, batch_size=None, shuffle=shuffle)
    assert_same_run(eager, compiled)
    assert compiled[1].n_compiled_steps == 29


def test_a_ragged_last_batch_runs_eagerly_and_one_warning_says_so(interpreted, calls_of):
    calls_of(2)
    eager, compiled = Problem(), Problem()
    options = {"optimizer": compiled.optimizer, "epochs": 3, "batch_size": 5, "progress": False}
    with pytest.warns(
        UserWarning, match="some mini-batches eagerly: they have other shapes.*A batch_size that"
    ) as record:
        history = zsp.fit(compiled.loss, compiled.data, compile=True, **options)
    assert len(record) == 1 and record[0].filename == __file__
    assert_same_run((eager, eager.fit(batch_size=5)), (compiled, history))
    assert history.n_compiled_steps == 3 + 4 + 4


# -- what cannot be compiled ------------------------------------------------------------------------------------------


def with_branch(problem, batch):
    value, _ = Problem.loss(problem, batch)
    return value * 2 if value.item() > 1 else value


def with_number(problem, batch):
    value, _ = Problem.loss(problem, batch)
    return value, {"loss as a number": value.item()}


def with_detour(problem, batch):
    if not hasattr(problem, "view"):
        problem.view = problem.modules[2].weight.detach()[0]
    return (problem.view * problem.modules[2].weight).sum()


def with_sparse_gradient(problem, batch):
    table = problem.modules[0].weight
    return nn.functional.embedding(torch.tensor([0, 2]), table, sparse=True).square().sum()


@pytest.mark.parametrize(
    "kind, loss, reason",
    [
        (
            torch.optim.RMSprop,
            Problem.loss,
            "the optimizer is RMSprop; compiled updates are there for SGD, Adam, AdamW",
        ),
        (
            torch.optim.SGD,
            with_branch,
            "eagerly: the function branches on the value of a tensor: choose by torch.where",
        ),
        (torch.optim.SGD, with_number, "eagerly: in the function a number or a shape depends on the values of tensors"),
        (torch.optim.SGD, with_detour, "also through another tensor on the same memory"),
        (torch.optim.SGD, with_sparse_gradient, "runs eagerly: "),
    ],
)
def test_what_cannot_be_compiled_runs_eagerly_and_one_warning_says_why(interpreted, kind, loss, reason):
    eager, fallback = Problem(kind), Problem(kind)
    options = {"epochs": 2, "batch_size": 4, "progress": False}
    expected = zsp.fit(lambda batch: loss(eager, batch), eager.data, optimizer=eager.optimizer, **options)
    with pytest.warns(UserWarning, match=reason) as record:
        found = zsp.fit(
            lambda batch: loss(fallback, batch), fallback.data, optimizer=fallback.optimizer, compile=True, **options
        )
    assert len(record) == 1 and record[0].filename == __file__ and found.n_compiled_steps == 0
    assert_same_run((eager, expected), (fallback, found))


def test_a_loss_that_counts_its_calls_is_not_compiled(interpreted):
    problem, calls = Problem(), []

    def loss(batch):
        calls.append(1)
        return problem.loss(batch)[0] * (1 + 0.1 * len(calls))

    with pytest.warns(UserWarning, match="the loss is another function each time it is called"):
        history = zsp.fit(loss, problem.data, optimizer=problem.optimizer, batch_size=4, progress=False, compile=True)
    assert history.n_compiled_steps == 0


def test_a_loss_that_keeps_what_it_computes_is_an_error(interpreted):
    problem, kept = Problem(), []

    def loss(batch):
        value, _ = problem.loss(batch)
        kept.append(value)
        return value

    with pytest.raises(
        RuntimeError, match=r"keeps tensors that it makes.*change in place a tensor that was there before"
    ):
        zsp.fit(loss, problem.data, optimizer=problem.optimizer, batch_size=4, progress=False, compile=True)


def test_a_loss_that_changes_between_epochs_is_noticed(interpreted, calls_of):
    calls_of(2)

    def run(compile):
        problem = Problem()
        problem.weight = 1.0

        def anneal():
            problem.weight *= 0.5
            return {}

        def loss(batch):
            value, metrics = problem.loss(batch)
            return problem.weight * value, metrics

        options = {"epochs": 5, "batch_size": 1, "progress": False, "validation": anneal}
        return problem, zsp.fit(loss, problem.data, optimizer=problem.optimizer, compile=compile, **options)

    with pytest.warns(
        UserWarning, match="no longer the function that was compiled. What changes from step to step must"
    ):
        compiled = run(True)
    assert_same_run(run(False), compiled)
    assert 0 < compiled[1].n_compiled_steps < 24


def test_a_weight_that_is_a_tensor_may_change(interpreted, calls_of):
    calls_of(2)

    class Annealed(Problem):
        def fit(self, **options):
            weight = torch.tensor(1.0)
            plain = self.loss
            self.loss = lambda batch: weight * plain(batch)[0]
            return super().fit(validation=lambda: {"weight": weight.mul_(0.5)}, batch_size=1, **options)

        loss = Problem.loss

    eager, compiled = both(Annealed)
    assert_same_run(eager, compiled)
    assert compiled[1].n_compiled_steps == 23 + 24 + 24


# -- losses that are not finite ---------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_changes_no_parameter_and_names_the_step(interpreted, calls_of):
    calls_of(4)

    class Poisoned(Problem):
        def make(self):
            return nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 1))

        @property
        def data(self):
            data = super().data
            data["y"][15] = torch.nan  # in the fourth mini-batch, in the middle of a call
            return data

    results = []
    for compile in (False, True):
        problem = Poisoned()
        with pytest.raises(ValueError, match="the loss at step 3 of epoch 0 is nan, but every node"):
            problem.fit(compile=compile, shuffle=False)
        results.append((problem, zsp.History()))
    assert_same_run(*results)  # three steps were made


def test_a_node_that_is_not_finite_is_named(interpreted, calls_of):
    calls_of(3)
    data = {"x": torch.ones(12, 1)}
    data["x"][7] = torch.inf

    @zsp.meta_bayesian_net()
    def model(mean):
        bn = zsp.BayesianNet()
        bn.normal("x", mean, std=1.0)
        return bn

    mean = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([mean], 0.1)
    loss = lambda batch: -model(mean.expand(2, 1)).observe(**batch).log_joint().mean()  # noqa: E731
    with pytest.raises(ValueError, match=r"(?s)the loss at step 3 of epoch 0 is inf: .*'x'"):
        zsp.fit(
            loss, data, optimizer=optimizer, batch_size=2, shuffle=False, progress=False, compile=True,
        )  # fmt: skip
    assert mean.isfinite()


def test_the_first_step_of_an_epoch_is_checked(interpreted, calls_of):
    """A density that is finite where it should not be is noticed at an epoch's first step."""
    calls_of(6)
    data = {"x": torch.ones(24, 1)}

    @zsp.meta_bayesian_net()
    def model(logits):
        bn = zsp.BayesianNet()
        bn.bernoulli("x", logits, dtype=torch.float64)
        return bn

    logits = nn.Parameter(torch.zeros(()))

    def spoil():
        data["x"].fill_(7.0)  # no outcome of a Bernoulli
        return {}

    loss = lambda batch: -model(logits.expand(1, 1)).observe(**batch).log_joint().mean()  # noqa: E731
    optimizer = torch.optim.SGD([logits], 0.1)
    before = []
    with pytest.raises(ValueError, match="'x'"):
        zsp.fit(
            loss, data, optimizer=optimizer, batch_size=1, epochs=2, progress=False, compile=True,
            validation=lambda: before.append(logits.detach().clone()) or spoil(),
        )  # fmt: skip
    assert torch.equal(logits.detach(), before[0])
