"""The updates of torch's optimizers as functions from parameters, gradients and state to new parameters and state.

They make the operations of torch's own in the same order, so that run eagerly they give the same bits. What a learning
rate schedule may change are coefficients, which may be numbers or scalar tensors: compiled code takes them as inputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["AdamUpdate", "SGDUpdate", "Update", "update_of"]

Number = float | Tensor
Group = Mapping[str, Any]


class Update(ABC):
    """How one optimizer updates one parameter."""

    counts_steps: bool
    """Whether its state has ``"step"``, the number of steps made, on which its coefficients depend."""

    @abstractmethod
    def refusal(self, group: Group) -> str | None:
        """Why a parameter group cannot be updated by this function; None where it can."""

    @abstractmethod
    def variant(self, group: Group) -> Hashable:
        """The group's options that decide which operations there are; the others are coefficients."""

    @abstractmethod
    def state_names(self, group: Group) -> tuple[str, ...]:
        """The names in the optimizer's state of the tensors of a parameter's shape."""

    @abstractmethod
    def coefficients(self, group: Group, step: float) -> tuple[float, ...]:
        """The numbers that an update needs at a step, counted from 1."""

    @abstractmethod
    def new_state(
        self, group: Group, parameter: Tensor, gradient: Tensor, state: tuple[Tensor, ...], given: tuple[Number, ...]
    ) -> tuple[Tensor, ...]:
        """The state after a step.

        Args:
            group: the options that :meth:`variant` names.
            parameter: its value.
            gradient: the loss's gradient with respect to it.
            state: the tensors that :meth:`state_names` names.
            given: the coefficients.
        """

    @abstractmethod
    def new_parameter(
        self, group: Group, parameter: Tensor, gradient: Tensor, state: tuple[Tensor, ...], given: tuple[Number, ...]
    ) -> Tensor:
        """The parameter after a step; its arguments are those of :meth:`new_state`, but for the state, the new one."""


class SGDUpdate(Update):
    """``torch.optim.SGD``, from the second step with a momentum on: the first one makes the momentum's buffer."""

    counts_steps = False

    def refusal(self, group: Group) -> str | None:
        """Why a group is not updated here: torch's options for graphs and for differentiating through steps."""
        return "differentiable=True" if group["differentiable"] else None

    def variant(self, group: Group) -> Hashable:
        """Which of decay, momentum and sign the update has."""
        return tuple(bool(group[name]) for name in ("weight_decay", "momentum", "nesterov", "maximize"))

    def state_names(self, group: Group) -> tuple[str, ...]:
        """Of the momentum's buffer, if there is one."""
        return ("momentum_buffer",) if group["momentum"] != 0 else ()

    def coefficients(self, group: Group, step: float) -> tuple[float, ...]:
        """Minus the learning rate, momentum, 1 - dampening, weight decay."""
        return -float(group["lr"]), group["momentum"], 1 - group["dampening"], group["weight_decay"]

    def new_state(
        self, group: Group, parameter: Tensor, gradient: Tensor, state: tuple[Tensor, ...], given: tuple[Number, ...]
    ) -> tuple[Tensor, ...]:
        """The buffer b' = momentum b + (1 - dampening) g."""
        if group["momentum"] == 0:
            return ()
        _, momentum, of_gradient, _ = given
        return (_add(state[0] * momentum, self._direction(group, parameter, gradient, given), of_gradient),)

    def new_parameter(
        self, group: Group, parameter: Tensor, gradient: Tensor, state: tuple[Tensor, ...], given: tuple[Number, ...]
    ) -> Tensor:
        """p - lr b', or p - lr (g + momentum b') with Nesterov's momentum, or p - lr g without."""
        minus_lr, momentum, *_ = given
        direction = self._direction(group, parameter, gradient, given)
        if group["momentum"] != 0:
            direction = _add(direction, state[0], momentum) if group["nesterov"] else state[0]
        return _add(parameter, direction, minus_lr)

    @staticmethod
    def _direction(group: Group, parameter: Tensor, gradient: Tensor, given: tuple[Number, ...]) -> Tensor:
        """The gradient of what is minimised, the penalty of the weights included."""
        if group["maximize"]:
            gradient = -gradient
        return _add(gradient, parameter, given[3]) if group["weight_decay"] != 0 else gradient


