r"""Simulation-based calibration: does an inference routine give the posterior that it claims to?

.. math:: (\theta, y) \sim p(\theta, y), \qquad \theta_1, \dots, \theta_L \sim p(\theta \mid y) \;\Rightarrow\;
    \mathrm{rank}(\theta) = \#\{l : \theta_l < \theta\} \text{ is uniform on } 0, \dots, L

A routine whose posteriors are too narrow puts the true value too often at the ends; the log likelihood as a further
quantity notices a routine that ignores the data, which the latents' ranks do not.

Reference: Talts et al. 2018, arXiv:1804.06788; Modrák et al. 2023, arXiv:2211.02383; for the test Säilynoja et al.
2022, arXiv:2103.10522.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zsp.check.simulation import LOG_LIKELIHOOD, Quantity, Simulator, evaluate_quantities, own_random_state, scalars
from zsp.checks.wording import quoted, suggestion
from zsp.inference import diagnostics
from zsp.inference.uniformity import rank_law
from zsp.meta_bayesian_net import MetaBayesianNet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SBCResult", "sbc"]

MAX_DRAWS = 99
FEW = 0.05  # the share of simulations whose draws may be worth less than those ranked among

Values = dict[str, Tensor]


class SBCResult:
    """Ranks of true values among posterior draws, and whether they are uniform; it shows itself as a table.

    Attributes:
        ranks: quantity -> the rank in each simulation, from 0 to n_draws, shape [simulation].
        p_values: quantity -> p value of the hypothesis that its ranks are uniform.
        n_draws: L, the number of draws among which each true value was ranked.
        n_simulations: the number of simulations.
        ess: the smallest effective sample size of each simulation's latents, shape [simulation].
        false_alarm: the probability that a right routine fails, at most.
        passed: whether every p value is at least ``false_alarm`` over the number of quantities.
    """

    def __init__(self, ranks: Mapping[str, Tensor], *, n_draws: int, ess: Tensor, false_alarm: float) -> None:
        self.ranks = dict(ranks)
        self.n_draws = n_draws
        self.n_simulations = len(ess)
        self.ess = ess
        self.false_alarm = false_alarm
        law = rank_law(self.n_simulations, n_draws + 1)
        self.p_values = {label: law.p_value(law.counts(value.numpy())) for label, value in self.ranks.items()}

    @property
    def passed(self) -> bool:
        """Whether the ranks of all quantities may be uniform."""
        return not self.failures

    @property
    def failures(self) -> list[str]:
        """The quantities whose ranks are not uniform."""
        return [label for label, p in self.p_values.items() if p < self.false_alarm / len(self.p_values)]

    def problems(self) -> list[str]:
        """What may make ranks not uniform although the routine is right; empty where nothing was found."""
        n_low = int((self.ess < self.n_draws).sum())
        if n_low <= FEW * self.n_simulations:
            return []
        return [
            f"In {n_low} of {self.n_simulations} simulations the effective sample size is below the {self.n_draws} "
            f"draws that were ranked among (lowest {self.ess.min().item():.0f}): draws that depend on each other push "
            "ranks to the ends. Let the routine draw more, or give a smaller n_draws."
        ]

    def plot(self, names: Sequence[str] | None = None, *, title: str | None = None) -> Figure:
        """The ranks' ECDFs in bands that all of them stay in, with probability 1 - false_alarm, if they are uniform.

        Args:
            names: quantities; default all of them.
            title: of the picture.
        """
        from zsp import plots

        chosen = list(self.ranks) if names is None else list(names)
        if unknown := [name for name in chosen if name not in self.ranks]:
            raise ValueError(f"there are no ranks of {unknown[0]!r}, but of {quoted(self.ranks)}.")
        ranks = {name: self.ranks[name] for name in chosen}
        prob = 1 - self.false_alarm / len(self.ranks)
        return plots.calibration(ranks, self.n_draws + 1, prob=prob, title=title)

    def __repr__(self) -> str:
        lines = [
            f"SBC, {self.n_simulations} simulations, ranks among {self.n_draws} draws: "
            f"{'passed' if self.passed else 'failed'} at a false-alarm rate of {self.false_alarm:g} for all together"
        ]
        width = max(len(label) for label in self.ranks)
        lines.append(f"{'':{width}}  mean rank  sd of rank  p value")
        failures = set(self.failures)
        for label, ranks in self.ranks.items():
            share = (ranks.double() + 0.5) / (self.n_draws + 1)
            verdict = f"  <- {_verdict(share)}" if label in failures else ""
            p = f"{self.p_values[label]:7.2g}"
            lines.append(f"{label:{width}}  {share.mean().item():9.3f}  {share.std().item():10.3f}  {p}{verdict}")
        lines.append(f"{'uniform':{width}}  {0.5:9.3f}  {_uniform_sd(self.n_draws + 1):10.3f}")
        return "\n".join([*lines, *(f"! {problem}" for problem in self.problems())])


def sbc(
    meta_bn: MetaBayesianNet,
    inference: Callable[..., Mapping[str, Tensor]],
    *,
    data: Sequence[str] | str,
    n_simulations: int = 200,
    n_draws: int | None = None,
    latents: Sequence[str] | None = None,
    quantities: Mapping[str, Quantity] | None = None,
    batched: bool = False,
    false_alarm: float = 0.01,
    seed: int = 0,
    progress: bool = True,
) -> SBCResult:
    """Simulation-based calibration of an inference routine on a model.

    Latents and data are drawn from the model again and again, the routine is run on the data, and the true latents are
    ranked among its draws; where the routine is right, ranks are uniform. Judged are every scalar of the latents and
    the log likelihood of the data::

        def inference(observed, seed):
            return zsp.mcmc(model, observed, kernel=zsp.NUTS(), n_samples=250, progress=False, seed=seed)

        print(zsp.check.sbc(model, inference, data="y"))

    Draws of a chain depend on each other, and ranks among such draws are not uniform: each simulation's draws are
    thinned, evenly, to ``n_draws``, which is by default at most 99 and at most the effective sample size that 95% of
    the simulations reach.

    Args:
        meta_bn: the model.
        inference: from observed values, a dict from the data's names to tensors, to draws: a :class:`zsp.Draws`, or a
            dict from latents' names to tensors of shape [chain, draw, *shape] or [draw, *shape]. If it has a parameter
            ``seed``, it gets another whole number in every simulation; a routine that always takes the same one gives
            ranks that are not independent.
        data: names of the nodes that are observed.
        n_simulations: how often latents and data are drawn.
        n_draws: L, among how many draws each true value is ranked.
        latents: names of the latents to judge; default all. The log likelihood needs all of them.
        quantities: further scalar functions of a dict of one set of latents and data, by label.
        batched: whether ``inference`` is called once, with the data of all simulations, [simulation, *shape] each, and
            gives [simulation, chain, draw, *shape] or [simulation, draw, *shape]; see :func:`zsp.check.per_simulation`.
        false_alarm: the probability that a right routine fails the test, at most, all quantities together.
        seed: of every random number drawn here; the caller's random state is given back.
        progress: whether to show a progress bar.

    Returns:
        Ranks, p values, and whether the test is passed. The p values are exact: that of the most unlikely point of the
        ranks' ECDF; they are compared with ``false_alarm`` over the number of quantities (Bonferroni).

    Raises:
        ValueError: if names or shapes do not fit, or draws are not finite.
    """
    if n_simulations < 2 or not 0 < false_alarm < 1:
        raise ValueError(
            f"sbc needs two simulations or more and a false_alarm between 0 and 1, got {n_simulations} and "
            f"{false_alarm}."
        )
    with own_random_state(seed):
        simulator = Simulator(meta_bn, data)
        judged = _judged(simulator, latents)
        truth, observed = simulator.draw(n_simulations)
        run = _all_at_once if batched else _one_by_one
        parts = [
            _thinned(draws, {name: truth[name][i] for name in judged}, n_draws, i)
            for i, draws in enumerate(run(inference, observed, n_simulations, progress))
        ]
        ess = torch.tensor([part_ess for _, part_ess in parts], dtype=torch.float64)
        draws = {name: torch.stack([values[name] for values, _ in parts]) for name in judged}
        draws = _thinned_again(draws, ess, n_draws)
        functions = dict(quantities or {})
        if len(judged) == len(simulator.latents):
            functions = {LOG_LIKELIHOOD: simulator.log_likelihood, **functions}
        ranks = _ranks(truth, draws, observed, functions)
    return SBCResult(ranks, n_draws=next(iter(draws.values())).shape[1], ess=ess, false_alarm=false_alarm)


def _judged(simulator: Simulator, latents: Sequence[str] | None) -> tuple[str, ...]:
    if latents is None:
        return simulator.latents
    chosen = (latents,) if isinstance(latents, str) else tuple(latents)
    for name in chosen:
        if name not in simulator.latents:
            raise ValueError(
                f"latents names {name!r}, but the latents are {quoted(simulator.latents)}."
                f"{suggestion(name, simulator.latents)}"
            )
    return chosen


# -- running the routine ----------------------------------------------------------------------------------------------


def _one_by_one(
    inference: Callable[..., Mapping[str, Tensor]], observed: Values, n_simulations: int, progress: bool
) -> Any:
    from tqdm.auto import trange

    for i in trange(n_simulations, desc="simulations", disable=not progress):
        yield _call(inference, {name: value[i] for name, value in observed.items()})


def _all_at_once(
    inference: Callable[..., Mapping[str, Tensor]], observed: Values, n_simulations: int, progress: bool
) -> Any:
    draws = _call(inference, observed)
    for name, value in draws.items():
        if not value.dim() or value.shape[0] != n_simulations:
            raise ValueError(
                f"with batched=True the first axis of all draws is that of the {n_simulations} simulations, but "
                f"{name!r} has shape {list(value.shape)}."
            )
    for i in range(n_simulations):
        yield {name: value[i] for name, value in draws.items()}


def _call(inference: Callable[..., Mapping[str, Tensor]], observed: Values) -> Mapping[str, Tensor]:
    options = {}
    if "seed" in inspect.signature(inference).parameters:
        options["seed"] = int(torch.randint(2**31, ()).item())
    draws = inference(observed, **options)
    if not isinstance(draws, Mapping):
        raise TypeError(
            f"inference must return a zsp.Draws or a dict from names to draws, but it returned {type(draws).__name__}."
        )
    return draws


def _thinned(draws: Mapping[str, Tensor], truth: Values, n_draws: int | None, simulation: int) -> tuple[Values, float]:
    """Evenly spaced draws of one simulation, [draw, *shape], and the smallest effective sample size of all of them."""
    kept, lowest = {}, math.inf
    for name, true_value in truth.items():
        if name not in draws:
            raise ValueError(
                f"inference gave no draws of {name!r}, but of {quoted(draws)}. Name the latents to judge: "
                "latents=[...]."
            )
        value = draws[name].detach()
        n_leading = value.dim() - true_value.dim()
        if n_leading not in (1, 2) or value.shape[n_leading:] != true_value.shape:
            raise ValueError(
                f"draws of {name!r} must have shape [chain, draw, *{list(true_value.shape)}] or [draw, "
                f"*{list(true_value.shape)}], but inference gave {list(value.shape)}."
            )
        if not bool(value.isfinite().all()):
            raise ValueError(f"draws of {name!r} in simulation {simulation} are not finite.")
        value = value if n_leading == 2 else value[None]
        if value.numel():
            # fewer than four draws a chain say nothing; such chains are taken as independent draws
            ess = diagnostics.ess_bulk(value).nan_to_num(value.shape[0] * value.shape[1])
            lowest = min(lowest, ess.min().item())
        value = value.flatten(0, 1)
        n_kept = min(MAX_DRAWS, len(value)) if n_draws is None else n_draws
        if n_kept > len(value):
            raise ValueError(f"n_draws={n_draws}, but inference gave {len(value)} draws of {name!r} in all.")
        kept[name] = value[_evenly(len(value), n_kept)]
    return kept, lowest


def _thinned_again(draws: Values, ess: Tensor, n_draws: int | None) -> Values:
    """All simulations' draws, [simulation, draw, *shape], fewer of them where they are worth less."""
    n_kept = min(value.shape[1] for value in draws.values())
    if n_draws is None:
        n_kept = max(1, min(n_kept, int(ess.quantile(FEW).item())))
    return {name: value[:, _evenly(value.shape[1], n_kept)] for name, value in draws.items()}


