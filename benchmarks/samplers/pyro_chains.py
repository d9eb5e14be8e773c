"""Pyro: its kernels, eager as they are by default or through its jit, one chain after another, not validating."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import HMC, MCMC, NUTS
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor

from benchmarks.samplers.problems import Problem
from benchmarks.samplers.sampled import Clock, Sampled, tensors

__all__ = ["hmc", "log_density", "nuts"]


def _logistic(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    pyro.sample("y", dist.Bernoulli(logits=x @ w).to_event(1), obs=y)


def _schools(y: Tensor, s: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(torch.tensor(5.0)))
    z = pyro.sample("z", dist.Normal(torch.zeros(len(y)), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(mu + tau * z, s).to_event(1), obs=y)


_MODELS: dict[str, Callable[..., None]] = {"logistic": _logistic, "schools": _schools}


def log_density(problem: Problem, position: np.ndarray) -> np.ndarray:
    """At unconstrained positions [chain, D]."""
    _, potential, _, _ = initialize_model(_MODELS[problem.kind], model_kwargs=tensors(problem))

    def at(one: Tensor) -> float:
        if problem.kind == "logistic":
            return -potential({"w": one}).item()
        return -potential({"mu": one[0], "tau": one[1], "z": one[2:]}).item()

    return np.array([at(one) for one in torch.from_numpy(position)])


def _run(kernel: Any, problem: Problem, n_warmup: int, n_samples: int, clock: Clock) -> tuple[Tensor, float]:
    """Draws [draw, D] of one chain, and the seconds after the warm-up."""
    stamps: dict[str, float] = {}

    def stamp(_kernel: Any, _samples: Any, stage: str, _i: int) -> None:
        key = "warmed up" if stage.lower().startswith("warm") else "done"
        stamps[key] = clock()

    chain = MCMC(kernel, num_samples=n_samples, warmup_steps=n_warmup, hook_fn=stamp, disable_progbar=True)
    with pyro.validation_enabled(False):
        chain.run(**tensors(problem))
    draws = [value.reshape(n_samples, -1) for value in chain.get_samples().values()]
    return torch.cat(draws, -1), stamps["done"] - stamps["warmed up"]


def nuts(
    problem: Problem, n_chains: int, n_warmup: int, n_samples: int, clock: Clock = time.perf_counter
) -> Callable[[int], Sampled]:
    """A function from a seed to one run of NUTS."""

    def run(seed: int) -> Sampled:
        chains = []
        for chain in range(n_chains):
            pyro.set_rng_seed(seed * n_chains + chain)
            chains.append(_run(NUTS(_MODELS[problem.kind]), problem, n_warmup, n_samples, clock))
        return Sampled(torch.stack([draws for draws, _ in chains]), sum(seconds for _, seconds in chains), 0)

    return run


def hmc(
    problem: Problem,
    n_chains: int,
    n_transitions: int,
    step_size: float,
    n_leapfrogs: int,
    clock: Clock = time.perf_counter,
    *,
    jit: bool = False,
) -> Callable[[], float]:
    """A function that makes ``n_transitions`` of one chain, nothing adapted, and says what one of them took."""
    assert n_chains == 1

    def run() -> float:
        kernel = HMC(
            _MODELS[problem.kind], step_size=step_size, trajectory_length=step_size * n_leapfrogs,
            adapt_step_size=False, adapt_mass_matrix=False, jit_compile=jit, ignore_jit_warnings=True,
        )  # fmt: skip
        # the first ones, with which the jit compiles, are not timed
        return _run(kernel, problem, 3, n_transitions, clock)[1] / n_transitions

    return run
