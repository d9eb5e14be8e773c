"""BlackJAX: its kernels, chains vectorised, a whole run of them in one compiled scan."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import blackjax
import jax
import numpy as np
import torch
from blackjax.adaptation.base import get_filter_adapt_info_fn
from jax import lax, random
from jax import numpy as jnp

from benchmarks.samplers.devices import over_chains, vectorised
from benchmarks.samplers.problems import Problem
from benchmarks.samplers.sampled import Clock, Sampled

__all__ = ["hmc", "log_density", "nuts"]


def _target(problem: Problem) -> Callable[[Any], Any]:
    """The log density of one chain's unconstrained position."""
    data = problem.data

    def logistic(w: Any) -> Any:
        logits = data["x"] @ w
        # faster here than jax.nn.softplus, and what NumPyro's Bernoulli does
        softplus = jnp.maximum(logits, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(logits)))
        return jnp.sum(data["y"] * logits - softplus) - 0.5 * jnp.sum(w * w)

    def gaussian(x: Any) -> Any:
        return -0.5 * x @ data["precision"] @ x

    def schools(position: Any) -> Any:
        mu, log_tau, z = position[0], position[1], position[2:]
        tau = jnp.exp(log_tau)
        log_prior = -0.5 * (mu / 5) ** 2 - jnp.log1p((tau / 5) ** 2) + log_tau
        return log_prior - 0.5 * jnp.sum(z * z) - 0.5 * jnp.sum(((data["y"] - mu - tau * z) / data["s"]) ** 2)

    return {"logistic": logistic, "gaussian": gaussian, "schools": schools}[problem.kind]


def log_density(problem: Problem, position: np.ndarray) -> np.ndarray:
    """At unconstrained positions [chain, D]."""
    return np.asarray(jax.vmap(_target(problem))(position))


def nuts(
    problem: Problem, n_chains: int, n_warmup: int, n_samples: int, clock: Clock = time.perf_counter
) -> Callable[[int], Sampled]:
    """A function from a seed to one run of NUTS, every chain adapted on its own."""
    target = _target(problem)
    adaptation = blackjax.window_adaptation(blackjax.nuts, target, adaptation_info_fn=get_filter_adapt_info_fn())
    kernel = blackjax.nuts.build_kernel()

    def adapt(key: Any, position: Any) -> Any:
        (state, found), _ = adaptation.run(key, position, num_steps=n_warmup)
        return state, found["step_size"], found["inverse_mass_matrix"]

    def steps(keys: Any, state: Any, step_size: Any, inverse_mass_matrix: Any) -> Any:
        def one(key: Any, state: Any, step_size: Any, inverse_mass_matrix: Any) -> Any:
            return kernel(key, state, target, step_size, inverse_mass_matrix)

        def step(state: Any, keys: Any) -> Any:
            state, info = jax.vmap(one)(keys, state, step_size, inverse_mass_matrix)
            return state, (state.position, info.num_integration_steps)

        return lax.scan(step, state, keys.swapaxes(0, 1))

    warm_up = over_chains(lambda key, position: (jax.vmap(adapt)(key, position), None), n_chains)
    sample = over_chains(steps, n_chains)

    def begin(seed: int) -> Any:
        key_of_first, key, key_of_draws = random.split(random.PRNGKey(seed), 3)
        position = random.uniform(key_of_first, (n_chains, problem.n_dims), minval=-2.0, maxval=2.0)
        adapted, _ = warm_up(random.split(key, n_chains), position)
        return jax.block_until_ready((random.split(key_of_draws, (n_chains, n_samples)), *adapted))

    sample(*begin(0))  # compiles

    def run(seed: int) -> Sampled:
        arguments = begin(seed)
        start = clock()
        _, (position, n_steps) = jax.block_until_ready(sample(*arguments))
        seconds = clock() - start
        return Sampled(torch.tensor(np.asarray(position).swapaxes(0, 1)), seconds, int(n_steps.sum()))

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
    kernel = blackjax.hmc(_target(problem), step_size, jnp.ones(problem.n_dims), n_leapfrogs)

    def transition(key: Any, state: Any) -> Any:
        return kernel.step(key, state)[0]

    def steps(keys: Any, state: Any) -> Any:
        def step(carry: Any, _: None) -> Any:
            keys, state = carry
            keys, now = jnp.unstack(jax.vmap(random.split)(keys), axis=1)
            state = vectorised(transition, n_chains)(now, state)
            return (keys, state), state.position

        return lax.scan(step, (keys, state), None, n_transitions)

    state = jax.vmap(kernel.init)(jnp.zeros((n_chains, problem.n_dims)))
    arguments = (random.split(random.PRNGKey(0), n_chains), state)
    compiled = over_chains(steps, n_chains)

    def run() -> float:
        nonlocal arguments
        start = clock()
        arguments, _ = jax.block_until_ready(compiled(*arguments))
        return (clock() - start) / n_transitions

    run()  # compiles; once more for the types that it returns itself
    run()
    return run
