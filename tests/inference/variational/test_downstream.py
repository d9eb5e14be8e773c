"""What lies downstream of a draw: the relation, how it is found, and where the order of declaration stands in."""

import pytest
import torch
from torch import nn

import zsp
from zsp.inference.variational.downstream import Dependencies, changed_by, find_parents, parents_in_order
from zsp.inference.variational.score_function import sums


def fs(*names):
    return frozenset(names)


# q: a -> h (deterministic) -> b, and c alone; p: a -> c, b -> m (deterministic) -> x, c -> y
Q = {"a": fs(), "h": fs("a"), "b": fs("h"), "c": fs()}
P = {"a": fs(), "c": fs("a"), "b": fs(), "m": fs("b"), "x": fs("m"), "y": fs("c")}


@pytest.mark.parametrize(
    "name, latents, values, conditionals",
    [
        ("a", fs("a", "h", "b"), fs("a", "b", "m"), fs("c", "m", "x")),
        ("b", fs("b"), fs("b", "m"), fs("m", "x")),
        ("c", fs("c"), fs("c"), fs("y")),
    ],
)
def test_what_changes_with_a_draw(name, latents, values, conditionals):
    """The value of the latent c is given to the model: the prior of c changes with a, its value does not."""
    change = changed_by(name, Q, P, fs("a", "b", "c"), fs("x", "y"))
    assert change == (latents, values, conditionals)


def test_a_node_that_the_model_draws_changes_with_its_parents_and_alone():
    model = {"u": fs(), "f": fs("u"), "g": fs(), "y": fs("f", "g")}
    assert changed_by("u", {"u": fs()}, model, fs("u"), fs("y")).values == fs("u", "f")
    own = changed_by("g", {"u": fs()}, model, fs("u"), fs("y"))
    assert own == (fs(), fs("g"), fs("y"))


def test_a_latent_that_the_model_takes_as_an_input_may_go_anywhere():
    change = changed_by("w", {"w": fs()}, {"z": fs(), "x": fs("z")}, fs("w", "z"), fs("x"))
    assert change.conditionals == fs("z", "x")


def test_the_relation_is_sound_when_compared_with_a_brute_force_change_of_each_value():
    """Random directed graphs: what changes when one latent's value changes is what the relation names."""
    import random

    generator = random.Random(0)
    for _ in range(50):
        latents = [f"z{i}" for i in range(4)]
        q = {z: fs(*generator.sample(latents[:i], generator.randint(0, i))) for i, z in enumerate(latents)}
        order = generator.sample(latents, 4)
        names = [*order[:2], "m", *order[2:], "x"]
        p = {n: fs(*generator.sample(names[:i], generator.randint(0, min(i, 2)))) for i, n in enumerate(names)}
        noise = {n: generator.random() for n in [*latents, *names]}

        def draw(of, q=q, noise=noise):
            values = {}
            for z, parents in q.items():
                values[z] = noise[z] + sum(values[parent] for parent in parents) + (7.0 if z == of else 0.0)
            return values

        def run(latent_values, p=p):
            values, locations = {}, {}
            for n, parents in p.items():
                locations[n] = sum(values[parent] for parent in parents)
                values[n] = locations[n] if n == "m" else latent_values.get(n, 1.0)
            return values, locations

        before = draw(None)
        values, locations = run(before)
        for z in latents:
            after = draw(z)
            new_values, new_locations = run(after)
            change = changed_by(z, q, p, fs(*latents), fs("x"))
            assert change.latents == fs(*(n for n in latents if after[n] != before[n]))
            assert change.values == fs(*(n for n in names if new_values[n] != values[n]))
            assert change.conditionals == fs(*(n for n in names if new_locations[n] != locations[n]))


# -- found by executing -----------------------------------------------------------------------------------------------


@zsp.meta_bayesian_net(scope="mixture")
def pick(index, batch):
    """x is given the latents that index picks."""
    bn = zsp.BayesianNet()
    z = torch.stack([bn.normal(f"z{i}", torch.zeros(batch), std=1.0) for i in range(3)])
    bn.normal("x", z[index], std=1.0)
    return bn


def test_an_index_that_another_batch_brings_does_not_change_what_is_known():
    """The relation is found with one index and used with every other of the same shape."""
    model = pick(torch.tensor([0]), 2)
    bn = model.observe()
    assert find_parents(bn, model.observe)["x"] == fs("z0", "z1", "z2")
    assert model.graph().pred["x"].keys() == {"z0"}  # the graph itself follows indices
    column = pick(0, 2).observe()  # a number is no value: another one is another execution's business
    assert find_parents(column, lambda: pick(0, 2).observe())["x"] == fs("z0")


