r"""A variable through invertible maps, :math:`x = f(z), \log p(x) = \log p_0(z) - \sum_i \log|f_i'|`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution, TransformedDistribution
from torch.distributions.transforms import Transform
from typing_extensions import Unpack

from zsp.distributions.node_type import ReparameterizedOptions, node_type

__all__ = ["Flow", "flow_node"]


class Flow(TransformedDistribution):
    r"""torch's transformed distribution, not validated, whose dtype and device are those of its base.

    Args:
        base: the distribution of z.
        transforms: invertible maps, applied in order.
    """

    def __init__(self, base: Distribution, transforms: Transform | Sequence[Transform]) -> None:
        transforms = [transforms] if isinstance(transforms, Transform) else list(transforms)
        super().__init__(base, transforms, validate_args=False)

    def expand(self, batch_shape, _instance=None) -> Flow:  # type: ignore[override]
        """The same distribution with its parameters expanded to ``batch_shape``."""
        shape = torch.Size((*batch_shape, *self.event_shape))
        for transform in reversed(self.transforms):
            shape = transform.inverse_shape(shape)
        n_batch = len(shape) - len(self.base_dist.event_shape)
        return Flow(self.base_dist.expand(shape[:n_batch]), self.transforms)

    def sample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """A draw without gradient, of shape sample_shape + batch + event."""
        with torch.no_grad():
            return super().sample(torch.Size(sample_shape))


@node_type(hint="The value must lie in the image of the transforms.")
def flow_node(
    base: Distribution, transforms: Transform | Sequence[Transform], **options: Unpack[ReparameterizedOptions]
) -> Flow:
    r"""Normalising flow node: x = f(z) with z from a base distribution.

    .. math:: \log p(x) = \log p_0(f^{-1}(x)) - \log\Bigl|\frac{\partial f}{\partial z}\Bigr|

    Args:
        base: the distribution of z, of ``zsp.distributions`` or ``torch.distributions``.
        transforms: a ``torch.distributions.transforms`` object (or Pyro's) or a list of them, applied in order.
    """
    return Flow(base, transforms)
