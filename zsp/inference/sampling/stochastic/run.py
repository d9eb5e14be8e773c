"""The run loop of the stochastic-gradient kernels: mini-batches, burn-in, draws, streaming predictions, checkpoints."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions.constraints import Constraint
from torch.utils._pytree import tree_flatten, tree_unflatten

from zsp.execution import checked
from zsp.inference.draws import Deferred, Draws
from zsp.inference.log_density import LogDensity
from zsp.inference.sampling.base_run import BaseRun, Plan, Saving
from zsp.inference.sampling.beginning import find_beginning
from zsp.inference.sampling.stochastic.control_variates import ControlVariates
from zsp.inference.sampling.stochastic.density import BatchDensity
from zsp.inference.sampling.stochastic.kernel import StochasticGradientKernel
from zsp.inference.sampling.stochastic.minibatches import Minibatches, minibatches_of
from zsp.inference.sampling.stochastic.runner import Block, StochasticRunner
from zsp.inference.sampling.stochastic.running import RunningPredictions
from zsp.inference.sampling.stochastic.scale import ROWS_AT_ONCE, require_scale
from zsp.inference.variational.objective import LogJoint

__all__ = ["StochasticRun", "sample_with_minibatches"]

COMPILED_FROM = 50_000
"""Steps of a run from which on compiling it pays: a step is one gradient."""

CHUNK = 2_000_000
"""Numbers of draws that are mapped to the constrained space at a time."""


def sample_with_minibatches(
    meta_bn: LogJoint,
    observed: Mapping[str, Any] | Iterable[Any],
    kernel: StochasticGradientKernel,
    plan: Plan,
    saving: Saving,
    *,
    batch_size: int | None,
    predict: RunningPredictions | None,
    control_variates: Mapping[str, Any] | None,
    latents: Iterable[str] | Mapping[str, Tensor] | None,
    supports: Mapping[str, Constraint] | None,
    progress: bool,
) -> Draws:
    """What :func:`zsp.mcmc` does with a stochastic-gradient kernel; see there."""
    if predict is not None and not isinstance(predict, RunningPredictions):
        raise TypeError(
            f"predict must be zsp.RunningPredictions(function), which keeps the averages, got {predict!r}."
        )
    with torch.random.fork_rng(_cuda_devices()):  # what a DataLoader draws is drawn from torch's default generator
        of_data = torch.Generator().manual_seed(plan.seed)
        torch.manual_seed(int(torch.randint(2**62, (), generator=of_data)))
        minibatches = minibatches_of(observed, batch_size, of_data)
        example = minibatches.example or observed
        assert isinstance(example, Mapping)
        log_density = LogDensity(meta_bn, example, latents=latents, supports=supports).prepare(plan.n_chains)
        n_data = require_scale(log_density, minibatches.example, observed) if minibatches.example else None
        control = None
        if control_variates is not None:
            center = log_density.unconstrain(control_variates)
            control = ControlVariates.of_parts(_parts(log_density, observed, batch_size, n_data), center[None])
        run = StochasticRun(log_density, kernel, minibatches, plan, predict, control)
        run.sample(saving, progress)
    draws = run.draws(observed)
    run.warn(draws)
    return draws


def _parts(
    log_density: LogDensity, observed: Mapping[str, Any] | Iterable[Any], batch_size: int | None, n_data: int | None
) -> Iterator[tuple[int, LogDensity]]:
    """The log densities of parts that together are all data, as many as the model says."""
    if isinstance(observed, Mapping) and batch_size is None:
        yield 1, log_density
    elif isinstance(observed, Mapping):
        n = len(next(iter(observed.values())))
        for start in range(0, n, ROWS_AT_ONCE):
            part = {name: value[start : start + ROWS_AT_ONCE] for name, value in observed.items()}
            yield min(ROWS_AT_ONCE, n - start), log_density.rebind(part)
    else:
        batch: Any
        n_seen = 0
        for batch in observed:
            n = len(next(iter(batch.values())))
            n_seen += n
            if n_data is not None and n_seen > n_data:
                raise ValueError(
                    f"control_variates need the gradient of all data, total_size={n_data}, but the mini-batches go on "
                    f"after as many (to {n_seen} or more). Give an iterable that goes through the data once and ends, "
                    "such as a DataLoader or a list."
                )
            yield n, log_density.rebind(batch)


class _Store:
    """What is kept of some steps: positions [chain, draw, D], and name -> [chain, draw] of what was reported."""

    def __init__(self, n_draws: int, like: Tensor) -> None:
        self.n_kept = 0
        self.position = like.new_empty(len(like), n_draws, like.shape[1])
        self.info: dict[str, Tensor] = {}

    def add(self, position: Tensor, info: dict[str, Tensor]) -> None:
        n_chains, n_draws = self.position.shape[:2]
        slot = self.n_kept % n_draws  # streaming predictions keep the last draw only
        self.position[:, slot] = position
        for name, value in info.items():
            if name not in self.info:
                self.info[name] = value.new_zeros(n_chains, n_draws)
            self.info[name][:, slot] = value
        self.n_kept += 1

    def state(self) -> dict[str, Any]:
        return {"n_kept": self.n_kept, "position": self.position, "info": self.info}

    def restore(self, state: dict[str, Any]) -> None:
        self.n_kept, self.position, self.info = state["n_kept"], state["position"], state["info"]


class StochasticRun(BaseRun):
    """One run of a kernel that takes a mini-batch in every step."""

    def __init__(
        self,
        log_density: LogDensity,
        kernel: StochasticGradientKernel,
        minibatches: Minibatches,
        plan: Plan,
        predict: RunningPredictions | None = None,
        control: ControlVariates | None = None,
    ) -> None:
        self._log_density = log_density
        self._kernel = kernel
        self._minibatches = minibatches
        self._plan = plan
        self._predict = predict
        self._generator = torch.Generator(log_density.device).manual_seed(plan.seed)
        self._devices = _cuda_devices()
        self._control = control
        density = BatchDensity(self._evaluate)
        first = density.traced_at(dict(minibatches.example))
        self._position = find_beginning(log_density, first, plan.n_chains, plan.init, self._generator)
        self._n_total = self._find_n_total()
        is_compiled = plan.is_compiled(self._n_total, COMPILED_FROM)
        self._runner = StochasticRunner(kernel, density, minibatches, self._generator, is_compiled)
        self._identity = {
            **plan.identity(re.sub(r" at 0x[0-9a-f]+", "", repr(kernel)), log_density, is_compiled),
            "predicts": predict is not None, "control variates": control is not None,
            "mini-batch": {name: list(value.shape) for name, value in minibatches.example.items()},
        }  # fmt: skip
        self._first_log_density = first(self._position)[0]
        self._state = kernel.begin(self._position, self._generator)
        self.n_steps = 0
        self._n_eligible = 0  # steps after the burn-in that the schedule lets make draws
        self._draws = _Store(1 if predict is not None else plan.n_samples, self._position)
        self._warmup = _Store(plan.n_warmup, self._position) if plan.keep_warmup and plan.n_warmup else None
        if predict is not None:
            predict.clear()

    def _evaluate(self, position: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """The log density of a mini-batch; that of all data where there are none."""
        of_batch = self._log_density.rebind(batch) if batch else self._log_density
        return of_batch(position) if self._control is None else self._control(of_batch)(position)

    def _find_n_total(self) -> int:
        """Steps until all draws are made."""
        n_wanted = self._plan.n_samples * self._plan.thin
        if self._kernel.schedule is None:
            return self._plan.n_warmup + n_wanted
        n_found, step = 0, self._plan.n_warmup
        while n_found < n_wanted:
            n_found += self._kernel.stage(step).is_kept
            step += 1
            if not n_found and step - self._plan.n_warmup > 10_000_000:
                raise ValueError(
                    "the schedule lets none of ten million steps make a draw: its Stage must have is_kept=True in some."
                )
        return step

    # -- going on -----------------------------------------------------------------------------------------------------

    @property
    def n_made(self) -> int:
        """Steps."""
        return self.n_steps

    def _go_on(self, bar: Any) -> None:
        self.advance()
        self._show(bar)
        bar.update(self.n_steps - bar.n)

    def _close(self) -> None:
        """Nothing runs beside it."""

    def advance(self) -> None:
        """A block of steps, and what is kept of them."""
        n_steps = min(self._runner.block_length(self.n_steps, self._position), self._n_total - self.n_steps)
        before = self._state.position
        block = self._runner.block(self._state, self.n_steps, n_steps)
        if not block.positions[-1].isfinite().all():
            self._explain(before, block)
        for i in range(n_steps):
            self._take(self.n_steps + i, block, i)
        self._state = block.state
        self.n_steps += n_steps

    def _take(self, step: int, block: Block, i: int) -> None:
        """Keep what the i-th step of a block made, if it is one to keep."""
        if step < self._plan.n_warmup:
            if self._warmup is not None:
                self._warmup.add(block.positions[i], self._report(block.info, i, step))
            return
        if self._kernel.schedule is not None and not self._kernel.stage(step).is_kept:
            return
        self._n_eligible += 1
        if self._n_eligible % self._plan.thin == 0:
            position = block.positions[i]
            self._draws.add(position, self._report(block.info, i, step))
            if self._predict is not None:
                with torch.random.fork_rng(self._devices):  # mini-batches go on as if nothing had been drawn
                    torch.manual_seed(self._plan.seed + 1 + step)
                    self._predict.add(self._log_density.constrain(position))

    def _report(self, info: Any, i: int, step: int) -> dict[str, Tensor]:
        rows = {name: values[i] for name, values in info._asdict().items()}
        rate = self._kernel.learning_rate * self._kernel.stage(step).factor
        return {**rows, "learning_rate": torch.full_like(rows["log_density"], rate)}

    def _explain(self, before: Tensor, block: Block) -> None:
        """Raise for the first step that left the numbers, and name the node that is to blame if there is one."""
        is_bad = [~position.isfinite().all(-1) for position in block.positions]
        i = next(i for i, bad in enumerate(is_bad) if bad.any())
        bad = is_bad[i]
        chain = int(bad.nonzero()[0])
        last = (before if i == 0 else block.positions[i - 1])[chain]
        where = f"in step {self.n_steps + i} {int(bad.sum())} of {len(bad)} chains left the numbers"
        try:
            with checked(), torch.no_grad():
                self._log_density.evaluate(last)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}: {error}") from error
        raise ValueError(
            f"{where}: chain {chain} was at positions of size up to {last.abs().max():.3g} before. The gradient is of "
            f"the log joint of all data, so that learning_rate ({self._kernel.learning_rate:g}) has to be small "
            "against the smallest variance of the posterior: divide it by 10, or begin near the mode (init=...)."
        )

    def _interrupt(self) -> None:
        n_kept = min(self._draws.n_kept, self._draws.position.shape[1])
        if not n_kept:
            raise KeyboardInterrupt("interrupted in the burn-in, before there was a draw to return") from None
        self._draws.position = self._draws.position[:, :n_kept]
        self._draws.info = {name: rows[:, :n_kept] for name, rows in self._draws.info.items()}
        warnings.warn(
            f"interrupted: {self._draws.n_kept} draws of each chain were made and are returned.", stacklevel=5
        )

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _content(self) -> dict[str, Any]:
        return {
            "run": self._identity,
            "first_log_density": self._first_log_density,
            "step": self.n_steps,
            "n_eligible": self._n_eligible,
            "state": tree_flatten(self._state)[0],
            "random": self._generator.get_state(),
            "minibatches": self._minibatches.state(),
            "draws": self._draws.state(),
            "warmup": None if self._warmup is None else self._warmup.state(),
            "predictions": None if self._predict is None else self._predict.state(),
        }

    def _load(self, content: dict[str, Any]) -> None:
        self.n_steps, self._n_eligible = content["step"], content["n_eligible"]
        self._state = tree_unflatten(content["state"], tree_flatten(self._state)[1])
        self._generator.set_state(content["random"])
        self._minibatches.restore(content["minibatches"])
        self._draws.restore(content["draws"])
        if self._warmup is not None:
            self._warmup.restore(content["warmup"])
        if self._predict is not None:
            self._predict.restore(content["predictions"])

    # -- what comes out -----------------------------------------------------------------------------------------------

    def draws(self, observed: Mapping[str, Any] | Iterable[Any]) -> Draws:
        """The draws, in the constrained space."""
        log_density, position = self._log_density, self._draws.position
        chunk = max(1, CHUNK // log_density.n_dims)
        if not isinstance(observed, Mapping):
            return self._constrained(self._draws, self._constrained_warmup())
        whole = log_density.rebind(observed)
        log_likelihood = Deferred(lambda: whole.evaluate(position, chunk_size=chunk).log_likelihood)
        values = {name: value for name, value in observed.items() if isinstance(value, Tensor)}
        return self._constrained(
            self._draws, self._constrained_warmup(), log_likelihood=log_likelihood, observed=values
        )

    def _constrained_warmup(self) -> Draws | None:
        return None if self._warmup is None else self._constrained(self._warmup, None)

    def _constrained(self, store: _Store, warmup: Draws | None, **more: Any) -> Draws:
        """Draws of the latents; of the deterministic nodes too where they do not depend on a mini-batch."""
        if self._minibatches.example:
            return Draws(self._log_density.constrain(store.position), info=store.info, warmup=warmup, **more)
        chunk = max(1, CHUNK // self._log_density.n_dims)
        found = self._log_density.evaluate(store.position, chunk_size=chunk, with_log_likelihood=False)
        return Draws(
            {**found.values, **found.deterministic}, info=store.info, deterministic=list(found.deterministic),
            warmup=warmup, **more,
        )  # fmt: skip

    def warn(self, draws: Draws) -> None:
        """Say what makes the draws unreliable."""
        if self._predict is None:
            draws.warn(stacklevel=5)
        if problems := self._kernel.problems(dict(draws.info)):
            warnings.warn("\n".join(problems), UserWarning, stacklevel=4)

    def _show(self, bar: Any) -> None:
        rate = self._kernel.learning_rate * self._kernel.stage(max(self.n_steps - 1, 0)).factor
        is_burn_in = self.n_steps < self._plan.n_warmup
        bar.set_description_str("mcmc, burn-in" if is_burn_in else "mcmc, sampling", refresh=False)
        bar.set_postfix({"learning rate": f"{rate:.3g}"}, refresh=False)


def _cuda_devices() -> list[int]:
    return list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
