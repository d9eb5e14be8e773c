"""What all runs of :func:`zsp.mcmc` share: what they are asked for, and how they go on and are saved meanwhile."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor

from zsp.inference.log_density import LogDensity
from zsp.inference.sampling.checkpoint import read_checkpoint, write_checkpoint

__all__ = ["BaseRun", "Plan", "Saving"]


class Plan(NamedTuple):
    """What a run is asked for: arguments of :func:`zsp.mcmc`."""

    n_samples: int
    n_warmup: int
    n_chains: int
    seed: int
    init: Mapping[str, Any] | None
    thin: int
    keep_warmup: bool
    compile: bool | str

    def is_compiled(self, n_steps: int, least: int) -> bool:
        """Whether to compile a run of so many steps; "auto" does from ``least`` on."""
        return n_steps >= least if self.compile == "auto" else bool(self.compile)

    def identity(self, kernel: str, log_density: LogDensity, is_compiled: bool) -> dict[str, Any]:
        """What a run that goes on from this one's checkpoint must have in common with it."""
        same = {name: value for name, value in self._asdict().items() if name not in ("init", "compile")}
        latents = {name: list(shape) for name, shape in log_density.shapes.items()}
        return {"kernel": kernel, **same, "is_compiled": is_compiled, "latents": latents}


class Saving(NamedTuple):
    """Where and how often a run is saved: arguments of :func:`zsp.mcmc`."""

    checkpoint: str | os.PathLike[str] | None
    checkpoint_every: int
    resume: bool


class BaseRun(ABC):
    """A run: what a checkpoint holds, and how it goes on."""

    _identity: dict[str, Any]
    _first_log_density: Tensor
    _n_total: int
    """What :attr:`n_made` is at the end."""

    @property
    @abstractmethod
    def n_made(self) -> int:
        """How far it is, in transitions."""

    @abstractmethod
    def _go_on(self, bar: Any) -> None:
        """Make a block of steps and show it."""

    @abstractmethod
    def _interrupt(self) -> None:
        """Keep what was made so far, if there is anything to keep; otherwise raise."""

    @abstractmethod
    def _content(self) -> dict[str, Any]:
        """Of a checkpoint."""

    @abstractmethod
    def _load(self, content: dict[str, Any]) -> None:
        """Go back to a checkpoint."""

    @abstractmethod
    def _close(self) -> None:
        """End what runs beside it."""

    def sample(self, saving: Saving, progress: bool) -> None:
        """Go on to the end."""
        path = saving.checkpoint
        if path is not None and saving.resume and os.path.exists(path):
            self._load(read_checkpoint(path, self._identity, self._first_log_density))
        written = self.n_made
        with self._bar(progress) as bar:
            try:
                while self.n_made < self._n_total:
                    self._go_on(bar)
                    if path is not None and self.n_made - written >= saving.checkpoint_every:
                        written = self.n_made
                        write_checkpoint(path, self._content())
            except KeyboardInterrupt:
                self._interrupt()
            finally:
                self._close()

    @contextmanager
    def _bar(self, progress: bool) -> Iterator[Any]:
        from tqdm.auto import tqdm

        with tqdm(total=self._n_total, initial=self.n_made, desc="mcmc", disable=not progress) as bar:
            yield bar
