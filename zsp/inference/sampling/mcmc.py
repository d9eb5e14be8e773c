"""The run loop: warm-up, draws, checkpoints, and what comes back when it is interrupted."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.distributions.constraints import Constraint
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from zsp.inference.draws import Deferred, Draws
from zsp.inference.log_density import LogDensity
from zsp.inference.sampling import metric as metrics
from zsp.inference.sampling.arrays import Array, library, to_numpy, to_torch
from zsp.inference.sampling.beginning import find_beginning
from zsp.inference.sampling.checkpoint import read_checkpoint, write_checkpoint
from zsp.inference.sampling.kernel import Density, Kernel, Transitions, Tuning
from zsp.inference.sampling.metric import Metric, Moments, estimate_metric, unit_metric
from zsp.inference.sampling.runner import Runner, choose_block
from zsp.inference.sampling.stochastic.kernel import StochasticGradientKernel
from zsp.inference.sampling.stochastic.run import sample_with_minibatches
from zsp.inference.sampling.stochastic.running import RunningPredictions
from zsp.inference.sampling.warmup import Window, schedule
from zsp.inference.variational.objective import LogJoint

__all__ = ["mcmc"]

COMPILED_FROM = 1000
"""Transitions of a run from which on compiling it pays."""

CHUNK = 2_000_000
"""Numbers of draws that are mapped to the constrained space at a time."""


def mcmc(
    meta_bn: LogJoint,
    observed: Mapping[str, Any] | Iterable[Any],
    *,
    kernel: Kernel | StochasticGradientKernel,
    n_samples: int = 1000,
    n_warmup: int = 1000,
    n_chains: int = 4,
    seed: int = 0,
    init: Mapping[str, Any] | None = None,
    latents: Iterable[str] | Mapping[str, Tensor] | None = None,
    supports: Mapping[str, Constraint] | None = None,
    thin: int = 1,
    keep_warmup: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 100,
    resume: bool = False,
    progress: bool = True,
    compile: bool | str = "auto",
    batch_size: int | None = None,
    predict: RunningPredictions | None = None,
    control_variates: Mapping[str, Any] | None = None,
) -> Draws:
    r"""Draws from a posterior by Markov chain Monte Carlo, all chains at once.

    ::

        draws = zsp.mcmc(model, {"y": y}, kernel=zsp.NUTS())
        print(draws.summary())

    The chains are an axis that the model never sees. Latents are sampled in an unconstrained space, to which every
    node's support is mapped with the values that its parents have; the draws are in the constrained space.

    In the warm-up, step sizes are adapted for each chain and the mass matrix from the draws of all chains together, in
    windows (Stan's schedule); a chain that is faster than the others goes on meanwhile. Then both stay as they are.

    The stochastic-gradient kernels (:class:`zsp.SGLD`, :class:`zsp.PSGLD`, :class:`zsp.SGHMC`, :class:`zsp.SGNHT`) take
    one mini-batch a step, all chains the same::

        draws = zsp.mcmc(model, {"x": x, "y": y}, batch_size=100, kernel=zsp.SGHMC(1e-6), n_chains=20)
        draws = zsp.mcmc(model, loader, kernel=zsp.SGHMC(1e-6), n_chains=20)

    The nodes that a mini-batch observes say with ``total_size`` how many data there are. The warm-up is then burn-in:
    nothing is adapted in it that would not be adapted after it. The draws are of the latents only, for other nodes
    depend on the mini-batch: see :func:`zsp.predict` and ``predict``.

    Args:
        meta_bn: the model, or a callable from one dict of values, latents and observed ones merged, to the log joint.
        observed: node name -> value; a key that names a parameter of the model function rebinds that input. For the
            stochastic-gradient kernels also an iterable of such mappings, mini-batches, which is begun anew when it
            ends, a DataLoader for example. To resume, it must give the same mini-batches from the same state of torch's
            random numbers.
        kernel: what makes the transitions, for example ``zsp.NUTS()``.
        n_samples: draws that are kept of every chain.
        n_warmup: transitions of every chain before them, at least.
        n_chains: number of chains.
        seed: of all random numbers; the same seed gives the same draws on the same machine.
        init: latent name -> where the chains begin, [chain, \*shape], constrained; default uniform(-2, 2) in the
            unconstrained space.
        latents: names to sample, default every unobserved stochastic node; for a callable a dict of example tensors,
            one chain's shape each.
        supports: for a callable, latent name -> constraint.
        thin: every thin-th transition is kept.
        keep_warmup: whether to keep the warm-up's draws, as ``draws.warmup``.
        checkpoint: a file to write the state of the run to, every ``checkpoint_every`` transitions of the slowest
            chain or a little later, for up to about 64 of them are made between two looks.
        checkpoint_every: see there.
        resume: whether to go on from ``checkpoint`` where that file exists; the result is that of a run that was not
            stopped, bit for bit.
        progress: whether to show a progress bar.
        compile: whether to compile the kernel's steps; "auto" does for runs of at least 1,000 transitions, or 50,000
            steps of a stochastic-gradient kernel. What cannot be compiled runs eagerly, with a warning that says why.
        batch_size: for the stochastic-gradient kernels, of the mini-batches of random rows of all tensors in
            ``observed``; default all of them in every step.
        predict: for the stochastic-gradient kernels, predictions to average over all draws; the last draw alone is then
            kept, for models whose draws would be too large.
        control_variates: for the stochastic-gradient kernels, latent name -> value, a point near the mode at which the
            gradient of all data is computed once, so that mini-batches have less noise near it; see
            :class:`zsp.ControlVariates`.

    Returns:
        The draws, and in ``draws.seconds`` how long warm-up, sampling and compiling took. After a KeyboardInterrupt
        the draws made so far, with a warning.

    Raises:
        ValueError: if a latent cannot be sampled, shapes or names do not fit, no beginning with a finite log density is
            found, or the checkpoint is another run's.
    """
    _require_numbers(
        n_samples=(n_samples, 1), n_warmup=(n_warmup, 0), n_chains=(n_chains, 1), thin=(thin, 1),
        checkpoint_every=(checkpoint_every, 1),
    )  # fmt: skip
    if not isinstance(kernel, Kernel | StochasticGradientKernel):
        raise TypeError(f"kernel must be a kernel such as zsp.NUTS(), got {kernel!r}.")
    if resume and checkpoint is None:
        raise ValueError("resume=True needs the checkpoint file to go on from: checkpoint=path.")
    if compile not in (True, False, "auto"):
        raise ValueError(f"compile must be True, False or 'auto', got {compile!r}.")
    if isinstance(kernel, StochasticGradientKernel):
        return sample_with_minibatches(
            meta_bn, observed, kernel=kernel, batch_size=batch_size, predict=predict,
            control_variates=control_variates, n_samples=n_samples, n_warmup=n_warmup, n_chains=n_chains, seed=seed,
            init=init, latents=latents, supports=supports, thin=thin, keep_warmup=keep_warmup, checkpoint=checkpoint,
            checkpoint_every=checkpoint_every, resume=resume, progress=progress, compile=compile,
        )  # fmt: skip
    observed = _require_all_data(
        kernel, observed, batch_size=batch_size, predict=predict, control_variates=control_variates
    )
    log_density = LogDensity(meta_bn, observed, latents=latents, supports=supports)
    is_compiled = n_warmup + n_samples * thin >= COMPILED_FROM if compile == "auto" else bool(compile)
    run = _Run(
        log_density.prepare(n_chains), kernel, n_samples, n_warmup, n_chains, seed, init, thin, keep_warmup, is_compiled
    )
    run.sample(checkpoint, checkpoint_every, resume, progress)
    draws = run.draws(observed)
    draws.warn(stacklevel=3)
    return draws


def _require_all_data(kernel: Kernel, observed: Any, **for_minibatches: Any) -> Mapping[str, Any]:
    """What was observed, all of it."""
    name = next((name for name, value in for_minibatches.items() if value is not None), None)
    if isinstance(observed, Mapping) and name is None:
        return observed
    what = f"{name}=" if name else "an iterable of mini-batches"
    raise TypeError(
        f"{type(kernel).__name__} needs the gradient of all data in every step, but got {what}. Give observed as one "
        "mapping of all data, or take a kernel for mini-batches: zsp.SGHMC(learning_rate), zsp.SGLD(learning_rate)."
    )


def _require_numbers(**numbers: tuple[int, int]) -> None:
    for name, (number, least) in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {number!r}.")


class _Store:
    """What is kept of the transitions of one part of a run: name -> [chain, draw, ...]."""

    def __init__(self, n_chains: int, n_draws: int, thin: int) -> None:
        self._n_chains, self._n_draws, self._thin = n_chains, n_draws, thin
        self.rows: dict[str, Tensor] = {}

    def add(self, number: Array, step: Array, chain: Array, ended: Transitions) -> None:
        """Keep transitions of a block: each of a chain that made it in a step, and numbered in its chain from 0."""
        is_kept = (number >= 0) & (number < self._n_draws * self._thin) & (number % self._thin == self._thin - 1)
        number, step, chain = number[is_kept], step[is_kept], chain[is_kept]
        slot = number // self._thin
        for name, values in {"position": ended.position, **ended.info._asdict()}.items():
            if name not in self.rows:
                shape = (self._n_chains, self._n_draws, *values.shape[2:])
                self.rows[name] = to_torch(values).new_zeros(shape)
            rows = self.rows[name]
            (rows.numpy() if library(values) is numpy else rows)[chain, slot] = values[step, chain]


class _Run:
    """One run of :func:`mcmc`: what a checkpoint holds, and how it goes on."""

    def __init__(
        self,
        log_density: LogDensity,
        kernel: Kernel,
        n_samples: int,
        n_warmup: int,
        n_chains: int,
        seed: int,
        init: Mapping[str, Any] | None,
        thin: int,
        keep_warmup: bool,
        is_compiled: bool,
    ) -> None:
        self._log_density = log_density
        self._kernel = kernel
        self._n_chains = n_chains
        self._generator = torch.Generator(log_density.device).manual_seed(seed)
        self._density = Density(log_density)
        n_numbers = n_chains * log_density.n_dims
        self._runner = Runner(kernel, self._density, self._generator, n_numbers, is_compiled)
        self._windows = [*schedule(n_warmup, kernel.adapts_mass), Window(n_samples * thin, estimates_mass=False)]
        self._n_draws = (sum(window.length for window in self._windows[:-1]), n_samples)
        self._warmup = _Store(n_chains, self._n_draws[0], 1) if keep_warmup else None
        self._draws = _Store(n_chains, n_samples, thin)
        self._identity = {
            "kernel": repr(kernel), "n_samples": n_samples, "n_warmup": n_warmup, "n_chains": n_chains, "seed": seed,
            "thin": thin, "keep_warmup": keep_warmup, "is_compiled": is_compiled,
            "latents": {name: list(shape) for name, shape in log_density.shapes.items()},
        }  # fmt: skip
        self._position = find_beginning(log_density, self._density, n_chains, init, self._generator)
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

    def sample(
        self, checkpoint: str | os.PathLike[str] | None, checkpoint_every: int, resume: bool, progress: bool
    ) -> None:
        """Go on to the end."""
        if checkpoint is not None and resume and os.path.exists(checkpoint):
            self._load(read_checkpoint(checkpoint, self._identity, self._first_log_density))
        written = self._n_made()
        with self._bar(progress) as bar:
            try:
                while self._window < len(self._windows):
                    self._timed_block(bar)
                    if checkpoint is not None and self._n_made() - written >= checkpoint_every:
                        written = self._n_made()
                        write_checkpoint(checkpoint, self._content())
            except KeyboardInterrupt:
                self._interrupt()

    def _timed_block(self, bar: Any) -> None:
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
        rows: list[Transitions] = []
        n_ended = torch.zeros_like(self._count)
        try:
            with torch.no_grad():
                parts = self._runner.block(self._state, like, tuning, n_steps, n_trajectories)
                for state, ended, n_part in parts:
                    self._state = state
                    self._n_steps += n_part
                    if ended is not None:
                        rows.append(ended)
                        n_ended = n_ended + ended.is_done.sum(0)
                    self._show(bar)
                    bar.update(self._n_made(n_ended) - bar.n)
        finally:  # also what was made when it is interrupted
            if rows:
                self._take(tree_map(lambda *parts: torch.cat(parts), *rows), window, is_warmup)
        self._show(bar)
        if int(self._count.min()) >= window.length:
            self._end_window(window)

    def _take(self, ended: Transitions, window: Window, is_warmup: bool) -> None:
        count = self._count
        if count.device.type == "cpu":  # indexing a few numbers takes numpy a tenth of torch's time
            ended, count = to_numpy((ended, count))
        xp = library(count)
        step, chain = xp.where(ended.is_done)
        number = count[chain] + xp.cumsum(ended.is_done, 0)[step, chain] - 1
        if self._moments is not None:
            draws, forces = to_torch((ended.position[step, chain], ended.force[step, chain]))
            self._moments.add(draws, self._metric.unpull(forces))
        if not is_warmup:
            self._draws.add(number, step, chain, ended)
            self._n_divergent += int((ended.info.is_divergent[step, chain] != 0).sum())
        elif self._warmup is not None:
            before = sum(w.length for w in self._windows[: self._window])
            self._warmup.add(xp.where(number < window.length, number + before, -1), step, chain, ended)
        is_last = number == (count + ended.is_done.sum(0) - 1)[chain]
        step, chain = step[is_last], chain[is_last]
        position, step, chain = to_torch((ended.position[step, chain], step, chain))
        self._position = self._position.index_copy(0, chain, position)
        # last, so that an interrupt finds nothing counted that is not stored
        self._count = self._count + to_torch(ended.is_done).sum(0)

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

    def _n_made(self, n_ended: Tensor | int = 0) -> int:
        """Transitions that the slowest chain has made, if so many have ended that are not taken yet."""
        if self._window == len(self._windows):
            return sum(window.length for window in self._windows)
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

    def _constrained(self, store: _Store, observed: Mapping[str, Tensor], warmup: Draws | None = None) -> Draws:
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

    @contextmanager
    def _bar(self, progress: bool) -> Iterator[Any]:
        from tqdm.auto import tqdm

        total = sum(window.length for window in self._windows)
        with tqdm(total=total, initial=self._n_made(), desc="mcmc", disable=not progress) as bar:
            yield bar

    def _show(self, bar: Any) -> None:
        is_warmup = self._window < len(self._windows) - 1
        step_size = self._state.step_size.log_step_size.exp().median().item()
        bar.set_description_str("mcmc, warm-up" if is_warmup else "mcmc, sampling", refresh=False)
        bar.set_postfix({"step size": f"{step_size:.3g}", "divergences": self._n_divergent}, refresh=False)
