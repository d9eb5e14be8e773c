r"""Priors on the weights of a network, to be given to :func:`zsp.models.bayesian`.

A prior is a callable ``prior(bn, like)``: it declares a node for each parameter of ``like`` (name -> tensor of its
shape) and returns the weights by name. Layers share hyperparameters: the parameters ``"2.weight"`` and ``"2.bias"``
are those of the layer ``"2"``. Where ``bn`` holds many draws of the hyperparameters at once, sample axes come first.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor, nn

import zsp
from zsp.checks.wording import quoted

__all__ = [
    "EmpiricalPrior",
    "GammaPrecisionPrior",
    "GaussianPrior",
    "HierarchicalPrior",
    "HorseshoePrior",
    "LaplacePrior",
    "WeightPrior",
    "layer_of",
]


class WeightPrior(Protocol):
    """What :func:`zsp.models.bayesian` takes as a prior: a function that declares the weights."""

    def __call__(self, bn: zsp.BayesianNet, like: Mapping[str, Tensor], /) -> Mapping[str, Tensor]:
        """Declare a node, or nodes, for each parameter, and return the weights.

        Args:
            bn: the net to declare them on.
            like: name -> tensor of the shape, dtype and device of the parameter.

        Returns:
            name -> weights, of shape sample + shape.
        """


def layer_of(name: str) -> str:
    """The layer of a parameter: "features.0" of "features.0.weight", "" of "weight"."""
    return name.rpartition(".")[0]


@dataclass(frozen=True)
class _Positive:
    """Options that are positive numbers, unless they are booleans or None."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or value is None:
                continue
            if not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise ValueError(f"{type(self).__name__}: {field.name} must be a positive number, got {value!r}.")


@dataclass(frozen=True)
class GaussianPrior(_Positive):
    r"""Independent Gaussians, :math:`w \sim \mathrm{N}(0, s^2)`.

    Args:
        std: s.
        per_fan_in: whether weights (not biases) have the variance :math:`s^2 / n`, with n the number of a unit's
            inputs, which keeps a layer's output on one scale whatever its width.
    """

    std: float = 1.0
    per_fan_in: bool = False

    def __call__(self, bn: zsp.BayesianNet, like: Mapping[str, Tensor], /) -> dict[str, Tensor]:
        """Declare the weights."""
        return {
            name: bn.normal(name, torch.zeros_like(w), std=self.std * _unit(w, self.per_fan_in), group_ndims=w.dim())
            for name, w in like.items()
        }


@dataclass(frozen=True)
class LaplacePrior(_Positive):
    r"""Independent Laplace distributions, :math:`p(w) \propto \exp(-|w| / b)`, whose variance is :math:`2 b^2`.

    Args:
        scale: b.
        per_fan_in: whether weights (not biases) have the scale :math:`b / \sqrt n`, with n the number of a unit's
            inputs.
    """

    scale: float = 1.0
    per_fan_in: bool = False

    def __call__(self, bn: zsp.BayesianNet, like: Mapping[str, Tensor], /) -> dict[str, Tensor]:
        """Declare the weights."""
        return {
            name: bn.laplace(name, torch.zeros_like(w), self.scale * _unit(w, self.per_fan_in), group_ndims=w.dim())
            for name, w in like.items()
        }


@dataclass(frozen=True)
class GammaPrecisionPrior(_Positive):
    r"""Gaussians whose precision has a Gamma prior.

    .. math:: \tau \sim \mathrm{Gamma}(\alpha, \beta), \quad w \mid \tau \sim \mathrm{N}(0, \tau^{-1})

    with the mean :math:`\alpha / \beta` of the precision, a latent named ``"<layer>.precision"`` or ``"precision"``.

    Args:
        alpha: shape.
        beta: rate.
        per_layer: whether each layer has a precision of its own, or all share one.
        per_fan_in: whether weights (not biases) have the variance :math:`1 / (n \tau)`, with n the number of a unit's
            inputs.

    Reference: Hernández-Lobato and Adams 2015, arXiv:1502.05336, section 2, where alpha = beta = 6.
    """

    alpha: float = 6.0
    beta: float = 6.0
    per_layer: bool = True
    per_fan_in: bool = False

    def __call__(self, bn: zsp.BayesianNet, like: Mapping[str, Tensor], /) -> dict[str, Tensor]:
        """Declare the precisions and the weights."""
        weights = {}
        for layer, parameters in _groups(like, self.per_layer):
            first = next(iter(parameters.values()))
            rate = first.new_full((), self.beta)
            precision = bn.gamma(_join(layer, "precision"), first.new_full((), self.alpha), rate)
            weights.update(_scaled_gaussians(bn, parameters, precision.rsqrt(), self.per_fan_in))
        return weights


