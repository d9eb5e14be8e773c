"""Intervals of many quantities, one below the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from zsp.inference import diagnostics
from zsp.plots.quantities import scalar_quantities
from zsp.plots.style import LINE_COLOURS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["forest"]


def forest(
    draws: Mapping[str, Tensor],
    names: Sequence[str] | str | None = None,
    *,
    prob: float = 0.9,
    by_chain: bool = False,
    title: str | None = None,
) -> Figure:
    """Median, 50% interval (thick) and central interval of each quantity, with its R-hat and effective sample size.

    Args:
        draws: a :class:`zsp.Draws`, or name -> tensor of shape [chain, draw, *shape].
        names: nodes ("theta") or elements ("theta[3]") to show; default all nodes.
        prob: of the wider interval.
        by_chain: whether each chain has intervals of its own.
        title: of the picture.

    Raises:
        ValueError: for a name that is not there, more than 100 quantities, or values that are not finite.
    """
    if not 0.5 < prob < 1:
        raise ValueError(f"prob, that of the wider interval, must lie between 0.5 and 1, got {prob}.")
    quantities = scalar_quantities(draws, names, limit=100, what="forest")
    n_chains = next(iter(quantities.values())).shape[0]
    n_lines = n_chains if by_chain else 1
    height = 0.28 * len(quantities) * max(1.0, 0.45 * n_lines) + 0.8
    figure, axes = new_figure(6.5, height, title)
    probs = ((1 - prob) / 2, 0.25, 0.5, 0.75, (1 + prob) / 2)
    notes = []
    for i, values in enumerate(quantities.values()):
        for j in range(n_lines):
            part = values[j : j + 1] if by_chain else values
            low, lower, middle, upper, high = diagnostics.quantiles(part, probs).tolist()
            y = i + (j - (n_lines - 1) / 2) * 0.7 / n_lines
            colour = LINE_COLOURS[j % len(LINE_COLOURS)]
            axes.plot([low, high], [y, y], color=colour, linewidth=1.2, solid_capstyle="round")
            axes.plot([lower, upper], [y, y], color=colour, linewidth=3.2, solid_capstyle="round")
            axes.plot(middle, y, "o", markersize=4.5, markerfacecolor="white", color=colour)
        notes.append(_note(values))
    axes.set_yticks(range(len(quantities)), list(quantities))
    axes.set_ylim(len(quantities) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["left", "top", "right"]].set_visible(False)
    axes.set_xlabel(f"median, 50% and {prob:.0%} intervals")
    for i, note in enumerate(notes):
        axes.annotate(
            note, (1.02, i), xycoords=("axes fraction", "data"), va="center", fontsize="small", annotation_clip=False
        )
    axes.annotate(
        "R-hat    ESS", (1.02, 1.0), xycoords="axes fraction", va="bottom", fontsize="small", annotation_clip=False
    )
    return figure


def _note(values: Tensor) -> str:
    rhat, ess = diagnostics.rhat(values).item(), diagnostics.ess_bulk(values).item()
    return f"{rhat:5.2f}  {ess:7.0f}"
