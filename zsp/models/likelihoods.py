"""Likelihoods of a network's output, to be given to :func:`zsp.models.bayesian`.

A likelihood is a callable ``likelihood(bn, output, group_ndims=..., total_size=...)`` that declares the node ``"y"``,
and may declare latents of its own before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

import zsp

__all__ = [
    "BernoulliLikelihood",
    "CategoricalLikelihood",
    "GammaNoiseLikelihood",
    "LearntNoiseLikelihood",
    "Likelihood",
    "NormalLikelihood",
]


class Likelihood(Protocol):
    """What :func:`zsp.models.bayesian` takes as a likelihood: a function that declares the data."""

    def __call__(self, bn: zsp.BayesianNet, output: Tensor, /, *, group_ndims: int, total_size: int | None) -> object:
        """Declare the node ``"y"``.

        Args:
            bn: the net to declare it on.
            output: of the network, shape sample + [n, ...]; the sample axes are those of the weights, if any.
            group_ndims: how many axes of the output are not sample axes: what to give to the node where each number of
                the output is the parameter of one number of ``y``.
            total_size: to be given to the node.
        """


@dataclass(frozen=True)
class NormalLikelihood:
    r"""Gaussian noise of a given standard deviation, :math:`y \sim \mathrm{N}(f(x), s^2)`; y has the output's shape.

    Args:
        std: s.
    """

    std: float

    def __post_init__(self) -> None:
        _require_positive(self, "std", self.std)

    def __call__(self, bn: zsp.BayesianNet, output: Tensor, /, *, group_ndims: int, total_size: int | None) -> None:
        """Declare the data."""
        bn.normal("y", output, std=self.std, group_ndims=group_ndims, total_size=total_size)
        _require_shape_of_output(bn, output, group_ndims)


class LearntNoiseLikelihood(nn.Module):
    r"""Gaussian noise whose standard deviation is a parameter, :math:`y \sim \mathrm{N}(f(x), s^2)`.

    It is learnt where ``model.parameters()`` are, by :func:`zsp.fit` for example; samplers keep it as it is.

    Args:
        std: s, to begin with.
    """

    def __init__(self, std: float = 1.0) -> None:
        super().__init__()
        _require_positive(self, "std", std)
        self.logstd = nn.Parameter(torch.tensor(math.log(std)))

    def forward(self, bn: zsp.BayesianNet, output: Tensor, /, *, group_ndims: int, total_size: int | None) -> None:
        """Declare the data."""
        bn.normal("y", output, logstd=self.logstd, group_ndims=group_ndims, total_size=total_size)
        _require_shape_of_output(bn, output, group_ndims)


@dataclass(frozen=True)
class GammaNoiseLikelihood:
    r"""Gaussian noise whose precision is a latent.

    .. math:: \gamma \sim \mathrm{Gamma}(\alpha, \beta), \quad y \sim \mathrm{N}(f(x), \gamma^{-1})

    The latent is named ``"noise_precision"`` and has the mean :math:`\alpha / \beta`.

    Args:
        alpha: shape.
        beta: rate.

    Reference: Hernández-Lobato and Adams 2015, arXiv:1502.05336, section 2, where alpha = beta = 6.
    """

    alpha: float = 6.0
    beta: float = 6.0

    def __post_init__(self) -> None:
        _require_positive(self, "alpha", self.alpha)
        _require_positive(self, "beta", self.beta)

    def __call__(self, bn: zsp.BayesianNet, output: Tensor, /, *, group_ndims: int, total_size: int | None) -> None:
        """Declare the precision and the data."""
        alpha, beta = output.new_full((), self.alpha), output.new_full((), self.beta)
        std = bn.gamma("noise_precision", alpha, beta).rsqrt()
        std = std.reshape(std.shape + (1,) * group_ndims)
        bn.normal("y", output, std=std, group_ndims=group_ndims, total_size=total_size)
        _require_shape_of_output(bn, output, group_ndims)


@dataclass(frozen=True)
class CategoricalLikelihood:
    """Classes 0 to K - 1; the output's last axis holds their K logits, and y is [n, ...] without it."""

    def __call__(self, bn: zsp.BayesianNet, output: Tensor, /, *, group_ndims: int, total_size: int | None) -> None:
        """Declare the data."""
        if group_ndims < 2:
            raise ValueError(
                f"CategoricalLikelihood needs an output of shape [n, ..., K] with the logits of K classes last, but "
                f"got {list(output.shape[output.dim() - group_ndims :])} for one draw of the weights."
            )
        bn.categorical("y", output, group_ndims=group_ndims - 1, total_size=total_size)


@dataclass(frozen=True)
class BernoulliLikelihood:
    """Zeros and ones, with the output as their logits; y has the output's shape."""

    def __call__(self, bn: zsp.BayesianNet, output: Tensor, /, *, group_ndims: int, total_size: int | None) -> None:
        """Declare the data."""
        bn.bernoulli("y", output, group_ndims=group_ndims, total_size=total_size)
        _require_shape_of_output(bn, output, group_ndims)


def _require_shape_of_output(bn: zsp.BayesianNet, output: Tensor, group_ndims: int) -> None:
    """Data of another shape would broadcast against the output: [n] and [n, 1] to n x n terms."""
    y = bn["y"]
    wanted = output.shape[output.dim() - group_ndims :]
    if y.shape[max(0, y.tensor.dim() - group_ndims) :] == wanted:
        return
    mend = f"Give y the shape {list(wanted)}"
    if wanted[-1:] == (1,) and y.shape == wanted[:-1]:
        mend = "Let the module end in nn.Flatten(0), or give y[:, None]"
    raise ValueError(
        f"y has shape {list(y.shape)}, but the module's output, which is the parameter of each of its numbers, has "
        f"shape {list(wanted)}. {mend}."
    )


def _require_positive(likelihood: object, name: str, value: float) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise ValueError(f"{type(likelihood).__name__}: {name} must be a positive number, got {value!r}.")
