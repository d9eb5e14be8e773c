"""What no gradient of a logistic regression can do without: its two matrix products, by torch's library and alone."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from benchmarks.samplers.problems import Problem
from benchmarks.samplers.sampled import Clock, tensors

__all__ = ["hmc"]


def hmc(
    problem: Problem,
    n_chains: int,
    n_transitions: int,
    step_size: float,
    n_leapfrogs: int,
    clock: Clock = time.perf_counter,
) -> Callable[[], float]:
    """A function that makes the products of so many transitions, and says what those of one of them took."""
    x = tensors(problem)["x"]
    position = torch.randn(n_chains, x.shape[1])
    logits, gradient = torch.empty(n_chains, len(x)), torch.empty(x.shape[1], n_chains)

    def run() -> float:
        start = clock()
        for _ in range(n_transitions * n_leapfrogs):
            torch.mm(position, x.T, out=logits)
            torch.mm(x.T, logits.T, out=gradient)  # with the chains last it is the fastest
        return (clock() - start) / n_transitions

    return run
