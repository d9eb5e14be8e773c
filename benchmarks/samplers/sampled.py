"""What a run of a sampler gives, and the densities that all libraries have to sample, by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.samplers.problems import Problem
from zsp.inference.diagnostics import ess_bulk

__all__ = ["Clock", "Sampled", "reference", "tensors"]

Clock = Callable[[], float]
"""Seconds: ``time.perf_counter``, or ``time.process_time`` on a machine that is busy with other things."""


class Sampled(NamedTuple):
    """What one run of a sampler made after its warm-up.

    Attributes:
        draws: unconstrained or not, which a rank does not see; [chain, draw, D].
        seconds: what making them took.
        n_leapfrogs: gradients evaluated for them, all chains together; 0 where the library does not tell.
    """

    draws: Tensor
    seconds: float
    n_leapfrogs: int

    @property
    def min_ess(self) -> float:
        """The smallest bulk effective sample size of the latents."""
        return ess_bulk(self.draws).min().item()

    @property
    def ess_per_second(self) -> float:
        """The figure that counts."""
        return self.min_ess / self.seconds


def tensors(problem: Problem, device: str = "cpu") -> dict[str, Tensor]:
    """The data."""
    return {name: torch.from_numpy(value).to(device) for name, value in problem.data.items()}


def reference(problem: Problem, position: Tensor) -> Tensor:
    """The log density up to a constant, by hand, in the position's dtype: what every library's model has to equal.

    Args:
        problem: which.
        position: unconstrained, [chain, D]: w; x; or mu, log tau and z.
    """
    data = {name: value.to(position.dtype) for name, value in tensors(problem).items()}
    if problem.kind == "logistic":
        logits = position @ data["x"].T
        log_likelihood = data["y"] * logits - torch.nn.functional.softplus(logits)
        return log_likelihood.sum(-1) - 0.5 * position.square().sum(-1)
    if problem.kind == "gaussian":
        return -0.5 * (position @ data["precision"] * position).sum(-1)
    mu, log_tau, z = position[:, :1], position[:, 1:2], position[:, 2:]
    tau = log_tau.exp()
    log_prior = -0.5 * (mu / 5).square() - torch.log1p((tau / 5).square()) + log_tau
    residual = (data["y"] - mu - tau * z) / data["s"]
    return log_prior.squeeze(-1) - 0.5 * (z.square() + residual.square()).sum(-1)
