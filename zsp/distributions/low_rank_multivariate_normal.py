r"""Normal vectors with covariance :math:`W W^\top + \mathrm{diag}(d)`, by the Woodbury identity."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions.constraints import independent, positive, real, real_vector
from typing_extensions import Unpack

from zsp.distributions.lean import Lean, Parameter
from zsp.distributions.node_type import ReparameterizedOptions, node_type

__all__ = ["LowRankMultivariateNormal", "low_rank_multivariate_normal_node"]


class LowRankMultivariateNormal(Lean, torch.distributions.LowRankMultivariateNormal):
    r"""torch's low-rank multivariate normal, with the parameters kept as given.

    Args:
        loc: mean m, shape [..., n].
        cov_factor: W, shape [..., n, rank].
        cov_diag: d, shape [..., n].
    """

    support = real_vector
    loc = Parameter(event_dim=1)
    cov_factor = Parameter(event_dim=2)
    cov_diag = Parameter(event_dim=1)
    _loc: Tensor
    _cov_factor: Tensor
    _cov_diag: Tensor

    def __init__(self, loc: Tensor, cov_factor: Tensor, cov_diag: Tensor) -> None:
        self._set(loc=loc, cov_factor=cov_factor, cov_diag=cov_diag)
        n = self._cov_factor.shape[-2]
        if self._loc.shape[-1] != n or self._cov_diag.shape[-1] != n:
            raise ValueError(
                "LowRankMultivariateNormal needs a mean [..., n], cov_factor [..., n, rank] and cov_diag [..., n], but "
                f"got {list(self._loc.shape)}, {list(self._cov_factor.shape)} and {list(self._cov_diag.shape)}."
            )
        self._event_shape = torch.Size((n,))

    # what torch's KL divergences and moments read
    @property
    def _unbroadcasted_cov_factor(self) -> Tensor:  # type: ignore[override]
        return self._cov_factor

    @property
    def _unbroadcasted_cov_diag(self) -> Tensor:  # type: ignore[override]
        return self._cov_diag

    @property
    def _capacitance_tril(self) -> Tensor:  # type: ignore[override]
        """The Cholesky factor of :math:`1 + W^T D^{-1} W`."""
        scaled = self._cov_factor / self._cov_diag.unsqueeze(-1)
        identity = torch.eye(scaled.shape[-1], dtype=scaled.dtype, device=scaled.device)
        return torch.linalg.cholesky(identity + self._cov_factor.mT @ scaled)

    @property
    def variance(self) -> Tensor:  # type: ignore[override]
        """The diagonal of the covariance, shape batch + [n]."""
        return (self._cov_factor.square().sum(-1) + self._cov_diag).expand(self._shape(()))

    def rsample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """A draw, differentiable in the parameters, of shape sample_shape + batch + [n]."""
        shape = self._shape(sample_shape)
        dtype, device = self._loc.dtype, self._loc.device
        factors = torch.randn((*shape[:-1], self._cov_factor.shape[-1], 1), dtype=dtype, device=device)
        noise = torch.randn(shape, dtype=dtype, device=device)
        return self._loc + (self._cov_factor @ factors).squeeze(-1) + self._cov_diag.sqrt() * noise

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at ``value``."""
        difference, capacitance = value - self._loc, self._capacitance_tril
        weighted = difference / self._cov_diag
        projected = self._cov_factor.mT @ weighted.unsqueeze(-1)  # [..., rank, 1]
        solved = torch.linalg.solve_triangular(capacitance, projected, upper=False).squeeze(-1)
        distance = (difference * weighted).sum(-1) - solved.square().sum(-1)
        log_det = self._cov_diag.log().sum(-1) + 2 * capacitance.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * (distance + log_det + self._event_shape[0] * math.log(2 * math.pi))


@node_type(
    mean=real_vector,
    cov_factor=independent(real, 2),
    cov_diag=independent(positive, 1),
    scipy="multivariate_normal(mean, cov_factor @ cov_factor.T + diag(cov_diag))",
)
def low_rank_multivariate_normal_node(
    mean: Tensor, cov_factor: Tensor, cov_diag: Tensor, **options: Unpack[ReparameterizedOptions]
) -> LowRankMultivariateNormal:
    r"""Multivariate normal node with a low-rank covariance, at a cost linear in n.

    .. math:: x \sim \mathrm{N}(m, \Sigma), \quad \Sigma = W W^\top + \mathrm{diag}(d)

    Args:
        mean: m, shape [..., n].
        cov_factor: W, shape [..., n, rank].
        cov_diag: d > 0, variances rather than deviations, shape [..., n].
    """
    return LowRankMultivariateNormal(mean, cov_factor, cov_diag)
