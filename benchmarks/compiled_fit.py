"""A training step inside ``zsp.fit(compile=True)``: mini-batch, loss, gradient, Adam and metrics, as a user gets them.

Against steps of peers on one batch that stays: hand-written PyTorch, NumPyro's SVI a step a call, and its SVI with 20
steps in one compiled scan. Peers take their turns between the epochs of one long run of ``fit``.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import zsp
from benchmarks.timing import Benchmark, Options, Row, Times, compare, main
from benchmarks.vae_step import (
    LARGE,
    LEARNING_RATE,
    SMALL,
    HandWrittenVAE,
    Size,
    Step,
    ZspVAE,
    numpyro_nets,
    training_step,
)

IWAE = Size(784, (200,), 50, at_most=1.0, batch=20)
N_SAMPLES = 50
SCANNED = 20
EPOCH = 100  # steps; the first of an epoch is checked, and there are more in one of a real data set
FIT = "zsp.fit, compiled"


class ZspIWAE(ZspVAE):
    """The importance-weighted bound of the same nets."""

    def loss(self, x: Tensor) -> Tensor:
        q = self.q(x, self.size, N_SAMPLES)
        return zsp.iw_objective(self.model, {"x": x}, variational=q, axis=0).sgvb().mean()


class HandWrittenIWAE(HandWrittenVAE):
    """The same by hand."""

    def loss(self, x: Tensor) -> Tensor:
        h = self.encoder(x)
        mean, logstd = self.mean(h), self.logstd(h)
        noise = torch.randn(N_SAMPLES, *mean.shape)
        z = mean + logstd.exp() * noise
        logits = self.logits(self.decoder(z))
        log_p_x = -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
        log_p_z = (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum(-1)
        log_q_z = (-0.5 * noise**2 - logstd - 0.5 * math.log(2 * math.pi)).sum(-1)
        return -(torch.logsumexp(log_p_x + log_p_z - log_q_z, 0) - math.log(N_SAMPLES)).mean()


def numpyro_steps(size: Size, x: Tensor, n_samples: int, n_steps: int) -> Step:
    """Steps of NumPyro's SVI in one compiled call."""
    import jax
    import numpyro
    from numpyro.infer import SVI, RenyiELBO, Trace_ELBO

    model, guide = numpyro_nets(size)
    objective = Trace_ELBO() if n_samples == 1 else RenyiELBO(alpha=0, num_particles=n_samples)
    svi = SVI(model, guide, numpyro.optim.Adam(LEARNING_RATE), objective)
    data = jax.numpy.asarray(x.numpy())
    state = svi.init(jax.random.PRNGKey(0), data)

    @jax.jit
    def update(state: Any, data: Any) -> Any:
        if n_steps == 1:
            return svi.update(state, data)
        return jax.lax.scan(lambda state, _: svi.update(state, data), state, None, n_steps)

    def step() -> None:
        nonlocal state
        state, loss = update(state, data)
        loss.block_until_ready()

    return step


def interleaved(
    loss: Callable[[Tensor], Tensor],
    parameters: list[torch.nn.Parameter],
    data: Tensor,
    batch_size: int,
    peers: dict[str, tuple[Step, int]],
    rounds: int,
    clock: Callable[[], float],
) -> Times:
    """Seconds a step of one run of ``fit``, and between its epochs of every peer, in an order that changes.

    Args:
        loss: of a mini-batch.
        parameters: to train.
        data: mini-batches are drawn from it.
        batch_size: their size.
        peers: name -> a call and the number of steps that it makes.
        rounds: the number of epochs that are timed.
        clock: seconds.
    """
    times: Times = {FIT: [], **{name: [] for name in peers}}
    n_steps = len(data) // batch_size
    shuffle = random.Random(0)
    start = math.nan

    def turns() -> dict[str, float]:
        nonlocal start
        epoch = clock() - start
        for name, (call, n_made) in shuffle.sample(list(peers.items()), len(peers)):
            call()
            before, n_calls = clock(), 0
            while clock() - before < 0.05:
                call()
                n_calls += 1
            if math.isfinite(epoch):
                times[name].append((clock() - before) / (n_calls * n_made))
        if math.isfinite(epoch):
            times[FIT].append(epoch / n_steps)
        start = clock()
        return {}

    options: dict[str, Any] = {"batch_size": batch_size, "epochs": rounds + 1, "progress": False, "compile": True}
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)

    def with_metric(batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        value = loss(batch["x"])
        return value, {"bound": -value}

    # an epoch is timed from the end of the turns before it; the first one, in which everything is compiled, is not
    validation = torch.enable_grad()(turns)
    zsp.fit(with_metric, {"x": data}, optimizer=optimizer, validation=validation, **options)
    return times


# -- what is run ----------------------------------------------------------------------------------------------------


def check() -> None:
    """The importance-weighted bound equals the hand-written one for the same weights and noise."""
    x = IWAE.data()
    model, by_hand = ZspIWAE(IWAE, x), HandWrittenIWAE(IWAE)
    with torch.no_grad():
        for ours, theirs in zip(model.parameters(), by_hand.parameters(), strict=True):
            theirs.copy_(ours)
    losses = []
    for loss in (model.loss, by_hand.loss):
        torch.manual_seed(0)
        losses.append(loss(x))
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0.0)


def rows(options: Options) -> Iterator[Row]:
    if not options.compile:
        yield Row("compiled fit", "not run with --eager")
        return
    yield from _rows_of(SMALL, ZspVAE, HandWrittenVAE, 1, 0.22, options)
    yield from _rows_of(LARGE, ZspVAE, HandWrittenVAE, 1, 0.8, options)
    yield from _rows_of(IWAE, ZspIWAE, HandWrittenIWAE, N_SAMPLES, None, options)


def _rows_of(
    size: Size,
    ours: type[ZspVAE],
    by_hand: type[HandWrittenVAE],
    n_samples: int,
    at_most: float | None,
    options: Options,
) -> Iterator[Row]:
    x = size.data()
    model, hand_written = ours(size, x), by_hand(size)
    name = size.name if n_samples == 1 else f"{size.name.replace('VAE', 'IWAE')}, K = {n_samples}"
    peers = {"hand-written": (training_step(lambda: hand_written.loss(x), list(hand_written.parameters())), 1)}
    try:
        peers["NumPyro"] = numpyro_steps(size, x, n_samples, 1), 1
        peers["NumPyro, scanned"] = numpyro_steps(size, x, n_samples, SCANNED), SCANNED
    except ImportError:
        yield Row.missing(name, "NumPyro")
    data = x.repeat(EPOCH, 1)
    times = interleaved(
        model.loss, model.parameters(), data, size.batch, peers, options.rounds(40), options.clock
    )  # fmt: skip
    yield compare(name, times, FIT, "hand-written", at_most=at_most, threads=options.threads)
    for peer in list(peers)[1:]:
        bar = 1.0 if peer == "NumPyro" else None
        yield compare(name, times, FIT, peer, at_most=bar, threads=options.threads)


BENCHMARK = Benchmark("compiled_fit", check, rows)

if __name__ == "__main__":
    main([BENCHMARK])