@dataclass(frozen=True)
class HierarchicalPrior(_Positive):
    r"""Gaussians whose standard deviation is a latent of each layer.

    .. math:: s \sim \mathrm{HalfCauchy}(c), \quad w \mid s \sim \mathrm{N}(0, s^2)

    The latent is named ``"<layer>.std"``. :class:`EmpiricalPrior` takes its most probable value instead.

    Args:
        scale: c, the median of the standard deviations.
        per_fan_in: whether weights (not biases) have the variance :math:`s^2 / n`, with n the number of a unit's
            inputs.
    """

    scale: float = 1.0
    per_fan_in: bool = False

    def __call__(self, bn: zsp.BayesianNet, like: Mapping[str, Tensor], /) -> dict[str, Tensor]:
        """Declare the standard deviations and the weights."""
        weights = {}
        for layer, parameters in _groups(like, True):
            first = next(iter(parameters.values()))
            std = bn.half_cauchy(_join(layer, "std"), first.new_full((), self.scale))
            weights.update(_scaled_gaussians(bn, parameters, std, self.per_fan_in))
        return weights


@dataclass(frozen=True)
class HorseshoePrior(_Positive):
    r"""The horseshoe, which leaves a few weights large and draws the others towards zero.

    .. math:: w = z \lambda \tau, \quad z \sim \mathrm{N}(0, 1), \quad \lambda \sim \mathrm{HalfCauchy}(1), \quad
        \tau \sim \mathrm{HalfCauchy}(c)

    with a :math:`\lambda` for each weight and a :math:`\tau` for each layer. The latents are ``"<name>.unscaled"`` (z),
    ``"<name>.local"`` and ``"<layer>.global"``: z is independent of its scales a priori, so that neither a sampler nor
    a factorised approximation meets the funnel of the weights themselves, which are deterministic nodes under the
    parameters' names. With a slab of width s, :math:`\tau \lambda` becomes
    :math:`\tau \lambda s / \sqrt{s^2 + \tau^2 \lambda^2}`, which bounds the large weights.

    Args:
        scale: c.
        slab_scale: s; None for the horseshoe without a slab.

    Reference: Carvalho et al. 2009, AISTATS, equation 1; Piironen and Vehtari 2017, arXiv:1707.01694, equation 2.8;
        Ghosh et al. 2018, arXiv:1806.05975, section 3, for the form.
    """

    scale: float = 1.0
    slab_scale: float | None = None

    def __call__(self, bn: zsp.BayesianNet, like: Mapping[str, Tensor], /) -> dict[str, Tensor]:
        """Declare the scales and the unscaled weights."""
        weights = {}
        for layer, parameters in _groups(like, True):
            first = next(iter(parameters.values()))
            tau = bn.half_cauchy(_join(layer, "global"), first.new_full((), self.scale))
            for name, w in parameters.items():
                local = bn.half_cauchy(f"{name}.local", torch.ones_like(w), group_ndims=w.dim())
                unscaled = bn.normal(f"{name}.unscaled", torch.zeros_like(w), std=1.0, group_ndims=w.dim())
                scale = local * _over(tau, w)
                if self.slab_scale is not None:  # scale / sqrt(1 + (scale / s)^2), without squaring what is large
                    scale = scale / torch.hypot(torch.ones_like(scale), scale / self.slab_scale)
                weights[name] = bn.deterministic(name, unscaled * scale)
        return weights


