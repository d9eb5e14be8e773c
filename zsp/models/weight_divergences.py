r"""Divergences of Gaussian weights from their priors, for layers of :func:`zsp.models.variational`.

.. math:: \mathrm{KL}(\mathrm{N}(\mu, \sigma^2) \,\|\, p(w)), \quad \text{summed over the weights}

A divergence is a callable of the weights' means and log standard deviations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["GaussianDivergence", "LogUniformDivergence", "ScaleMixtureDivergence", "WeightDivergence"]

WeightDivergence = Callable[[Tensor, Tensor], Tensor]
"""From means and log standard deviations of one shape to the divergence in nats, a scalar."""


@dataclass(frozen=True)
class GaussianDivergence:
    r"""From :math:`\mathrm{N}(0, s^2)`, in closed form.

    Args:
        std: s.
    """

    std: float = 1.0

    def __post_init__(self) -> None:
        _require_positive(self, "std", self.std)

    def __call__(self, mean: Tensor, logstd: Tensor) -> Tensor:
        """The divergence."""
        ratio = logstd - math.log(self.std)
        return 0.5 * ((2 * ratio).exp() + (mean / self.std).square() - 1 - 2 * ratio).sum()


@dataclass(frozen=True)
class ScaleMixtureDivergence:
    r"""From :math:`\pi \mathrm{N}(0, s_1^2) + (1 - \pi) \mathrm{N}(0, s_2^2)`, estimated with one draw of the weights.

    Args:
        weight: :math:`\pi`.
        std_1: :math:`s_1`.
        std_2: :math:`s_2`, the smaller one, which draws most weights towards zero.

    Reference: Blundell et al. 2015, arXiv:1505.05424, equations 2 and 7.
    """

    weight: float = 0.5
    std_1: float = 1.0
    std_2: float = 0.002

    def __post_init__(self) -> None:
        _require_positive(self, "std_1", self.std_1)
        _require_positive(self, "std_2", self.std_2)
        if not 0 < self.weight < 1:
            raise ValueError(f"ScaleMixtureDivergence: weight must be between 0 and 1, got {self.weight!r}.")

    def __call__(self, mean: Tensor, logstd: Tensor) -> Tensor:
        """An estimate without bias."""
        noise = torch.randn_like(mean)
        w = mean + logstd.exp() * noise
        first = math.log(self.weight / self.std_1) - 0.5 * (w / self.std_1).square()
        second = math.log((1 - self.weight) / self.std_2) - 0.5 * (w / self.std_2).square()
        return (-logstd - 0.5 * noise.square() - torch.logaddexp(first, second)).sum()


@dataclass(frozen=True)
class LogUniformDivergence:
    r"""From the improper prior :math:`p(|w|) \propto 1 / |w|`: variational dropout, which drops single weights.

    .. math:: \tfrac12 \log(1 + \alpha^{-1}) + k_1 (1 - \sigma(k_2 + k_3 \log \alpha)), \quad \alpha = \sigma^2 / \mu^2

    an approximation, zero where :math:`\alpha` is infinite, within about 0.01 nats of the divergence up to its
    constant. Weights of large :math:`\log \alpha` (3, say) can be set to zero.

    Reference: Molchanov et al. 2017, arXiv:1701.05369, equation 14.
    """

    def __call__(self, mean: Tensor, logstd: Tensor) -> Tensor:
        """The divergence."""
        # log alpha, bounded where the mean is zero: the divergence is zero from there on
        log_alpha = 2 * (logstd - (mean.abs() + torch.finfo(mean.dtype).tiny ** 0.5).log())
        dropped = 0.63576 * torch.sigmoid(-(1.87320 + 1.48695 * log_alpha))
        return (0.5 * functional.softplus(-log_alpha) + dropped).sum()


def _require_positive(divergence: object, name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{type(divergence).__name__}: {name} must be a positive number, got {value!r}.")
