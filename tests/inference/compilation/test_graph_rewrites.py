"""Rewritten graphs compute what the functions do, and have the form they are to have."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.inference.compilation.calls import compiled
from zsp.inference.compilation import graph_rewrites
from zsp.inference.compilation.tracing import trace

aten = torch.ops.aten


def targets(graph):
    return [node.target for node in graph.graph.nodes if node.op == "call_function"]


def logistic(logits, labels):
    return -F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(-1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(64,), (3, 1000), (2, 4, 784)])
def test_a_logistic_likelihood_takes_one_logarithm_for_a_group(dtype, shape):
    logits = 30 * torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    labels = (logits > 5).to(dtype)
    traced = trace(logistic, logits, labels)
    assert aten.log1p.default in targets(traced.graph)
    graph_rewrites.group_logarithms(traced.graph)
    found = targets(traced.graph)
    assert aten.log1p.default not in found
    assert found.count(aten.prod.dim_int) == 1
    (value,) = traced.graph(logits, labels)
    n = shape[-1]
    exact = logistic(logits.double(), labels.double())
    # a rounding for each factor, absolute for it is within the logarithm, and those of summing in pairs
    bound = torch.finfo(dtype).eps * (n + 4 * math.log2(n) * exact.abs().max())
    assert (value - exact).abs().max() < bound


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x: F.softplus(x).sum(-1), id="softplus, a branch for large numbers"),
        pytest.param(lambda x: torch.log1p(torch.exp(x)).sum(-1), id="may overflow"),
        pytest.param(lambda x: torch.log1p(torch.exp(-x.view(4, 16, 8).abs())).sum(1), id="over an axis between"),
        pytest.param(lambda x: torch.log1p(torch.exp(-x[:, :8].abs())).sum(0), id="groups narrower than vectors"),
        pytest.param(lambda x: torch.log1p(torch.exp(-x[:, :17].abs())).sum(-1), id="a prime number of terms"),
        pytest.param(lambda x: (x[:, :1] - torch.log1p(torch.exp(-x.abs())) * 2).sum(-1), id="scaled"),
    ],
)
def test_what_does_not_have_that_form_is_left(function):
    x = torch.randn(4, 128, dtype=torch.float64)
    traced = trace(function, x)
    before = targets(traced.graph)
    graph_rewrites.group_logarithms(traced.graph)
    assert targets(traced.graph) == before


def test_terms_of_the_first_axis_lie_in_groups_one_behind_the_other():
    x = 30 * torch.randn(100, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def function(x):
        return (x - torch.log1p(torch.exp(-x.abs()))).sum(0)

    traced = trace(function, x)
    graph_rewrites.group_logarithms(traced.graph)
    (logarithm,) = [node for node in traced.graph.graph.nodes if node.target is aten.log.default]
    assert logarithm.meta["val"].shape == (2, 16)
    torch.testing.assert_close(traced.graph(x)[0], function(x), rtol=1e-13, atol=1e-12)


def test_logarithms_that_are_used_twice_are_kept():
    def function(x):
        log = torch.log1p(torch.exp(-x.abs()))
        return log.sum(-1), log

    x = torch.randn(4, 128, dtype=torch.float64)
    traced = trace(function, x)
    graph_rewrites.group_logarithms(traced.graph)
    total, log = traced.graph(x)
    assert torch.equal(log, function(x)[1])
    torch.testing.assert_close(total, function(x)[0], rtol=1e-14, atol=1e-14)


def test_terms_keep_their_signs():
    def function(x, y):
        return (y - (x - torch.log1p(torch.exp(-y.abs()))) - torch.log1p(torch.exp(-x.abs()))).sum((0, -1))

    x, y = torch.randn(2, 3, 5, 128, dtype=torch.float64)
    traced = trace(function, x, y)
    graph_rewrites.group_logarithms(traced.graph)
    assert targets(traced.graph).count(aten.prod.dim_int) == 2
    torch.testing.assert_close(traced.graph(x, y)[0], function(x, y), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("value_first", [True, False])
def test_a_logistic_function_takes_the_exponential_that_is_there(dtype, value_first):
    x = 40 * torch.randn(90, 100, dtype=dtype, generator=torch.Generator().manual_seed(0))

    def function(x):
        parts = [lambda: torch.log1p(torch.exp(-x.abs())), lambda: torch.sigmoid(x)]
        found = [part() for part in (parts if value_first else parts[::-1])]
        return found if value_first else found[::-1]

    traced = trace(function, x)
    graph_rewrites.share_exponentials(traced.graph)
    found = targets(traced.graph)
    assert aten.sigmoid.default not in found
    assert found.count(aten.exp.default) == 1
    for a, b in zip(traced.graph(x), function(x.double()), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=4 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).tiny)


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x: torch.sigmoid(x) * torch.exp(-x), id="another exponential"),
        pytest.param(lambda x: torch.sigmoid(x[:9]) * torch.exp(-x[:9].abs()), id="few numbers"),
        pytest.param(lambda x: torch.sigmoid(x.T) * torch.exp(-x.T.abs()), id="not contiguous"),
    ],
)
def test_other_logistic_functions_are_left(function):
    traced = trace(function, torch.randn(90, 100))
    before = targets(traced.graph)
    graph_rewrites.share_exponentials(traced.graph)
    assert targets(traced.graph) == before


@pytest.mark.parametrize(("columns", "shape"), [(4, (4, 60)), (25, (25, 60)), (32, (60, 32)), (100, (60, 100))])
def test_a_tall_product_is_made_wide_unless_it_fills_vectors(columns, shape):
    first, second = torch.randn(60, 30, dtype=torch.float64), torch.randn(30, columns, dtype=torch.float64)
    traced = trace(torch.mm, first, second)
    graph_rewrites.widen_products(traced.graph)
    assert [node.meta["val"].shape for node in traced.graph.graph.nodes if node.target is aten.mm.default] == [shape]
    torch.testing.assert_close(traced.graph(first, second)[0], first @ second, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize(
    ("n_rows", "shape", "is_sum"),
    [
        pytest.param(4, (25, 100), True, id="few rows"),
        pytest.param(1, (100, 25), True, id="a row"),
        pytest.param(3, (5, 48), True, id="columns that fill their blocks"),
        pytest.param(12, (100, 25), True, id="groups of rows"),
        pytest.param(5, (25, 100), False, id="rows that make no groups"),
        pytest.param(64, (25, 100), False, id="many rows"),
    ],
)
def test_a_product_of_few_rows_with_a_constant_is_a_sum(n_rows, shape, is_sum, is_transposed, dtype):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape[::-1] if is_transposed else shape, dtype=dtype, generator=generator)
    x = torch.randn(n_rows, shape[0], dtype=dtype, generator=generator)

    def function(x):
        return torch.mm(x, matrix.T if is_transposed else matrix)

    traced = trace(function, x)
    graph_rewrites.sum_thin_products(traced.graph, len(traced.constants))
    assert (aten.mm.default not in targets(traced.graph)) == is_sum
    # two sums of as many terms, each term with a rounding and each addition
    bound = 2 * (shape[0] + 1) * torch.finfo(dtype).eps * torch.mm(x.abs(), (matrix.T if is_transposed else matrix).abs())
    assert ((traced.graph(x, *traced.constants)[0] - function(x)).abs() <= bound).all()
    call = compiled(function, x, is_closure_fixed=True)
    assert ((call(x) - function(x)).abs() <= bound).all()


@pytest.mark.parametrize(("most", "is_sum"), [(159, False), (160, True)])
def test_a_product_with_a_matrix_that_is_too_large_to_be_kept_twice_is_left(most, is_sum, monkeypatch):
    monkeypatch.setattr(graph_rewrites, "MAX_CONSTANT", most)
    matrix = torch.randn(10, 10, dtype=torch.float64)  # as 10 x 16, in blocks of eight columns
    traced = trace(lambda x: x @ matrix, torch.randn(2, 10, dtype=torch.float64))
    graph_rewrites.sum_thin_products(traced.graph, len(traced.constants))
    assert (aten.mm.default not in targets(traced.graph)) == is_sum


def test_a_product_of_few_rows_with_what_changes_is_left():
    x, y = torch.randn(2, 3, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    traced = trace(torch.mm, x, y)
    graph_rewrites.sum_thin_products(traced.graph, 0)
    assert aten.mm.default in targets(traced.graph)


def test_what_follows_from_a_fixed_closure_is_computed_once():
    matrix = torch.randn(7, 5, dtype=torch.float64)
    scale = torch.rand(5, dtype=torch.float64)
    x = torch.randn(3, 7, dtype=torch.float64)

    def function(x):
        return x @ (matrix * scale.exp()) + x.sum() * matrix.T.sum()

    traced = trace(function, x)
    constants = graph_rewrites.fold_fixed_constants(traced.graph, traced.constants)
    found = targets(traced.graph)
    assert aten.exp.default not in found
    assert found.count(aten.sum.dim_IntList) + found.count(aten.sum.default) == 1
    torch.testing.assert_close(traced.graph(x, *constants)[0], function(x))


def test_the_same_function_always_gives_the_same_graph():
    data = [torch.randn(3, dtype=torch.float64) for _ in range(20)]
    x = torch.randn(3, dtype=torch.float64)

    def graph():
        traced = trace(lambda x: sum(x * row.exp() for row in data), x)
        constants = graph_rewrites.fold_fixed_constants(traced.graph, traced.constants)
        return traced.graph.code, torch.stack(constants)

    (code, constants), (again, constants_again) = graph(), graph()
    assert code == again
    assert torch.equal(constants, constants_again)


def test_what_is_the_same_is_kept_once():
    """A matrix transposed twice, and again; but not what differs in a sign of zero alone."""
    matrix, zero = torch.randn(3, 5, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)

    def function(x):
        first = (x @ matrix.T).exp() @ matrix.T.T
        return (first @ matrix.T).exp() @ matrix.T.T, x[:, :3] / zero, x[:, :3] / -zero

    x = torch.ones(2, 5, dtype=torch.float64)
    traced = trace(function, x)
    constants = graph_rewrites.fold_fixed_constants(traced.graph, traced.constants)
    used = {node for node in traced.graph.graph.nodes if node.op == "placeholder" and node.users}
    assert sorted(tuple(node.meta["val"].shape) for node in used) == [(2, 5), (3,), (3,), (3, 5), (5, 3)]
    for found, expected in zip(traced.graph(x, *constants), function(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)


def test_an_expanded_constant_is_not_written_out():
    row = torch.randn(2000, dtype=torch.float64)

    def function(x):
        return x + row.expand(100, 2000).exp()

    x = torch.randn(100, 2000, dtype=torch.float64)
    traced = trace(function, x)
    constants = graph_rewrites.fold_fixed_constants(traced.graph, traced.constants)
    assert max(constant.numel() for constant in constants) == 2000
    torch.testing.assert_close(traced.graph(x, *constants)[0], function(x))


def test_a_closure_may_change_unless_it_is_said_to_be_fixed():
    scale = torch.ones(4, dtype=torch.float64)
    x = torch.arange(4.0, dtype=torch.float64)

    def function(x):
        return x * scale.exp()

    free, fixed = compiled(function, x), compiled(function, x, is_closure_fixed=True)
    expected = function(x)
    scale.fill_(2.0)
    torch.testing.assert_close(free(x), function(x))
    torch.testing.assert_close(fixed(x), expected)


def test_what_hands_its_argument_on_is_left_out():
    """Numbers that a shape makes are computed once; zeros added and ones multiplied are not, unless they change a shape
    or a dtype."""
    scale = torch.tensor([2.0, 3.0], dtype=torch.float32)

    def function(x):
        shifted = (x - scale.new_zeros(2)) * torch.ones_like(x) + torch.zeros_like(x)
        wider = x + scale.new_zeros(4, 2)
        exact = x + torch.zeros_like(x, dtype=torch.float64)
        return (shifted * scale).expand(2), wider, exact, x * scale.new_zeros(2)

    x = torch.tensor([math.inf, -5.0], dtype=torch.float32)
    traced = trace(function, x, for_compiler=False)
    graph_rewrites.fold_constants(traced.graph, traced.constants)
    found = targets(traced.graph)
    assert sorted(map(str, found)) == ["aten.add.Tensor", "aten.add.Tensor", "aten.mul.Tensor", "aten.mul.Tensor"]
    for value, expected in zip(traced.graph(x, scale), function(x), strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=0, equal_nan=True)
