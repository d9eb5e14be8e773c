r"""Concrete (Gumbel-softmax) distributions: relaxations of Bernoulli and one-hot categorical variables.

.. math:: x = \mathrm{softmax}((l + g) / t), \quad g_k \sim \mathrm{Gumbel}(0, 1)

with logits l and temperature t; :class:`ExpConcrete` is log x. Densities: Maddison et al. 2017, arXiv:1611.00712,
equations 10 and 22 to 24; Jang et al. 2017, arXiv:1611.01144.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions.constraints import positive, real, real_vector
from torch.nn.functional import softplus
from typing_extensions import Unpack

from zsp.distributions.lean import Lean, Parameter
from zsp.distributions.node_type import ReparameterizedOptions, Value, node_type
from zsp.distributions.supports import log_simplex, open_simplex, open_unit_interval
from zsp.distributions.tensors import open_uniform

__all__ = ["BinConcrete", "Concrete", "ExpConcrete", "bin_concrete_node", "concrete_node", "exp_concrete_node"]


class BinConcrete(Lean):
    r"""Relaxed Bernoulli: :math:`\mathrm{logit}\,x` is logistic with location l / t and scale 1 / t.

    Args:
        temperature: t, a tensor or a number.
        logits: the log odds l of 1.
    """

    support = open_unit_interval
    has_rsample = True
    temperature = Parameter()
    logits = Parameter()
    _temperature: Tensor
    _logits: Tensor

    def __init__(self, temperature: Value, logits: Value) -> None:
        self._set(logits=logits, temperature=temperature)

    def rsample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """A draw, differentiable in the parameters, of shape sample_shape + batch, inside the open interval."""
        noise = open_uniform(self._shape(sample_shape), self._logits).logit()
        draw = ((self._logits + noise) / self._temperature).sigmoid()
        finfo = torch.finfo(draw.dtype)
        return draw.clamp(min=finfo.tiny, max=1 - finfo.eps / 2)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at ``value``."""
        log_x, log_not_x = value.log(), torch.log1p(-value)
        distance = (self._temperature * (log_x - log_not_x) - self._logits).abs()
        return self._temperature.log() - log_x - log_not_x - distance - 2 * softplus(-distance)


class ExpConcrete(Lean):
    r"""The logarithm of a concrete vector; it does not underflow, so it is the one to compute with.

    Args:
        temperature: t, a number or a tensor of the batch shape.
        logits: unnormalised log probabilities l, shape [..., n_categories].
    """

    support: torch.distributions.constraints.Constraint = log_simplex
    has_rsample = True
    temperature = Parameter()
    logits = Parameter(event_dim=1)
    _temperature: Tensor
    _logits: Tensor

    def __init__(self, temperature: Value, logits: Tensor) -> None:
        self._set(logits=logits, temperature=temperature)
        self._event_shape = self._logits.shape[-1:]

    @property
    def _temperature_column(self) -> Tensor:
        return self._temperature.unsqueeze(-1) if self._temperature.dim() else self._temperature

    def _relaxed(self, sample_shape) -> Tensor:
        gumbel = -(-open_uniform(self._shape(sample_shape), self._logits).log()).log()
        return (self._logits + gumbel) / self._temperature_column

    def rsample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """A draw, differentiable in the parameters, of shape sample_shape + batch + [n_categories]."""
        return self._relaxed(sample_shape).log_softmax(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at ``value``, with respect to the log ratios of the first n - 1 components to the last."""
        n = self._event_shape[-1]
        terms = (self._logits - self._temperature_column * value).log_softmax(-1)
        return math.lgamma(n) + (n - 1) * self._temperature.log() + terms.sum(-1)


class Concrete(ExpConcrete):
    r"""Relaxed one-hot categorical on the open simplex.

    Args:
        temperature: t, a number or a tensor of the batch shape.
        logits: unnormalised log probabilities l, shape [..., n_categories].
    """

    support = open_simplex

    def rsample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """A draw, differentiable in the parameters, of shape sample_shape + batch + [n_categories].

        Components that underflow are the smallest normal number, so that the density there is finite.
        """
        draw = self._relaxed(sample_shape).softmax(-1)
        return draw.clamp(min=torch.finfo(draw.dtype).tiny)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at ``value``, with respect to the first n - 1 components."""
        log_value = value.log()
        return super().log_prob(log_value) - log_value.sum(-1)


@node_type(
    temperature=positive,
    logits=real,
    hint="A bin_concrete value is strictly between 0 and 1; for zeros and ones use bn.bernoulli.",
)
def bin_concrete_node(temperature: Value, logits: Value, **options: Unpack[ReparameterizedOptions]) -> BinConcrete:
    r"""Binary concrete node, a Bernoulli variable relaxed to (0, 1); also named ``bin_gumbel_softmax``.

    .. math:: \log p(x) = \log t - \log x - \log(1 - x) - d - 2\log(1 + e^{-d}), \quad d = |t\,\mathrm{logit}\,x - l|

    Args:
        temperature: t > 0; small is close to Bernoulli.
        logits: the log odds l of 1.

    Reference: Maddison et al. 2017, arXiv:1611.00712, equation 24.
    """
    return BinConcrete(temperature, logits)


@node_type(
    temperature=positive,
    logits=real_vector,
    hint="An exp_concrete value is a vector of log probabilities; for probabilities use bn.concrete.",
)
def exp_concrete_node(temperature: Value, logits: Tensor, **options: Unpack[ReparameterizedOptions]) -> ExpConcrete:
    r"""Logarithm of a concrete vector of length K, which does not underflow; also named ``exp_gumbel_softmax``.

    .. math:: \log p(y) = \log\Gamma(K) + (K - 1)\log t + \sum_k (l_k - t y_k) - K\log\sum_k e^{l_k - t y_k}

    It is a density with respect to the log ratios :math:`y_k - y_K`: :math:`\sum_k y_k` more than that of ``concrete``.

    Args:
        temperature: t > 0, a number or of the batch shape.
        logits: unnormalised log probabilities l, shape [..., K].

    Reference: Maddison et al. 2017, arXiv:1611.00712, equation 22.
    """
    return ExpConcrete(temperature, logits)


@node_type(
    temperature=positive,
    logits=real_vector,
    hint="A concrete value is a vector of positive numbers that sum to 1; for exactly one-hot vectors use "
    "bn.onehot_categorical; vectors whose components underflow to zero need bn.exp_concrete, on their logarithm.",
)
def concrete_node(temperature: Value, logits: Tensor, **options: Unpack[ReparameterizedOptions]) -> Concrete:
    r"""Concrete node, a one-hot categorical variable relaxed to the simplex; also named ``gumbel_softmax``.

    .. math:: \log p(x) = \log\Gamma(K) + (K - 1)\log t + \sum_k (l_k - (t + 1)\log x_k) - K\log\sum_k e^{l_k} x_k^{-t}

    Args:
        temperature: t > 0, a number or of the batch shape; small is close to one-hot.
        logits: unnormalised log probabilities l, shape [..., K].

    Reference: Maddison et al. 2017, arXiv:1611.00712, equation 10.
    """
    return Concrete(temperature, logits)