def test_a_branch_on_a_value_makes_it_the_order_of_declaration():
    @zsp.meta_bayesian_net()
    def model(threshold):
        bn = zsp.BayesianNet()
        a, b = bn.normal("a", 0.0, std=1.0), bn.normal("b", 0.0, std=1.0)
        bn.normal("x", a if threshold > 0.5 else b, std=1.0)
        return bn

    m = model(torch.tensor(1.0))
    assert find_parents(m.observe(), m.observe) == {"a": fs(), "b": fs("a"), "x": fs("a", "b")}
    number = model(1.0)
    assert find_parents(number.observe(), number.observe) == {"a": fs(), "b": fs(), "x": fs("a")}


def test_it_is_found_once_for_given_shapes_and_united():
    calls = []

    @zsp.meta_bayesian_net()
    def model(n):
        calls.append(n)
        bn = zsp.BayesianNet()
        a, b = bn.normal("a", torch.zeros(n), std=1.0), bn.normal("b", torch.zeros(n), std=1.0)
        bn.normal("x", a if n == 2 else b, std=1.0)
        return bn

    m = model(2)
    for _ in range(2):  # the first execution is checked and followed, and so are new shapes
        assert find_parents(m.observe(), m.observe)["x"] == fs("a")
    n_calls = len(calls)
    assert find_parents(m.observe(), m.observe)["x"] == fs("a") and len(calls) == n_calls + 1
    assert find_parents(m.observe(n=3), lambda: m.observe(n=3))["x"] == fs("a", "b")
    assert find_parents(m.observe(), m.observe)["x"] == fs("a", "b")


def test_nothing_is_left_behind_by_the_execution_that_is_followed():
    """Random numbers and buffers are as they were, and the step's gradient is what it is without."""
    norm = nn.BatchNorm1d(2).double()

    @zsp.meta_bayesian_net()
    def model():
        bn = zsp.BayesianNet()
        z = bn.bernoulli("z", torch.zeros(5, 2), group_ndims=1)
        bn.normal("x", bn.deterministic("h", norm(z)), std=1.0, group_ndims=1)
        return bn

    build = model()
    build._modules["norm"] = norm
    bn = build.observe()
    state, mean = torch.get_rng_state(), norm.running_mean.clone()
    assert find_parents(bn, build.observe) == {"z": fs(), "h": fs("z"), "x": fs("h")}
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(norm.running_mean, mean)


def test_a_net_outside_a_decorated_function_goes_by_order():
    bn = zsp.BayesianNet()
    bn.normal("a", 0.0, std=1.0)
    bn.normal("b", 0.0, std=1.0)
    assert find_parents(bn, None) == parents_in_order(bn) == {"a": fs(), "b": fs("a")}


def test_what_cannot_be_followed_warns_and_goes_by_order():
    @zsp.meta_bayesian_net()
    def model():
        bn = zsp.BayesianNet()
        bn.normal("a", 0.0, std=1.0)
        bn.normal("b", 0.0, std=1.0)
        return bn

    def fails():
        raise NotImplementedError("no such operator")

    m = model()
    with pytest.warns(UserWarning, match="'model' could not be followed .*no such operator.*costs variance"):
        assert find_parents(m.observe(), fails)["b"] == fs("a")
    assert find_parents(m.observe(), m.observe)["b"] == fs("a"), "what was not known once stays possible"


def test_both_nets_of_an_objective():
    @zsp.reuse_variables("q")
    def q(logits):
        bn = zsp.BayesianNet()
        a = bn.bernoulli("a", logits, n_samples=2)
        bn.bernoulli("b", logits + a)
        bn.bernoulli("c", logits, n_samples=2)
        return bn

    @zsp.meta_bayesian_net()
    def model():
        bn = zsp.BayesianNet()
        a, b, c = (bn.bernoulli(name, torch.zeros(3)) for name in "abc")
        bn.normal("x", a + 0 * c, std=1.0)
        bn.normal("y", b, std=1.0)
        return bn

    m = model()
    observed = {"x": torch.zeros(3), "y": torch.zeros(3)}
    bound = zsp.elbo(m, observed, variational=q(torch.zeros(3)), axis=0)
    dependencies = Dependencies(m, bound.bn, bound.variational, observed)
    assert dependencies.changed_by("a") == (fs("a", "b"), fs("a", "b"), fs("x", "y"))
    assert dependencies.changed_by("c") == (fs("c"), fs("c"), fs("x"))
    assert not dependencies.prior_depends_on("a")


def test_sums_are_reused():
    """A chain of 200 draws with all later terms downstream costs 200 additions, not 20,000."""
    values = [torch.tensor(float(i)) for i in range(200)]
    chosen = [frozenset(range(i, 200)) for i in range(200)]
    n_additions = 0

    class Count(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            nonlocal n_additions
            n_additions += func.__name__ in ("add", "__add__")
            return func(*args, **(kwargs or {}))

    with Count():
        found = sums(values, chosen, values[0])
    assert 190 < n_additions < 200
    assert [float(s) for s in found] == [sum(range(i, 200)) for i in range(200)]
    scattered = [frozenset((0, 5)), frozenset(), frozenset((5,)), frozenset((1, 2))]
    assert [float(s) for s in sums(values, scattered, values[0])] == [5.0, 0.0, 5.0, 3.0]
