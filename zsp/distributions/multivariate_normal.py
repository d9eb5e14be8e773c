r"""Normal vectors and matrices, :math:`\log p(x) = -\tfrac12 |L^{-1}(x - m)|^2 - \log|L| - \tfrac d2\log 2\pi`."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions.constraints import independent, lower_cholesky, positive_definite, real, real_vector
from typing_extensions import Unpack

from zsp.distributions.lean import Lean, Parameter
from zsp.distributions.node_type import ReparameterizedOptions, node_type

__all__ = [
    "MatrixVariateNormal",
    "MultivariateNormal",
    "matrix_variate_normal_cholesky_node",
    "multivariate_normal_cholesky_node",
    "multivariate_normal_node",
]

_real_matrix = independent(real, 2)


def _solve(scale_tril: Tensor, vectors: Tensor) -> Tensor:
    """``L^{-1} v`` for ``L [*batch, d, d]`` and ``v [*sample, *batch, d]``; sample axes become columns of one solve."""
    n_batch = scale_tril.dim() - 2
    n_sample = vectors.dim() - 1 - n_batch
    if n_sample <= 0 or vectors.shape[n_sample:-1] != scale_tril.shape[:-2]:
        return torch.linalg.solve_triangular(scale_tril, vectors.unsqueeze(-1), upper=False).squeeze(-1)
    columns = vectors.flatten(0, n_sample - 1).movedim(0, -1)
    solved = torch.linalg.solve_triangular(scale_tril, columns, upper=False)
    return solved.movedim(-1, 0).reshape(vectors.shape)


def _log_diagonal(tril: Tensor) -> Tensor:
    return tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)


class MultivariateNormal(Lean, torch.distributions.MultivariateNormal):
    r"""torch's multivariate normal, with one triangular solve for all samples and the parameters kept as given.

    Exactly one of the three matrices is needed.

    Args:
        loc: mean, shape [..., d].
        covariance_matrix: shape [..., d, d].
        precision_matrix: its inverse.
        scale_tril: its lower Cholesky factor, with positive diagonal.
    """

    support = real_vector
    loc = Parameter(event_dim=1)
    scale_tril = Parameter(event_dim=2)
    _loc: Tensor
    _scale_tril: Tensor

    def __init__(
        self,
        loc: Tensor,
        covariance_matrix: Tensor | None = None,
        precision_matrix: Tensor | None = None,
        scale_tril: Tensor | None = None,
    ) -> None:
        given = [matrix for matrix in (covariance_matrix, precision_matrix, scale_tril) if matrix is not None]
        if len(given) != 1:
            raise ValueError(
                "MultivariateNormal needs exactly one of covariance_matrix, precision_matrix and scale_tril, "
                f"but got {len(given)} of them."
            )
        if covariance_matrix is not None:
            scale_tril = torch.linalg.cholesky(covariance_matrix)
        elif precision_matrix is not None:
            # flipping both axes turns the upper factor of the inverse into a lower one
            flipped = torch.linalg.cholesky(precision_matrix.flip((-2, -1)))
            identity = torch.eye(flipped.shape[-1], dtype=flipped.dtype, device=flipped.device)
            inverse = flipped.flip((-2, -1)).mT
            scale_tril = torch.linalg.solve_triangular(inverse, identity, upper=False)
        self._set(loc=loc, scale_tril=scale_tril)
        d = self._scale_tril.shape[-1]
        if self._scale_tril.shape[-2] != d or self._loc.shape[-1] != d:
            raise ValueError(
                f"MultivariateNormal needs a mean of shape [..., d] and a matrix of shape [..., d, d], but got "
                f"{list(self._loc.shape)} and {list(self._scale_tril.shape)}."
            )
        self._event_shape = torch.Size((d,))

    @property
    def _unbroadcasted_scale_tril(self) -> Tensor:  # type: ignore[override]  # what torch's KL divergences and moments read
        return self._scale_tril

    def rsample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """A draw, differentiable in the parameters, of shape sample_shape + batch + [d]."""
        noise = torch.randn(self._shape(sample_shape), dtype=self._loc.dtype, device=self._loc.device)
        if self._scale_tril.dim() == 2:
            return self._loc + noise @ self._scale_tril.mT
        return self._loc + (self._scale_tril @ noise.unsqueeze(-1)).squeeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at ``value``."""
        standard = _solve(self._scale_tril, value - self._loc)
        constant = _log_diagonal(self._scale_tril) + 0.5 * self._event_shape[0] * math.log(2 * math.pi)
        return -0.5 * standard.square().sum(-1) - constant


