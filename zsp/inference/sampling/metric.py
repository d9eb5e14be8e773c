r"""Mass matrices, as linear maps to the coordinates in which the momentum is standard normal.

With the inverse mass matrix :math:`M^{-1} = L L^\top`, a sampler moves in :math:`z = L^{-1} q`: its momentum is
:math:`N(0, I)`, its kinetic energy :math:`p^\top p / 2`, and

.. math:: \dot q = L p, \qquad \dot p = L^\top \nabla \log \pi(q),

so that U-turn criteria and energies need no mass matrix. The maps act on the last axis.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "MASS_ESTIMATES",
    "MASS_MATRICES",
    "Dense",
    "Diagonal",
    "Identity",
    "LowRank",
    "Metric",
    "Moments",
    "estimate_metric",
    "unit_metric",
]


class Identity(NamedTuple):
    """M = I."""

    def push(self, momentum: Tensor) -> Tensor:
        """The velocity :math:`L p`."""
        return momentum

    def pull(self, gradient: Tensor) -> Tensor:
        r"""The force :math:`L^\top g`."""
        return gradient

    def unpull(self, force: Tensor) -> Tensor:
        r"""The gradient of which ``force`` is the pulled one: :math:`L^{-\top} f`."""
        return force

    def unpush(self, velocity: Tensor) -> Tensor:
        """The momentum of which ``velocity`` is the pushed one: :math:`L^{-1} v`."""
        return velocity


class Diagonal(NamedTuple):
    """:math:`L = \\mathrm{diag}(s)`; s is an estimate of the posterior's standard deviations."""

    scale: Tensor  # [D]

    def push(self, momentum: Tensor) -> Tensor:
        """The velocity :math:`L p`."""
        return momentum * self.scale

    def pull(self, gradient: Tensor) -> Tensor:
        r"""The force :math:`L^\top g`."""
        return gradient * self.scale

    def unpull(self, force: Tensor) -> Tensor:
        r"""The gradient of which ``force`` is the pulled one: :math:`L^{-\top} f`."""
        return force / self.scale

    def unpush(self, velocity: Tensor) -> Tensor:
        """The momentum of which ``velocity`` is the pushed one: :math:`L^{-1} v`."""
        return velocity / self.scale


class Dense(NamedTuple):
    """L is the Cholesky factor of an estimate of the posterior's covariance."""

    factor: Tensor  # [D, D], lower triangular

    def push(self, momentum: Tensor) -> Tensor:
        """The velocity :math:`L p`."""
        return momentum @ self.factor.mT

    def pull(self, gradient: Tensor) -> Tensor:
        r"""The force :math:`L^\top g`."""
        return gradient @ self.factor

    def unpull(self, force: Tensor) -> Tensor:
        r"""The gradient of which ``force`` is the pulled one: :math:`L^{-\top} f`."""
        return torch.linalg.solve_triangular(self.factor.mT, force.mT, upper=True).mT

    def unpush(self, velocity: Tensor) -> Tensor:
        """The momentum of which ``velocity`` is the pushed one: :math:`L^{-1} v`."""
        return torch.linalg.solve_triangular(self.factor, velocity.mT, upper=False).mT


class LowRank(NamedTuple):
    r""":math:`L = \mathrm{diag}(s) (I + U (\mathrm{diag}(r) - I) U^\top)`; the columns of U are orthonormal or zero."""

    scale: Tensor  # [D]
    directions: Tensor  # [D, k]
    stretch: Tensor  # [k]

    def _stretched(self, vector: Tensor, by: Tensor) -> Tensor:
        return vector + ((vector @ self.directions) * (by - 1)) @ self.directions.mT

    def push(self, momentum: Tensor) -> Tensor:
        """The velocity :math:`L p`."""
        return self._stretched(momentum, self.stretch) * self.scale

    def pull(self, gradient: Tensor) -> Tensor:
        r"""The force :math:`L^\top g`."""
        return self._stretched(gradient * self.scale, self.stretch)

    def unpull(self, force: Tensor) -> Tensor:
        r"""The gradient of which ``force`` is the pulled one: :math:`L^{-\top} f`."""
        return self._stretched(force, 1 / self.stretch) / self.scale

    def unpush(self, velocity: Tensor) -> Tensor:
        """The momentum of which ``velocity`` is the pushed one: :math:`L^{-1} v`."""
        return self._stretched(velocity / self.scale, 1 / self.stretch)


Metric = Identity | Diagonal | Dense | LowRank

MASS_MATRICES = ("diagonal", "dense", "low_rank", "identity")
MASS_ESTIMATES = ("gradients", "draws")
MAX_RANK = 32


def unit_metric(mass_matrix: str, position: Tensor) -> Metric:
    """M = I, for positions [chain, D] like the given, in the form that estimates of this kind have.

    Code that is compiled for it serves the estimates that follow.
    """
    ones = torch.ones_like(position[0])
    if mass_matrix == "diagonal":
        return Diagonal(ones)
    if mass_matrix == "dense":
        return Dense(ones.diag())
    if mass_matrix == "low_rank":
        rank = min(MAX_RANK, len(ones))
        return LowRank(ones, ones.new_zeros(len(ones), rank), ones[:rank])
    return Identity()


