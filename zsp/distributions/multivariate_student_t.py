r"""Student's t vectors, :math:`\log p(x) = c(n, d) - \log|L| - \tfrac{n + d}2 \log(1 + |L^{-1}(x - m)|^2 / n)`."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions.constraints import lower_cholesky, positive, real_vector
from typing_extensions import Unpack

from zsp.distributions.lean import Lean, Parameter
from zsp.distributions.multivariate_normal import _log_diagonal, _solve
from zsp.distributions.node_type import ReparameterizedOptions, Value, node_type
from zsp.distributions.student_t import _log_gamma_half_step

__all__ = ["MultivariateStudentT", "multivariate_student_t_node"]


class MultivariateStudentT(Lean):
    r"""Multivariate Student t, which torch lacks: a normal vector over the root of a chi-squared variable.

    Args:
        df: degrees of freedom n, a tensor or a number.
        loc: m, shape [..., d].
        scale_tril: L, the lower Cholesky factor of the scale matrix, shape [..., d, d].
    """

    support = real_vector
    has_rsample = True
    loc = Parameter(event_dim=1)
    df = Parameter()
    scale_tril = Parameter(event_dim=2)
    _loc: Tensor
    _df: Tensor
    _scale_tril: Tensor

    def __init__(self, df: Value, loc: Tensor, scale_tril: Tensor) -> None:
        self._set(loc=loc, df=df, scale_tril=scale_tril)
        d = self._scale_tril.shape[-1]
        if self._scale_tril.shape[-2] != d or self._loc.shape[-1] != d:
            raise ValueError(
                "MultivariateStudentT needs a mean of shape [..., d] and a scale_tril of shape [..., d, d], but got "
                f"{list(self._loc.shape)} and {list(self._scale_tril.shape)}."
            )
        self._event_shape = torch.Size((d,))

    @property
    def mean(self) -> Tensor:
        """The location; NaN for n <= 1."""
        return torch.where(self.df.unsqueeze(-1) > 1, self.loc, torch.nan)

    @property
    def variance(self) -> Tensor:
        """n / (n - 2) times the diagonal of the scale matrix; infinite for n <= 2, NaN for n <= 1."""
        df = self.df.unsqueeze(-1)
        safe = torch.where(df > 2, df, 3.0)
        finite = self.scale_tril.square().sum(-1) * (safe / (safe - 2))
        return torch.where(df > 2, finite, torch.where(df > 1, torch.inf, torch.nan))

    def rsample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """A draw, differentiable in the parameters, of shape sample_shape + batch + [d]."""
        shape = self._shape(sample_shape)
        noise = torch.randn(shape, dtype=self._loc.dtype, device=self._loc.device)
        half = self._df / 2
        chi2_over_df = torch._standard_gamma(half.expand(shape[:-1])) / half
        root = chi2_over_df.clamp(min=torch.finfo(noise.dtype).tiny).rsqrt().unsqueeze(-1)
        return self._loc + (self._scale_tril @ noise.unsqueeze(-1)).squeeze(-1) * root

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at ``value``."""
        d, df = self._event_shape[0], self._df
        square = _solve(self._scale_tril, value - self._loc).square().sum(-1)
        # log Gamma((n + d) / 2) - log Gamma(n / 2) in d half steps, exact also where n is large
        ratio = sum(_log_gamma_half_step((df + i) / 2) for i in range(d))
        constant = ratio - 0.5 * d * (df * math.pi).log() - _log_diagonal(self._scale_tril)
        return constant - 0.5 * (df + d) * torch.log1p(square / df)


@node_type(
    df=positive,
    mean=real_vector,
    scale_tril=lower_cholesky,
    scipy="multivariate_t(mean, scale_tril @ scale_tril.T, df)",
)
def multivariate_student_t_node(
    df: Value, mean: Tensor, scale_tril: Tensor, **options: Unpack[ReparameterizedOptions]
) -> MultivariateStudentT:
    r"""Multivariate Student t node with n degrees of freedom.

    .. math:: \log p(x) = \log\frac{\Gamma((n + d) / 2)}{\Gamma(n / 2) (\pi n)^{d / 2} |L|}
              - \tfrac{n + d}2 \log\Bigl(1 + \tfrac1n |L^{-1}(x - m)|^2\Bigr)

    Args:
        df: n > 0.
        mean: m, shape [..., d]; the mean where n > 1.
        scale_tril: L, lower triangular with positive diagonal, shape [..., d, d]; the covariance is
            :math:`\frac{n}{n - 2} L L^\top`.
    """
    return MultivariateStudentT(df, mean, scale_tril)
