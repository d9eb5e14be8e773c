"""Whether predicted probabilities are what they say: accuracy against confidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from zsp.evaluation import calibration_bins, expected_calibration_error
from zsp.plots.style import LINE_COLOURS, SHADE, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["reliability"]


def reliability(probs: Tensor, labels: Tensor, *, n_bins: int = 15, title: str | None = None) -> Figure:
    """Accuracy against confidence in bins, beside the diagonal of a calibrated classifier.

    Points below the diagonal are overconfident. Grey bars are the share of the predictions in each bin. A
    whisker is two standard errors of a bin's accuracy.

    Args:
        probs: predictive probabilities (their mean over the draws), shape [n, K]; or [n], of the label 1 against 0.
        labels: the true classes, shape [n].
        n_bins: of equal width between 0 and 1.
        title: of the picture.

    Raises:
        ValueError: if the shapes do not fit or ``probs`` are no probabilities.

    Reference: Guo et al. 2017, arXiv:1706.04599, figure 1.
    """
    bins = calibration_bins(probs, labels, n_bins=n_bins)
    error = float(expected_calibration_error(probs, labels, n_bins=n_bins))
    used = bins.size > 0
    count, accuracy = bins.size[used], bins.accuracy[used]
    left, width = bins.edges[:-1][used].cpu().numpy(), float(bins.edges[1])
    whisker = 2 * (accuracy * (1 - accuracy) / count).sqrt()
    figure, axes = new_figure(4.5, 4.5, title)
    share = (count / count.sum()).cpu().numpy()
    axes.bar(left, share, width, align="edge", color=SHADE, linewidth=0, label="share of the predictions")
    axes.plot([0, 1], [0, 1], color="black", linewidth=1.0, linestyle="--", label="calibrated")
    axes.errorbar(
        bins.confidence[used].cpu().numpy(), accuracy.cpu().numpy(), whisker.cpu().numpy(),
        color=LINE_COLOURS[0], marker="o", linewidth=1.5, capsize=2, label=f"accuracy (ECE {error:.3f})",
    )  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
    return figure
