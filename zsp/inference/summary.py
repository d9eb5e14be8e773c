"""A table of what draws say of every quantity: one row a scalar, one column a statistic."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping
from typing import Any, overload

from torch import Tensor

from zsp.checks import NodeError
from zsp.checks.wording import quoted, suggestion
from zsp.inference.problems import element_name

__all__ = ["Summary"]

MAX_ROWS = 60  # shown; a longer table shows its head and its tail


class Summary:
    """Statistics of draws, by quantity and column; it shows itself as a table, in notebooks too.

    ::

        table = draws.summary()
        table["theta[3]", "mean"]        # a number; elements of matrices are "w[0, 3]"
        table["theta[3]"]                # a dict from column to number
        table["theta"]["r_hat"]          # a tensor of the node's shape
        for name in table: ...           # the names of the rows

    Columns: ``mean``, ``sd``, quantiles such as ``5%``, ``mcse_mean`` and ``mcse_sd`` (Monte Carlo standard errors of
    mean and sd), ``ess_bulk`` and ``ess_tail`` (effective sample sizes), ``r_hat``.

    Args:
        tables: node name -> column -> tensor of the node's shape.
        problems: what makes the draws unreliable, in words; shown under the table.
        title: shown above it.

    Attributes:
        columns: the names of the columns.
        problems: as given.
    """

    def __init__(self, tables: Mapping[str, Mapping[str, Tensor]], *, problems: list[str], title: str = "") -> None:
        self._tables = {name: {c: value.cpu() for c, value in table.items()} for name, table in tables.items()}
        self._shapes = {name: next(iter(table.values())).shape for name, table in tables.items()}
        self.columns: tuple[str, ...] = tuple(next(iter(self._tables.values()), {}))
        self.problems = problems
        self._title = title

    @overload
    def __getitem__(self, key: tuple[str, str]) -> float | Tensor: ...
    @overload
    def __getitem__(self, key: str) -> dict[str, float] | dict[str, Tensor]: ...
    def __getitem__(self, key):
        if not isinstance(key, tuple):
            return self._statistics_of(key)
        row, column = key
        values = self._statistics_of(row)
        if column not in values:
            raise NodeError(f"the summary has no column {column!r}; it has {quoted(self.columns)}.")
        return values[column]

    def _statistics_of(self, key: str) -> dict[str, Any]:
        """Column -> number of a row, or tensor of a node that is no scalar."""
        if key in self._tables:
            table = self._tables[key]
            return dict(table) if self._shapes[key] else {column: value.item() for column, value in table.items()}
        name, index = self._parse(key)
        return {column: value[index].item() for column, value in self._tables[name].items()}

    def __iter__(self) -> Iterator[str]:
        for name, shape in self._shapes.items():
            for i in range(math.prod(shape)):
                yield element_name(name, shape, i)

    def __len__(self) -> int:
        return sum(math.prod(shape) for shape in self._shapes.values())

    def _parse(self, key: str) -> tuple[str, tuple[int, ...]]:
        """("theta", (3,)) of "theta[3]"."""
        name, bracket, rest = str(key).rpartition("[")
        if not bracket or not rest.endswith("]") or name not in self._shapes:
            known = list(self._tables)
            raise NodeError(f"the summary has no {key!r}; it has {quoted(known)}.{suggestion(str(name or key), known)}")
        shape = self._shapes[name]
        try:
            index = tuple(int(part) for part in rest[:-1].split(","))
        except ValueError:
            index = ()
        if len(index) != len(shape) or not all(0 <= i < n for i, n in zip(index, shape, strict=True)):
            last = element_name(name, shape, math.prod(shape) - 1)
            first = element_name(name, shape, 0)
            raise NodeError(f"{key!r} is no element of {name!r}, whose shape is {list(shape)}: {first!r} to {last!r}.")
        return name, index

    # -- showing ----------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        rows = self._text_rows()
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [self._title] if self._title else []
        for name, *cells in rows:
            padded = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
            lines.append("  ".join([name.ljust(widths[0]), *padded]).rstrip())
        lines.extend(f"! {problem}" for problem in self.problems)
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head, *body = self._text_rows()
        cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
        lines = [
            f'<tr><th style="text-align:left">{html.escape(name)}</th>'
            + "".join(f"<td>{html.escape(value)}</td>" for value in values)
            + "</tr>"
            for name, *values in body
        ]
        problems = "".join(f"<li>{html.escape(problem)}</li>" for problem in self.problems)
        return (
            f"<table><caption>{html.escape(self._title)}</caption><thead><tr>{cells}</tr></thead>"
            f"<tbody>{''.join(lines)}</tbody></table>" + (f"<ul>{problems}</ul>" if problems else "")
        )

    def _text_rows(self) -> list[list[str]]:
        """The table's cells as text, its head and its tail where it is long."""
        total = len(self)
        half = MAX_ROWS // 2
        shown = set(range(total)) if total <= MAX_ROWS else {*range(half), *range(total - half, total)}
        rows = [["", *self.columns]]
        start = 0
        for name, shape in self._shapes.items():
            size = math.prod(shape)
            flat = {column: value.flatten() for column, value in self._tables[name].items()}
            for i in range(size):
                if start + i in shown:
                    rows.append([element_name(name, shape, i), *_format({c: v[i].item() for c, v in flat.items()})])
                elif start + i == half:
                    rows.append([f"... {total - MAX_ROWS} rows more", *[""] * len(self.columns)])
            start += size
        return rows


def _format(row: dict[str, float]) -> list[str]:
    """The numbers of a row: three digits of the sd, and means and quantiles to the same place."""
    sd = row["sd"]
    digits = min(8, max(0, 2 - math.floor(math.log10(sd)))) if 0 < sd < math.inf else None
    cells = []
    for column, value in row.items():
        if not math.isfinite(value):
            cells.append(str(value))
        elif column.startswith("mcse"):
            cells.append(f"{value:.2g}")
        elif column.startswith("ess"):
            cells.append(f"{value:.0f}")
        elif column == "r_hat":
            cells.append(f"{value:.3f}")
        else:
            cells.append(f"{value:.4g}" if digits is None else f"{value:.{digits}f}")
    return cells
