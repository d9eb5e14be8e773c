r"""Summing discrete nodes out of a log joint, level by level.

.. math:: \log \sum_c p(c) \prod_n \sum_{k_n} p(k_n \mid c) \, p(x_n \mid k_n, c)

The enumerated nodes fall into levels by the batch shape along which their entries are independent. Level 0 has the
batch shape of the log joint; a deeper one, of local nodes such as k above, has more axes. From the deepest up, the
terms of a level are summed over its rows for every element of its shape, and the logarithms are added up to the shape
of the level above.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from zsp.bayesian_net import BayesianNet
from zsp.checks.wording import net_name
from zsp.inference.table import Table, column_of
from zsp.inference.variational.terms import is_sum_of_terms, scale_of
from zsp.node import Node

__all__ = ["Elimination", "Execute", "require_independent"]

Execute = Callable[[Mapping[str, Tensor]], BayesianNet]
"""Executes the model with these digits (indices into the support) of the enumerated nodes."""

_ADVICE = (
    "Enumerate fewer nodes; if the entries of a node are independent given all others (one label for each datum), name "
    "it in local=...; or draw them instead and train with zsp.elbo(...).reinforce() or .rebar()."
)


class Part(NamedTuple):
    """A summand of the log joint: the log probability of a node, or a model's own log joint as a whole.

    Attributes:
        name: the node; None for the whole.
        level: the level at which it joins.
        shape: its shape there, sample axes aside.
        has_samples: whether it has sample axes in front of them.
        n_summed: how many of its last axes are summed before.
        scale: N / n of its ``total_size``.
    """

    name: str | None
    level: int
    shape: tuple[int, ...]
    has_samples: bool
    n_summed: int
    scale: float


class Elimination(NamedTuple):
    """What one execution of a model tells about summing nodes out.

    Attributes:
        table: the enumerated nodes, those of deeper levels last.
        shapes: of the levels, sample axes aside; each begins with the one before it.
        levels: name of an enumerated node -> its level.
        parts: the summands of the log joint.
        factor_shapes: name of an enumerated node -> batch shape + [K], grouped axes included.
        n_sample_axes: how many sample axes there are.
        device: where the values are.
    """

    table: Table
    shapes: tuple[tuple[int, ...], ...]
    levels: Mapping[str, int]
    parts: tuple[Part, ...]
    factor_shapes: Mapping[str, tuple[int, ...]]
    n_sample_axes: int
    device: torch.device

    @classmethod
    def of(
        cls, bn: BayesianNet, names: Sequence[str], local: frozenset[str], n_sample_axes: int, max_rows: int
    ) -> Elimination:
        """From a net executed at one row of the table.

        Raises:
            ValueError: if a node cannot be enumerated, the table is too large or the nodes' shapes do not nest.
        """
        nodes = [node for node in bn._stochastic_nodes() if node.name not in bn._excluded]
        terms = [bn._log_prob(node) for node in nodes]
        has_samples = {node.name: bool(bn._n_sample_axes(node, nodes, terms)) for node in nodes}

        def without_samples(node: Node, shape: Sequence[int]) -> tuple[int, ...]:
            return tuple(shape[n_sample_axes if has_samples[node.name] else 0 :])

        grouped = {n.name: without_samples(n, term.shape) for n, term in zip(nodes, terms, strict=True)}
        ungrouped = {n.name: without_samples(n, bn._ungrouped_shape(n)) for n in nodes}
        batch = _longest(list(grouped.values()))
        own = {name: ungrouped[name] if name in local else batch for name in names}
        shapes = _nested([batch, *own.values()], own)
        levels = {name: shapes.index(own[name]) for name in names}
        by_level = [name for level in range(len(shapes)) for name in names if levels[name] == level]
        columns = [column_of(bn._stochastic(name), name in local) for name in by_level]
        table = Table(columns, max_rows, _ADVICE)
        parts = []
        if is_sum_of_terms(bn):
            for node in nodes:
                full = ungrouped[node.name]
                level = max([0, *[i for i, shape in enumerate(shapes) if full[: len(shape)] == shape]])
                shape = shapes[level] if level else grouped[node.name]
                n_summed = len(full) - len(shape)
                scale = scale_of(bn, node.name)
                parts.append(Part(node.name, level, shape, has_samples[node.name], n_summed, scale))
        elif local:
            raise ValueError(
                f"local={sorted(local)} sums nodes out entry by entry, but {net_name(bn)} has a log_joint of its own, "
                "which is not known to be a sum over nodes. Enumerate without local."
            )
        else:
            parts.append(Part(None, 0, batch, bool(n_sample_axes), 0, 1.0))
        _require_one_scale(parts, levels)
        factor_shapes = {column.name: (*ungrouped[column.name], column.n_values) for column in columns}
        return cls(table, shapes, levels, tuple(parts), factor_shapes, n_sample_axes, terms[0].device)

    def terms(self, execute: Execute, factors: Mapping[str, Tensor] | None = None) -> tuple[Tensor, ...]:
        """The parts in all rows of the table, each of shape [n_rows, *sample, *part.shape].

        Args:
            execute: executes the model.
            factors: enumerated node -> logarithms of factors on its values, of its factor shape.
        """

        def in_row(row: Tensor) -> tuple[Tensor, ...]:
            digits = {column.name: self.table.digits(column, row) for column in self.table.columns}
            chosen = {}
            for name, factor in (factors or {}).items():
                is_chosen = digits[name].unsqueeze(-1) == torch.arange(factor.shape[-1], device=factor.device)
                chosen[name] = torch.where(is_chosen, factor, 0.0).sum(-1)
            bn = execute(digits)
            return tuple(self.term(bn, part, chosen) for part in self.parts)

        rows = torch.arange(self.table.n_rows, device=self.device)
        return torch.func.vmap(in_row, randomness="same")(rows)

    def term(self, bn: BayesianNet, part: Part, factors: Mapping[str, Tensor]) -> Tensor:
        """A part's value in one execution, times the factors (given as logarithms) on its node's values."""
        if part.name is None:
            term = bn.log_joint()
            for each in factors.values():
                term = term + _sum_last(each, each.dim() - len(part.shape))
            return term
        node = bn._stochastic(part.name)
        factor = factors.get(part.name)
        if part.n_summed == node.group_ndims and factor is None:
            return bn._log_prob(node)
        term = bn._ungrouped_log_prob(node)
        return _sum_last(term if factor is None else term + factor, part.n_summed)

    def log_joint(self, terms: Sequence[Tensor], is_scaled: bool = True) -> Tensor:
        """The log joint with the nodes summed out, of shape sample + batch.

        Args:
            terms: the parts in all rows.
            is_scaled: whether ``total_size`` counts.
        """
        carried: Tensor | None = None
        n_finer = 1  # rows of the deeper levels, which are done
        n_samples = (None,) * self.n_sample_axes
        for level in range(len(self.shapes) - 1, -1, -1):
            n_rows = self._n_rows(level)
            for part, term in zip(self.parts, terms, strict=True):
                if part.level != level:
                    continue
                joining = term[::n_finer]  # it is the same at all digits of deeper levels
                joining = joining if part.has_samples else joining[(slice(None), *n_samples)]
                if n_rows is None and is_scaled and part.scale != 1:
                    joining = joining * part.scale
                carried = joining if carried is None else carried + joining
            assert carried is not None
            if n_rows is not None:
                carried = torch.logsumexp(carried.unflatten(0, (-1, n_rows)), 1)
                n_finer *= n_rows
                scale = self._scale(level) / self._scale(self._above(level))
                carried = carried * scale if is_scaled and scale != 1 else carried
            if level:
                carried = _sum_last(carried, len(self.shapes[level]) - len(self.shapes[level - 1]))
        assert carried is not None
        return carried[0]

    def _n_rows(self, level: int) -> int | None:
        rows = [column.n_rows for column in self.table.columns if self.levels[column.name] == level]
        return math.prod(rows) if rows else None

    def _above(self, level: int) -> int:
        """The next level up that has rows; -1 if there is none."""
        return max([-1, *[above for above in self.levels.values() if above < level]])

    def _scale(self, level: int) -> float:
        return [*[part.scale for part in self.parts if part.level == level], 1.0][0]


def _sum_last(value: Tensor, n_axes: int) -> Tensor:
    return value.sum(tuple(range(-n_axes, 0))) if n_axes else value


def _longest(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    longest = shapes[0]
    for shape in shapes:
        longest = shape if len(shape) > len(longest) else longest
    return longest


def _nested(
    found: Sequence[tuple[int, ...]], own: Mapping[str, tuple[int, ...]]
) -> tuple[tuple[int, ...], ...]:
    """The shapes of the levels, the shortest first; an error unless each begins with the one before it."""
    shapes = [s for n in range(len(_longest(found)) + 1) for s in dict.fromkeys(found) if len(s) == n]
    for shorter, longer in itertools.pairwise(shapes):
        if longer[: len(shorter)] != shorter:
            shown = ", ".join(f"{name!r} has {list(shape)}" for name, shape in own.items())
            raise ValueError(
                f"local nodes are summed out along their batch axes, which must nest: {shown}, and the log joint "
                f"{list(shapes[0])}. Leave one of them out of local."
            )
    return tuple(shapes)


def _require_one_scale(parts: Sequence[Part], levels: Mapping[str, int]) -> None:
    for level in set(levels.values()):
        scales = {part.name: part.scale for part in parts if part.level == level}
        if len(set(scales.values())) > 1:
            shown = ", ".join(f"{name!r} by {scale:g}" for name, scale in scales.items())
            raise ValueError(
                "a sum over discrete values of terms that total_size scales differently is no log probability: they "
                f"are scaled {shown}. Give the same total_size to an enumerated node and to all nodes beside it."
            )


def require_independent(elimination: Elimination, execute: Execute) -> None:
    """Try out, at eight assignments, that a term depends on the entries of enumerated nodes at its own place only.

    That holds along the batch axes of the log joint if each of its elements is one of its own, and along the grouped
    axes of local nodes if what ``local`` says is true.

    Raises:
        ValueError: naming a node whose log probability depends on more.
    """
    if not any(elimination.shapes):
        return
    with torch.no_grad():
        terms = elimination.terms(execute)
        generator = torch.Generator().manual_seed(0)  # the caller's random numbers are left alone
        for trial in range(8):
            digits = _assignment(elimination, trial, generator)
            bn = execute({name: digit.to(elimination.device) for name, digit in digits.items()})
            for part, in_rows in zip(elimination.parts, terms, strict=True):
                actual = elimination.term(bn, part, {})
                row = _row_of(elimination, digits, part).to(elimination.device).expand(actual.shape)
                expected = in_rows.gather(0, row.unsqueeze(0)).squeeze(0)
                if not bool(torch.isclose(actual, expected, rtol=1e-3, atol=1e-4, equal_nan=True).all()):
                    raise _depends_on_more(elimination, part)


def _depends_on_more(elimination: Elimination, part: Part) -> ValueError:
    what = "the log joint" if part.name is None else f"the log probability of node {part.name!r}"
    local = [name for name, level in elimination.levels.items() if level > 0]
    if not local:
        return ValueError(
            f"{what} depends at one place of the batch {list(elimination.shapes[0])} on enumerated values at others, "
            "so that the elements of the batch cannot be summed one by one. Where they depend on one another, the "
            "batch axis is one event: group it (group_ndims=1 on the nodes that have it)."
        )
    return ValueError(
        f"local={local} says that each entry is independent of the others given all other nodes, but {what} depends on "
        "entries at other places than its own. Does it use a sum over them, or a neighbour? Its batch axes must begin "
        f"with theirs, {[list(shape) for shape in elimination.shapes if shape]}, and it has {list(part.shape)}. Leave "
        "the node out of local: its entries then have a digit each in the table."
    )


def _assignment(elimination: Elimination, trial: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Digits for every enumerated node, different along all their axes."""
    digits = {}
    for column in elimination.table.columns:
        shape, k = (*elimination.shapes[elimination.levels[column.name]], *column.entries), column.n_values
        if trial < 4:
            digits[column.name] = (torch.arange(math.prod(shape)) * (trial + 1) + trial).reshape(shape) % k
        else:
            digits[column.name] = torch.randint(k, shape, generator=generator)
    return digits


def _row_of(elimination: Elimination, digits: Mapping[str, Tensor], part: Part) -> Tensor:
    """The row of the table that holds these digits at each element of a part, 0 for the digits of deeper levels."""
    row = torch.zeros((1,) * len(part.shape), dtype=torch.int64)
    for column in elimination.table.columns:
        level = elimination.levels[column.name]
        if level <= part.level:
            shape = elimination.shapes[level]
            entries = digits[column.name].reshape((*shape, -1))
            powers = column.n_values ** torch.arange(entries.shape[-1] - 1, -1, -1)
            own = elimination.table.n_rows_after(column) * (entries * powers).sum(-1)
            row = row + own.reshape(shape + (1,) * (len(part.shape) - len(shape)))
    return row
