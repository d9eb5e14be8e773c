r"""Student's t, :math:`\log p(x) = c(n) - \log s - \tfrac{n + 1}2 \log(1 + z^2 / n)` with :math:`z = (x - m) / s`."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions.constraints import positive, real
from typing_extensions import Unpack

from zsp.distributions.lean import Lean, Parameter
from zsp.distributions.node_type import ReparameterizedOptions, Value, node_type

__all__ = ["StudentT", "student_t_node"]


def _log_gamma_half_step(x: Tensor) -> Tensor:
    r""":math:`\log\Gamma(x + 1/2) - \log\Gamma(x)`; for large x by its asymptotic series (the difference cancels).

    Reference: Tricomi & Erdelyi 1951, Pacific J. Math. 1, the expansion of a ratio of gamma functions.
    """
    is_large = x > 20
    small, large = torch.where(is_large, 1.0, x), torch.where(is_large, x, 20.0)
    y = 1 / large
    square = y * y
    series = 0.5 * large.log() - y * (1 / 8 - square * (1 / 192 - square * (1 / 640 - square * (17 / 14336))))
    return torch.where(is_large, series, (small + 0.5).lgamma() - small.lgamma())


class StudentT(Lean, torch.distributions.StudentT):
    r"""torch's Student t, exact for many degrees of freedom (torch's loses six digits in float32 at 1e6).

    Args:
        df: degrees of freedom n, a tensor or a number.
        loc: m.
        scale: s.
    """

    support = real
    df = Parameter()
    loc = Parameter()
    scale = Parameter()
    _df: Tensor
    _loc: Tensor
    _scale: Tensor

    def __init__(self, df: Value, loc: Value = 0.0, scale: Value = 1.0) -> None:
        self._set(df=df, loc=loc, scale=scale)

    def rsample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """A draw, differentiable in the parameters, of shape sample_shape + batch."""
        shape = self._shape(sample_shape)
        noise = torch.randn(shape, dtype=self._df.dtype, device=self._df.device)
        half = self._df / 2
        chi2_over_df = torch._standard_gamma(half.expand(shape)) / half
        tiny = torch.finfo(chi2_over_df.dtype).tiny
        return self._loc + self._scale * noise * chi2_over_df.clamp(min=tiny).rsqrt()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at ``value``."""
        df = self._df
        standard = (value - self._loc) / self._scale
        constant = _log_gamma_half_step(df / 2) - 0.5 * (df * math.pi).log() - self._scale.log()
        return constant - 0.5 * (df + 1) * torch.log1p(standard * standard / df)


@node_type(df=positive, loc=real, scale=positive, scipy="t(df, loc, scale)")
def student_t_node(
    df: Value, loc: Value = 0.0, scale: Value = 1.0, **options: Unpack[ReparameterizedOptions]
) -> StudentT:
    r"""Student t node with n degrees of freedom.

    .. math:: \log p(x) = \log\frac{\Gamma((n + 1) / 2)}{\Gamma(n / 2) \sqrt{\pi n}\, s}
              - \tfrac{n + 1}2 \log\Bigl(1 + \frac{(x - m)^2}{n s^2}\Bigr)

    Args:
        df: n > 0.
        loc: m.
        scale: s > 0.
    """
    return StudentT(df, loc, scale)