def _evenly(n: int, n_kept: int) -> Tensor:
    return torch.linspace(0, n - 1, n_kept, dtype=torch.float64).round().long()


# -- ranks ------------------------------------------------------------------------------------------------------------


def _ranks(truth: Values, draws: Values, observed: Values, functions: Mapping[str, Quantity]) -> Values:
    """Quantity -> the true value's rank in every simulation, [simulation]."""
    ranks = {}
    for name, value in draws.items():
        for (label, among), (_, true_value) in zip(
            scalars(name, value, 2), scalars(name, truth[name].to(value.dtype), 1), strict=True
        ):
            ranks[label] = _rank(true_value, among)
    if functions:
        true_values, among_values = [], []
        for i in range(len(next(iter(truth.values())))):
            both = {name: torch.cat([truth[name][i : i + 1].to(v.dtype), v[i]]) for name, v in draws.items()}
            n = len(next(iter(both.values())))
            repeated = {name: value[i].expand(n, *value[i].shape) for name, value in observed.items()}
            found = evaluate_quantities(functions, both, repeated)
            true_values.append({label: value[0] for label, value in found.items()})
            among_values.append({label: value[1:] for label, value in found.items()})
        for label in functions:
            stacked = torch.stack([value[label] for value in among_values])
            ranks[label] = _rank(torch.stack([value[label] for value in true_values]), stacked)
    return ranks


def _rank(true_value: Tensor, among: Tensor) -> Tensor:
    """How many of the draws are smaller, [simulation]; draws equal to the true value count by chance."""
    smaller, equal = ((compare(among, true_value[:, None])).sum(1) for compare in (torch.lt, torch.eq))
    by_chance = (torch.rand(len(equal), dtype=torch.float64) * (equal.cpu() + 1)).floor().long()
    return smaller.cpu() + by_chance


def _uniform_sd(n_ranks: int) -> float:
    return math.sqrt((n_ranks**2 - 1) / 12) / n_ranks


def _verdict(share: Tensor) -> str:
    """What ranks like these come from, in words."""
    z_mean = (share.mean().item() - 0.5) * math.sqrt(12 * len(share))
    z_sd = (share.std().item() - 12**-0.5) * math.sqrt(15 * len(share))  # its standard error is 1 / sqrt(15 n)
    if abs(z_mean) < 3 and abs(z_sd) < 3:
        return "not uniform"
    if abs(z_mean) >= abs(z_sd):
        return "draws too low" if z_mean > 0 else "draws too high"
    return "draws too narrow" if z_sd > 0 else "draws too wide"
