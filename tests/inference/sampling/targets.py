"""Densities whose exact draws are known, for the tests of kernels: functions from [*chain, D] to [*chain]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.monte_carlo import assert_mean
from zsp.inference.sampling.kernel import Tuning
from zsp.inference.sampling.metric import Dense, Diagonal, Identity, LowRank, Metric

__all__ = ["COVARIANCE", "METRICS", "assert_exact", "banana", "banana_draws", "gaussian", "gaussian_draws", "gradient_of", "tuning"]

COVARIANCE = torch.tensor([[2.0, 0.9, 0.0], [0.9, 1.0, -0.3], [0.0, -0.3, 0.25]], dtype=torch.float64)
_DIRECTIONS = torch.linalg.qr(torch.tensor([[1.0, 2.0], [0.5, -1.0], [-0.3, 0.4]], dtype=torch.float64)).Q

METRICS: dict[str, Metric] = {
    "identity": Identity(),
    "diagonal": Diagonal(torch.tensor([1.5, 0.8, 0.6], dtype=torch.float64)),
    "dense": Dense(torch.linalg.cholesky(COVARIANCE + 0.1 * torch.eye(3, dtype=torch.float64))),
    "low_rank": LowRank(
        torch.tensor([1.5, 0.8, 0.6], dtype=torch.float64), _DIRECTIONS, torch.tensor([1.7, 0.5], dtype=torch.float64)
    ),
}


def gaussian(position: Tensor) -> Tensor:
    """log N(q; 0, COVARIANCE) but for its constant."""
    precision = torch.linalg.inv(COVARIANCE).to(position)
    return -0.5 * ((position @ precision) * position).sum(-1)


def gaussian_draws(n: int) -> Tensor:
    return torch.randn(n, 3) @ torch.linalg.cholesky(COVARIANCE).to(torch.get_default_dtype()).mT


def banana(position: Tensor) -> Tensor:
    """q0 ~ N(0, 1), q1 ~ N(q0^2, 0.1^2), q2 ~ N(0, e^q0): curvatures that differ by factors of hundreds."""
    a, b, c = position.unbind(-1)
    return -0.5 * a.square() - 50 * (b - a.square()).square() - 0.5 * c.square() * torch.exp(-a) - 0.5 * a


def banana_draws(n: int) -> Tensor:
    a, b, c = torch.randn(3, n)
    return torch.stack([a, a.square() + 0.1 * b, c * torch.exp(a / 2)], -1)


def assert_exact(target: Callable[[Tensor], Tensor], draws: Tensor) -> None:
    """Independent draws are those of the target: their moments in coordinates in which it is standard normal."""
    if target is gaussian:
        white = torch.linalg.solve(torch.linalg.cholesky(COVARIANCE), draws.mT).mT
    else:
        a, b, c = draws.unbind(-1)
        white = torch.stack([a, (b - a.square()) / 0.1, c * torch.exp(-a / 2)], -1)
    assert_mean(white, 0.0)
    assert_mean(white[:, :, None] * white[:, None], torch.eye(3))
    assert_mean(white**3, 0.0)
    assert_mean(white**4, 3.0)


def gradient_of(log_density: Callable[[Tensor], Tensor], position: Tensor) -> tuple[Tensor, Tensor]:
    """The value and the gradient, by autograd, without any of zsp."""
    position = position.detach().requires_grad_()
    value = log_density(position)
    (gradient,) = torch.autograd.grad(value.sum(), position)
    return value.detach(), gradient


def tuning(metric: Metric, *, is_adapting: float = 0.0, target: float = 0.8) -> Tuning:
    return Tuning(metric, torch.tensor(target), torch.tensor(is_adapting))
