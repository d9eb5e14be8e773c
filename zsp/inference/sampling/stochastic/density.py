"""The log density of mini-batches with its gradient, and its second derivative along a probe."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from zsp.inference.compilation.errors import CompileError
from zsp.inference.compilation.traced_function import TracedFunction

__all__ = ["BatchDensity", "Derivatives", "differentiate"]


class Derivatives(Protocol):
    """The log density of one mini-batch, as kernels see it."""

    def __call__(self, position: Tensor, probe: Tensor | None = None) -> tuple[Tensor, ...]:
        """Log densities [chain] and gradients [chain, D]; with a probe [chain, D] also the Hessians times it."""


def differentiate(
    log_density: Callable[[Tensor], Tensor], position: Tensor, probe: Tensor | None = None
) -> tuple[Tensor, ...]:
    """See :class:`Derivatives`; by autograd.

    Args:
        log_density: from [chain, D] to [chain].
        position: [chain, D].
        probe: [chain, D].
    """
    position = position.detach().requires_grad_()
    with torch.enable_grad():
        value = log_density(position)
        (gradient,) = torch.autograd.grad(value.sum(), position, create_graph=probe is not None)
        if probe is None:
            return value.detach(), gradient
        product = None
        if gradient.requires_grad:
            (product,) = torch.autograd.grad((gradient * probe).sum(), position, allow_unused=True)
        return value.detach(), gradient.detach(), torch.zeros_like(probe) if product is None else product


class BatchDensity:
    """The log density of mini-batches, for packed positions.

    Mini-batches of each shape are evaluated by autograd once, and then from a graph, without the Python of the model
    and of autograd; where that cannot be traced, by autograd always.

    Args:
        log_density: from a position [chain, D] and a mini-batch to [chain].
    """

    def __init__(self, log_density: Callable[[Tensor, Mapping[str, Tensor]], Tensor]) -> None:
        self._log_density = log_density
        self._traced: dict[Hashable, TracedFunction | None] = {}

    def at(self, batch: Mapping[str, Tensor]) -> Derivatives:
        """The log density of a mini-batch, by autograd: what is compiled."""
        return lambda position, probe=None: differentiate(lambda q: self._log_density(q, batch), position, probe)

    def traced_at(self, batch: Mapping[str, Tensor]) -> Derivatives:
        """The same from a graph."""
        values = tuple(batch.values())
        shapes = tuple(batch), *[(value.shape, value.dtype) for value in values]

        def derivatives(position: Tensor, probe: Tensor | None = None) -> tuple[Tensor, ...]:
            own = (position,) if probe is None else (position, probe)
            key = position.shape, len(own), shapes
            if key not in self._traced:
                self._traced[key] = self._trace(own, batch)
            function = self._traced[key]
            return self.at(batch)(position, probe) if function is None else tuple(function(*own, *values))

        return derivatives

    def _trace(self, own: tuple[Tensor, ...], batch: Mapping[str, Tensor]) -> TracedFunction | None:
        def flat(*given: Tensor) -> tuple[Tensor, ...]:
            of_batch = dict(zip(batch, given[len(own) :], strict=True))
            return self.at(of_batch)(*given[: len(own)])

        with contextlib.suppress(CompileError):
            return TracedFunction(flat, *own, *batch.values())
        return None
