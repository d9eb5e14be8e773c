"""NumPyro: its kernels, chains vectorised, a whole run of them in one compiled scan."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import numpyro
import torch
from jax import lax, random
from numpyro.infer import HMC, NUTS
from numpyro.infer.hmc import HMC as Kernel

from benchmarks.samplers.devices import over_chains
from benchmarks.samplers.numpyro_models import target
from benchmarks.samplers.problems import Problem
from benchmarks.samplers.sampled import Clock, Sampled

__all__ = ["hmc", "log_density", "nuts"]


def log_density(problem: Problem, position: np.ndarray) -> np.ndarray:
    """At unconstrained positions [chain, D]."""
    given = target(problem)
    if problem.kind == "gaussian":
        return -np.asarray(jax.vmap(given["potential_fn"])(position))
    potential = numpyro.infer.util.initialize_model(random.PRNGKey(0), given["model"]).potential_fn
    mu, log_tau, z = position[:, 0], position[:, 1], position[:, 2:]
    values = {"w": position} if problem.kind == "logistic" else {"mu": mu, "tau": log_tau, "z": z}
    return -np.asarray(jax.vmap(potential)(values))


def _begin(kernel: Kernel, problem: Problem, n_chains: int, n_warmup: int, seed: int) -> Any:
    key, key_of_first = random.split(random.PRNGKey(seed))
    first = random.uniform(key_of_first, (n_chains, problem.n_dims), minval=-2.0, maxval=2.0)
    keys = random.split(key, n_chains)
    return kernel.init(keys, n_warmup, first if problem.kind == "gaussian" else None, (), {})


def _steps(kernel: Kernel, n: int) -> Callable[[Any], Any]:
    """n transitions: state -> (state, (positions by name [draw, chain, ...], leapfrogs [draw, chain]))."""

    def step(state: Any, _: None) -> Any:
        state = kernel.sample(state, (), {})
        return state, (state.z, state.num_steps)

    return lambda state: lax.scan(step, state, None, n)


def nuts(
    problem: Problem, n_chains: int, n_warmup: int, n_samples: int, clock: Clock = time.perf_counter
) -> Callable[[int], Sampled]:
    """A function from a seed to one run of NUTS."""
    kernel = NUTS(**target(problem))
    warm_up = over_chains(_steps(kernel, n_warmup), n_chains)
    sample = over_chains(_steps(kernel, n_samples), n_chains)
    # compiles, before the kernel is begun a second time, which vectorises it once more
    sample(warm_up(_begin(kernel, problem, n_chains, n_warmup, 0))[0])

    def run(seed: int) -> Sampled:
        state, _ = jax.block_until_ready(warm_up(_begin(kernel, problem, n_chains, n_warmup, seed)))
        start = clock()
        _, (by_name, n_steps) = jax.block_until_ready(sample(state))
        seconds = clock() - start
        rows = [np.asarray(leaf).reshape(n_samples, n_chains, -1) for leaf in jax.tree_util.tree_leaves(by_name)]
        draws = np.concatenate(rows, -1).swapaxes(0, 1)
        return Sampled(torch.tensor(draws), seconds, int(n_steps.sum()))

    return run


def hmc(
    problem: Problem,
    n_chains: int,
    n_transitions: int,
    step_size: float,
    n_leapfrogs: int,
    clock: Clock = time.perf_counter,
) -> Callable[[], float]:
    """A function that makes ``n_transitions`` of HMC, nothing adapted, and says what one of them took."""
    kernel = HMC(
        **target(problem), step_size=step_size, num_steps=n_leapfrogs, trajectory_length=None, adapt_step_size=False,
        adapt_mass_matrix=False,
    )  # fmt: skip
    state = _begin(kernel, problem, n_chains, 0, 0)
    steps = over_chains(_steps(kernel, n_transitions), n_chains)

    def run() -> float:
        nonlocal state
        start = clock()
        state, _ = jax.block_until_ready(steps(state))
        return (clock() - start) / n_transitions

    run()  # compiles; once more for the types that it returns itself
    run()
    return run
