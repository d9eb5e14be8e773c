"""Quantities against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zsp.plots.quantities import divergent, scalar_quantities
from zsp.plots.style import DIVERGENT, LINE_COLOURS, new_figure_of_panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["pair"]

MAX_POINTS = 3000


def pair(draws: Mapping[str, Tensor], names: Sequence[str] | str | None = None, *, title: str | None = None) -> Figure:
    """Scatter plots of each quantity against each other one, divergences marked, and their histograms.

    Divergences that gather in one place, at the neck of a funnel for instance, show where the sampler fails.

    Args:
        draws: a :class:`zsp.Draws`, or name -> tensor of shape [chain, draw, *shape]. Of more than 3000 draws about as
            many are shown, evenly spaced, but all the divergent ones.
        names: nodes ("theta") or elements ("theta[3]") to show; default all nodes.
        title: of the picture.

    Raises:
        ValueError: for a name that is not there, fewer than two quantities or more than ten, or values that are not
            finite.
    """
    quantities = scalar_quantities(draws, names, limit=10, what="pair")
    if len(quantities) < 2:
        raise ValueError(f"pair needs at least two quantities, but got {next(iter(quantities))!r} alone.")
    is_divergent = divergent(draws)
    labels, values = list(quantities), torch.stack([value.flatten() for value in quantities.values()])
    step = max(1, values.shape[1] // MAX_POINTS)
    marked = None if is_divergent is None or not bool(is_divergent.any()) else values[:, is_divergent.flatten()].numpy()
    shown = values[:, ::step].numpy()
    size = max(1.5, 5.0 / len(labels))
    figure, panels = new_figure_of_panels(len(labels), len(labels), size, size, title, sharex="col")
    colour = LINE_COLOURS[0]
    for row, label in enumerate(labels):
        for column, other in enumerate(labels):
            axes = panels[row, column]
            if column > row:
                axes.remove()
                continue
            if column == row:
                axes.hist(values[row].numpy(), bins=40, color=colour, alpha=0.75, linewidth=0)
                axes.set_yticks([])
                axes.spines[["left", "top", "right"]].set_visible(False)
            else:
                alpha = min(0.6, max(0.08, 300 / shown.shape[1]))
                axes.plot(shown[column], shown[row], "o", markersize=2.5, markeredgewidth=0, color=colour, alpha=alpha)
                if marked is not None:
                    axes.plot(marked[column], marked[row], "x", markersize=4, color=DIVERGENT, label="diverging")
                axes.spines[["top", "right"]].set_visible(False)
            if column:
                axes.tick_params(labelleft=False)
            elif row:
                axes.set_ylabel(label)
            if row == len(labels) - 1:
                axes.set_xlabel(other)
    if marked is not None:
        handles, texts = panels[1, 0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="upper right", frameon=False)
    return figure
