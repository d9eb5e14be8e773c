r"""Control variates for the gradients of mini-batches (Baker et al. 2019, equation 6).

.. math:: \hat g(q) = \nabla \log p(\hat q) + \hat g_b(q) - \hat g_b(\hat q)

With the centre :math:`\hat q` near the mode, the noise of the mini-batch cancels where the chain is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

__all__ = ["ControlVariates"]

LogDensityFunction = Callable[[Any], Tensor]


class ControlVariates:
    r"""Log densities of mini-batches whose gradients have less noise near a centre.

    ::

        reduced = zsp.ControlVariates.at(full_log_density, center)
        for batch in loader:
            state, info = kernel.step(reduced(log_density_of(batch)), state)

    In :func:`zsp.mcmc` it is the argument ``control_variates=``, the centre by the latents' names. It goes with any
    kernel. A step evaluates the mini-batch twice; the variance of its gradient grows with the squared distance to the
    centre, instead of being what it is at the mode.

    The estimate of the log density is
    :math:`f_b(q) - f_b(\hat q) + f(\hat q) + \langle g(\hat q) - g_b(\hat q), q - \hat q \rangle`, with f that of all
    data and :math:`f_b` that of the mini-batch, scaled to all data.

    Args:
        center: :math:`\hat q`, a tensor of shape [*chain, ...] or a dict of them, that broadcasts to the positions.
        value: :math:`f(\hat q)`, [*chain].
        gradient: :math:`\nabla f(\hat q)`, like the centre.

    Reference: Baker, Fearnhead, Fox and Nemeth 2019, arXiv:1706.05439, section 3.
    """

    def __init__(self, center: Any, value: Tensor, gradient: Any) -> None:
        self.center, self.value, self.gradient = center, value, gradient

    @classmethod
    def at(cls, log_density: LogDensityFunction, center: Any) -> ControlVariates:
        """From the log density of all data.

        Args:
            log_density: from a position to log densities of all data.
            center: a position.
        """
        return cls(center, *_value_and_gradient(log_density, center))

    @classmethod
    def of_parts(
        cls, log_densities: Iterable[tuple[int, LogDensityFunction]], center: Any
    ) -> ControlVariates:
        """From those of parts of the data, each scaled to all data, and how many data each has.

        Args:
            log_densities: the number of data and the log density of each part; together they are all data.
            center: a position.
        """
        total, value, gradient = 0, None, None
        for n, log_density in log_densities:
            found, slope = _value_and_gradient(log_density, center)
            total += n
            value = n * found if value is None else value + n * found
            slope = tree_map(lambda g, n=n: n * g, slope)
            gradient = slope if gradient is None else tree_map(torch.add, gradient, slope)
        if value is None:
            raise ValueError("control variates need the gradient of all data, but there are none.")
        return cls(center, value / total, tree_map(lambda g: g / total, gradient))

    def __call__(self, log_density: LogDensityFunction) -> LogDensityFunction:
        """The log density of a mini-batch with a gradient of less noise.

        Args:
            log_density: of the mini-batch, scaled to all data.
        """

        def estimate(position: Any) -> Tensor:
            value, gradient = _value_and_gradient(log_density, self.center)
            correction = tree_map(
                lambda q, center, g, g_batch: ((q - center) * (g - g_batch)).flatten(value.dim()).sum(-1)
                if g.dim() > value.dim()
                else (q - center) * (g - g_batch),
                position, self.center, self.gradient, gradient,
            )  # fmt: skip
            return log_density(position) - value + self.value + sum(tree_flatten(correction)[0])

        return estimate


def _value_and_gradient(log_density: LogDensityFunction, position: Any) -> tuple[Tensor, Any]:
    leaves, structure = tree_flatten(position)
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    with torch.enable_grad():
        value = log_density(tree_unflatten(leaves, structure))
        gradients = torch.autograd.grad(value.sum(), leaves)
    return value.detach(), tree_unflatten(gradients, structure)