class EmpiricalPrior(nn.Module):
    r"""Gaussians whose standard deviation is a parameter of each layer, fitted to draws of the weights.

    .. math:: w \sim \mathrm{N}(0, s^2), \quad
        s^2 \leftarrow \operatorname*{arg\,max}_{s^2} \mathbb{E}[\log p(w \mid s^2)] = \mathbb{E}[\overline{w^2}]

    That is empirical Bayes. The update is the M step of Monte Carlo EM, between calls of a sampler; otherwise train
    ``model.prior.parameters()`` with the ELBO::

        model = zsp.models.bayesian(net, prior=zsp.models.EmpiricalPrior(), likelihood=likelihood)
        last = None
        for _ in range(10):
            draws = zsp.mcmc(model, data, kernel=kernel, n_samples=50, init=last)        # E step
            model.prior.maximise(draws)                                                  # M step
            last = {name: draw[:, -1] for name, draw in draws.items() if name not in draws.deterministic}

    Args:
        std: the standard deviation to begin with.
        per_fan_in: whether weights (not biases) have the variance :math:`s^2 / n`, with n the number of a unit's
            inputs.

    Attributes:
        logstd: log s of each layer, by name (dots in it replaced by "/"), once the prior is part of a model.

    Reference: Wei and Tanner 1990, JASA 85(411), section 2.
    """

    def __init__(self, std: float = 1.0, per_fan_in: bool = False) -> None:
        super().__init__()
        if not 0 < std < math.inf:
            raise ValueError(f"EmpiricalPrior: std must be a positive number, got {std!r}.")
        self.std, self.per_fan_in = std, per_fan_in
        self.logstd = nn.ParameterDict()
        self._units: dict[str, dict[str, float]] = {}  # layer -> name of a parameter -> its std where s is 1

    def prepared(self, like: Mapping[str, Tensor]) -> EmpiricalPrior:
        """A copy with a parameter for each layer of ``like``; :func:`zsp.models.bayesian` calls it."""
        prior = copy.deepcopy(self)
        for layer, parameters in _groups(like, True):
            first = next(iter(parameters.values()))
            prior.logstd[_key(layer)] = nn.Parameter(torch.full_like(first.detach().flatten()[0], math.log(self.std)))
            prior._units[layer] = {name: _unit(w, self.per_fan_in) for name, w in parameters.items()}
        return prior

    def forward(self, bn: zsp.BayesianNet, like: Mapping[str, Tensor], /) -> dict[str, Tensor]:
        """Declare the weights."""
        weights = {}
        for layer, parameters in _groups(like, True):
            std = self.logstd[_key(layer)].exp()
            weights.update(_scaled_gaussians(bn, parameters, std, self.per_fan_in))
        return weights

    @torch.no_grad()
    def maximise(self, weights: Mapping[str, Tensor], *, rate: float = 1.0) -> None:
        """The M step: each layer's variance becomes the mean square of its weights.

        Args:
            weights: name -> draws, of any leading axes; :class:`zsp.Draws`, for example.
            rate: of the step in log s; less than 1 averages over noisy E steps.

        Raises:
            ValueError: if the prior is not part of a model yet, or draws of a parameter are missing.
        """
        if not self._units:
            raise ValueError(
                "this EmpiricalPrior is not part of a model: zsp.models.bayesian copies the prior that it is given. "
                "Call model.prior.maximise(draws)."
            )
        for layer, units in self._units.items():
            missing = [name for name in units if name not in weights]
            if missing:
                raise ValueError(f"maximise needs draws of {missing[0]!r}, but got those of {quoted(weights)}.")
            squares = torch.cat([(weights[name] / unit).square().flatten() for name, unit in units.items()])
            self.logstd[_key(layer)].lerp_(0.5 * squares.mean().log(), rate)


def _scaled_gaussians(
    bn: zsp.BayesianNet, parameters: Mapping[str, Tensor], std: Tensor, per_fan_in: bool
) -> dict[str, Tensor]:
    """Gaussians around zero with one standard deviation, which may have sample axes."""
    return {
        name: bn.normal(name, torch.zeros_like(w), std=_over(std, w) * _unit(w, per_fan_in), group_ndims=w.dim())
        for name, w in parameters.items()
    }


def _groups(like: Mapping[str, Tensor], per_layer: bool) -> Iterable[tuple[str, dict[str, Tensor]]]:
    """The parameters by layer, or all of them under the name ""."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, w in like.items():
        groups.setdefault(layer_of(name) if per_layer else "", {})[name] = w
    return groups.items()


def _join(layer: str, name: str) -> str:
    return f"{layer}.{name}" if layer else name


def _key(layer: str) -> str:
    return layer.replace(".", "/") or "all"


def _over(scale: Tensor, w: Tensor) -> Tensor:
    """A number for each sample, of shape sample, so that it broadcasts over the axes of a parameter."""
    return scale.reshape(scale.shape + (1,) * w.dim())


def _unit(w: Tensor, per_fan_in: bool) -> float:
    return w[0].numel() ** -0.5 if per_fan_in and w.dim() > 1 else 1.0