class Moments:
    """Running means and covariances of draws and of the gradients at them, in float64.

    Args:
        n_dims: D.
        is_diagonal: whether to keep variances only.
        device: where.
    """

    def __init__(self, n_dims: int, is_diagonal: bool, device: torch.device) -> None:
        self._is_diagonal = is_diagonal
        self.count = 0
        self.mean = torch.zeros(2, n_dims, dtype=torch.float64, device=device)
        shape = (2, n_dims) if is_diagonal else (2, n_dims, n_dims)
        self.scatter = torch.zeros(shape, dtype=torch.float64, device=device)

    def add(self, draws: Tensor, gradients: Tensor) -> None:
        """Take in draws and gradients [n, D]."""
        both = torch.stack([draws, gradients]).double()
        n = both.shape[1]
        if n == 0:
            return
        mean = both.mean(1)
        centred = both - mean[:, None]
        shift = mean - self.mean
        total = self.count + n
        weight = self.count * n / total
        if self._is_diagonal:
            self.scatter += centred.square().sum(1) + weight * shift.square()
        else:
            self.scatter += centred.mT @ centred + weight * shift[:, :, None] * shift[:, None]
        self.mean += shift * (n / total)
        self.count = total

    def covariances(self) -> tuple[Tensor, Tensor]:
        """Of draws and of gradients, each [D] or [D, D]."""
        draws, gradients = self.scatter / max(self.count - 1, 1)
        return draws, gradients


def estimate_metric(moments: Moments, mass_matrix: str, mass_estimate: str, dtype: torch.dtype) -> Metric:
    r"""The mass matrix that the draws of a window suggest.

    From draws alone, the inverse mass matrix is their covariance, shrunk to :math:`10^{-3} I` with the weight of five
    draws (as in Stan). From draws and gradients it minimises the Fisher divergence between the posterior and a normal
    distribution: :math:`\sqrt{\mathrm{var}(q) / \mathrm{var}(\nabla)}` if diagonal, otherwise the geometric mean of
    the covariance of the draws and the inverse covariance of the gradients (Seyboldt, Carlson and Carpenter 2026,
    arXiv:2603.18845). On a normal distribution that mean is exact after D + 1 draws; the weight of five draws that is
    put on independence, for windows with fewer, makes it nearly so.

    Args:
        moments: of the draws and gradients.
        mass_matrix: "diagonal", "dense" or "low_rank".
        mass_estimate: "gradients" or "draws".
        dtype: of the metric.
    """
    draws, gradients = moments.covariances()
    n = moments.count
    if mass_matrix == "diagonal":
        return Diagonal(_variances(draws, gradients, n, mass_estimate).sqrt().to(dtype))
    scale = _variances(draws.diagonal(), gradients.diagonal(), n, mass_estimate).sqrt()
    eye = torch.eye(len(scale), dtype=scale.dtype, device=scale.device)
    # in units of the diagonal estimate, with the weight of a few draws on independence
    prior = 5.0 / (n + 5.0)
    standard = (1 - prior) * draws / scale / scale[:, None] + prior * eye
    if mass_estimate == "gradients":
        force = (1 - prior) * gradients * scale * scale[:, None] + prior * eye
        standard = _geometric_mean(standard, force)
    if mass_matrix == "dense":
        return Dense((scale[:, None] * torch.linalg.cholesky(standard)).to(dtype))
    values, vectors = torch.linalg.eigh(standard)
    order = values.log().abs().argsort(descending=True)[:MAX_RANK]
    matters = values[order].log().abs() > LOG_STRETCH
    directions, stretch = vectors[:, order] * matters, torch.where(matters, values[order].sqrt(), 1.0)
    return LowRank(scale.to(dtype), directions.to(dtype), stretch.to(dtype))


LOG_STRETCH = 0.7  # directions in which the standardised variance is within a factor of two of 1 are left alone


def _variances(draws: Tensor, gradients: Tensor, n: int, mass_estimate: str) -> Tensor:
    if mass_estimate == "gradients":
        tiny = torch.finfo(draws.dtype).tiny ** 0.5
        return (draws.clamp(min=tiny) / gradients.clamp(min=tiny)).sqrt()
    return (n * draws + 5 * 1e-3) / (n + 5)


def _geometric_mean(a: Tensor, b: Tensor) -> Tensor:
    """The geometric mean of a and the inverse of b: the positive definite x with x b x = a."""
    values, vectors = torch.linalg.eigh(b)
    root = vectors * values.sqrt() @ vectors.mT
    inverse_root = vectors / values.sqrt() @ vectors.mT
    inner_values, inner_vectors = torch.linalg.eigh(root @ a @ root)
    inner = inner_vectors * inner_values.clamp(min=0).sqrt() @ inner_vectors.mT
    return inverse_root @ inner @ inverse_root
