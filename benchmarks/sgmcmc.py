"""Steps of stochastic-gradient MCMC on a Bayesian neural net 13-50-1: zsp, a hand-written loop, posteriors, BlackJAX.

455 data, mini-batches of 100, normal priors and a normal likelihood, one chain and 20 chains. Everybody takes
mini-batches of random rows and one gradient a step. SGHMC draws new velocities every 20 steps; BlackJAX's uses one
mini-batch for all of them. ``check`` makes sure that zsp and the hand-written loop follow the same gradient.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import zsp
from benchmarks.timing import Benchmark, Options, Row, compare, interleave, main
from zsp.inference.log_density import LogDensity
from zsp.inference.sampling.base_run import Plan
from zsp.inference.sampling.stochastic.kernel import StochasticGradientKernel
from zsp.inference.sampling.stochastic.minibatches import minibatches_of
from zsp.inference.sampling.stochastic.run import StochasticRun
from zsp.inference.sampling.stochastic.sghmc import SGHMC
from zsp.inference.sampling.stochastic.sgld import SGLD

N_DATA, N_IN, N_HIDDEN, BATCH = 455, 13, 50, 100
LEARNING_RATE, FRICTION, PERIOD = 1e-6, 0.05, 20
N_STEPS = 320  # a call that is timed

KERNELS: dict[str, StochasticGradientKernel] = {
    "SGLD": SGLD(LEARNING_RATE),
    "SGHMC": SGHMC(LEARNING_RATE, friction=FRICTION, n_iter_resample_v=PERIOD, second_order=False),
}
SHAPES = {"w1": (N_IN, N_HIDDEN), "b1": (N_HIDDEN,), "w2": (N_HIDDEN, 1), "b2": (1,)}

Steps = Callable[[], Any]


def data() -> tuple[Tensor, Tensor]:
    """Inputs and targets like those of a small regression."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N_DATA, N_IN, generator=generator)
    return x, torch.sin(x[:, 0]) + 0.1 * torch.randn(N_DATA, generator=generator)


def beginning(n_chains: int) -> dict[str, Tensor]:
    """Small weights for every chain."""
    generator = torch.Generator().manual_seed(1)
    return {name: 0.1 * torch.randn(n_chains, *shape, generator=generator) for name, shape in SHAPES.items()}


# -- zsp --------------------------------------------------------------------------------------------------------------


@zsp.meta_bayesian_net()
def network(x: Tensor) -> zsp.BayesianNet:
    """The model as a user writes it."""
    bn = zsp.BayesianNet()
    w1 = bn.normal("w1", torch.zeros(N_IN, N_HIDDEN), std=1.0, group_ndims=2)
    b1 = bn.normal("b1", torch.zeros(N_HIDDEN), std=1.0, group_ndims=1)
    w2 = bn.normal("w2", torch.zeros(N_HIDDEN, 1), std=1.0, group_ndims=2)
    b2 = bn.normal("b2", torch.zeros(1), std=1.0, group_ndims=1)
    hidden = torch.relu(x @ w1 + b1.unsqueeze(-2))
    mean = (hidden @ w2 + b2.unsqueeze(-2)).squeeze(-1)
    bn.normal("y", mean, std=1.0, group_ndims=1, total_size=N_DATA)
    return bn


def zsp_run(kernel: StochasticGradientKernel, n_chains: int, compile: bool) -> StochasticRun:
    """The run loop of ``zsp.mcmc``, before its first step."""
    x, y = data()
    minibatches = minibatches_of({"x": x, "y": y}, BATCH, torch.Generator().manual_seed(0))
    log_density = LogDensity(network(), minibatches.example).prepare(n_chains)
    plan = Plan(
        n_samples=100, n_warmup=0, n_chains=n_chains, seed=0, init=beginning(n_chains), thin=10**9, keep_warmup=False,
        compile=compile,
    )  # fmt: skip
    return StochasticRun(log_density, kernel, minibatches, plan)


