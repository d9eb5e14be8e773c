"""What the pictures share: colours, and figures that leave pyplot's state alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zsp.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "DIVERGENT",
    "LINES",
    "LINE_COLOURS",
    "MARKERS",
    "PURPOSE",
    "SHADE",
    "new_figure",
    "new_figure_of_panels",
]

PURPOSE = "drawing pictures"
#: Paul Tol's "muted" colours (personal.sron.nl/~pault), distinct to the colour-blind too, with black for pale grey.
COLOURS = (
    "#332288",
    "#88CCEE",
    "#44AA99",
    "#117733",
    "#999933",
    "#DDCC77",
    "#CC6677",
    "#882255",
    "#AA4499",
    "#000000",
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINE_COLOURS = ("#332288", "#CC6677", "#117733", "#999933", "#882255")
DIVERGENT = "#D81B60"
SHADE = "#d5d8dc"
LINES = ("-", "--", "-.", ":")


def new_figure(width: float, height: float, title: str | None) -> tuple[Figure, Axes]:
    """A figure with one pair of axes of about this size, in inches."""
    figure, panels = new_figure_of_panels(1, 1, max(width, 2.5), height, None)
    axes = panels[0, 0]
    if title:
        figure.set_figheight(height + 0.4)
        axes.set_title(title)
    return figure, axes


def new_figure_of_panels(
    n_rows: int, n_columns: int, width: float, height: float, title: str | None, **options: Any
) -> tuple[Figure, Any]:
    """A figure with rows of axes, each of about this size, in inches; the axes as an array [row, column]."""
    module: Any = require("matplotlib.figure", extra="plot", purpose=PURPOSE)
    size = (width * n_columns, height * n_rows + (0.4 if title else 0.0))
    figure: Figure = module.Figure(figsize=size, dpi=120, layout="constrained")
    panels = figure.subplots(n_rows, n_columns, squeeze=False, **options)
    if title:
        figure.suptitle(title)
    return figure, panels