class AdamUpdate(Update):
    """``torch.optim.Adam`` and ``AdamW``."""

    counts_steps = True

    def refusal(self, group: Group) -> str | None:
        """Why a group is not updated here: torch's options for graphs and for differentiating through steps."""
        return next((f"{name}=True" for name in ("capturable", "differentiable") if group[name]), None)

    def variant(self, group: Group) -> Hashable:
        """Which decay it has, which sign, and whether the largest average is kept."""
        names = ("weight_decay", "amsgrad", "maximize", "decoupled_weight_decay")
        return tuple(bool(group[name]) for name in names)

    def state_names(self, group: Group) -> tuple[str, ...]:
        """Of the averages of the gradient and of its square."""
        return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if group["amsgrad"] else ("exp_avg", "exp_avg_sq")

    def coefficients(self, group: Group, step: float) -> tuple[float, ...]:
        """Decay, 1 - beta1, beta2, 1 - beta2, the root of the second correction, eps, minus the corrected rate."""
        lr, (beta1, beta2), decay = group["lr"], map(float, group["betas"]), float(group["weight_decay"])
        return (
            float(1 - lr * decay) if group["decoupled_weight_decay"] else decay,
            1 - beta1,
            beta2,
            1 - beta2,
            (1 - beta2**step) ** 0.5,
            group["eps"],
            -float(lr / (1 - beta1**step)),
        )

    def new_state(
        self, group: Group, parameter: Tensor, gradient: Tensor, state: tuple[Tensor, ...], given: tuple[Number, ...]
    ) -> tuple[Tensor, ...]:
        """m' = beta1 m + (1 - beta1) g, v' = beta2 v + (1 - beta2) g**2, and the largest v' so far (amsgrad)."""
        decay, of_gradient, beta2, of_square, *_ = given
        mean, square, *largest = state
        if group["maximize"]:
            gradient = -gradient
        if group["weight_decay"] != 0 and not group["decoupled_weight_decay"]:
            gradient = _add(gradient, parameter, decay)
        mean = _lerp(mean, gradient, of_gradient)
        square = _addcmul(square * beta2, gradient, gradient, of_square)
        return (mean, square, *[torch.maximum(before, square) for before in largest])

    def new_parameter(
        self, group: Group, parameter: Tensor, gradient: Tensor, state: tuple[Tensor, ...], given: tuple[Number, ...]
    ) -> Tensor:
        """p - lr / (1 - beta1**t) m' / (sqrt(v' / (1 - beta2**t)) + eps)."""
        decay, _, _, _, root_of_correction, eps, minus_step_size = given
        mean, *squares = state
        if group["weight_decay"] != 0 and group["decoupled_weight_decay"]:
            parameter = parameter * decay
        return _addcdiv(parameter, mean, _divide(squares[-1].sqrt(), root_of_correction) + eps, minus_step_size)


_UPDATES: dict[type, Update] = {
    torch.optim.SGD: SGDUpdate(),
    torch.optim.Adam: AdamUpdate(),
    torch.optim.AdamW: AdamUpdate(),
}


def update_of(optimizer: torch.optim.Optimizer) -> Update | str:
    """The update of an optimizer, or why there is none here."""
    update = _UPDATES.get(type(optimizer))
    if update is None:
        names = ", ".join(kind.__name__ for kind in _UPDATES)
        return f"the optimizer is {type(optimizer).__name__}; compiled updates are there for {names}"
    for group in optimizer.param_groups:
        reason = update.refusal(group)
        if reason is not None:
            return f"the optimizer's option {reason} has no compiled update"
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return "the optimizer has hooks, which compiled code does not call"
    if any(p._post_accumulate_grad_hooks for group in optimizer.param_groups for p in group["params"]):
        return "a parameter has a hook after its gradient is accumulated, which compiled code does not call"
    return update


# torch's operations take these coefficients as numbers only, and then round differently from the written-out product


def _add(tensor: Tensor, other: Tensor, coefficient: Number) -> Tensor:
    if isinstance(coefficient, Tensor):
        return tensor + coefficient * other
    return torch.add(tensor, other, alpha=coefficient)


def _lerp(tensor: Tensor, other: Tensor, weight: Number) -> Tensor:
    if isinstance(weight, Tensor):  # torch chooses by the weight between two forms, in every element
        return tensor + weight * (other - tensor)
    return torch.lerp(tensor, other, weight)


def _divide(tensor: Tensor, number: Number) -> Tensor:
    return tensor * number.reciprocal() if isinstance(number, Tensor) else tensor / number


def _addcmul(tensor: Tensor, first: Tensor, second: Tensor, coefficient: Number) -> Tensor:
    if isinstance(coefficient, Tensor):
        return tensor + coefficient * (first * second)
    return torch.addcmul(tensor, first, second, value=coefficient)


def _addcdiv(tensor: Tensor, numerator: Tensor, denominator: Tensor, coefficient: Number) -> Tensor:
    if isinstance(coefficient, Tensor):
        return tensor + coefficient * numerator / denominator
    return torch.addcdiv(tensor, numerator, denominator, value=coefficient)
