"""Predictions equal a loop over the draws, and their random part follows the model."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

import zsp
from tests.monte_carlo import assert_ks, assert_mean, assert_variance

STD = 0.3


@zsp.meta_bayesian_net(scope="regression")
def regression(x):
    bn = zsp.BayesianNet()
    w = bn.normal("w", x.new_zeros(x.shape[-1]), std=1.0, group_ndims=1)
    y_mean = bn.deterministic("y_mean", x @ w)  # mixes the draws up where w has a sample axis
    bn.normal("y", y_mean, std=STD, group_ndims=1)
    return bn


@zsp.meta_bayesian_net(scope="branching")
def branching(x):
    bn = zsp.BayesianNet()
    w = bn.normal("w", torch.zeros(2), std=1.0, group_ndims=1)
    sign = 1.0 if w[0].item() > 0 else -1.0  # vmap cannot follow this
    bn.normal("y", sign * (x @ w), std=STD, group_ndims=1)
    return bn


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 2)


@pytest.fixture
def draws(x) -> zsp.Draws:
    w = torch.randn(3, 40, 2)
    return zsp.Draws({"w": w, "y_mean": w @ x.T}, info={}, deterministic=["y_mean"], observed={"y": torch.zeros(5)})


def loop(model, w, observed, name):
    return torch.stack([model.observe(w=one, **observed)[name] for one in w.reshape(-1, 2)])


@pytest.mark.parametrize("chunk", [None, 1, 7, 1000])
def test_deterministic_nodes_equal_a_loop(x, draws, chunk):
    x_new = torch.randn(9, 2)
    found = zsp.predict(regression(x), draws, {"x": x_new}, names=["y_mean"], chunk=chunk)["y_mean"]
    assert found.shape == (3, 40, 9)
    torch.testing.assert_close(found.flatten(0, 1), loop(regression(x), draws["w"], {"x": x_new}, "y_mean"))


def test_a_model_that_vmap_cannot_follow_equals_a_loop_with_the_same_random_numbers(x, draws):
    found = zsp.predict(branching(x), draws.select(draws=slice(0, 5)), seed=3)["y"]
    torch.manual_seed(3)
    first = draws["w"][:, :5]
    branching(x).observe(w=first[0, 0])  # what looks at the model first
    torch.testing.assert_close(found.flatten(0, 1), loop(branching(x), first, {}, "y"), rtol=0, atol=0)


def test_noise_is_the_models_and_another_one_for_each_draw(x, draws):
    found = zsp.predict(regression(x), draws)
    assert list(found) == ["y_mean", "y"]
    assert found["y"].shape == (3, 40, 5)
    noise = ((found["y"] - found["y_mean"]) / STD).flatten()
    assert_ks(noise.numpy(), lambda v: Normal(0, 1).cdf(torch.as_tensor(v)).numpy())
    assert noise.unique().numel() == noise.numel()
    torch.testing.assert_close(found["y_mean"], draws["y_mean"])


def test_the_posterior_predictive_of_a_conjugate_model(x):
    y = torch.randn(5)
    precision = torch.eye(2) + x.T @ x / STD**2
    mean = torch.linalg.solve(precision, x.T @ y / STD**2)

    @zsp.reuse_variables("posterior")
    def q(n_samples):
        bn = zsp.BayesianNet()
        bn.multivariate_normal("w", mean, precision=precision, n_samples=n_samples)
        return bn

    x_new = torch.randn(3, 2)
    found = zsp.predict(regression(x), lambda: q(500), {"x": x_new}, n_samples=20_000, chunk=5000, names=["y"])["y"]
    assert found.shape == (20_000, 3)
    assert_mean(found, x_new @ mean)
    assert_variance(found, (x_new @ torch.linalg.inv(precision) * x_new).sum(-1) + STD**2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_sources_of_draws(x, dtype):
    x = x.to(dtype)
    model = regression(x)
    w = torch.randn(11, 2, dtype=dtype)
    assert zsp.predict(model, {"w": w})["y"].shape == (11, 5)
    q = zsp.mean_field(model, {"y": torch.zeros(5, dtype=dtype)}, n_samples=4)
    assert zsp.predict(model, q)["y"].shape == (4, 5)
    assert zsp.predict(model, q, n_samples=9, chunk=2)["y"].shape == (9, 5)
    executed = q.bind(n_samples=6).observe()
    found = zsp.predict(model, executed, chunk=4)
    assert found["y"].dtype == dtype
    torch.testing.assert_close(found["y_mean"], executed["w"].tensor @ x.T)
    torch.testing.assert_close(zsp.predict(model, executed, n_samples=3)["y_mean"], executed["w"][:3] @ x.T)
    laplace = zsp.laplace(model, {"y": torch.zeros(5, dtype=dtype)}, n_samples=3)
    assert zsp.predict(model, laplace.variational)["y"].shape == (3, 5)


def test_a_recognition_net_gets_the_observed_values_and_shared_latents_are_repeated():
    @zsp.meta_bayesian_net(scope="gen")
    def gen(n):
        bn = zsp.BayesianNet()
        scale = bn.log_normal("scale", 0.0, std=1.0)
        z = bn.normal("z", torch.zeros(n, 2), std=1.0, group_ndims=1)
        bn.deterministic("mean", scale * z.sum(-1))
        bn.normal("x", z * scale, std=0.1, group_ndims=1)
        return bn

    @zsp.reuse_variables("q")
    def q(labels, n_samples):
        bn = zsp.BayesianNet()
        bn.normal("z", labels.unsqueeze(-1).expand(-1, 2), std=0.01, group_ndims=1, n_samples=n_samples)
        bn.log_normal("scale", 0.0, std=1e-9)
        return bn

    labels = torch.tensor([1.0, 2.0, 3.0])
    found = zsp.predict(gen(n=1), q(labels, 50), {"n": 3}, chunk=8)
    assert {name: value.shape for name, value in found.items()} == {"mean": (50, 3), "x": (50, 3, 2)}
    assert_mean(found["mean"], 2 * labels)


def test_a_chunk_of_draws_is_in_memory_at_a_time(x, draws):
    seen = []

    @zsp.meta_bayesian_net(scope="watched")
    def watched(x):
        bn = zsp.BayesianNet()
        w = bn.normal("w", torch.zeros(2), std=1.0, group_ndims=1)
        raw = torch._C._functorch.get_unwrapped(w) if torch._C._functorch.is_batchedtensor(w) else w
        seen.append(raw.numel() // 2)
        bn.normal("y", x @ w, std=STD, group_ndims=1)
        return bn

    zsp.predict(watched(x), draws.select(chains=[0]), chunk=16)
    # what looks at the model executes it for one draw
    assert [n for n in seen if n > 1] == [16, 16, 8]


# name of the node method, its arguments and what the mean and the variance of its draws are
FAMILIES = {
    "normal": ({"mean": 1.0, "std": 2.0}, 1.0, 4.0),
    "gamma": ({"alpha": 2.0, "beta": 4.0}, 0.5, 0.125),
    "poisson": ({"rate": 3.0}, 3.0, 3.0),
    "bernoulli": ({"logits": math.log(3.0)}, 0.75, 0.1875),
    "beta": ({"alpha": 2.0, "beta": 2.0}, 0.5, 0.05),
    "student_t": ({"df": 8.0, "loc": 1.0, "scale": 1.0}, 1.0, 8 / 6),
    "categorical": ({"logits": torch.tensor([0.0, math.log(3.0)])}, 0.75, 0.1875),
    "laplace": ({"loc": 0.0, "scale": 1.0}, 0.0, 2.0),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_drawn_independently_for_each_draw(family):
    arguments, mean, variance = FAMILIES[family]

    @zsp.meta_bayesian_net(scope="one")
    def one():
        bn = zsp.BayesianNet()
        shift = bn.normal("shift", 0.0, std=1.0)
        tensors = {name: torch.as_tensor(value) + 0 * shift for name, value in arguments.items()}
        getattr(bn, family)("y", **tensors)
        return bn

    found = zsp.predict(one(), {"shift": torch.randn(2000)})["y"].double()
    assert found.shape == (2000,)
    assert_mean(found, mean)
    assert_variance(found, variance)


def test_the_same_seed_gives_the_same_and_the_callers_random_state_stays(x, draws):
    before = torch.get_rng_state()
    first = zsp.predict(regression(x), draws, seed=1)["y"]
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(first, zsp.predict(regression(x), draws, seed=1)["y"])
    assert not torch.equal(first, zsp.predict(regression(x), draws, seed=2)["y"])


def test_nothing_carries_gradients(x):
    w = torch.randn(4, 2, requires_grad=True)
    assert not zsp.predict(regression(x), {"w": w})["y"].requires_grad


# -- which nodes ------------------------------------------------------------------------------------------------------


@zsp.meta_bayesian_net(scope="groups")
def groups(n):
    bn = zsp.BayesianNet()
    mu = bn.normal("mu", 0.0, std=1.0)
    effect = bn.normal("effect", mu.expand(n), std=0.1, group_ndims=1)
    bn.normal("y", effect, std=0.1, group_ndims=1)
    bn.normal("unrelated", bn.normal("elsewhere", 0.0, std=1.0), std=1.0)
    return bn


def test_a_latent_without_draws_is_refused_unless_it_is_named():
    mu = 100 + torch.randn(2000)
    with pytest.raises(ValueError, match=r"'effect' of the net 'groups', which other nodes depend on, has neither draws \(there are draws of 'mu'\).*names=\['effect', ...\]"):
        zsp.predict(groups(3), {"mu": mu}, names=["y"])
    with pytest.raises(ValueError, match="'effect', 'elsewhere' of the net"):
        zsp.predict(groups(3), {"mu": mu})
    found = zsp.predict(groups(3), {"mu": mu}, names=["y", "effect"])
    assert_mean(found["effect"] - mu[:, None], 0.0)
    assert_variance(found["y"] - mu[:, None], 0.02)
    assert list(zsp.predict(groups(3), {"mu": mu, "effect": torch.randn(2000, 3)}, names=["y"])) == ["y"]


def test_data_of_a_draws_object_may_have_children(x):
    @zsp.meta_bayesian_net(scope="series")
    def series():
        bn = zsp.BayesianNet()
        a = bn.normal("a", 0.0, std=1.0)
        y = bn.normal("y_0", a, std=1.0)
        bn.normal("y_1", a * y, std=1.0)
        return bn

    values = {"a": torch.randn(2, 3)}
    draws = zsp.Draws(values, info={}, observed={"y_0": torch.zeros(()), "y_1": torch.zeros(())})
    assert list(zsp.predict(series(), draws)) == ["y_0", "y_1"]
    assert list(zsp.predict(series(), draws, {"y_0": torch.tensor(2.0)})) == ["y_1"]
    with pytest.raises(ValueError, match="'y_0' of the net 'series'"):
        zsp.predict(series(), zsp.Draws(values, info={}))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"names": ["y_maen"]}, zsp.NodeError, "has no node 'y_maen'.*Did you mean 'y_mean'?"),
        ({"names": "y"}, TypeError, r"got the string 'y'; write \['y'\]"),
        ({"names": ["y"], "observed": {"y": torch.zeros(5)}}, ValueError, "names has 'y', which is observed"),
        ({"observed": {"w": torch.zeros(2)}}, ValueError, "'w' has draws and is also among the observed"),
        ({"observed": {"v": torch.zeros(2)}}, ValueError, "observations were given for 'v'"),
        ({"n_samples": 3}, ValueError, r"n_samples=3 is for a variational net.*draws.thin\(10\)"),
        ({"chunk": 0}, ValueError, "chunk must be at least 1, got 0"),
        ({"draws": {"w": torch.zeros(3, 2), "v": torch.zeros(2, 2)}}, ValueError, r"'w' has shape \[3, 2\], 'v' has shape \[2, 2\]"),
        ({"draws": {"w": torch.tensor(1.0)}}, ValueError, r"one sample axis in front.*value.unsqueeze\(0\)"),
        ({"draws": {}}, ValueError, "draws is empty"),
        ({"draws": {"w": torch.zeros(4, 3)}}, ValueError, "'w'"),
        ({"draws": lambda: regression(torch.ones(1, 2)).observe()}, ValueError, "declares no sample axis"),
        ({"meta_bn": lambda values: values}, TypeError, "must be a MetaBayesianNet, but got function"),
    ],
)  # fmt: skip
def test_mistakes(x, change, error, text):
    arguments = {"meta_bn": regression(x), "draws": {"w": torch.zeros(3, 2)}, **change}
    with pytest.raises(error, match=text):
        zsp.predict(**arguments)


def test_too_few_draws_of_an_executed_net(x):
    q = zsp.mean_field(regression(x), {"y": torch.zeros(5)}, n_samples=4).observe()
    with pytest.raises(ValueError, match="n_samples=9, but the executed variational net holds 4 draws"):
        zsp.predict(regression(x), q, n_samples=9)


def test_nothing_to_predict():
    @zsp.meta_bayesian_net(scope="plain")
    def plain():
        bn = zsp.BayesianNet()
        bn.normal("y", bn.normal("w", 0.0, std=1.0), std=1.0)
        return bn

    with pytest.raises(ValueError, match=r"nothing to predict.*\('w', 'y'\) are given"):
        zsp.predict(plain(), {"w": torch.zeros(3)}, {"y": torch.tensor(0.0)})


def test_a_variational_net_that_declares_no_axis_is_not_repeated_as_if_it_were_many_draws():
    model = regression(torch.ones(4, 2))
    q = zsp.mean_field(model, {"y": torch.zeros(4)})
    with pytest.raises(ValueError, match="declares no sample axis"):
        zsp.predict(model, q, n_samples=5)
