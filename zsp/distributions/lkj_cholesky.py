r"""Cholesky factors of correlation matrices, :math:`\log p(L) = \sum_{i=2}^d (d - i + 2\eta - 2)\log L_{ii} - c`.

The density is with respect to the entries below the diagonal of L; the matrix :math:`L L^\top` then has density
proportional to :math:`|L L^\top|^{\eta - 1}`. Reference: Lewandowski, Kurowicka & Joe 2009, J. Multivariate Analysis
100, section 3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions.constraints import corr_cholesky, positive
from typing_extensions import Unpack

from zsp.distributions.lean import Lean, Parameter
from zsp.distributions.node_type import ReparameterizedOptions, Value, node_type
from zsp.distributions.tensors import log_gamma_draw

__all__ = ["LKJCholesky", "lkj_cholesky_node"]


class LKJCholesky(Lean):
    r"""Lower Cholesky factors of random correlation matrices; its draws, unlike torch's, are differentiable.

    Args:
        dim: the number d >= 2 of rows.
        concentration: :math:`\eta`, a tensor or a number; 1 is uniform over correlation matrices, larger is closer to
            the identity.
    """

    support = corr_cholesky
    has_rsample = True
    concentration = Parameter()
    _concentration: Tensor

    def __init__(self, dim: int, concentration: Value = 1.0) -> None:
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < 2:
            raise ValueError(f"LKJCholesky needs dim, the number of rows: a whole number from 2 on, but got {dim!r}.")
        self._set((dim, dim), concentration=concentration)
        self._dim = dim

    @property
    def dim(self) -> int:
        """The number of rows."""
        return self._dim

    def rsample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """A factor, differentiable in the concentration, of shape sample_shape + batch + [d, d].

        Row i + 1 has its first i entries on a sphere of squared radius Beta(i / 2, eta + (d - 1 - i) / 2).
        """
        shape, d = self._shape(sample_shape), self._dim
        like = self._concentration
        i = torch.arange(1, d, dtype=like.dtype, device=like.device)
        first = log_gamma_draw(i / 2, (*shape[:-2], d - 1))
        second = log_gamma_draw(like.unsqueeze(-1) + (d - 1 - i) / 2, (*shape[:-2], d - 1))
        total = torch.logaddexp(first, second)
        tiny = torch.finfo(like.dtype).tiny
        radius, diagonal = ((first - total) / 2).exp(), ((second - total) / 2).exp().clamp(min=tiny)
        noise = torch.randn((*shape[:-2], d - 1, d), dtype=like.dtype, device=like.device).tril()[..., : d - 1]
        below = radius.unsqueeze(-1) * noise / noise.norm(dim=-1, keepdim=True).clamp(min=tiny)
        rows = torch.nn.functional.pad(below, (0, 1, 1, 0))
        return rows + torch.diag_embed(torch.nn.functional.pad(diagonal, (1, 0), value=1.0))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at the factors ``value``."""
        d, eta = self._dim, self._concentration
        i = torch.arange(2, d + 1, dtype=eta.dtype, device=eta.device)
        powers = d - i + 2 * eta.unsqueeze(-1) - 2
        kernel = (powers * value.diagonal(dim1=-2, dim2=-1)[..., 1:].log()).sum(-1)
        # row i + 1, over the ball in i dimensions: pi^{i/2} Gamma(eta + (d - 1 - i) / 2) / Gamma(eta + (d - 1) / 2)
        a = eta + 0.5 * (d - 1)
        rest = sum((a - 0.5 * j).lgamma() for j in range(1, d))
        return kernel - rest + (d - 1) * a.lgamma() - 0.25 * d * (d - 1) * math.log(math.pi)


@node_type(
    concentration=positive,
    hint="A value is the lower Cholesky factor of a correlation matrix, with rows of length 1; "
    "torch.linalg.cholesky(correlation) gives it.",
)
def lkj_cholesky_node(dim: int, concentration: Value = 1.0, **options: Unpack[ReparameterizedOptions]) -> LKJCholesky:
    r"""LKJ node: the lower Cholesky factor L of a correlation matrix with d rows.

    .. math:: \log p(L) = \sum_{i=2}^d (d - i + 2\eta - 2)\log L_{ii} - c, p(L L^\top) \propto |L L^\top|^{\eta - 1}

    Scale it to a covariance: ``scale_tril = std.unsqueeze(-1) * L`` (Lewandowski et al. 2009, J. Multivariate Analysis
    100).

    Args:
        dim: d >= 2.
        concentration: :math:`\eta > 0`; 1 is uniform over correlation matrices, larger is closer to the identity.
    """
    return LKJCholesky(dim, concentration)
