"""The training loop that demo and tutorials use: seeds, mini-batches, a progress bar, a history, and errors that name
the node when a loss is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from zsp.execution import checked
from zsp.tensor_like import to_tensor

__all__ = ["History", "fit"]

Batch = dict[str, Tensor]
Loss = Callable[[Any], Tensor | tuple[Tensor, Mapping[str, Any]]]


class History:
    """What a run of :func:`fit` measured: for each metric one number an epoch.

    ``history["loss"]`` is the list of epoch means of the loss; other names are the metrics that the loss or the
    validation returned.

    Attributes:
        n_steps: the number of optimizer steps taken.
    """

    def __init__(self) -> None:
        self._metrics: dict[str, list[float]] = {}
        self.n_steps = 0

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


def fit(
    loss: Loss,
    data: Mapping[str, Tensor] | Iterable[Any],
    *,
    optimizer: torch.optim.Optimizer,
    epochs: int = 1,
    batch_size: int | None = None,
    shuffle: bool = True,
    seed: int = 0,
    validation: Callable[[], Mapping[str, Any]] | None = None,
    progress: bool = True,
) -> History:
    r"""Minimise a loss over mini-batches.

    ::

        def loss(batch):
            bound = zsp.elbo(model, batch, variational=q, axis=0)
            return bound.sgvb().mean(), {"elbo": bound.mean()}

        history = zsp.fit(loss, {"x": images}, optimizer=optimizer, epochs=20, batch_size=128)

    The first step of every epoch checks every node, as inside :func:`zsp.checked` (at most every 20 steps, where epochs
    are shorter). When a loss is not finite, the step
    is run again on the same batch with the same random numbers and every check on, so that the error names the node.
    A step with a loss that is not finite changes no parameter.

    Args:
        loss: from a mini-batch to a scalar to minimise, or to (scalar, mapping of named metrics).
        data: name -> tensor, all of the same length, from which mini-batches (dicts) are drawn; or an iterable of
            mini-batches, a DataLoader for example, gone through once an epoch.
        optimizer: a torch optimizer of the parameters to train.
        epochs: the number of passes over the data.
        batch_size: the size of a mini-batch of a mapping; default all data. The last one of an epoch may be smaller.
        shuffle: whether a mapping's data are put in a new random order every epoch.
        seed: of every random number drawn in the run; the caller's random state is given back at the end.
        validation: called after every epoch, without gradients; returns named metrics.
        progress: whether to show a progress bar.

    Returns:
        The history of the epoch means of ``"loss"`` and of the metrics.

    Raises:
        ValueError: if the loss is not a finite scalar, naming the node where one is to blame; if the data's lengths
            differ.
    """
    batches = _batches(data, batch_size, shuffle)
    history = History()
    trained_on = _devices(optimizer)
    next_check = 0
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices), _progress_bar(epochs, progress) as bar:
        torch.manual_seed(seed)
        for epoch in range(epochs):
            epoch_metrics = _Means()
            for index, batch in enumerate(batches()):
                is_checked = index == 0 and history.n_steps >= next_check
                if is_checked:
                    next_check = history.n_steps + 20
                where = f"step {index} of epoch {epoch}"
                value, metrics = _step(loss, batch, optimizer, trained_on, where, is_checked)
                epoch_metrics.add({"loss": value, **metrics})
                history.n_steps += 1
            if not epoch_metrics.n:
                raise ValueError(
                    f"epoch {epoch} had no mini-batch: data is empty, or an iterator that can be gone through only "
                    "once. Give a list, a DataLoader or a mapping of tensors."
                )
            measured = epoch_metrics.means()
            if validation is not None:
                with torch.no_grad():
                    measured.update({name: float(to_tensor(value)) for name, value in validation().items()})
            history._append(measured)
            bar.update(1)
            bar.set_postfix({name: f"{value:.4g}" for name, value in measured.items()})
    return history


def _step(
    loss: Loss,
    batch: Any,
    optimizer: torch.optim.Optimizer,
    devices: list[torch.device],
    where: str,
    is_checked: bool,
) -> tuple[Tensor, dict[str, Any]]:
    """One training step: loss, backward, update."""
    state = _random_state(devices)
    try:
        with checked() if is_checked else nullcontext():
            value, metrics = _evaluate(loss, batch)
    except ValueError as error:
        before = _broken_parameters(optimizer)
        if not before:
            raise
        raise ValueError(f"{where}: {error}{before}") from error
    if not math.isfinite(value.item()):
        _explain(loss, batch, optimizer, state, where, value.item())
    optimizer.zero_grad(set_to_none=True)
    value.backward()
    optimizer.step()
    return value.detach(), metrics


def _evaluate(loss: Loss, batch: Any) -> tuple[Tensor, dict[str, Any]]:
    result = loss(batch)
    metrics: Mapping[str, Any] = {}
    if isinstance(result, tuple):
        result, metrics = result
    result = to_tensor(result)
    if not isinstance(result, Tensor) or result.dim() != 0:
        got = f"a tensor of shape {list(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
        raise ValueError(
            f"the loss must return a scalar tensor, or (scalar, metrics), but it returned {got}. Average over the "
            "batch: bound.sgvb().mean()."
        )
    return result, {name: to_tensor(metric) for name, metric in metrics.items()}


def _explain(
    loss: Loss, batch: Any, optimizer: torch.optim.Optimizer, state: list[Tensor], where: str, value: float
) -> None:
    """Run the step again with checks on and the same random numbers, and raise what explains the loss best."""
    devices = _devices(optimizer)
    after = _random_state(devices)
    before = _broken_parameters(optimizer)
    _set_random_state(state, devices)
    try:
        with checked(), torch.no_grad():
            _evaluate(loss, batch)
    except (ValueError, TypeError) as error:
        raise type(error)(f"the loss at {where} is {value}: {error}{before}") from error
    finally:
        _set_random_state(after, devices)
    raise ValueError(
        f"the loss at {where} is {value}, but every node of its nets has a finite log probability: look at what the "
        f"loss does with them.{before}"
    )


def _broken_parameters(optimizer: torch.optim.Optimizer) -> str:
    """A sentence on the parameters that are not finite, empty if all are."""
    n_bad = sum(not bool(p.isfinite().all()) for group in optimizer.param_groups for p in group["params"])
    if not n_bad:
        return ""
    return (
        f" {n_bad} of the optimizer's parameters are not finite already before this step: the update before it made "
        "them so. Lower the learning rate or clip the gradient."
    )


def _devices(optimizer: torch.optim.Optimizer) -> list[torch.device]:
    """The CUDA devices that the trained parameters are on."""
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    return sorted({p.device for p in parameters if p.is_cuda}, key=str)


def _random_state(devices: list[torch.device]) -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]


def _set_random_state(states: list[Tensor], devices: list[torch.device]) -> None:
    torch.set_rng_state(states[0])
    for state, device in zip(states[1:], devices, strict=True):
        torch.cuda.set_rng_state(state, device)


def _batches(
    data: Mapping[str, Tensor] | Iterable[Any], batch_size: int | None, shuffle: bool
) -> Callable[[], Iterable[Any]]:
    if not isinstance(data, Mapping):
        if batch_size is not None:
            raise ValueError("batch_size divides a mapping of tensors; an iterable of mini-batches has its own.")
        return lambda: data
    lengths = {name: len(value) for name, value in data.items()}
    if len(set(lengths.values())) != 1:
        shown = ", ".join(f"{name!r} has {length}" for name, length in lengths.items()) or "no data"
        raise ValueError(f"the data must have one length along their first axis, but {shown}.")
    n = next(iter(lengths.values()))
    size = n if batch_size is None else batch_size
    if n < 1 or size < 1:
        raise ValueError(
            f"there must be at least one datum and batch_size must be at least 1, got {n} and {batch_size}."
        )

    def epoch() -> Iterator[Batch]:
        if not shuffle and size == n:
            yield dict(data)
            return
        order = torch.randperm(n) if shuffle else torch.arange(n)
        for start in range(0, n, size):
            rows = order[start : start + size]
            yield {name: value[rows.to(value.device)] for name, value in data.items()}

    return epoch


class _Means:
    """Means over an epoch, kept on the device until the epoch ends."""

    def __init__(self) -> None:
        self.n = 0
        self._sums: dict[str, Any] = {}

    def add(self, metrics: Mapping[str, Any]) -> None:
        for name, value in metrics.items():
            value = value.detach() if isinstance(value, Tensor) else value
            self._sums[name] = value + self._sums[name] if name in self._sums else value
        self.n += 1

    def means(self) -> dict[str, float]:
        return {name: float(total) / self.n for name, total in self._sums.items()}


def _progress_bar(epochs: int, progress: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=epochs, desc="epochs", disable=not progress)
