r"""The Wishart distribution of positive definite matrices,

.. math:: \log p(X) = \tfrac{n - d - 1}2 \log|X| - \tfrac12\mathrm{tr}(V^{-1} X) - \tfrac{nd}2\log 2
          - \tfrac n2\log|V| - \log\Gamma_d(\tfrac n2)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to, transform_to, transforms
from torch.distributions.constraints import Constraint, lower_cholesky, positive, positive_definite, real_vector
from typing_extensions import Unpack

from zsp.distributions.lean import Lean, Parameter
from zsp.distributions.multivariate_normal import MultivariateNormal, _log_diagonal
from zsp.distributions.node_type import ReparameterizedOptions, Value, node_type
from zsp.distributions.tensors import as_tensors

__all__ = ["PositiveDefinite", "Wishart", "wishart_node"]


class PositiveDefinite(Constraint):
    """Symmetric positive definite matrices of d rows, with a bijection from vectors of d (d + 1) / 2 numbers.

    (torch's transform to its own constraint is from matrices of which half the entries do nothing, without a Jacobian.)
    """

    is_discrete = False
    event_dim = 2

    def check(self, value: Tensor) -> Tensor:
        """Whether each matrix is symmetric, to rounding, and positive definite."""
        tolerance = 64 * torch.finfo(value.dtype).eps * value.abs().amax((-2, -1))
        symmetric = (value - value.mT).abs().amax((-2, -1)) <= tolerance
        return symmetric & (torch.linalg.cholesky_ex(value).info == 0)

    def __repr__(self) -> str:
        return "PositiveDefinite()"


class _FromVector(transforms.Transform):
    """Vectors of d (d + 1) / 2 numbers to :math:`L L^T`: the rows of L, the diagonal by its logarithm."""

    domain = real_vector
    codomain: Constraint = PositiveDefinite()
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _FromVector)

    def __hash__(self) -> int:
        return hash(type(self))

    @staticmethod
    def _places(d: int, device: Any) -> tuple[Tensor, Tensor]:
        rows, columns = torch.tril_indices(d, d, device=device)
        return rows, columns

    def _call(self, x: Tensor) -> Tensor:
        d = self.forward_shape(x.shape)[-1]
        rows, columns = self._places(d, x.device)
        entries = torch.where(rows == columns, x.exp(), x)
        places = (rows * d + columns).expand(entries.shape)
        tril = x.new_zeros((*x.shape[:-1], d * d)).scatter(-1, places, entries).unflatten(-1, (d, d))
        return tril @ tril.mT

    def _inverse(self, y: Tensor) -> Tensor:
        rows, columns = self._places(y.shape[-1], y.device)
        entries = torch.linalg.cholesky(y)[..., rows, columns]
        is_diagonal = rows == columns
        return torch.where(is_diagonal, torch.where(is_diagonal, entries, 1.0).log(), entries)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Of the lower triangle of y: d log 2 + sum over i = 0..d-1 of (d + 1 - i) log L_ii."""
        d = y.shape[-1]
        at = torch.arange(1, d + 1, device=x.device)
        logs = x[..., at * (at + 1) // 2 - 1]
        return d * math.log(2) + (logs * (d + 2 - at)).sum(-1)

    def forward_shape(self, shape):
        """From [..., d (d + 1) / 2] to [..., d, d]."""
        d = (math.isqrt(8 * shape[-1] + 1) - 1) // 2
        return (*shape[:-1], d, d)

    def inverse_shape(self, shape):
        """From [..., d, d] to [..., d (d + 1) / 2]."""
        return (*shape[:-2], shape[-1] * (shape[-1] + 1) // 2)


_from_vector = _FromVector()
biject_to.register(PositiveDefinite, lambda constraint: _from_vector)
transform_to.register(PositiveDefinite, lambda constraint: _from_vector)


class Wishart(Lean):
    r"""Wishart distribution; exactly one of the three matrices is needed.

    (torch's fails under vmap and compilation: it branches on the values.)

    Args:
        df: degrees of freedom n > d - 1, a tensor or a number.
        covariance_matrix: the scale V, shape [..., d, d]; the mean is n V.
        precision_matrix: its inverse.
        scale_tril: its lower Cholesky factor L.
    """

    support = PositiveDefinite()
    has_rsample = True
    scale_tril = Parameter(event_dim=2)
    df = Parameter()
    _scale_tril: Tensor
    _df: Tensor

    def __init__(
        self,
        df: Value,
        covariance_matrix: Tensor | None = None,
        precision_matrix: Tensor | None = None,
        scale_tril: Tensor | None = None,
    ) -> None:
        matrix = next(m for m in (covariance_matrix, precision_matrix, scale_tril) if m is not None)
        zeros = matrix.new_zeros(matrix.shape[-1])
        tril = MultivariateNormal(zeros, covariance_matrix, precision_matrix, scale_tril)._scale_tril
        self._set(scale_tril=tril, df=as_tensors(tril, df)[1])
        self._event_shape = tril.shape[-2:]

    def parameters_fit(self) -> tuple[Tensor, str]:
        """Enough degrees of freedom for a density."""
        d = self._event_shape[-1]
        return self._df > d - 1, f"df must be above {d - 1}, the number of rows less one"

    @property
    def covariance_matrix(self) -> Tensor:
        """The scale V, of shape batch + [d, d]."""
        return self.scale_tril @ self.scale_tril.mT

    @property
    def mean(self) -> Tensor:
        """n V."""
        return self.df[..., None, None] * self.covariance_matrix

    @property
    def variance(self) -> Tensor:
        r""":math:`n (V_{ij}^2 + V_{ii} V_{jj})`, entry by entry."""
        scale = self.covariance_matrix
        diagonal = scale.diagonal(dim1=-2, dim2=-1)
        return self.df[..., None, None] * (scale**2 + diagonal.unsqueeze(-1) * diagonal.unsqueeze(-2))

    def entropy(self) -> Tensor:
        """Entropy in nats."""
        d, df = self._event_shape[0], self.df
        half = [(df - i) / 2 for i in range(d)]
        log_gamma = sum((h.lgamma() for h in half), start=0.25 * d * (d - 1) * math.log(math.pi))
        digamma = sum(h.digamma() for h in half)
        log_scale = (d + 1) * (_log_diagonal(self.scale_tril) + 0.5 * d * math.log(2))
        return log_scale + log_gamma - 0.5 * (df - d - 1) * digamma + 0.5 * df * d

    def rsample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """A matrix, differentiable in the parameters, of shape sample_shape + batch + [d, d] (Bartlett 1933)."""
        shape, d = self._shape(sample_shape), self._event_shape[0]
        noise = torch.randn(shape, dtype=self._scale_tril.dtype, device=self._scale_tril.device)
        half = (self._df.unsqueeze(-1) - torch.arange(d, dtype=noise.dtype, device=noise.device)) / 2
        chi2 = 2 * torch._standard_gamma(half.expand(shape[:-1]))
        diagonal = chi2.clamp(min=torch.finfo(noise.dtype).tiny).sqrt()
        tril = self._scale_tril @ (noise.tril(-1) + torch.diag_embed(diagonal))
        product = tril @ tril.mT
        return (product + product.mT) / 2  # a product of matrices is symmetric to rounding only

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at the matrices ``value``."""
        d, df = self._event_shape[0], self._df
        solved = torch.linalg.solve_triangular(self._scale_tril, value, upper=False)
        solved = torch.linalg.solve_triangular(self._scale_tril, solved.mT, upper=False)  # L^-1 X L^-T, transposed
        trace = solved.diagonal(dim1=-2, dim2=-1).sum(-1)
        log_gamma = sum((((df - i) / 2).lgamma() for i in range(d)), start=0.25 * d * (d - 1) * math.log(math.pi))
        log_scale = df * (_log_diagonal(self._scale_tril) + 0.5 * d * math.log(2))
        return 0.5 * (df - d - 1) * torch.linalg.slogdet(value).logabsdet - 0.5 * trace - log_scale - log_gamma


@node_type(
    df=positive,
    cov=positive_definite,
    precision=positive_definite,
    scale_tril=lower_cholesky,
    hint="A Wishart value is a symmetric positive definite matrix; (x + x.mT) / 2 makes a nearly symmetric one so.",
    scipy="wishart(df, cov)",
)
def wishart_node(
    df: Value,
    *,
    cov: Tensor | None = None,
    precision: Tensor | None = None,
    scale_tril: Tensor | None = None,
    **options: Unpack[ReparameterizedOptions],
) -> Wishart:
    r"""Wishart node: sums of n outer products of normal vectors; give exactly one of the three matrices.

    .. math:: \log p(X) = \tfrac{n - d - 1}2 \log|X| - \tfrac12\mathrm{tr}(V^{-1} X) - \tfrac{nd}2\log 2
              - \tfrac n2\log|V| - \log\Gamma_d(\tfrac n2)

    Args:
        df: n > d - 1, the degrees of freedom; it need not be whole.
        cov: the scale V, shape [..., d, d]; the mean is n V.
        precision: :math:`V^{-1}`.
        scale_tril: the lower Cholesky factor of V; the cheapest.
    """
    given = [name for name, m in (("cov", cov), ("precision", precision), ("scale_tril", scale_tril)) if m is not None]
    if len(given) != 1:
        got = " and ".join(given) + " were given" if given else "none was given"
        raise ValueError(f"exactly one of cov=..., precision=... and scale_tril=... is needed, but {got}")
    return Wishart(df, cov, precision, scale_tril)
