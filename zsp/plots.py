"""Pictures of results, drawn with matplotlib (the extra ``plot``).

Every function returns a :class:`matplotlib.figure.Figure` of its own and leaves pyplot's state alone::

    figure = zsp.plots.image_grid(images, (28, 28), title="Samples")
    figure.savefig("samples.png")
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zsp.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["curve", "image_grid", "latent_space", "reconstructions"]

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
LINES = ("-", "--", "-.", ":")


def image_grid(
    images: Tensor,
    shape: tuple[int, int],
    *,
    n_columns: int | None = None,
    title: str | None = None,
    limits: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """Grey images side by side, row by row.

    Args:
        images: [n, height * width] or [n, height, width].
        shape: (height, width) of one image.
        n_columns: how many stand in a row; by default the grid is about square.
        title: of the picture.
        limits: the values drawn black and white; values beyond them are drawn like them.

    Raises:
        ValueError: if there is no image or the images have not this shape.
    """
    pictures = _pictures("images", images, shape)
    if n_columns is None:
        n_columns = math.ceil(len(pictures) ** 0.5)
    elif n_columns < 1:
        raise ValueError(f"n_columns must be at least 1, but got {n_columns}.")
    tiles = _tiles(pictures, n_columns)
    inches = 0.7 if max(shape) > 16 else 0.5
    figure, axes = _figure(inches * n_columns, inches * math.ceil(len(pictures) / n_columns), title)
    _show(axes, tiles, limits)
    axes.set_axis_off()
    return figure


def reconstructions(
    originals: Tensor,
    reconstructions: Tensor,
    shape: tuple[int, int],
    *,
    title: str | None = "Images and their reconstructions",
    limits: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """Images in one row and under each its reconstruction.

    Args:
        originals: [n, height * width] or [n, height, width].
        reconstructions: as many images of the same shape.
        shape: (height, width) of one image.
        title: of the picture.
        limits: the values drawn black and white; values beyond them are drawn like them.

    Raises:
        ValueError: if the numbers of images differ, there is none, or the images have not this shape.
    """
    above, below = _pictures("originals", originals, shape), _pictures("reconstructions", reconstructions, shape)
    if len(above) != len(below):
        raise ValueError(
            f"each original needs one reconstruction, but there are {len(above)} originals and {len(below)} "
            f"reconstructions."
        )
    height = shape[0]
    figure, axes = _figure(0.7 * len(above) + 1.0, 1.4, title)
    _show(axes, _tiles(torch.cat([above, below]), len(above)), limits)
    axes.set_xticks([])
    axes.set_yticks([(height - 1) / 2, height + 1 + (height - 1) / 2], ["original", "reconstruction"])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def latent_space(points: Tensor, labels: Tensor | None = None, *, title: str | None = "Latent space") -> Figure:
    """Points in the plane, a colour and a marker for each label, whose name stands at the median of its points.

    Points of more than two dimensions are projected on their first two principal components, and the axes say so.

    Args:
        points: [n, d], d at least 2.
        labels: [n], whole numbers; without them all points are drawn alike.
        title: of the picture.

    Raises:
        ValueError: if a shape is not the one expected, or a point is not finite.
    """
    if points.dim() != 2 or points.shape[1] < 2 or len(points) < 2:
        raise ValueError(
            f"latent_space needs at least two points of two or more dimensions, shape [n, d], but got shape "
            f"{list(points.shape)}."
        )
    if labels is not None and labels.shape != points.shape[:1]:
        raise ValueError(
            f"latent_space needs one label a point, shape [{len(points)}], but got shape {list(labels.shape)}."
        )
    points = points.detach().cpu().double()
    if not points.isfinite().all():
        raise ValueError(f"{int((~points.isfinite()).any(1).sum())} of the {len(points)} points are not finite.")
    names = ["latent dimension 1", "latent dimension 2"]
    if points.shape[1] > 2:
        points, shares = _principal_components(points)
        names = [f"principal component {i + 1} ({share:.0%} of the variance)" for i, share in enumerate(shares)]
    figure, axes = _figure(6.5, 5.5, title)
    if labels is None:
        x, y = points.T.numpy()
        axes.scatter(x, y, s=9, alpha=0.7, linewidths=0, color=COLOURS[0])
    else:
        labels = labels.detach().cpu()
        for i, label in enumerate(labels.unique().tolist()):
            cluster, name, colour = points[labels == label], str(label), COLOURS[i % len(COLOURS)]
            x, y = cluster.T.numpy()
            marker = MARKERS[i % len(MARKERS)]
            axes.scatter(x, y, s=9, alpha=0.7, linewidths=0, color=colour, marker=marker, label=name)
            frame = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": colour, "alpha": 0.85}
            x_middle, y_middle = cluster.median(0).values.tolist()
            axes.annotate(name, (x_middle, y_middle), ha="center", va="center", fontweight="bold", bbox=frame)
        axes.legend(title="label", loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=2, frameon=False)
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.set_aspect("equal", adjustable="datalim")
    return figure


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
    figure, axes = _figure(6.5, 4.0, title)
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


def _figure(width: float, height: float, title: str | None) -> tuple[Figure, Axes]:
    """A figure with one pair of axes of about this size, in inches."""
    module: Any = require("matplotlib.figure", extra="plot", purpose=PURPOSE)
    size = (max(width, 2.5), height + (0.4 if title else 0.0))
    figure: Figure = module.Figure(figsize=size, dpi=120, layout="constrained")
    axes = figure.add_subplot()
    if title:
        axes.set_title(title)
    return figure, axes


def _show(axes: Axes, array: Tensor, limits: tuple[float, float]) -> None:
    axes.imshow(array.numpy(), cmap="gray", vmin=limits[0], vmax=limits[1], interpolation="nearest")


def _pictures(what: str, images: Tensor, shape: tuple[int, int]) -> Tensor:
    """The images as [n, height, width] on the CPU."""
    height, width = shape
    if len(images) == 0 or images.shape[1:] not in ((height * width,), (height, width)):
        raise ValueError(
            f"{what} must have shape [n, {height * width}] or [n, {height}, {width}] with n at least 1, but got "
            f"{list(images.shape)}."
        )
    return images.detach().cpu().float().reshape(-1, height, width)


def _tiles(pictures: Tensor, n_columns: int) -> Tensor:
    """One array of all pictures, row by row, with a line of NaN (drawn as nothing) between neighbours."""
    n, height, width = pictures.shape
    n_rows = math.ceil(n / n_columns)
    tiles = pictures.new_full((n_rows * n_columns, height + 1, width + 1), math.nan)
    tiles[:n, :height, :width] = pictures
    grid = tiles.unflatten(0, (n_rows, n_columns)).transpose(1, 2)
    return grid.reshape(n_rows * (height + 1), n_columns * (width + 1))[:-1, :-1]


def _principal_components(points: Tensor) -> tuple[Tensor, list[float]]:
    """The first two principal components, [n, 2], and their shares of the variance.

    The sign that the decomposition leaves open makes the largest coefficient of each component positive.
    """
    centred = points - points.mean(0)
    _, singular_values, rows = torch.linalg.svd(centred, full_matrices=False)
    first = rows[:2]
    first = first * first.gather(1, first.abs().argmax(1, keepdim=True)).sign()
    variances = singular_values**2
    return centred @ first.T, (variances[:2] / variances.sum().clamp_min(1e-300)).tolist()


def _numbers(values: Sequence[float] | Tensor) -> list[float]:
    return [float(value) for value in values]
