"""What is wrong with a set of draws, in plain words: chains that disagree, too few draws, divergences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from zsp.inference import diagnostics

__all__ = ["describe_problems", "element_name"]

MAX_RHAT = 1.01
MIN_ESS = 400
MIN_BFMI = 0.3

Table = Mapping[str, Mapping[str, Tensor]]


def describe_problems(
    values: Mapping[str, Tensor], tables: Table, *, info: Mapping[str, Tensor], latents: Iterable[str]
) -> list[str]:
    """One sentence or two for each thing that makes draws unreliable, the gravest first; empty if nothing was found.

    Args:
        values: name -> draws, [chain, draw, *shape].
        tables: name -> what :func:`zsp.inference.diagnostics.statistics` says of them.
        info: name -> what the kernel reported, [chain, draw].
        latents: the names in ``values`` that a kernel sampled.

    Returns:
        The sentences.
    """
    if not values:
        return []
    n_chains, n_draws = next(iter(values.values())).shape[:2]
    found = [*_not_finite(values), *_not_moved(values, latents)]
    if n_draws < diagnostics.MIN_DRAWS:
        found.append(f"There are {n_draws} draws a chain, too few to tell whether the chains agree.")
        return [*found, *_divergences(info)]
    if n_chains < 2:
        found.append(
            "There is one chain: R-hat compares chains, so that nothing tells whether this one has seen all of the "
            "posterior. Run four (n_chains=4)."
        )
    found.extend(_disagreement(tables))
    found.extend(_divergences(info))
    found.extend(_low_ess(tables))
    found.extend(_low_bfmi(info))
    return found


def element_name(name: str, shape: Iterable[int], index: int) -> str:
    """``theta[3]``: the name of one element of a node's value, counted in row-major order; a scalar's is the node's."""
    place = []
    for size in reversed(tuple(shape)):
        index, remainder = divmod(index, size)
        place.append(str(remainder))
    return f"{name}[{', '.join(reversed(place))}]" if place else name


def _not_finite(values: Mapping[str, Tensor]) -> list[str]:
    names = [name for name, value in values.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if not names:
        return []
    return [
        f"There are draws of {_listed(names)} that are NaN or infinite: look at their distributions and at the nodes "
        "computed from them."
    ]


def _not_moved(values: Mapping[str, Tensor], latents: Iterable[str]) -> list[str]:
    names = [
        name
        for name in latents
        if values[name].shape[1] > 1 and values[name].numel() and bool((values[name] == values[name][:, :1]).all())
    ]
    if not names:
        return []
    return [
        f"All draws of {_listed(names)} are equal to the first: the chains did not move. Make the step size smaller, "
        "and look at where the chains begin."
    ]


def _disagreement(tables: Table) -> list[str]:
    n_bad, n_all, worst, where = _extreme(tables, "r_hat", MAX_RHAT)
    if not n_bad:
        return []
    return [
        f"R-hat is above {MAX_RHAT} for {n_bad} of {n_all} quantities, at worst {worst:.3g} for {where!r}: the chains "
        "have not reached the same distribution, so that the draws cannot be trusted. Run them longer (n_warmup, "
        "n_samples); zsp.plots.rank(draws) shows which of them differ."
    ]


def _low_ess(tables: Table) -> list[str]:
    bulk, tail = _extreme(tables, "ess_bulk", -MIN_ESS), _extreme(tables, "ess_tail", -MIN_ESS)
    lower, what = (bulk, "bulk") if bulk[2] >= tail[2] else (tail, "tail")
    n_bad = max(bulk[0], tail[0])
    if not n_bad:
        return []
    return [
        f"The effective sample size is below {MIN_ESS} for {n_bad} of {lower[1]} quantities, at worst {-lower[2]:.0f} "
        f"({what}) for {lower[3]!r}: their summaries, and R-hat itself, are rough. Draw more (n_samples)."
    ]


def _divergences(info: Mapping[str, Tensor]) -> list[str]:
    if "is_divergent" not in info:
        return []
    is_divergent = info["is_divergent"]
    n_divergent = int(is_divergent.sum())
    if not n_divergent:
        return []
    return [
        f"{n_divergent} of {is_divergent.numel()} draws ({100 * n_divergent / is_divergent.numel():.2g}%) come from "
        "diverging trajectories: the sampler could not follow the density there, and a part of the posterior may be "
        "missing. Raise target_acceptance_rate (0.95, 0.99), or reparameterise the model (non-centred)."
    ]


def _low_bfmi(info: Mapping[str, Tensor]) -> list[str]:
    if "energy" not in info:
        return []
    values = diagnostics.bfmi(info["energy"])
    low = (values < MIN_BFMI).nonzero()[:, 0].tolist()
    if not low:
        return []
    which = f"chain {low[0]}" if len(low) == 1 else f"{len(low)} of {len(values)} chains"
    return [
        f"BFMI is below {MIN_BFMI} in {which} (lowest {values[low].min().item():.2f}): the energy moves too little "
        "from draw to draw to reach all of the posterior, mostly because its tails are heavy. Reparameterise the model."
    ]


def _extreme(tables: Table, column: str, limit: float) -> tuple[int, int, float, str]:
    """(how many are beyond, of how many, the worst, its name); a negative limit is a lower one, the worst negated."""
    n_bad, n_all, worst, where = 0, 0, -float("inf"), ""
    for name, table in tables.items():
        values = table[column] if limit > 0 else -table[column]
        known = values.flatten().nan_to_num(-float("inf"), posinf=float("inf"))
        n_all += known.numel()
        n_bad += int((known > limit).sum())
        if known.numel() and known.max().item() > worst:
            worst, where = known.max().item(), element_name(name, values.shape, int(known.argmax()))
    return n_bad, n_all, worst, where


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:5]))
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
