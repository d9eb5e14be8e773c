"""Products with few columns, as compiled loops have them, against those in float64."""

import pytest
import torch
import torch._inductor.config

from tests.inference.compilation.calls import compiled
from zsp.inference.compilation import product_code

UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24}


@pytest.fixture
def written(monkeypatch):
    """The functions that are written while a test runs, which takes no calls from the disk."""
    names = []

    class Noting(product_code.Product):
        def __init__(self, node):
            super().__init__(node)
            names.append(self.name)

    monkeypatch.setattr(product_code, "Product", Noting)
    with torch._inductor.config.patch(fx_graph_cache=False):
        yield names


def factors(rows, terms, columns, dtype, is_transposed):
    generator = torch.Generator().manual_seed(rows + terms + columns)
    shape = (terms, rows) if is_transposed else (rows, terms)
    left = torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)
    right = torch.randn(terms, columns, dtype=torch.float64, generator=generator).to(dtype)
    return left.T if is_transposed else left, right


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize(
    ("rows", "terms", "columns"),
    [
        pytest.param(1, 1, 16, id="one row, one term"),
        pytest.param(25, 1000, 64, id="terms of several panels, the last one not full"),
        pytest.param(1001, 7, 32, id="a row that is left over"),
        pytest.param(13, 128, 48, id="one panel; columns that are no power of two"),
        pytest.param(6, 130, 100, id="a last vector that is not full"),
        pytest.param(3, 5, 256, id="the most columns"),
    ],
)
def test_it_is_exact_to_rounding(rows, terms, columns, is_transposed, dtype, written):
    left, right = factors(rows, terms, columns, dtype, is_transposed)

    def function(matrix, right):
        return torch.mm(matrix.T if is_transposed else matrix, right)

    matrix = left.T if is_transposed else left
    found = compiled(function, matrix, right, on_one_thread=True)(matrix, right)
    assert len(written) == 1
    exact = left.double() @ right.double()
    # Higham 2002, eq. 3.13, for each of the two: those in float64 are not exact either
    bound = 2 * (terms + 1) * UNIT[dtype] * (left.double().abs() @ right.double().abs())
    assert ((found - exact).abs() <= bound).all()


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        pytest.param(torch.mm, [(30, 20), (20, 8)], id="columns that leave vectors half empty"),
        pytest.param(torch.mm, [(30, 20), (20, 272)], id="many columns"),
        pytest.param(lambda a, b: a @ b.T, [(30, 20), (32, 20)], id="a second factor whose rows do not lie in a piece"),
    ],
)
def test_other_products_are_left_to_the_library(function, shapes, written):
    a, b = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    torch.testing.assert_close(compiled(function, a, b, on_one_thread=True)(a, b), function(a, b))
    assert written == []


def test_integers_are_left_to_the_library(written):
    a, b = torch.arange(12).view(3, 4), torch.arange(64).view(4, 16)
    assert torch.equal(compiled(torch.mm, a, b, on_one_thread=True)(a, b), a @ b)
    assert written == []


def test_a_part_of_a_tensor_may_be_a_factor(written):
    """Which begins behind the first number of the tensor."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, dtype=torch.float64, generator=generator) for shape in ((9, 10), (12, 32)))

    def function(a, b):
        return a[2:, 3:7] @ b[4:8]

    found = compiled(function, a, b, on_one_thread=True)(a, b)
    assert len(written) == 1
    torch.testing.assert_close(found, function(a, b), rtol=1e-13, atol=1e-13)


def test_a_step_has_the_same_function_once(written):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(32, 32, dtype=torch.float64, generator=generator) / 8 for _ in range(2))

    def function(a, b):
        return a @ (a @ b)

    found = compiled(function, a, b, on_one_thread=True)(a, b)
    assert len(written) == 2
    assert len(set(written)) == 1
    torch.testing.assert_close(found, function(a, b), rtol=1e-13, atol=1e-13)
