r"""A table of all joint values of discrete variables, one row for each: what exact sums over them run along.

The values of variable j are the :math:`K_j` elements of its support. A variable whose log probability is one for
several entries (a vector under ``group_ndims``) has a digit for each of them, :math:`K_j^{n_j}` rows; entries along
batch axes are independent and share a digit, so that N data with a K-way latent each need K rows, not :math:`K^N`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from zsp.node import LateValue, Node

__all__ = ["Column", "Table", "TableValue", "column_of", "support_of"]


class Column(NamedTuple):
    """A discrete variable of a table.

    Attributes:
        name: the node's name.
        n_values: K, the size of its support.
        entries: the shape of its last batch axes whose entries have digits of their own.
    """

    name: str
    n_values: int
    entries: tuple[int, ...] = ()

    @property
    def n_rows(self) -> int:
        """The number of its joint values."""
        return self.n_values ** math.prod(self.entries)

    def __str__(self) -> str:
        n = math.prod(self.entries)
        return f"{self.name!r} has {self.n_values}" + (f"^{n}" if self.entries else "")


class Table:
    """All joint values of discrete variables; the last column's digits change fastest.

    Args:
        columns: the variables.
        max_rows: how many rows are too many.
        advice: what to do then; the end of the error's text.

    Raises:
        ValueError: if there would be more than ``max_rows`` rows.
    """

    def __init__(self, columns: Sequence[Column], max_rows: int, advice: str) -> None:
        self.columns = tuple(columns)
        self.n_rows = math.prod([column.n_rows for column in columns])
        if self.n_rows > max_rows:
            n = f"{self.n_rows:,}" if self.n_rows < 10**12 else f"about 10^{len(str(self.n_rows)) - 1}"
            raise ValueError(
                f"a table of all joint values of {', '.join(repr(column.name) for column in columns)} would have {n} "
                f"rows ({', '.join(map(str, columns))} values), more than max_rows={max_rows:,}. {advice}"
            )

    def n_rows_after(self, column: Column) -> int:
        """The number of joint values of the columns after a column."""
        return math.prod([other.n_rows for other in self.columns[self.columns.index(column) + 1 :]])

    def digits(self, column: Column, row: Tensor) -> Tensor:
        """Which element of its support each entry of a column takes in a row.

        Args:
            column: one of the table's columns.
            row: the row's number, a scalar.

        Returns:
            Integers from 0 to K - 1, of the shape of the column's entries.
        """
        n, after = math.prod(column.entries), self.n_rows_after(column)
        strides = [after * column.n_values**power for power in range(n - 1, -1, -1)]
        return row // torch.tensor(strides, device=row.device).reshape(column.entries) % column.n_values


class TableValue(LateValue):
    """The value of a discrete node in a row of a table, sample + batch + event, given once its support is known.

    Args:
        name: the node's name.
        digits: which element of the support; aligned with the node's last batch axes.
        sample_shape: sample axes that the value shall have although the node's parameters lack them.
        like: a tensor whose dtype and device the value will have, where the node's parameters are numbers.
    """

    def __init__(self, name: str, digits: Tensor, sample_shape: tuple[int, ...], like: Tensor) -> None:
        self._name, self._digits, self._sample_shape, self._like = name, digits, sample_shape, like

    @property
    def tensor(self) -> Tensor:
        """A tensor of the dtype and device of the value."""
        return self._like

    def value_of(self, dist: Distribution) -> Tensor:
        """The element of the support, the same for all samples and along all batch axes without digits."""
        support = support_of(self._name, dist)
        digits = self._digits.to(support.device)
        # not support[digits]: a scalar index is read as a number while torch traces
        chosen = support.index_select(0, digits.reshape(-1)).reshape(digits.shape + dist.event_shape)
        has_samples = dist.batch_shape[: len(self._sample_shape)] == self._sample_shape
        return chosen.expand((() if has_samples else self._sample_shape) + dist.batch_shape + dist.event_shape)


def support_of(name: str, dist: Distribution) -> Tensor:
    """All values of a node's distribution, of shape [K, *event].

    Raises:
        ValueError: if they are not one finite list for the whole batch.
    """
    try:
        values = dist.enumerate_support(expand=False)
    except NotImplementedError as error:
        raise ValueError(
            f"node {name!r} ({type(dist).__name__}) cannot be enumerated: its values are not one finite list. "
            "bernoulli, categorical and onehot_categorical nodes can."
        ) from error
    return values.reshape(values.shape[:1] + dist.event_shape)


def column_of(node: Node, is_local: bool = False) -> Column:
    """A node as a column of a table.

    Args:
        node: a stochastic node of an executed net.
        is_local: whether the entries that its ``group_ndims`` sums are independent of one another given all else.

    Raises:
        ValueError: if its values cannot be listed.
    """
    n_values = len(support_of(node.name, node.dist))
    n_batch = len(node.dist.batch_shape)
    n_entries = 0 if is_local else node.group_ndims
    return Column(node.name, n_values, tuple(node.dist.batch_shape[n_batch - n_entries :]))
