"""What a training run measures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

__all__ = ["History", "Means"]


class History:
    """What a run of :func:`fit` measured: for each metric one number an epoch.

    ``history["loss"]`` is the list of epoch means of the loss; other names are the metrics that the loss or the
    validation returned.

    Attributes:
        n_steps: the number of optimizer steps taken.
        n_compiled_steps: how many of them ran in compiled calls.
    """

    def __init__(self) -> None:
        self._metrics: dict[str, list[float]] = {}
        self.n_steps = 0
        self.n_compiled_steps = 0

    def __getitem__(self, name: str) -> list[float]:
        if name not in self._metrics:
            known = ", ".join(map(repr, self._metrics)) or "none"
            raise KeyError(f"no metric {name!r} was recorded; there are {known}")
        return self._metrics[name]

    def __contains__(self, name: object) -> bool:
        return name in self._metrics

    def __iter__(self) -> Iterator[str]:
        return iter(self._metrics)

    def __len__(self) -> int:
        """The number of epochs."""
        return max((len(values) for values in self._metrics.values()), default=0)

    def _append(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._metrics.setdefault(name, []).append(value)

    def __repr__(self) -> str:
        last = ", ".join(f"{name} {values[-1]:.4g}" for name, values in self._metrics.items())
        return f"<History of {len(self)} epochs, {self.n_steps} steps; last: {last or 'nothing'}>"


class Means:
    """Means over an epoch, kept on the device until the epoch ends."""

    def __init__(self) -> None:
        self.n_steps = 0
        self._sums: dict[str, Any] = {}

    def add(self, sums: Mapping[str, Any], n_steps: int = 1) -> None:
        """Add the sums of some steps' metrics."""
        for name, value in sums.items():
            value = value.detach() if isinstance(value, Tensor) else value
            self._sums[name] = value + self._sums[name] if name in self._sums else value
        self.n_steps += n_steps

    def means(self) -> dict[str, float]:
        """Name -> mean over all steps."""
        return {name: float(total) / self.n_steps for name, total in self._sums.items()}
