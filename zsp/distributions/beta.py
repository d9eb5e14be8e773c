r"""Beta and Dirichlet distributions, :math:`\log p(x) = \sum_k (a_k - 1)\log x_k + \log\Gamma(\sum_k a_k) -
\sum_k\log\Gamma(a_k)`, drawn from gamma variables in the logarithm.

torch's own draw (1/2, 1/2) for a quarter of all draws with both concentrations at 0.001, where the gamma variables
underflow; the draws here do not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions.constraints import positive, unit_interval
from typing_extensions import Unpack

from zsp.distributions.lean import Lean, Parameter
from zsp.distributions.node_type import ReparameterizedOptions, Value, node_type
from zsp.distributions.supports import simplex
from zsp.distributions.tensors import log_gamma_draw, xlog1py, xlogy

__all__ = ["Beta", "Dirichlet", "beta_node", "dirichlet_node"]


class Beta(Lean, torch.distributions.Beta):
    r"""torch's beta, with sound draws for small concentrations.

    Args:
        concentration1: a, a tensor or a number; the mean is a / (a + b).
        concentration0: b.
    """

    support: Any = unit_interval
    concentration1 = Parameter()
    concentration0 = Parameter()
    _concentration1: Tensor
    _concentration0: Tensor

    def __init__(self, concentration1: Value, concentration0: Value) -> None:
        self._set(concentration1=concentration1, concentration0=concentration0)

    @property
    def _dirichlet(self) -> torch.distributions.Dirichlet:  # type: ignore[override]  # read by torch's moments
        both = torch.stack((self.concentration1, self.concentration0), -1)
        return torch.distributions.Dirichlet(both, validate_args=False)

    def rsample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """A draw, differentiable in the parameters, of shape sample_shape + batch, inside the open interval."""
        shape = self._shape(sample_shape)
        draw = (log_gamma_draw(self._concentration1, shape) - log_gamma_draw(self._concentration0, shape)).sigmoid()
        finfo = torch.finfo(draw.dtype)
        return draw.clamp(min=finfo.tiny, max=1 - finfo.eps / 2)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at ``value``."""
        a, b = self._concentration1, self._concentration0
        return xlogy(a - 1, value) + xlog1py(b - 1, -value) + (a + b).lgamma() - a.lgamma() - b.lgamma()


class Dirichlet(Lean):
    r"""Dirichlet over probability vectors, with sound draws for small concentrations.

    Args:
        concentration: a, shape [..., n_categories].
    """

    support = simplex
    has_rsample = True
    concentration = Parameter(event_dim=1)
    _concentration: Tensor

    def __init__(self, concentration: Tensor) -> None:
        self._set(concentration=concentration)
        self._event_shape = self._concentration.shape[-1:]

    @property
    def mean(self) -> Tensor:
        """The normalised concentrations."""
        return self.concentration / self.concentration.sum(-1, True)

    @property
    def variance(self) -> Tensor:
        """m (1 - m) / (sum of a + 1), with m the mean."""
        return self.mean * (1 - self.mean) / (self.concentration.sum(-1, True) + 1)

    def entropy(self) -> Tensor:
        """Entropy in nats."""
        a = self.concentration
        total = a.sum(-1)
        own = (a.lgamma() - (a - 1) * a.digamma()).sum(-1)
        return own - total.lgamma() + (total - a.shape[-1]) * total.digamma()

    def rsample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """A draw, differentiable in the parameters, of shape sample_shape + batch + [n_categories]; all positive."""
        draw = log_gamma_draw(self._concentration, self._shape(sample_shape)).softmax(-1)
        return draw.clamp(min=torch.finfo(draw.dtype).tiny)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at ``value``."""
        a = self._concentration
        return xlogy(a - 1, value).sum(-1) + a.sum(-1).lgamma() - a.lgamma().sum(-1)


@node_type(
    alpha=positive,
    beta=positive,
    hint="A beta value lies between 0 and 1, without the ends.",
    scipy="beta(alpha, beta)",
)
def beta_node(alpha: Value, beta: Value, **options: Unpack[ReparameterizedOptions]) -> Beta:
    r"""Beta node with mean a / (a + b).

    .. math:: \log p(x) = (a - 1)\log x + (b - 1)\log(1 - x) - \log B(a, b), \quad 0 < x < 1

    Args:
        alpha: a > 0.
        beta: b > 0.
    """
    return Beta(alpha, beta)


@node_type(
    alpha=torch.distributions.constraints.independent(positive, 1),
    hint="A Dirichlet value is a vector of non-negative numbers that sum to 1 over its last axis.",
    scipy="dirichlet(alpha)",
)
def dirichlet_node(alpha: Tensor, **options: Unpack[ReparameterizedOptions]) -> Dirichlet:
    r"""Dirichlet node over probability vectors of length K.

    .. math:: \log p(x) = \sum_k (a_k - 1)\log x_k + \log\Gamma\bigl(\sum_k a_k\bigr) - \sum_k\log\Gamma(a_k)

    Args:
        alpha: the concentrations a > 0, shape [..., K].
    """
    return Dirichlet(alpha)
