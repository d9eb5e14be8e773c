r"""A variable through invertible maps, :math:`x = f(z), \log p(x) = \log p_0(z) - \sum_i \log|f_i'|`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution, TransformedDistribution
from torch.distributions.transforms import Transform
from torch.distributions.utils import _sum_rightmost
from typing_extensions import Unpack

from zsp.distributions.node_type import ReparameterizedOptions, node_type

__all__ = ["Flow", "flow_node"]


class Flow(TransformedDistribution):
    r"""torch's transformed distribution, not validated, whose dtype and device are those of its base.

    The density of its own draw is computed along the way that the draw went, without inverting a transform: exact and
    cheap also for those whose inverse is unknown (planar, radial, Sylvester) or slow (inverse autoregressive).

    Args:
        base: the distribution of z.
        transforms: invertible maps, applied in order.
    """

    _drawn: list[Tensor] | None = None  # the last draw's way: z, what each transform made of it, and the draw

    def __init__(self, base: Distribution, transforms: Transform | Iterable[Transform]) -> None:
        transforms = [transforms] if isinstance(transforms, Transform) else list(transforms)
        super().__init__(base, transforms, validate_args=False)

    def expand(self, batch_shape, _instance=None) -> Flow:  # type: ignore[override]
        """The same distribution with its parameters expanded to ``batch_shape``."""
        shape = torch.Size((*batch_shape, *self.event_shape))
        for transform in reversed(self.transforms):
            shape = transform.inverse_shape(shape)
        n_batch = len(shape) - len(self.base_dist.event_shape)
        return Flow(self.base_dist.expand(shape[:n_batch]), self.transforms)

    def rsample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """A draw, differentiable in the parameters of the base and the transforms."""
        self._drawn = self._draw(self.base_dist.rsample(torch.Size(sample_shape)))
        return self._drawn[-1]

    def sample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """A draw without gradient, of shape sample_shape + batch + event."""
        with torch.no_grad():
            # another tensor object than the one that a transform remembers, with the z that belongs to it: at a fixed
            # value that z depends on the transform's parameters, and the gradient must know
            return self._draw(self.base_dist.sample(torch.Size(sample_shape)))[-1].detach()

    def _draw(self, z: Tensor) -> list[Tensor]:
        values = [z]
        for transform in self.transforms:
            values.append(transform(values[-1]))
        return values

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at ``value``.

        Raises:
            NotImplementedError: at another value than the last draw, if the inverse of a transform is unknown.
        """
        drawn = self._drawn
        values = drawn if drawn is not None and drawn[-1] is value else self._invert(value)
        event_dim = len(self.event_shape)
        log_prob: Tensor | float = 0.0
        for i in reversed(range(len(self.transforms))):
            transform = self.transforms[i]
            own = transform.domain.event_dim
            event_dim += own - transform.codomain.event_dim
            log_jacobian = transform.log_abs_det_jacobian(values[i], values[i + 1])
            log_prob = log_prob - _sum_rightmost(log_jacobian, event_dim - own)
        base = self.base_dist
        return log_prob + _sum_rightmost(base.log_prob(values[0]), event_dim - len(base.event_shape))

    def _invert(self, value: Tensor) -> list[Tensor]:
        values = [value]
        for transform in reversed(self.transforms):
            try:
                values.append(transform.inv(values[-1]))
            except (KeyError, NotImplementedError) as error:  # Pyro's and torch's way to say so
                raise NotImplementedError(
                    f"the inverse of the transform {type(transform).__name__} is unknown, so that this flow has a "
                    "density at its own reparameterised draws only, as a variational net with the estimator sgvb needs "
                    "it; not at given values. Use transforms with an inverse there (affine coupling, splines, affine "
                    "autoregressive)."
                ) from error
        return values[::-1]


@node_type(hint="The value must lie in the image of the transforms.")
def flow_node(
    base: Distribution, transforms: Transform | Sequence[Transform], **options: Unpack[ReparameterizedOptions]
) -> Flow:
    r"""Normalising flow node: x = f(z) with z from a base distribution.

    .. math:: \log p(x) = \log p_0(f^{-1}(x)) - \log\Bigl|\frac{\partial f}{\partial z}\Bigr|

    Transforms that learn are modules of ``pyro.distributions.transforms``; ``zsp.module`` keeps them::

        from pyro.distributions.transforms import conditional_affine_autoregressive, spline_coupling

        @zsp.reuse_variables("q")
        def q(x, n_samples):
            bn = zsp.BayesianNet()
            first = zsp.module("first", spline_coupling, 2)
            second = zsp.module("second", conditional_affine_autoregressive, 2, context_dim=x.shape[-1])
            base = zsp.distributions.Normal(torch.zeros(len(x), 2), 1.0)
            bn.flow("z", base, [first, second.condition(x)], n_samples=n_samples)
            return bn

    Zuko's flows are distributions already: ``bn.stochastic("z", zsp.module("flow", zuko.flows.NSF, 2, 3)(x))``.

    Args:
        base: the distribution of z, of ``zsp.distributions`` or ``torch.distributions``.
        transforms: a ``torch.distributions.transforms`` object (or Pyro's) or a list of them, applied in order.
    """
    return Flow(base, transforms)
