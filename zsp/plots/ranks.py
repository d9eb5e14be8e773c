r"""How the ranks of the draws are spread over the chains.

Where all chains have one distribution, the ranks that a chain's draws have among those of all are uniform.

Reference: Vehtari et al. 2021, arXiv:1903.08008, section 5; Säilynoja et al. 2022, arXiv:2103.10522, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from zsp.inference import diagnostics
from zsp.inference.uniformity import CountLaw, chain_law, rank_law
from zsp.plots.quantities import scalar_quantities
from zsp.plots.style import LINE_COLOURS, SHADE, new_figure_of_panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["calibration", "rank", "rank_ecdf"]

N_COLUMNS = 3
MAX_CHAINS = 32


def rank(
    draws: Mapping[str, Tensor],
    names: Sequence[str] | str | None = None,
    *,
    n_bins: int = 20,
    title: str | None = None,
) -> Figure:
    """Histograms of each chain's ranks among the draws of all chains, one below the other; even where they have mixed.

    Args:
        draws: a :class:`zsp.Draws`, or name -> tensor of shape [chain, draw, *shape].
        names: nodes ("theta") or elements ("theta[3]") to show; default all nodes.
        n_bins: the number of bins.
        title: of the picture.

    Raises:
        ValueError: for a name that is not there, more than 30 quantities or 32 chains, or values that are not finite.
    """
    quantities = scalar_quantities(draws, names, limit=30, what="rank")
    n_chains, n_draws = _sizes(quantities)
    expected = n_draws / n_bins
    figure, panels = _panels(len(quantities), max(1.6, 0.35 * n_chains + 0.6), title)
    for axes, (label, values) in zip(panels, quantities.items(), strict=False):
        ranks = _ranks(values)
        for i in range(n_chains):
            counts, edges = np.histogram(ranks[i], bins=n_bins, range=(0, values.numel()))
            # one unit of height a chain; half of it is the height that is expected
            base = n_chains - 1 - i
            heights = np.minimum(counts / expected / 2, 0.95)
            colour = LINE_COLOURS[i % len(LINE_COLOURS)]
            axes.bar(edges[:-1], heights, np.diff(edges), base, align="edge", color=colour, alpha=0.75, linewidth=0)
            axes.axhline(base + 0.5, color="black", linewidth=0.7, linestyle=":")
            axes.axhline(base, color="black", linewidth=0.7)
        axes.set_yticks([i + 0.5 for i in range(n_chains)], [str(n_chains - 1 - i) for i in range(n_chains)])
        axes.tick_params(axis="y", length=0)
        axes.set(title=label, xlim=(0, values.numel()), ylim=(0, n_chains), xlabel="rank", ylabel="chain")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def rank_ecdf(
    draws: Mapping[str, Tensor],
    names: Sequence[str] | str | None = None,
    *,
    prob: float = 0.99,
    title: str | None = None,
) -> Figure:
    """The ECDF of each chain's ranks among all draws, less the straight line, in a band that holds all chains' lines.

    The band is a simultaneous one: where the chains have one distribution, no line leaves it anywhere with a
    probability of at least ``prob`` (exact for one chain, Bonferroni's bound for all). It is that of independent draws;
    so the draws of a quantity are thinned to the bulk effective sample size of its slowest chain.

    Args:
        draws: a :class:`zsp.Draws`, or name -> tensor of shape [chain, draw, *shape]; two chains at least.
        names: nodes ("theta") or elements ("theta[3]") to show; default all nodes.
        prob: the probability of the band.
        title: of the picture.

    Raises:
        ValueError: for a name that is not there, more than 30 quantities or 32 chains, a single chain, or values that
            are not finite.
    """
    quantities = scalar_quantities(draws, names, limit=30, what="rank_ecdf")
    n_chains, _ = _sizes(quantities)
    if n_chains < 2:
        raise ValueError("rank_ecdf compares chains, but got one.")
    figure, panels = _panels(len(quantities), 2.4, title)
    for axes, (label, values) in zip(panels, quantities.items(), strict=False):
        thinned = _near_independent(values)
        law = chain_law(thinned.shape[1], thinned.numel())
        _draw_band(axes, law, (1 - prob) / n_chains)
        for i, ranks in enumerate(_ranks(thinned)):
            _draw_ecdf(axes, law, ranks, color=LINE_COLOURS[i % len(LINE_COLOURS)], label=f"chain {i}")
        axes.set(title=label, xlabel="fractional rank", ylabel="ECDF difference")
    if n_chains <= 10:
        panels[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize="small")
    return figure


def calibration(ranks: Mapping[str, Tensor], n_ranks: int, *, prob: float = 0.99, title: str | None = None) -> Figure:
    """The ECDF of ranks that should be uniform, less the straight line, in a simultaneous band.

    What simulation-based calibration ranks: the line is above 0 on the left and below it on the right where the
    posteriors are too narrow, the other way about where they are too wide, and on one side where they are shifted.

    Args:
        ranks: quantity -> whole numbers from 0 to n_ranks - 1, shape [n].
        n_ranks: how many ranks there are.
        prob: the probability with which one quantity's line stays in its band everywhere, if its ranks are uniform.
        title: of the picture.

    Raises:
        ValueError: if a rank is out of range, or there are more than 60 quantities.

    Reference: Säilynoja et al. 2022, arXiv:2103.10522; Talts et al. 2018, arXiv:1804.06788.
    """
    if not 0 < len(ranks) <= 60:
        raise ValueError(f"calibration shows from 1 to 60 quantities, but got {len(ranks)}.")
    for label, values in ranks.items():
        if values.dim() != 1 or not len(values) or not 0 <= int(values.min()) <= int(values.max()) < n_ranks:
            raise ValueError(f"the ranks of {label!r} must be of shape [n] and from 0 to {n_ranks - 1}.")
    figure, panels = _panels(len(ranks), 2.4, title)
    for axes, (label, values) in zip(panels, ranks.items(), strict=False):
        law = rank_law(len(values), n_ranks)
        _draw_band(axes, law, 1 - prob)
        _draw_ecdf(axes, law, values.cpu().numpy(), color=LINE_COLOURS[0])
        axes.set(title=label, xlabel="fractional rank", ylabel="ECDF difference")
    return figure


def _draw_band(axes: Axes, law: CountLaw, false_alarm: float) -> None:
    lower, upper = (np.append(0.0, counts / law.n) for counts in law.band(false_alarm))
    shares = np.append(0.0, law.shares)
    axes.fill_between(shares, lower - shares, upper - shares, color=SHADE, linewidth=0)
    axes.axhline(0.0, color="black", linewidth=0.7)
    axes.set_xlim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_ecdf(axes: Axes, law: CountLaw, ranks: np.ndarray, **style: Any) -> None:
    shares = np.append(0.0, law.shares)
    axes.plot(shares, np.append(0.0, law.counts(ranks) / law.n) - shares, linewidth=1.3, **style)


def _ranks(values: Tensor) -> np.ndarray:
    """Ranks from 0 among all draws, [chain, draw]; equal draws in an order that depends on no chain."""
    flat = values.flatten()
    shuffled = torch.randperm(len(flat), generator=torch.Generator().manual_seed(0))
    order = shuffled[flat[shuffled].argsort(stable=True)]
    ranks = torch.empty(len(flat), dtype=torch.long).scatter_(0, order, torch.arange(len(flat)))
    return ranks.view(values.shape).numpy()


def _near_independent(values: Tensor) -> Tensor:
    """As many draws of each chain, evenly spaced, as the slowest of them is worth by itself.

    By itself, because the effective sample size of all chains together is small where they differ, which is to be seen.
    """
    n_draws = values.shape[1]
    ess = diagnostics.ess_bulk(values.T[None]).nan_to_num(n_draws).min().item()
    n_kept = min(n_draws, max(4, int(ess)))
    return values[:, torch.linspace(0, n_draws - 1, n_kept, dtype=torch.float64).round().long()]


def _sizes(quantities: Mapping[str, Tensor]) -> tuple[int, int]:
    n_chains, n_draws = next(iter(quantities.values())).shape
    if n_chains > MAX_CHAINS:
        raise ValueError(
            f"the picture shows up to {MAX_CHAINS} chains, but there are {n_chains}: draws.select(chains=range(8))."
        )
    return n_chains, n_draws


def _panels(n: int, height: float, title: str | None) -> tuple[Figure, list[Axes]]:
    """n axes in rows of three, and none in the places left over."""
    n_columns = min(n, N_COLUMNS)
    figure, panels = new_figure_of_panels(math.ceil(n / n_columns), n_columns, 3.2, height, title)
    flat = list(panels.flat)
    for axes in flat[n:]:
        axes.remove()
    return figure, flat[:n]
