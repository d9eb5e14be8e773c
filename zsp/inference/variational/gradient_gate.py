r"""A gate between two nets that multiplies the gradients that pass it, if the cost that is differentiated asks for it.

The factor may be known only after the gate was passed: here weights that come out of the very net behind the gate. So
the gate is a view of a tensor, and the factor comes later, as a hook that acts in the backward passes of one cost.

``torch.compile`` loses track of other state when it meets a hook (torch 2.13). There the gate is a function with two
more outputs, keys of value zero. The cost adds ``key_1 * f + key_2``, which changes no value, and the gate finds
:math:`u f` and :math:`u` as the keys' gradients, whatever the cost's own gradient u is; other costs leave them alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["Gate"]


class Gate:
    """A tensor behind a gate.

    Args:
        value: the tensor.
        n_axes: how many of its first axes have factors of their own.

    Attributes:
        value: the same, whose gradients pass the gate.
    """

    def __init__(self, value: Tensor, n_axes: int) -> None:
        self._keys: tuple[Tensor, ...] = ()
        if torch.compiler.is_compiling():
            self.value, *keys = _Gate.apply(value, n_axes)
            self._keys = tuple(keys)
        else:
            self.value = value.view_as(value)

    def multiplied_by(self, factor: Tensor, cost: Tensor, axes: tuple[int, ...]) -> Tensor:
        """The cost, in whose backward passes the gradients at the gate are multiplied by ``factor``.

        Args:
            factor: a constant of the shape of the gate's first axes, or a scalar.
            cost: its shape is that of the gate's first axes without ``axes``.
            axes: those that the cost has summed.
        """
        if not self.value.requires_grad:
            return cost
        if self._keys:
            return cost + (self._keys[0] * factor + self._keys[1]).sum(axes)
        passes: list[int] = []  # the backward pass that has come through the cost

        def begins(gradient: Tensor) -> None:
            passes[:] = [torch._C._current_graph_task_id()]

        def scale(gradient: Tensor) -> Tensor:
            return _scaled(gradient, factor) if passes == [torch._C._current_graph_task_id()] else gradient

        cost.register_hook(begins)
        self.value.register_hook(scale)
        return cost


def _scaled(gradient: Tensor, factor: Tensor) -> Tensor:
    return gradient * factor.reshape(factor.shape + (1,) * (gradient.dim() - factor.dim()))


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(value: Tensor, n_axes: int) -> tuple[Tensor, Tensor, Tensor]:
        zeros = value.new_zeros(value.shape[:n_axes])
        return value.view_as(value), zeros, zeros.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None]:
        gradient, scaled, plain = gradients
        if gradient is None or scaled is None or plain is None:
            return gradient, None
        return _scaled(gradient, torch.where(plain == 0, 1.0, scaled / plain)), None  # zeros may stand for None
