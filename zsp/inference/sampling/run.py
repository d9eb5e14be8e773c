"""A run: warm-up, draws, checkpoints, and what comes back when it is interrupted."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from zsp.inference.draws import Deferred, Draws
from zsp.inference.log_density import LogDensity
from zsp.inference.sampling import metric as metrics
from zsp.inference.sampling.arrays import library, to_numpy
from zsp.inference.sampling.base_run import BaseRun, Plan
from zsp.inference.sampling.beginning import find_beginning
from zsp.inference.sampling.kernel import Density, Kernel, Rows, Tuning
from zsp.inference.sampling.metric import Metric, Moments, estimate_metric, unit_metric
from zsp.inference.sampling.runner import Runner, choose_block
from zsp.inference.sampling.store import Store
from zsp.inference.sampling.warmup import Window, schedule

__all__ = ["Run"]

COMPILED_FROM = 1000
"""Transitions of a run from which on compiling it pays."""

CHUNK = 2_000_000
"""Numbers of draws that are mapped to the constrained space at a time."""


class Run(BaseRun):
    """One run of a kernel that takes all data in every step."""

    def __init__(self, log_density: LogDensity, kernel: Kernel, plan: Plan) -> None:
        n_chains, n_warmup = plan.n_chains, plan.n_warmup
        n_transitions = plan.n_samples * plan.thin
        is_compiled = plan.is_compiled(n_warmup + n_transitions, COMPILED_FROM)
        self._log_density = log_density
        self._kernel = kernel
        self._n_chains = n_chains
        self._generator = torch.Generator(log_density.device).manual_seed(plan.seed)
        self._density = Density(log_density)
        n_numbers = n_chains * log_density.n_dims
        self._runner = Runner(kernel, self._density, self._generator, n_numbers, is_compiled)
        self._windows = [*schedule(n_warmup, kernel.adapts_mass), Window(n_transitions, estimates_mass=False)]
        self._n_total = sum(window.length for window in self._windows)
        self._n_draws = (self._n_total - n_transitions, plan.n_samples)
        self._warmup = Store(n_chains, self._n_draws[0], 1) if plan.keep_warmup else None
        self._draws = Store(n_chains, plan.n_samples, plan.thin)
        self._identity = plan.identity(repr(kernel), log_density, is_compiled)
        self._position = find_beginning(log_density, self._density, n_chains, plan.init, self._generator)
        self._first_log_density = self._density(self._position)[0]
        self._metric: Metric = unit_metric(
            kernel.mass_matrix if kernel.adapts_mass else "identity", self._position
        )
        self._window = 0
        self._count = torch.zeros(n_chains, dtype=torch.int64, device=log_density.device)
        self._n_steps = 0  # of this window
        self._moments = self._new_moments()
        self._n_divergent = 0
        self._seconds = {"warmup": 0.0, "sampling": 0.0, "compile": 0.0}
        step_size = torch.full((n_chains,), kernel.step_size, dtype=self._position.dtype, device=log_density.device)
        if kernel.adapt_step_size and n_warmup:
            step_size = self._search(step_size)
        self._begin(kernel.start_adaptation(step_size, self._position))

    # -- beginnings -------------------------------------------------------------------------------------------------

    def _search(self, first: Tensor) -> Tensor:
        momentum = torch.randn(
            self._position.shape, dtype=first.dtype, device=first.device, generator=self._generator
        )
        return self._kernel.find_step_size(self._density, self._position, self._metric, first, momentum)

    def _begin(self, step_size: Any) -> None:
        with torch.no_grad():
            self._state = self._kernel.begin(self._density, self._position, self._metric, step_size, self._generator)

    def _new_moments(self) -> Moments | None:
        if not self._windows[self._window].estimates_mass:
            return None
        is_diagonal = self._kernel.mass_matrix == "diagonal"
        return Moments(self._log_density.n_dims, is_diagonal, self._log_density.device)

    # -- going on ---------------------------------------------------------------------------------------------------

    def _close(self) -> None:
        self._runner.close()

    def _go_on(self, bar: Any) -> None:
        """A block of steps, and how long it took, without what was compiled for it."""
        part = "warmup" if self._window < len(self._windows) - 1 else "sampling"
        start, compiled_before = time.perf_counter(), self._runner.compile_seconds
        self._block(bar)
        compiling = self._runner.compile_seconds - compiled_before
        self._seconds["compile"] += compiling
        self._seconds[part] += time.perf_counter() - start - compiling

    def _block(self, bar: Any) -> None:
        """A block of steps, and the end of the window if every chain has made its transitions."""
        window = self._windows[self._window]
        is_warmup = self._window < len(self._windows) - 1
        like = self._position
        tuning = Tuning(
            self._metric,
            like.new_tensor(self._kernel.target_acceptance_rate),
            like.new_tensor(float(is_warmup and self._kernel.adapts)),
        )
        n_made, most_made = self._count.aminmax()
        n_steps, n_trajectories = choose_block(
            window.length - int(n_made), int(n_made), int(most_made), self._n_steps, self._runner.most_steps
        )
        made: list[Rows] = []
        n_ended = torch.zeros_like(self._count)
        try:
            with torch.no_grad():
                pieces = self._runner.block(self._state, like, tuning, n_steps, n_trajectories)
                for state, rows, n_in_piece in pieces:
                    self._state = state
                    self._n_steps += n_in_piece
                    if rows is not None:
                        made.append(rows._replace(number=rows.number + n_ended[rows.chain]))
                        n_ended = n_ended + rows.chain.bincount(minlength=self._n_chains)
                    self._show(bar)
                    bar.update(self._n_made(n_ended) - bar.n)
        finally:  # also what was made when it is interrupted
            if made:
                all_rows = made[0] if len(made) == 1 else tree_map(lambda *pieces: torch.cat(pieces), *made)
                self._take(all_rows, n_ended, window, is_warmup)
        self._show(bar)
        if int(self._count.min()) >= window.length:
            self._end_window(window)

    def _take(self, made: Rows, n_ended: Tensor, window: Window, is_warmup: bool) -> None:
        """Store transitions, of which each chain has made so many."""
        if self._moments is not None:
            self._moments.add(made.position, self._metric.unpull(made.force))
        is_last = made.number == n_ended[made.chain] - 1
        last = self._position.index_copy(0, made.chain[is_last], made.position[is_last])
        count = self._count
        if count.device.type == "cpu":  # indexing a few numbers takes numpy a tenth of torch's time
            made, count = to_numpy((made, count))
        number = count[made.chain] + made.number
        if not is_warmup:
            self._draws.add(number, made)
            self._n_divergent += int((made.info.is_divergent != 0).sum())
        elif self._warmup is not None:
            before = sum(w.length for w in self._windows[: self._window])
            self._warmup.add(library(number).where(number < window.length, number + before, -1), made)
        self._position = last
        # last, so that an interrupt finds nothing counted that is not stored
        self._count = self._count + n_ended

    def _end_window(self, window: Window) -> None:
        self._window += 1
        if self._window == len(self._windows):
            return
        step_size = self._state.step_size
        if self._moments is not None:
            before = self._metric
            self._metric = estimate_metric(
                self._moments, self._kernel.mass_matrix, self._kernel.mass_estimate, self._position.dtype
            )
            if self._kernel.adapts:
                first = step_size.log_average.exp()
                first = self._search(first) if self._kernel.adapt_step_size else first
                step_size = self._kernel.restart_adaptation(step_size, first, self._position, before, self._metric)
        if self._window == len(self._windows) - 1:
            step_size = step_size.finish()
        self._count = torch.zeros_like(self._count)
        self._n_steps = 0
        self._moments = self._new_moments()
        if window.estimates_mass or self._window == len(self._windows) - 1:
            self._begin(step_size)

    @property
    def n_made(self) -> int:
        """Transitions that the slowest chain has made."""
        return self._n_made()

    def _n_made(self, n_ended: Tensor | int = 0) -> int:
        """The same, if so many have ended in each chain that are not taken yet."""
        if self._window == len(self._windows):
            return self._n_total
        done = sum(window.length for window in self._windows[: self._window])
        return done + min(int((self._count + n_ended).min()), self._windows[self._window].length)

    def _interrupt(self) -> None:
        n_draws = int(self._count.min()) if self._window >= len(self._windows) - 1 else 0
        n_kept = min(n_draws // self._draws._thin, self._n_draws[1])
        if not n_kept:
            raise KeyboardInterrupt("interrupted in the warm-up, before there was a draw to return") from None
        self._draws.rows = {name: rows[:, :n_kept] for name, rows in self._draws.rows.items()}
        self._n_draws = (self._n_draws[0], n_kept)
        warnings.warn(f"interrupted: {n_kept} draws of each chain were made and are returned.", stacklevel=4)

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def _content(self) -> dict[str, Any]:
        moments = self._moments
        return {
            "run": self._identity,
            "first_log_density": self._first_log_density,
            "window": self._window,
            "count": self._count,
            "n_steps": self._n_steps,
            "position": self._position,
            "n_divergent": self._n_divergent,
            "seconds": self._seconds,
            "random": self._generator.get_state(),
            "metric": (type(self._metric).__name__, list(self._metric)),
            "state": tree_flatten(self._state)[0],
            "moments": None if moments is None else [moments.count, moments.mean, moments.scatter],
            "draws": self._draws.rows,
            "warmup": None if self._warmup is None else self._warmup.rows,
        }

    def _load(self, content: dict[str, Any]) -> None:
        self._window = content["window"]
        self._count = content["count"]
        self._n_steps = content["n_steps"]
        self._position = content["position"]
        self._n_divergent = content["n_divergent"]
        self._seconds = content["seconds"]
        self._generator.set_state(content["random"])
        name, leaves = content["metric"]
        self._metric = getattr(metrics, name)(*leaves)
        self._state = tree_unflatten(content["state"], tree_flatten(self._state)[1])
        if content["moments"] is not None:
            self._moments = self._new_moments()
            assert self._moments is not None
            self._moments.count, self._moments.mean, self._moments.scatter = content["moments"]
        self._draws.rows = content["draws"]
        if self._warmup is not None:
            self._warmup.rows = content["warmup"]

    # -- what comes out ---------------------------------------------------------------------------------------------

    def draws(self, observed: Mapping[str, Any]) -> Draws:
        """The draws, in the constrained space."""
        warmup = None
        if self._warmup is not None and self._warmup.rows:
            warmup = self._constrained(self._warmup, {})
        values = {name: value for name, value in observed.items() if isinstance(value, Tensor)}
        return self._constrained(self._draws, values, warmup)

    def _constrained(self, store: Store, observed: Mapping[str, Tensor], warmup: Draws | None = None) -> Draws:
        rows = dict(store.rows)
        position = rows.pop("position")
        log_density = self._log_density
        # a bound on what is computed at a time, in numbers of draws
        chunk = max(1, CHUNK // log_density.n_dims)
        found = log_density.evaluate(position, chunk_size=chunk, with_log_likelihood=False)
        return Draws(
            {**found.values, **found.deterministic},
            info=rows,
            deterministic=list(found.deterministic),
            log_likelihood=Deferred(lambda: log_density.evaluate(position, chunk_size=chunk).log_likelihood),
            observed=observed,
            warmup=warmup,
            seconds=self._seconds,
        )

    def _show(self, bar: Any) -> None:
        is_warmup = self._window < len(self._windows) - 1
        step_size = self._state.step_size.log_step_size.exp().median().item()
        bar.set_description_str("mcmc, warm-up" if is_warmup else "mcmc, sampling", refresh=False)
        bar.set_postfix({"step size": f"{step_size:.3g}", "divergences": self._n_divergent}, refresh=False)
