"""Numbers against the step at which they were taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from zsp.extras import require
from zsp.plots.style import LINE_COLOURS, LINES, PURPOSE, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["curve"]


def curve(
    values: Mapping[str, Sequence[float] | Tensor],
    xlabel: str,
    ylabel: str,
    *,
    x: Sequence[float] | Tensor | None = None,
    title: str | None = None,
) -> Figure:
    """Numbers against the step at which they were taken, one line a name.

    Args:
        values: for each name a sequence of numbers; they may differ in length.
        xlabel: what ``x`` is, with its unit.
        ylabel: what the values are, with their unit ("ELBO (nats)").
        x: where the values were taken; 1, 2, 3, ... by default.
        title: of the picture.

    Raises:
        ValueError: if there is nothing to draw, or ``x`` and a sequence differ in length.
    """
    lines = {name: _numbers(sequence) for name, sequence in values.items()}
    if empty := [name for name, line in lines.items() if not line]:
        raise ValueError(f"curve got no numbers for {', '.join(map(repr, empty))}.")
    if not lines:
        raise ValueError("curve needs at least one named sequence of numbers, but got none.")
    places = None if x is None else _numbers(x)
    figure, axes = new_figure(6.5, 4.0, title)
    for i, (name, line) in enumerate(lines.items()):
        if places is not None and len(places) != len(line):
            raise ValueError(f"x has {len(places)} numbers, but {name!r} has {len(line)}: they must be as many.")
        marker = "o" if len(line) == 1 else None
        colour, style = LINE_COLOURS[i % len(LINE_COLOURS)], LINES[i % len(LINES)]
        steps = places or range(1, len(line) + 1)
        axes.plot(steps, line, label=name, linewidth=1.8, marker=marker, color=colour, linestyle=style)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if places is None:
        ticker: Any = require("matplotlib.ticker", extra="plot", purpose=PURPOSE)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if len(lines) > 1:
        axes.legend(frameon=False)
    return figure


def _numbers(values: Sequence[float] | Tensor) -> list[float]:
    return [float(value) for value in values]
