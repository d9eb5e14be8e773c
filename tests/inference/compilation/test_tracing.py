"""Traced functions, compiled, against the functions themselves: results, changes in place, random numbers, errors."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from tests.inference.compilation.calls import compiled
from zsp.inference.compilation.errors import CompileError, KeptTensorError
from zsp.inference.compilation.tracing import is_traced, trace


def assert_close(found, expected):
    assert [t.dtype for t in found] == [t.dtype for t in expected]
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert not a.requires_grad
        np.testing.assert_allclose(a, b.detach(), rtol=1e-12, atol=1e-14, err_msg=str(i))


ONE = torch.tensor(1.0)


class State(NamedTuple):
    position: torch.Tensor
    count: torch.Tensor


def test_results():
    """Structure, dtypes, gradients inside, results that are arguments or one another, duplicates, strides, closures."""
    weight = nn.Parameter(torch.randn(3, 3))
    data = torch.randn(5, 3)

    def function(state, both):
        first, second = both["first"], both["second"]
        value = ((data @ weight).tanh() @ first.T + second.sum()).square().mean() * state.position.sum()
        (gradient,) = torch.autograd.grad(value, weight)
        power = 2**state.count
        half = (state.position > 0).to(torch.float32) / 2
        return State(state.position, state.count + 1), {
            "value": value, "again": value, "gradient": gradient, "power": power, "half": half, "row": gradient[0],
            "mask": state.position > 0, "transposed": first.T, "argument": first,
        }  # fmt: skip

    def arguments():
        shared = torch.randn(3, 4).T  # not contiguous, and given twice
        return State(torch.randn(4), torch.randint(9, (4,))), {"first": shared, "second": shared}

    call = compiled(function, *arguments())
    for _ in range(3):
        with torch.no_grad():
            weight.mul_(0.7)  # in place: the next call sees it
            data.add_(0.1)
        given = arguments()
        state, found = call(*given)
        expected_state, expected = function(*given)
        assert type(state) is State and list(found) == list(expected)
        assert_close([*state, *found.values()], [*expected_state, *expected.values()])


class Changing:
    """Changes an argument, a row of another, and what it closes over: also by operations among constants alone."""

    def __init__(self):
        self.mean, self.steps, self.noise = torch.zeros(3), torch.zeros((), dtype=torch.long), torch.zeros(2)

    def __call__(self, x, table):
        before = x.sum()
        x.mul_(2.0)
        table[1].add_(x)
        self.mean.lerp_(x, 0.1)
        self.steps.add_(1)
        self.noise.normal_()
        return before, x.sum(), self.mean.sum() * self.steps + self.noise.sum()

    def tensors(self):
        return [self.mean, self.steps, self.noise]


def test_changes_in_place():
    eager, changing = Changing(), Changing()
    x, table = torch.randn(3), torch.randn(2, 3)
    function = compiled(changing, x, table)
    other_x, other_table = x.clone(), table.clone()
    for seed in range(3):
        torch.manual_seed(seed)
        expected = eager(other_x, other_table)
        torch.manual_seed(seed)
        assert_close(function(x, table), expected)
        assert_close([x, table, *changing.tensors()], [other_x, other_table, *eager.tensors()])
    with pytest.raises(ValueError, match=r"changed in place must be contiguous, but a tensor's strides are \(1, 2\)"):
        function(x, torch.randn(3, 2).T)


def test_a_trace_changes_nothing():
    function = Changing()
    traced = trace(function, torch.randn(3), torch.randn(2, 3))
    assert [tensor.abs().sum() for tensor in function.tensors()] == [0, 0, 0]
    assert traced.changed == [0, 1, 2, 3, 4]
    assert all(any(constant is tensor for tensor in function.tensors()) for constant in traced.constants)


def draws(x):
    """Every kind of random number, some of them not used."""
    torch.randn(7)
    torch.rand(3).normal_()
    unchecked = {"validate_args": False}
    return [
        torch.bernoulli(x),
        torch.distributions.Bernoulli(probs=x.float(), **unchecked).sample((2,)),
        torch.empty(3).bernoulli_(0.3),
        torch.nn.functional.dropout(x, 0.3),
        torch.rand_like(x),
        torch.randn(2, 300),
        torch.distributions.Gamma(x, x, **unchecked).rsample(),
        torch.empty(3).uniform_(-1, 1),
        torch.empty(3).exponential_(),
        torch.multinomial(x, 2),
        torch.randint(3, (4,)),
        torch.poisson(x * 9),
        torch.normal(x, x),
        torch.randperm(4),
        torch.empty(3).cauchy_(),
        torch.nn.functional.gumbel_softmax(x, hard=False),
        torch.randn(2, dtype=torch.float32),
    ]


def test_random_numbers_are_those_of_an_eager_run_in_their_order():
    x = torch.rand(100)
    call = compiled(draws, x)
    for seed in range(3):
        torch.manual_seed(seed)
        expected, state = draws(x), torch.get_rng_state()
        torch.manual_seed(seed)
        assert_close(call(x), expected)
        assert torch.equal(torch.get_rng_state(), state)


def test_constants_are_the_very_objects_and_inputs_behind_the_leaves():
    weight, data = nn.Parameter(torch.randn(3)), torch.randn(3)
    traced = trace(lambda x: (x["b"] * weight + data, x["a"]), {"a": torch.zeros(2), "b": torch.zeros(3)})
    assert traced.constants[0] is weight and traced.constants[1] is data and traced.changed == []
    found, a = traced.graph(torch.ones(2), torch.full((3,), 2.0), weight, data)
    assert torch.equal(found, 2 * weight + data) and torch.equal(a, torch.ones(2))
    assert traced.n_operations == 1 + trace(lambda x: x * weight + data, torch.zeros(3)).n_operations


def test_code_can_ask_whether_it_is_traced():
    asked = []
    trace(lambda x: asked.append(is_traced()) or x + 1, torch.zeros(2))
    assert asked == [True] and not is_traced()


@pytest.mark.parametrize(
    "function, reason",
    [
        (lambda x: x * 2 if x.sum() > 0 else x, "branches on the value of a tensor: choose by torch.where"),
        (lambda x: x * x.sum().item(), r"a number or a shape depends on the values of tensors, as with .item\(\)"),
        (lambda x: x[x > 0], "a number or a shape depends on the values of tensors"),
        (lambda x: x * ONE.item(), "reads a number off a tensor that it closes over, which may change"),
        (lambda x: x if ONE > 0 else -x, "branches on the value of a tensor"),
        (lambda x: torch.from_numpy(x.numpy() + 1), "RuntimeError: .*numpy"),
        (lambda x: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
)
def test_what_cannot_be_traced_is_explained_in_one_line(function, reason):
    with pytest.raises(CompileError, match=reason) as error:
        compiled(function, torch.randn(3))
    assert "\n" not in str(error.value)


def test_a_number_that_the_function_makes_itself_may_be_read():
    traced = trace(lambda x: x * torch.tensor(2.0).item(), torch.zeros(3))
    assert torch.equal(traced.graph(torch.ones(3), *traced.constants)[0], torch.full((3,), 2.0))


@pytest.mark.parametrize("keep", [lambda kept, x: kept.append(x * 2), lambda kept, x: setattr(kept, "value", x.sum())])
def test_a_function_that_keeps_its_tensors_is_an_error(keep):
    class Kept(list):
        pass

    kept = Kept()
    with pytest.raises(KeptTensorError, match="keeps tensors that it makes, in an attribute, a list or a global"):
        trace(lambda x: (keep(kept, x), x + 1)[1], torch.randn(3))


def test_the_same_function_is_compiled_once(tmp_path, monkeypatch):
    from torch._dynamo.utils import counters

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    x, y = torch.randn(2, 5, dtype=torch.float64)
    for n_found in (0, 1):
        before = counters["inductor"]["fxgraph_cache_hit"]
        function = compiled(lambda x: torch.sin(x) * y.exp(), x)  # another function, with the same operations
        assert counters["inductor"]["fxgraph_cache_hit"] == before + n_found
        torch.testing.assert_close(function(x), torch.sin(x) * y.exp())


@pytest.mark.parametrize("shapes", [((3, 4, 1), (3, 1, 5)), ((3, 1, 4), (3, 4, 5)), ((3, 4, 5), (3, 5, 1))])
def test_products_of_rows_and_columns_are_taken_apart_for_a_compiler(shapes):
    first, second = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    traced = trace(torch.bmm, first, second)
    assert torch.ops.aten.bmm.default not in [node.target for node in traced.graph.graph.nodes]
    torch.testing.assert_close(traced.graph(first, second)[0], torch.bmm(first, second))
