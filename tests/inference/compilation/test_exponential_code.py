"""Exponentials and logistic functions of compiled code against those in float64."""

import math

import pytest
import torch
from torch._inductor.codegen.cpp import CppVecOverrides

from tests.inference.compilation.calls import compiled
from zsp.inference.compilation.exponential_code import exponentials_in_place

LEAST = 1.8e-38
HALF_A_UNIT = 2.0**-24


def exponential(x):
    return compiled(torch.exp, x)(x)


def test_it_is_exact_to_rounding_where_the_result_is_a_normal_number():
    # numbers of no power of two, so that vectors that are not full are there too
    x = torch.linspace(math.log(LEAST), 88.72, 1_000_003, dtype=torch.float32)
    expected = x.double().exp()
    assert ((exponential(x) - expected).abs() / expected).max() < 1.3 * HALF_A_UNIT
    near_zero = torch.cat([torch.linspace(-1, 1, 100_001), 10 ** torch.linspace(-30, 0, 1001)]).float()
    expected = near_zero.double().exp()
    assert ((exponential(near_zero) - expected).abs() / expected).max() < 1.3 * HALF_A_UNIT


def test_it_ends_in_infinity_and_in_zero():
    numbers = [0.0, -0.0, 88.72, 88.73, 100.0, 1e30, math.inf, math.log(LEAST), -100.0, -1e30, -math.inf]
    x = torch.tensor(numbers, dtype=torch.float32).repeat(37)
    found = exponential(x).reshape(37, -1)
    assert (found == found[0]).all()
    assert found[0].isinf().tolist() == [False] * 3 + [True] * 4 + [False] * 4
    assert found[0, :2].tolist() == [1, 1]
    assert found[0, 7] > 0
    assert (found[0, 8:] == 0).all()
    assert exponential(torch.full((37,), math.nan, dtype=torch.float32)).isnan().all()


def test_the_logistic_function():
    x = torch.linspace(-120, 120, 1_000_003, dtype=torch.float32)
    found, expected = compiled(torch.sigmoid, x)(x), x.double().sigmoid()
    is_normal = x > math.log(LEAST)
    # the exponential, a sum and a quotient, each rounded
    assert ((found - expected).abs() / expected)[is_normal].max() < 3.3 * HALF_A_UNIT
    assert (found[~is_normal] < LEAST).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_exponential_less_one_keeps_its_digits(dtype):
    x = torch.cat([10 ** torch.linspace(-30, 0, 1001), -(10 ** torch.linspace(-30, 1, 1001))]).to(dtype)
    found, expected = compiled(torch.expm1, x)(x), x.double().expm1()
    assert ((found - expected).abs() / expected.abs()).max() < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_numbers_are_left_to_the_library(dtype):
    x = torch.linspace(-3, 3, 1001, dtype=torch.float64).to(dtype)
    torch.testing.assert_close(exponential(x), x.exp())
    torch.testing.assert_close(compiled(torch.sigmoid, x)(x), x.sigmoid())


def test_the_compiler_is_left_as_it_was():
    before = dict(vars(CppVecOverrides))
    with pytest.raises(ZeroDivisionError), exponentials_in_place():
        assert CppVecOverrides.exp is not before["exp"].__func__
        _ = 1 / 0
    assert dict(vars(CppVecOverrides)) == before
