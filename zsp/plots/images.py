"""Images side by side."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zsp.plots.style import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["image_grid", "reconstructions"]


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
    figure, axes = new_figure(inches * n_columns, inches * math.ceil(len(pictures) / n_columns), title)
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
    figure, axes = new_figure(0.7 * len(above) + 1.0, 1.4, title)
    _show(axes, _tiles(torch.cat([above, below]), len(above)), limits)
    axes.set_xticks([])
    axes.set_yticks([(height - 1) / 2, height + 1 + (height - 1) / 2], ["original", "reconstruction"])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


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