def zsp_steps(kernel: StochasticGradientKernel, n_chains: int, compile: bool) -> Steps:
    """Steps of the run loop."""
    run = zsp_run(kernel, n_chains, compile)

    def steps() -> None:
        first = run.n_steps
        while run.n_steps - first < N_STEPS:
            run.advance()

    return steps


# -- by hand ----------------------------------------------------------------------------------------------------------


def log_joint(weights: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The log joint of all data as a mini-batch estimates it, but for its constant; over any number of chains."""
    w1, b1, w2, b2 = weights
    hidden = torch.relu(x @ w1 + b1.unsqueeze(-2))
    mean = (hidden @ w2 + b2.unsqueeze(-2)).squeeze(-1)
    prior = sum((w * w).sum() for w in weights)
    return -0.5 * prior - 0.5 * (N_DATA / len(x)) * ((y - mean) ** 2).sum()


def hand_written_steps(name: str, n_chains: int) -> Steps:
    """The loop that one would write for this model."""
    x, y = data()
    weights = [w if n_chains > 1 else w[0] for w in beginning(n_chains).values()]
    velocities = [torch.zeros_like(w) for w in weights]
    noise = math.sqrt(2 * FRICTION * LEARNING_RATE)

    def steps() -> None:
        for i in range(N_STEPS):
            rows = torch.randint(N_DATA, (BATCH,))
            for w in weights:
                w.requires_grad_()
            gradients = torch.autograd.grad(log_joint(weights, x[rows], y[rows]), weights)
            with torch.no_grad():
                for k, (w, v, g) in enumerate(zip(weights, velocities, gradients, strict=True)):
                    if name == "SGLD":
                        weights[k] = w + LEARNING_RATE / 2 * g + math.sqrt(LEARNING_RATE) * torch.randn_like(w)
                        continue
                    if i % PERIOD == 0:
                        v = math.sqrt(LEARNING_RATE) * torch.randn_like(w)
                    velocities[k] = (1 - FRICTION) * v + LEARNING_RATE * g + noise * torch.randn_like(w)
                    weights[k] = w + velocities[k]

    return steps


# -- peers ------------------------------------------------------------------------------------------------------------


def posteriors_steps(name: str, n_chains: int) -> Steps:
    """The torch library, its update under vmap for several chains."""
    import posteriors

    x, y = data()

    def log_posterior(weights: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return log_joint(list(weights.values()), *batch), torch.empty(0)

    if name == "SGLD":
        transform = posteriors.sgmcmc.sgld.build(log_posterior, lr=LEARNING_RATE / 2)
    else:
        transform = posteriors.sgmcmc.sghmc.build(
            log_posterior, lr=math.sqrt(LEARNING_RATE), alpha=FRICTION / math.sqrt(LEARNING_RATE)
        )
    weights = beginning(n_chains)
    if n_chains == 1:
        state = transform.init({name: w[0] for name, w in weights.items()})
        update = transform.update
    else:
        state = torch.vmap(transform.init, randomness="different")(weights)
        update = torch.vmap(transform.update, in_dims=(0, None), randomness="different")
    held = [state]

    def steps() -> None:
        for _ in range(N_STEPS):
            rows = torch.randint(N_DATA, (BATCH,))
            held[0], _ = update(held[0], (x[rows], y[rows]))

    return steps


def blackjax_steps(name: str, n_chains: int) -> Steps:
    """BlackJAX, all steps in one compiled scan."""
    import blackjax
    import jax
    import jax.numpy as jnp

    x, y = (jnp.asarray(tensor.numpy()) for tensor in data())

    def estimate(weights: Any, batch: Any) -> Any:
        bx, by = batch
        hidden = jax.nn.relu(bx @ weights["w1"] + weights["b1"])
        mean = (hidden @ weights["w2"] + weights["b2"])[:, 0]
        prior = sum((w * w).sum() for w in weights.values())
        return -0.5 * prior - 0.5 * (N_DATA / BATCH) * ((by - mean) ** 2).sum()

    gradient = jax.grad(estimate)
    if name == "SGLD":
        kernel, inner = blackjax.sgld(gradient).step, 1
    else:
        kernel, inner = blackjax.sghmc(gradient, num_integration_steps=PERIOD, alpha=FRICTION).step, PERIOD
    rate = LEARNING_RATE / 2 if name == "SGLD" else LEARNING_RATE

    @jax.jit
    def scan(key: Any, weights: Any) -> Any:
        def one(carry: Any, key: Any) -> tuple[Any, None]:
            of_rows, of_chains = jax.random.split(key)
            rows = jax.random.randint(of_rows, (BATCH,), 0, N_DATA)
            keys = jax.random.split(of_chains, n_chains)
            batch = (x[rows], y[rows])
            return jax.vmap(lambda key, weights: kernel(key, weights, batch, rate))(keys, carry), None

        return jax.lax.scan(one, weights, jax.random.split(key, N_STEPS // inner))[0]

    held = [jax.random.PRNGKey(0), {name: jnp.asarray(w.numpy()) for name, w in beginning(n_chains).items()}]

    def steps() -> None:
        held[0], key = jax.random.split(held[0])
        held[1] = jax.block_until_ready(scan(key, held[1]))

    return steps


# -- the table --------------------------------------------------------------------------------------------------------


def check() -> None:
    """zsp's gradient is that of the hand-written log joint."""
    x, y = data()
    weights = beginning(3)
    run = zsp_run(KERNELS["SGLD"], 3, compile=False)
    density = LogDensity(network(), {"x": x[:BATCH], "y": y[:BATCH]})
    position = density.unconstrain(weights).requires_grad_()
    (found,) = torch.autograd.grad(density(position).sum(), position)
    leaves = [w.requires_grad_() for w in weights.values()]
    expected = torch.autograd.grad(log_joint(leaves, x[:BATCH], y[:BATCH]), leaves)
    torch.testing.assert_close(found, torch.cat([g.flatten(1) for g in expected], 1), rtol=1e-3, atol=1e-3)
    assert run.n_steps == 0


def rows(options: Options) -> Iterator[Row]:
    """SGLD and SGHMC, one chain and twenty."""
    for name in KERNELS:
        for n_chains in (1, 20):
            yield from _rows_of(name, n_chains, options)


def _rows_of(name: str, n_chains: int, options: Options) -> Iterator[Row]:
    title = f"{name}, {n_chains} chain{'s' if n_chains > 1 else ''}, {N_STEPS} steps"
    hand, eager, compiled = "hand-written", "zsp, eager", "zsp, compiled"
    candidates = {
        hand: hand_written_steps(name, n_chains),
        eager: zsp_steps(KERNELS[name], n_chains, compile=False),
    }
    if options.compile:
        candidates[compiled] = zsp_steps(KERNELS[name], n_chains, compile=True)
    peers = {"posteriors": posteriors_steps, "BlackJAX": blackjax_steps}
    for peer, make in peers.items():
        try:
            candidates[peer] = make(name, n_chains)
        except ImportError:
            yield Row.missing(title, peer)
    times = interleave(candidates, options.rounds(5), clock=options.clock)
    yield compare(title, times, eager, hand, at_most=1.1, threads=options.threads)
    if not options.compile:
        return
    yield compare(title, times, hand, compiled, at_least=5.0 if n_chains == 1 else None, threads=options.threads)
    if "posteriors" in times:
        least = 10.0 if n_chains == 1 else 6.0
        yield compare(title, times, "posteriors", compiled, at_least=least, threads=options.threads)
    if "BlackJAX" in times:
        least_20 = 1.0 if n_chains == 20 else None
        yield compare(title, times, "BlackJAX", compiled, at_least=least_20, threads=options.threads)


BENCHMARK = Benchmark("sgmcmc", check, rows)

if __name__ == "__main__":
    main([BENCHMARK])
