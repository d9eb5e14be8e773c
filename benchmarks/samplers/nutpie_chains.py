"""nutpie: its sampler in Rust around the gradient that PyMC compiles with numba, chains one after another."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import nutpie
import pymc as pm
import torch

from benchmarks.samplers.problems import Problem
from benchmarks.samplers.sampled import Clock, Sampled

__all__ = ["log_density", "nuts"]


def _model(problem: Problem) -> pm.Model:
    data = {name: value.astype(np.float64) for name, value in problem.data.items()}  # it samples in float64
    with pm.Model() as model:
        if problem.kind == "logistic":
            w = pm.Normal("w", 0.0, 1.0, shape=problem.n_dims)
            pm.Bernoulli("y", logit_p=data["x"] @ w, observed=data["y"])
        elif problem.kind == "gaussian":
            x = pm.Flat("x", shape=problem.n_dims)
            pm.Potential("log_density", -0.5 * x @ (data["precision"] @ x))
        else:
            mu = pm.Normal("mu", 0.0, 5.0)
            tau = pm.HalfCauchy("tau", 5.0)
            z = pm.Normal("z", 0.0, 1.0, shape=len(data["y"]))
            pm.Normal("y", mu + tau * z, data["s"], observed=data["y"])
    return model


def log_density(problem: Problem, position: np.ndarray) -> np.ndarray:
    """At unconstrained positions [chain, D]."""
    log_p = _model(problem).compile_logp(mode="FAST_COMPILE")
    split = {
        "logistic": lambda one: {"w": one},
        "gaussian": lambda one: {"x": one},
        "schools": lambda one: {"mu": one[0], "tau_log__": one[1], "z": one[2:]},
    }[problem.kind]
    return np.array([log_p(split(one)) for one in position.astype(np.float64)])


def nuts(
    problem: Problem, n_chains: int, n_warmup: int, n_samples: int, clock: Clock = time.perf_counter, n_cores: int = 1
) -> Callable[[int], Sampled]:
    """A function from a seed to one run of NUTS; it samples twice, once with hardly a draw, for the warm-up's time."""
    compiled = nutpie.compile_pymc_model(_model(problem), backend="numba")

    def timed(n: int, seed: int) -> tuple[float, object]:
        start = clock()
        trace = nutpie.sample(
            compiled, draws=n, tune=n_warmup, chains=n_chains, cores=n_cores, seed=seed, progress_bar=False
        )
        return clock() - start, trace

    def run(seed: int) -> Sampled:
        without, _ = timed(1, seed)
        seconds, trace = timed(n_samples, seed)
        draws = [np.asarray(value).reshape(n_chains, n_samples, -1) for value in trace.posterior.data_vars.values()]
        n_leapfrogs = int(trace.sample_stats["n_steps"].sum())
        return Sampled(torch.tensor(np.concatenate(draws, -1)), seconds - without, n_leapfrogs)

    return run
