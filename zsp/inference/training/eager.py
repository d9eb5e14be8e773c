"""One training step, run eagerly: loss, backward, update; and what explains a loss that is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from zsp.execution import checked
from zsp.tensor_like import to_tensor

__all__ = ["Loss", "check", "eager_step", "evaluate", "random_state", "set_random_state", "trained_devices"]

Loss = Callable[[Any], Tensor | tuple[Tensor, Mapping[str, Any]]]


def eager_step(
    loss: Loss,
    batch: Any,
    optimizer: torch.optim.Optimizer,
    devices: list[torch.device],
    where: str,
    is_checked: bool,
) -> dict[str, Any]:
    """One step; its loss and metrics by name.

    Args:
        loss: the loss.
        batch: a mini-batch.
        optimizer: of the parameters to train.
        devices: the CUDA devices that these are on.
        where: which step it is, for messages.
        is_checked: whether every node is checked.
    """
    state = random_state(devices)
    value, metrics = check(loss, batch, optimizer, where) if is_checked else evaluate(loss, batch)
    if not math.isfinite(value.item()):
        _explain(loss, batch, optimizer, state, where, value.item())
    optimizer.zero_grad(set_to_none=True)
    value.backward()
    optimizer.step()
    return {"loss": value.detach(), **metrics}


def evaluate(loss: Loss, batch: Any) -> tuple[Tensor, dict[str, Any]]:
    """The loss of a mini-batch and its metrics.

    Raises:
        ValueError: if the loss is no scalar.
    """
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


def check(loss: Loss, batch: Any, optimizer: torch.optim.Optimizer, where: str) -> tuple[Tensor, dict[str, Any]]:
    """Like :func:`evaluate`, with every node checked."""
    try:
        with checked():
            return evaluate(loss, batch)
    except ValueError as error:
        before = _broken_parameters(optimizer)
        if not before:
            raise
        raise ValueError(f"{where}: {error}{before}") from error


def _explain(
    loss: Loss, batch: Any, optimizer: torch.optim.Optimizer, state: list[Tensor], where: str, value: float
) -> None:
    """Run the step again with checks on and the same random numbers, and raise what explains the loss best."""
    devices = trained_devices(optimizer)
    after = random_state(devices)
    before = _broken_parameters(optimizer)
    set_random_state(state, devices)
    try:
        with checked(), torch.no_grad():
            evaluate(loss, batch)
    except (ValueError, TypeError) as error:
        raise type(error)(f"the loss at {where} is {value}: {error}{before}") from error
    finally:
        set_random_state(after, devices)
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


def trained_devices(optimizer: torch.optim.Optimizer) -> list[torch.device]:
    """The CUDA devices that the trained parameters are on."""
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    return sorted({p.device for p in parameters if p.is_cuda}, key=str)


def random_state(devices: list[torch.device]) -> list[Tensor]:
    """The states of the default generators."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]


def set_random_state(states: list[Tensor], devices: list[torch.device]) -> None:
    """Set what :func:`random_state` gave."""
    torch.set_rng_state(states[0])
    for state, device in zip(states[1:], devices, strict=True):
        torch.cuda.set_rng_state(state, device)
