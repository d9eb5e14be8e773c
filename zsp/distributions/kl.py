r"""Kullback-Leibler divergences for ``torch.distributions.kl_divergence``, :math:`\int p \log(p / q)`.

Classes of zsp that are subclasses of torch's have torch's divergences. Here are those of the others, and of
those whose divergence in torch loses digits or reads what zsp's class does not keep. Only pairs of zsp's own classes
are registered.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import kl_divergence, register_kl
from torch.nn.functional import logsigmoid

from zsp.distributions.beta import Dirichlet
from zsp.distributions.binomial import Binomial
from zsp.distributions.categorical import Categorical, OneHotCategorical
from zsp.distributions.continuous_bernoulli import ContinuousBernoulli, _log_sinhc
from zsp.distributions.gamma import Gamma, InverseGamma
from zsp.distributions.geometric import Geometric
from zsp.distributions.half_cauchy import HalfCauchy
from zsp.distributions.multivariate_normal import MatrixVariateNormal, _log_diagonal
from zsp.distributions.normal import HalfNormal, LogNormal, Normal
from zsp.distributions.pareto import Pareto

__all__: list[str] = []


@register_kl(LogNormal, LogNormal)
def _log_normal(p: LogNormal, q: LogNormal) -> Tensor:
    return kl_divergence(p._normal, q._normal)


@register_kl(HalfNormal, HalfNormal)
def _half_normal(p: HalfNormal, q: HalfNormal) -> Tensor:
    return kl_divergence(Normal(0.0, p.scale), Normal(0.0, q.scale))


@register_kl(HalfCauchy, HalfCauchy)
def _half_cauchy(p: HalfCauchy, q: HalfCauchy) -> Tensor:
    # that of Cauchy variables with one location (Chyzak & Nielsen 2019, arXiv:1905.10965, theorem 1)
    return 2 * (p.scale + q.scale).log() - (p.scale * q.scale).log() - math.log(4)


@register_kl(InverseGamma, InverseGamma)
def _inverse_gamma(p: InverseGamma, q: InverseGamma) -> Tensor:
    # divergences do not change under one-to-one maps
    return kl_divergence(Gamma(p.concentration, p.rate), Gamma(q.concentration, q.rate))


@register_kl(Dirichlet, Dirichlet)
def _dirichlet(p: Dirichlet, q: Dirichlet) -> Tensor:
    a, b = p.concentration, q.concentration
    total = a.sum(-1, keepdim=True)
    constant = total.squeeze(-1).lgamma() - b.sum(-1).lgamma() + (b.lgamma() - a.lgamma()).sum(-1)
    return constant + ((a - b) * (a.digamma() - total.digamma())).sum(-1)


@register_kl(OneHotCategorical, OneHotCategorical)
def _one_hot_categorical(p: OneHotCategorical, q: OneHotCategorical) -> Tensor:
    return kl_divergence(Categorical(logits=p.logits), Categorical(logits=q.logits))


@register_kl(Binomial, Binomial)
def _binomial(p: Binomial, q: Binomial) -> Tensor:
    n = p.total_count
    can_read = not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()
    if can_read and not torch.equal(*torch.broadcast_tensors(n, q.total_count)):
        raise NotImplementedError("the divergence between binomials has a closed form for equal total_count only")
    success = logsigmoid(p.logits) - logsigmoid(q.logits)
    failure = logsigmoid(-p.logits) - logsigmoid(-q.logits)
    return n * (p.probs * success + (-p.logits).sigmoid() * failure)


@register_kl(Geometric, Geometric)
def _geometric(p: Geometric, q: Geometric) -> Tensor:
    return -p.entropy() - p.mean * logsigmoid(-q.logits) - logsigmoid(q.logits)


@register_kl(ContinuousBernoulli, ContinuousBernoulli)
def _continuous_bernoulli(p: ContinuousBernoulli, q: ContinuousBernoulli) -> Tensor:
    return (p.logits - q.logits) * (p.mean - 0.5) + _log_sinhc(q.logits / 2) - _log_sinhc(p.logits / 2)


@register_kl(Pareto, Pareto)
def _pareto(p: Pareto, q: Pareto) -> Tensor:
    # Michalowicz et al. 2014, Handbook of differential entropy, with p's support inside q's
    ratio = q.alpha / p.alpha
    inside = q.alpha * (p.scale.log() - q.scale.log()) - ratio.log() + ratio - 1
    return torch.where(p.scale >= q.scale, inside, torch.inf)


@register_kl(MatrixVariateNormal, MatrixVariateNormal)
def _matrix_variate_normal(p: MatrixVariateNormal, q: MatrixVariateNormal) -> Tensor:
    solve = torch.linalg.solve_triangular
    n_row, n_col = p.event_shape
    rows = solve(q.row_scale_tril, p.row_scale_tril, upper=False).square().sum((-2, -1))
    columns = solve(q.column_scale_tril, p.column_scale_tril, upper=False).square().sum((-2, -1))
    shift = solve(q.column_scale_tril, solve(q.row_scale_tril, p.loc - q.loc, upper=False).mT, upper=False)
    log_scale = n_col * (_log_diagonal(q.row_scale_tril) - _log_diagonal(p.row_scale_tril))
    log_scale = log_scale + n_row * (_log_diagonal(q.column_scale_tril) - _log_diagonal(p.column_scale_tril))
    return log_scale + 0.5 * (rows * columns + shift.square().sum((-2, -1)) - n_row * n_col)
