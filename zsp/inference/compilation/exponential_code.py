"""C++ code of exponentials and logistic functions of vectors.

For the exponential of floats Inductor's code calls a library, and a call saves and loads again what the loop around it
has in registers: that took more than a quarter of the time of a logistic likelihood. Here it stands in the loop itself.
And for ``expm1`` Inductor subtracts one from the exponential, which is what ``expm1`` is there to avoid.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._inductor.codegen.cpp import CppVecOverrides

__all__ = ["VERSION", "exponentials_in_place"]

VERSION = hashlib.sha256(inspect.getsource(sys.modules[__name__]).encode()).hexdigest()
"""Of what is written here: code that an earlier version wrote, kept on disk, is not this one's."""

# exp(x) = 2^k exp(r) with k an integer and |r| at most ln(2) / 2. Adding 1.5 * 2^23 + 126 to x / ln(2) rounds it to k
# and leaves k + 126, the exponent of 2^(k-1), in the lowest bits, to be shifted to their place; the polynomial is
# 2 exp(r), so that 2^128 is not needed. Its coefficients from the third on have the least largest relative error, 3e-9,
# of all of degree 6. ln(2) is 355 / 512, whose products with k are exact, and the rest.
_EXPONENTIAL = """[](const auto& given)
{{
    using Floats = at::vec::Vectorized<float>;
    using Integers = at::vec::Vectorized<int32_t>;
    using at::vec::fmadd;
    using at::vec::fnmadd;
    if constexpr (!std::is_same_v<std::decay_t<decltype(given)>, Floats>) {{
        return given.exp();  // several vectors, beside one of narrower numbers
    }} else {{
        const Floats x = at::vec::clamp(given, Floats(-87.33654f), Floats(89.f));
        const Floats shifted = fmadd(x, Floats(1.44269504f), Floats(12583038.f));
        const Floats k = shifted - Floats(12583038.f);
        const Floats r = fnmadd(k, Floats(-2.12194440e-4f), fnmadd(k, Floats(0.693359375f), x));
        Floats twice = fmadd(r, Floats(2 * 0.0013814540579915047f), Floats(2 * 0.00836874544620514f));
        twice = fmadd(twice, r, Floats(2 * 0.04166838899254799f));
        twice = fmadd(twice, r, Floats(2 * 0.1666652113199234f));
        twice = fmadd(twice, r, Floats(2 * 0.4999999403953552f));
        twice = fmadd(twice, r, Floats(2.f));
        twice = fmadd(twice, r, Floats(2.f));
        return twice * at::vec::cast<float>(at::vec::cast<int32_t>(shifted) << Integers(23));
    }}
}}
({x})"""


@contextmanager
def exponentials_in_place() -> Iterator[None]:
    """Have Inductor write exponentials of vectors on the CPU as they are here.

    Of floats they are as exact as the library's, to 1.3 times 2^-24 of the value, but for 0 where that is below
    1.8e-38.
    """
    before = {name: vars(CppVecOverrides)[name] for name in _FUNCTIONS}
    try:
        for name, function in _FUNCTIONS.items():
            setattr(CppVecOverrides, name, staticmethod(function))
        yield
    finally:
        for name, written in before.items():
            setattr(CppVecOverrides, name, written)


# the expressions of functions of x, as Inductor asks for them


def _exp(x: Any) -> str:
    return _exponential_of(str(x), x.dtype)


def _expm1(x: Any) -> str:
    return f"{x}.expm1()"


def _sigmoid(x: Any) -> str:
    one = f"decltype({x})(1)"
    return f"{one} / ({one} + {_exponential_of(f'{x}.neg()', x.dtype)})"


def _exponential_of(x: str, dtype: torch.dtype) -> str:
    return _EXPONENTIAL.format(x=x) if dtype == torch.float32 else f"{x}.exp()"


_FUNCTIONS = {"exp": _exp, "expm1": _expm1, "sigmoid": _sigmoid}
