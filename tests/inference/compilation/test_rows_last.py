"""What is computed for many rows with their axis last equals what the function computes, and has that form."""

import pytest
import torch
import torch.nn.functional as F

from tests.inference.compilation.calls import compiled
from zsp.inference.compilation import rows_last
from zsp.inference.compilation.tracing import trace

aten = torch.ops.aten


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X, Y = normal(100, 5, seed=1), (normal(100, seed=2) > 0).double()


def logistic(w):
    """Of every row its log likelihood and gradient, with a prior."""
    x, y = X.to(w.dtype), Y.to(w.dtype)
    logits = w @ x.T
    value = -F.binary_cross_entropy_with_logits(logits, y.expand_as(logits), reduction="none").sum(-1)
    return value - 0.5 * w.square().sum(-1), (y - torch.sigmoid(logits)) @ x - w


def shapes(graph):
    """Of the products."""
    return [tuple(node.meta["val"].shape) for node in graph.graph.nodes if node.target is aten.mm.default]


def rewritten(function, *examples):
    """The graph, and the function that it computes."""
    traced = trace(function, *examples)
    made = rows_last.put_rows_last(traced.graph, len(traced.constants))
    assert all(node in traced.graph.graph.nodes for node in made)
    return traced.graph, lambda *arguments: tuple(traced.graph(*arguments, *traced.constants))


@pytest.mark.parametrize("n_rows", [16, 24, 64])
def test_both_products_of_a_gradient_have_the_rows_last(n_rows):
    w = normal(n_rows, 5)
    graph, function = rewritten(logistic, w)
    assert shapes(graph) == [(100, n_rows), (5, n_rows)]
    value, gradient = function(w)
    assert gradient.is_contiguous()
    torch.testing.assert_close((value, gradient), logistic(w), rtol=1e-12, atol=1e-12)


def _per_row(w):
    """Functions of rows, of numbers and of both; a view, products over an axis between, a comparison, a sum over rows."""
    logits = w @ X.T
    scale = w.square().sum(-1, keepdim=True)
    grouped = (logits * scale + (1 - Y) * 2).view(len(w), 20, 5).prod(1)
    shifted = torch.where(logits > 0.5, logits, Y - scale) / (1 + Y.expand(len(w), 100))
    return grouped, shifted.sum(-1, keepdim=True), shifted, (shifted.exp() @ X).sum(0)


def _beside_another(w):
    """What is not computed from the product has its rows first, and makes the rest so."""
    return ((w @ X.T) * w.repeat(1, 20)).sum(-1)


def _turned_by_the_function(w):
    return (w @ X.T).T.cumsum(0), (w @ X.T).sum(0), (w @ X.T).sum((0, 1))


@pytest.mark.parametrize("function", [_per_row, _beside_another, _turned_by_the_function])
def test_what_follows_keeps_its_values(function):
    w = normal(32, 5)
    graph, again = rewritten(function, w)
    assert (100, 32) in shapes(graph)
    expected = function(w)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for found, value in zip(again(w), expected, strict=True):
        assert found.stride() == value.stride() or found.is_contiguous()
        torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("n_rows", "matrix"),
    [
        pytest.param(4, X.T, id="few rows"),
        pytest.param(20, X.T, id="vectors that would be nearly half empty"),
        pytest.param(512, torch.ones(5, 1000, dtype=torch.float64), id="more rows than lie in a cache"),
        pytest.param(64, X[:5].T, id="more rows than columns"),
    ],
)
def test_other_products_are_left(n_rows, matrix):
    w = normal(n_rows, 5)
    graph, _ = rewritten(lambda w: torch.sigmoid(w @ matrix), w)
    assert shapes(graph) == [(n_rows, matrix.shape[1])]


def test_what_is_beside_the_product_is_computed_once():
    """However often it is used."""

    def function(w):
        beside = Y.expand(len(w), 100) * w[:, :1]
        for _ in range(40):
            beside = beside * beside.sin()
        return (w @ X.T * beside).sum(-1)

    w = normal(32, 5)
    graph, again = rewritten(function, w)
    assert sum(node.op == "call_function" for node in graph.graph.nodes) < 100
    torch.testing.assert_close(again(w)[0], function(w), rtol=1e-12, atol=1e-12)


def test_a_constant_may_be_multiplied_with_itself():
    square, x = normal(2, 20, 20)
    _, again = rewritten(lambda x: x + square @ square, x)
    torch.testing.assert_close(again(x)[0], x + square @ square, rtol=1e-13, atol=1e-13)


def test_a_product_with_what_changes_is_left():
    w, x = torch.randn(32, 5), torch.randn(5, 100)
    graph, _ = rewritten(torch.mm, w, x)
    assert shapes(graph) == [(32, 100)]


@pytest.mark.parametrize("function", [logistic, _per_row, _beside_another])
def test_compiled_code_computes_the_same(function):
    w = normal(32, 5)
    found = compiled(function, w, is_closure_fixed=True, on_one_thread=True)(w)
    torch.testing.assert_close(found, function(w), rtol=1e-12, atol=1e-12)


def test_compiled_code_is_exact_to_rounding_in_float32():
    w = normal(32, 5).float()
    value, gradient = compiled(logistic, w, is_closure_fixed=True, on_one_thread=True)(w)
    exact_value, exact_gradient = logistic(w.double())
    # sums of 100 terms; logits have errors of 6 units of their terms, which are at most |x| |w| together
    unit, size = 2.0**-24, (w.double().abs() @ X.T.abs()).sum(-1)
    assert ((value - exact_value).abs() < 128 * unit * (size + 100)).all()
    assert ((gradient - exact_gradient).abs() < 128 * unit * (X.abs().sum(0) * (1 + size[:, None] / 100))).all()
