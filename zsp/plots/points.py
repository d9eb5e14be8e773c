"""Points of a latent space in the plane."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zsp.plots.style import COLOURS, MARKERS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["latent_space"]


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
    figure, axes = new_figure(6.5, 5.5, title)
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
