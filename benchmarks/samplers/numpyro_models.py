"""The problems as NumPyro's users write them; apart, so that a process that times NumPyro imports nothing else."""

from __future__ import annotations

from typing import Any

import numpyro
import numpyro.distributions as dist
from jax import numpy as jnp

from benchmarks.samplers.problems import Problem

__all__ = ["target"]


def _logistic(x: Any, y: Any) -> None:
    w = numpyro.sample("w", dist.Normal(jnp.zeros(x.shape[1]), 1.0).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=x @ w).to_event(1), obs=y)


def _schools(y: Any, s: Any) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    z = numpyro.sample("z", dist.Normal(jnp.zeros(len(y)), 1.0).to_event(1))
    numpyro.sample("y", dist.Normal(mu + tau * z, s).to_event(1), obs=y)


def target(problem: Problem) -> dict[str, Any]:
    """What a kernel is given: a model, or a potential energy."""
    data = problem.data
    if problem.kind == "gaussian":
        return {"potential_fn": lambda x: 0.5 * x @ data["precision"] @ x}
    model = {"logistic": _logistic, "schools": _schools}[problem.kind]
    return {"model": lambda: model(**data)}
