r"""The Pareto distribution, :math:`\log p(x) = \log a + a\log m - (a + 1)\log x` for :math:`x \ge m`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions.constraints import greater_than_eq, positive
from typing_extensions import Unpack

from zsp.distributions.lean import Lean, Parameter
from zsp.distributions.node_type import ReparameterizedOptions, Value, node_type
from zsp.distributions.tensors import open_uniform

__all__ = ["Pareto", "pareto_node"]


class Pareto(Lean, torch.distributions.Pareto):
    r"""torch's Pareto as one operation, zero below its scale.

    Args:
        scale: m, the smallest value, a tensor or a number.
        alpha: a, the exponent of the tail.
    """

    has_rsample = True  # type: ignore[assignment]
    scale = Parameter()
    alpha = Parameter()
    _scale: Tensor
    _alpha: Tensor

    def __init__(self, scale: Value, alpha: Value) -> None:
        self._set(scale=scale, alpha=alpha)

    @property
    def support(self) -> Any:  # type: ignore[override]
        """Numbers from the scale on."""
        return greater_than_eq(self._scale)  # type: ignore[arg-type]

    def rsample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """A draw, differentiable in the parameters, of shape sample_shape + batch; always finite."""
        noise = -open_uniform(self._shape(sample_shape), self._scale).log()
        return (self._scale * (noise / self._alpha).exp()).clamp(max=torch.finfo(noise.dtype).max)

    def cdf(self, value: Tensor) -> Tensor:
        """Distribution function, :math:`1 - (m / x)^a`."""
        ratio = torch.where(value >= self._scale, self._scale / value, 1.0)
        return -torch.expm1(self._alpha * ratio.log())

    def icdf(self, value: Tensor) -> Tensor:
        """Quantile function."""
        return self._scale * (-torch.log1p(-value) / self._alpha).exp()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at ``value``; minus infinity below the scale."""
        inside = value >= self._scale
        log_value = torch.where(inside, value, self._scale).log()
        log_p = self._alpha.log() - self._alpha * (log_value - self._scale.log()) - log_value
        return torch.where(inside, log_p, -torch.inf)


@node_type(
    scale=positive, alpha=positive, hint="A Pareto value is not below its scale.", scipy="pareto(alpha, scale=scale)"
)
def pareto_node(scale: Value, alpha: Value, **options: Unpack[ReparameterizedOptions]) -> Pareto:
    r"""Pareto node (of the first type): a power law from its scale on.

    .. math:: \log p(x) = \log a + a\log m - (a + 1)\log x, \quad x \ge m

    Args:
        scale: m > 0, the smallest value.
        alpha: a > 0; the mean is infinite for :math:`a \le 1`.
    """
    return Pareto(scale, alpha)