class MatrixVariateNormal(Lean):
    r"""Normal matrices, :math:`X = M + L_u Z L_v^\top` with standard normal Z.

    Args:
        loc: mean M, shape [..., n_row, n_col].
        row_scale_tril: :math:`L_u`, the lower Cholesky factor of the covariance among rows, shape [..., n_row, n_row].
        column_scale_tril: :math:`L_v`, that among columns, shape [..., n_col, n_col].
    """

    support = _real_matrix
    has_rsample = True
    loc = Parameter(event_dim=2)
    row_scale_tril = Parameter(event_dim=2)
    column_scale_tril = Parameter(event_dim=2)
    _loc: Tensor
    _row_scale_tril: Tensor
    _column_scale_tril: Tensor

    def __init__(self, loc: Tensor, row_scale_tril: Tensor, column_scale_tril: Tensor) -> None:
        self._set(loc=loc, row_scale_tril=row_scale_tril, column_scale_tril=column_scale_tril)
        self._event_shape = self._loc.shape[-2:]
        n_row, n_col = self._event_shape
        if row_scale_tril.shape[-2:] != (n_row, n_row) or column_scale_tril.shape[-2:] != (n_col, n_col):
            raise ValueError(
                "MatrixVariateNormal needs a mean [..., n_row, n_col], row factor [..., n_row, n_row] and column "
                f"factor [..., n_col, n_col], but got {list(loc.shape)}, {list(row_scale_tril.shape)} and "
                f"{list(column_scale_tril.shape)}."
            )

    @property
    def mean(self) -> Tensor:
        """The location."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """The products of the rows' and the columns' variances."""
        rows, columns = self.row_scale_tril.square().sum(-1), self.column_scale_tril.square().sum(-1)
        return rows.unsqueeze(-1) * columns.unsqueeze(-2)

    def rsample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """A draw, differentiable in the parameters, of shape sample_shape + batch + [n_row, n_col]."""
        noise = torch.randn(self._shape(sample_shape), dtype=self._loc.dtype, device=self._loc.device)
        return self._loc + self._row_scale_tril @ noise @ self._column_scale_tril.mT

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at ``value``."""
        n_row, n_col = self._event_shape
        standard = torch.linalg.solve_triangular(self._row_scale_tril, value - self._loc, upper=False)
        standard = torch.linalg.solve_triangular(self._column_scale_tril, standard.mT, upper=False)
        log_scale = n_col * _log_diagonal(self._row_scale_tril) + n_row * _log_diagonal(self._column_scale_tril)
        constant = log_scale + 0.5 * n_row * n_col * math.log(2 * math.pi)
        return -0.5 * standard.square().sum((-2, -1)) - constant


@node_type(mean=real_vector, cov_tril=lower_cholesky, scipy="multivariate_normal(mean, cov_tril @ cov_tril.T)")
def multivariate_normal_cholesky_node(
    mean: Tensor, cov_tril: Tensor, **options: Unpack[ReparameterizedOptions]
) -> MultivariateNormal:
    r"""Multivariate normal node, by the Cholesky factor of its covariance :math:`L L^\top`.

    .. math:: \log p(x) = -\tfrac12 |L^{-1}(x - m)|^2 - \log|L| - \tfrac d2\log 2\pi

    Args:
        mean: m, shape [..., d].
        cov_tril: L, lower triangular with positive diagonal, shape [..., d, d].
    """
    return MultivariateNormal(mean, scale_tril=cov_tril)


@node_type(
    mean=real_vector,
    cov=positive_definite,
    precision=positive_definite,
    scale_tril=lower_cholesky,
    scipy="multivariate_normal(mean, cov)",
)
def multivariate_normal_node(
    mean: Tensor,
    *,
    cov: Tensor | None = None,
    precision: Tensor | None = None,
    scale_tril: Tensor | None = None,
    **options: Unpack[ReparameterizedOptions],
) -> MultivariateNormal:
    r"""Multivariate normal node, :math:`x \sim \mathrm{N}(m, \Sigma)`; give exactly one of the three matrices.

    .. math:: \log p(x) = -\tfrac12 (x - m)^\top \Sigma^{-1} (x - m) - \tfrac12\log|2\pi\Sigma|

    Args:
        mean: m, shape [..., d].
        cov: :math:`\Sigma`, shape [..., d, d].
        precision: :math:`\Sigma^{-1}`.
        scale_tril: the lower Cholesky factor of :math:`\Sigma`; the cheapest.
    """
    given = [name for name, m in (("cov", cov), ("precision", precision), ("scale_tril", scale_tril)) if m is not None]
    if len(given) != 1:
        got = " and ".join(given) + " were given" if given else "none was given"
        raise ValueError(f"exactly one of cov=..., precision=... and scale_tril=... is needed, but {got}")
    return MultivariateNormal(mean, cov, precision, scale_tril)


@node_type(
    mean=_real_matrix,
    u_tril=lower_cholesky,
    v_tril=lower_cholesky,
    scipy="matrix_normal(mean, u_tril @ u_tril.T, v_tril @ v_tril.T)",
)
def matrix_variate_normal_cholesky_node(
    mean: Tensor, u_tril: Tensor, v_tril: Tensor, **options: Unpack[ReparameterizedOptions]
) -> MatrixVariateNormal:
    r"""Matrix normal node, by the Cholesky factors of the covariances among rows and among columns.

    .. math:: \log p(X) = -\tfrac12 \|L_u^{-1} (X - M) L_v^{-\top}\|^2 - c\log|L_u| - r\log|L_v| - \tfrac{rc}2\log 2\pi

    Args:
        mean: M, shape [..., r, c].
        u_tril: :math:`L_u`, lower triangular with positive diagonal, shape [..., r, r].
        v_tril: :math:`L_v`, shape [..., c, c].
    """
    return MatrixVariateNormal(mean, u_tril, v_tril)
