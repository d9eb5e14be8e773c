"""C++ code of products with few columns, which fill vectors of the processor.

A library arranges both factors anew before it multiplies them, which takes about as long as the product itself where
that has few columns. Here whole rows of the second factor are multiplied with single numbers of the first one, and
what they add up to stays in registers.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch._inductor import ir
from torch._inductor.codegen.cpp_utils import DTYPE_TO_CPP

from zsp.inference.compilation.graph_rewrites import fill_vectors

__all__ = ["FUNCTION", "VERSION", "Product"]

VERSION = hashlib.sha256(inspect.getsource(sys.modules[__name__]).encode()).hexdigest()
"""Of what is written here: code that an earlier version wrote, kept on disk, is not this one's."""

DTYPES = (torch.float32, torch.float64)

# A tile of the result, `n_rows` x `n_vectors`, is what the registers hold beside one row of the second factor; of its
# last vectors `last` numbers are columns. Sums of PANEL terms are added up apart: those rows of the second factor stay
# in the first cache from tile to tile, and the rounding is that of short sums.
FUNCTION = """
#include <torch/csrc/inductor/cpp_prefix.h>
#include <algorithm>

namespace few_columns {

constexpr int64_t PANEL = 128;

template <typename T, int64_t n_rows, int64_t n_vectors, int64_t last, int64_t row, int64_t term, int64_t columns>
inline void tile(const T* left, const T* right, T* result, int64_t n_terms, bool is_first)
{
    using Vector = at::vec::Vectorized<T>;
    constexpr int64_t lanes = Vector::size();
    const auto load = [](const T* place, int64_t j) {
        return j + 1 < n_vectors || last == lanes ? Vector::loadu(place + j * lanes)
                                                  : Vector::loadu(place + j * lanes, last);
    };
    Vector sums[n_rows][n_vectors];
    #pragma GCC unroll 32
    for (int64_t i = 0; i < n_rows; i++)
        #pragma GCC unroll 32
        for (int64_t j = 0; j < n_vectors; j++)
            sums[i][j] = Vector(0);
    for (int64_t k = 0; k < n_terms; k++) {
        Vector factors[n_vectors];
        #pragma GCC unroll 32
        for (int64_t j = 0; j < n_vectors; j++)
            factors[j] = load(right + k * columns, j);
        #pragma GCC unroll 32
        for (int64_t i = 0; i < n_rows; i++) {
            const Vector factor(left[i * row + k * term]);
            #pragma GCC unroll 32
            for (int64_t j = 0; j < n_vectors; j++)
                sums[i][j] = at::vec::fmadd(factor, factors[j], sums[i][j]);
        }
    }
    #pragma GCC unroll 32
    for (int64_t i = 0; i < n_rows; i++)
        #pragma GCC unroll 32
        for (int64_t j = 0; j < n_vectors; j++) {
            T* place = result + i * columns;
            const Vector sum = is_first ? sums[i][j] : load(place, j) + sums[i][j];
            if (j + 1 < n_vectors || last == lanes)
                sum.store(place + j * lanes);
            else
                sum.store(place + j * lanes, last);
        }
}

template <typename T, int64_t rows, int64_t n_vectors, int64_t last, int64_t row, int64_t term, int64_t columns>
inline void panel(const T* left, const T* right, T* result, int64_t n_terms, bool is_first)
{
    constexpr int64_t registers = sizeof(at::vec::Vectorized<T>) == 32 ? 16 : 32;
    constexpr int64_t most_rows = (registers - n_vectors - 2) / n_vectors;
    constexpr int64_t n_tiles = (rows + most_rows - 1) / most_rows;
    constexpr int64_t n_rows = (rows + n_tiles - 1) / n_tiles;
    constexpr int64_t end = rows - rows % n_rows;
    for (int64_t i = 0; i < end; i += n_rows)
        tile<T, n_rows, n_vectors, last, row, term, columns>(
            left + i * row, right, result + i * columns, n_terms, is_first);
    if constexpr (end < rows)
        tile<T, rows - end, n_vectors, last, row, term, columns>(
            left + end * row, right, result + end * columns, n_terms, is_first);
}

// result [rows, columns] = left [rows, terms], with strides row and term, times right [terms, columns]
template <typename T, int64_t rows, int64_t terms, int64_t columns, int64_t row, int64_t term>
inline void multiply(const T* left, const T* right, T* result)
{
    using Vector = at::vec::Vectorized<T>;
    constexpr int64_t lanes = Vector::size();
    constexpr int64_t width = (sizeof(Vector) == 32 ? 2 : 4) * lanes;
    constexpr int64_t end = columns - columns % width;
    constexpr int64_t n_vectors = (columns - end + lanes - 1) / lanes;
    for (int64_t k = 0; k < terms; k += PANEL) {
        const int64_t n_terms = std::min(PANEL, terms - k);
        const T* factors = right + k * columns;
        for (int64_t j = 0; j < end; j += width)
            panel<T, rows, width / lanes, lanes, row, term, columns>(
                left + k * term, factors + j, result + j, n_terms, k == 0);
        if constexpr (end < columns)
            panel<T, rows, n_vectors, columns - end - (n_vectors - 1) * lanes, row, term, columns>(
                left + k * term, factors + end, result + end, n_terms, k == 0);
    }
}

}
"""


class Product:
    """A product that is written here.

    Attributes:
        name: of its C++ function.
        code: the function's.
        declaration: the function's.
        call: the line that calls it with the product's factors and result.
    """

    def __init__(self, node: ir.ExternKernelOut) -> None:
        number = DTYPE_TO_CPP[node.get_dtype()]
        left, right = _factors(node)
        (rows, columns), terms = _integers(node.get_size()), int(left.size[1])
        shape = [rows, terms, columns, *_integers(left.stride)]
        self.name = f"product_{number}_{'_'.join(map(str, shape))}"
        head = f'extern "C" void {self.name}(const {number}* left, const {number}* right, {number}* result)'
        arguments = ", ".join([number, *[f"{n}L" for n in shape]])
        self.declaration = f"{head};\n"
        self.code = f"{head}\n{{\n    few_columns::multiply<{arguments}>(left, right, result);\n}}\n"
        first, second = [factor.get_name() for factor in node.inputs]  # type: ignore[union-attr]
        self.call = (
            f"{self.name}((const {number}*){first}.data_ptr() + {left.offset}, "
            f"(const {number}*){second}.data_ptr() + {right.offset}, ({number}*){node.get_name()}.data_ptr());"
        )

    @staticmethod
    def can_be(node: ir.ExternKernelOut) -> bool:
        """Whether an operation is such a product, of what is known to have these shapes."""
        if node.op_overload is not torch.ops.aten.mm.out or node.output_view is not None:
            return False
        left, right = _factors(node)
        result = node.get_layout()
        if result.dtype not in DTYPES or not (left.dtype == right.dtype == result.dtype):
            return False
        if not all(_is_known([*layout.size, *layout.stride, layout.offset]) for layout in (left, right, result)):
            return False
        columns = int(result.size[1])
        is_dense = all(_integers(layout.stride) == [columns, 1] for layout in (right, result))
        return is_dense and fill_vectors(columns)


def _factors(node: ir.ExternKernelOut) -> list[ir.Layout]:
    """How the factors of a product lie in memory."""
    return [factor.get_layout() for factor in node.inputs]  # type: ignore[union-attr]


def _is_known(numbers: Sequence[Any]) -> bool:
    return all(getattr(number, "is_number", isinstance(number, int)) for number in numbers)


def _integers(numbers: Sequence[Any]) -> list[int]:
    return [int(number) for number in numbers]
