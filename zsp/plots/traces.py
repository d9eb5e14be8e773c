"""Draws in the order in which they were made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zsp.inference import diagnostics
from zsp.plots.quantities import divergent, scalar_quantities
from zsp.plots.style import DIVERGENT, LINE_COLOURS, new_figure_of_panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["trace"]

N_BINS = 40


def trace(draws: Mapping[str, Tensor], names: Sequence[str] | str | None = None, *, title: str | None = None) -> Figure:
    """Each quantity's distribution, one outline a chain, and beside it its draws in their order.

    Chains that have mixed overlap on the left and look like one band of noise on the right. The left one shows the
    central 99% of the draws; ticks under the right one mark draws from diverging trajectories.

    Args:
        draws: a :class:`zsp.Draws`, or name -> tensor of shape [chain, draw, *shape].
        names: nodes ("theta") or elements ("theta[3]") to show; default all nodes.
        title: of the picture.

    Raises:
        ValueError: for a name that is not there, more than 30 quantities, or values that are not finite.
    """
    quantities = scalar_quantities(draws, names, limit=30, what="trace")
    is_divergent = divergent(draws)
    diverging = [] if is_divergent is None else is_divergent.nonzero()[:, 1].tolist()
    figure, panels = new_figure_of_panels(len(quantities), 2, 4.5, 1.7, title, width_ratios=(1, 2))
    for (left, right), (label, values) in zip(panels, quantities.items(), strict=True):
        low, high = diagnostics.quantiles(values, (0.005, 0.995)).tolist()
        edges = torch.linspace(low, high if high > low else low + 1.0, N_BINS + 1, dtype=values.dtype)
        for i, chain in enumerate(values):
            colour = LINE_COLOURS[i % len(LINE_COLOURS)]
            style = {"color": colour, "alpha": 0.8 if len(values) <= 8 else 0.4}
            counts = torch.histogram(chain, edges).hist
            left.stairs((counts / counts.sum().clamp_min(1)).numpy(), edges.numpy(), linewidth=1.3, **style)
            right.plot(chain.numpy(), linewidth=0.5, **style)
        if diverging:
            below, place = [0.02] * len(diverging), right.get_xaxis_transform()
            right.plot(diverging, below, "|", color=DIVERGENT, markersize=7, transform=place)
        left.set_ylabel(label, rotation=0, ha="right", va="center")
        left.set_yticks([])
        left.spines[["left", "top", "right"]].set_visible(False)
        right.spines[["top", "right"]].set_visible(False)
        right.margins(x=0.01)
        right.tick_params(labelbottom=False)
    panels[-1, 1].tick_params(labelbottom=True)
    panels[-1, 1].set_xlabel("draw (| diverging)" if diverging else "draw")
    return figure
