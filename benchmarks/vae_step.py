"""One training step (loss, backward, Adam) of a variational autoencoder: zsp, hand-written PyTorch, Pyro, NumPyro.

Hidden layers of relu units in each net (784-500-500-40 has two, 64-32-8 has one), Gaussian latents, Bernoulli pixels, a
batch of 128, one draw. All of them compute the same bound with the same optimizer; ``check`` makes sure of it for zsp
and the hand-written step.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import zsp
from benchmarks.timing import Benchmark, Options, Row, compare, interleave, main

LEARNING_RATE = 1e-3

Step = Callable[[], Any]


class Size(NamedTuple):
    """Sizes of a VAE, and what its step has to satisfy: time over the hand-written one, and Pyro's over zsp's."""

    x_dim: int
    hidden: tuple[int, ...]
    z_dim: int
    at_most: float
    pyro_at_least: float | None = None
    batch: int = 128

    @property
    def name(self) -> str:
        return f"VAE {'-'.join(map(str, (self.x_dim, *self.hidden, self.z_dim)))}"

    @property
    def encoder(self) -> tuple[int, ...]:
        """The widths from the pixels to the last hidden layer."""
        return (self.x_dim, *self.hidden)

    @property
    def decoder(self) -> tuple[int, ...]:
        """The widths from the latents to the last hidden layer."""
        return (self.z_dim, *reversed(self.hidden))

    def data(self) -> Tensor:
        """Binary pixels."""
        generator = torch.Generator().manual_seed(0)
        return torch.bernoulli(torch.full((self.batch, self.x_dim), 0.4), generator=generator)


SMALL = Size(64, (32,), 8, at_most=1.15, pyro_at_least=2.5)
LARGE = Size(784, (500, 500), 40, at_most=1.03)


# -- zsp ------------------------------------------------------------------------------------------------------------


@zsp.meta_bayesian_net(scope="gen", reuse_variables=True)
def generator(n: int, size: Size) -> zsp.BayesianNet:
    bn = zsp.BayesianNet()
    z = bn.normal("z", torch.zeros(n, size.z_dim), std=1.0, group_ndims=1)
    h = z
    for i, (n_in, n_out) in enumerate(pairwise(size.decoder)):
        h = torch.relu(zsp.module(f"hidden_{i}", nn.Linear, n_in, n_out)(h))
    bn.bernoulli("x", zsp.module("logits", nn.Linear, size.decoder[-1], size.x_dim)(h), group_ndims=1)
    return bn


@zsp.reuse_variables("q_net")
def q_net(x: Tensor, size: Size, n_samples: int | None = None) -> zsp.BayesianNet:
    bn = zsp.BayesianNet()
    h = x
    for i, (n_in, n_out) in enumerate(pairwise(size.encoder)):
        h = torch.relu(zsp.module(f"hidden_{i}", nn.Linear, n_in, n_out)(h))
    mean = zsp.module("mean", nn.Linear, size.encoder[-1], size.z_dim)(h)
    logstd = zsp.module("logstd", nn.Linear, size.encoder[-1], size.z_dim)(h)
    bn.normal("z", mean, logstd=logstd, n_samples=n_samples, group_ndims=1)
    return bn


class ZspVAE:
    """The model and its loss, as a user of zsp writes them."""

    def __init__(self, size: Size, x: Tensor) -> None:
        self.size = size
        self.model = generator(size.batch, size).materialize()
        self.q = q_net.new().materialize(x, size)

    def parameters(self) -> list[nn.Parameter]:
        return [*self.model.parameters(), *self.q.parameters()]

    def loss(self, x: Tensor) -> Tensor:
        return zsp.elbo(self.model, {"x": x}, variational=self.q(x, self.size)).sgvb().mean()


# -- by hand --------------------------------------------------------------------------------------------------------


def relu_layers(widths: tuple[int, ...]) -> nn.Sequential:
    layers = [(nn.Linear(n_in, n_out), nn.ReLU()) for n_in, n_out in pairwise(widths)]
    return nn.Sequential(*(module for pair in layers for module in pair))


class HandWrittenVAE(nn.Module):
    """The same by hand; its parameters are in the order of :class:`ZspVAE`'s."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.decoder = relu_layers(size.decoder)
        self.logits = nn.Linear(size.decoder[-1], size.x_dim)
        self.encoder = relu_layers(size.encoder)
        self.mean = nn.Linear(size.encoder[-1], size.z_dim)
        self.logstd = nn.Linear(size.encoder[-1], size.z_dim)

    def loss(self, x: Tensor) -> Tensor:
        """Minus the bound, each of its three log densities an image, as a function of z."""
        h = self.encoder(x)
        mean, logstd = self.mean(h), self.logstd(h)
        std = logstd.exp()
        z = mean + std * torch.randn_like(mean)
        h = self.decoder(z)
        log_p_x = -F.binary_cross_entropy_with_logits(self.logits(h), x, reduction="none").sum(-1)
        log_p_z = (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum(-1)
        log_q_z = (-0.5 * ((z - mean) / std) ** 2 - logstd - 0.5 * math.log(2 * math.pi)).sum(-1)
        return -(log_p_x + log_p_z - log_q_z).mean()

    def fused_loss(self, x: Tensor) -> Tensor:
        """The same number with what can be left out left out: constants cancel, (z - mean) / std is the noise, and
        everything is summed at once. No separate densities are left that could be looked at."""
        h = self.encoder(x)
        mean, logstd = self.mean(h), self.logstd(h)
        noise = torch.randn_like(mean)
        z = torch.addcmul(mean, logstd.exp(), noise)
        h = self.decoder(z)
        cross_entropy = F.binary_cross_entropy_with_logits(self.logits(h), x, reduction="sum")
        return (cross_entropy + (0.5 * (z.square() - noise.square()) - logstd).sum()) / len(x)


def training_step(loss: Callable[[], Tensor], parameters: list[nn.Parameter], *, fused: bool = False) -> Step:
    """Loss, backward and torch's Adam; with ``fused`` that which updates all parameters in one call."""
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=fused)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


# -- peers ----------------------------------------------------------------------------------------------------------


def pyro_step(size: Size, x: Tensor) -> Step:
    """A step of Pyro's SVI, written as its tutorials do."""
    import pyro
    import pyro.distributions as dist
    from pyro.infer import SVI, Trace_ELBO

    decoder = nn.Sequential(relu_layers(size.decoder), nn.Linear(size.decoder[-1], size.x_dim))
    trunk = relu_layers(size.encoder)
    heads = {name: nn.Linear(size.encoder[-1], size.z_dim) for name in ("mean", "logstd")}
    encoder = nn.ModuleDict({"trunk": trunk, **heads})

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), size.z_dim), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("images", len(x)):
            h = trunk(x)
            pyro.sample("z", dist.Normal(heads["mean"](h), heads["logstd"](h).exp()).to_event(1))

    pyro.clear_param_store()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": LEARNING_RATE}), loss=Trace_ELBO(num_particles=1))
    return lambda: svi.step(x)


def numpyro_nets(size: Size) -> tuple[Callable[[Any], None], Callable[[Any], None]]:
    """Model and guide, written as NumPyro's tutorials do."""
    import jax
    import numpyro
    import numpyro.distributions as dist
    from jax.example_libraries import stax

    def layers(widths: tuple[int, ...]) -> list[Any]:
        return [layer for width in widths[1:] for layer in (stax.Dense(width), stax.Relu)]

    def encoder() -> Any:
        heads = stax.parallel(stax.Dense(size.z_dim), stax.Dense(size.z_dim))
        return stax.serial(*layers(size.encoder), stax.FanOut(2), heads)

    def decoder() -> Any:
        return stax.serial(*layers(size.decoder), stax.Dense(size.x_dim))

    def model(x: Any) -> None:
        decode = numpyro.module("decoder", decoder(), (size.batch, size.z_dim))
        with numpyro.plate("images", size.batch):
            z = numpyro.sample("z", dist.Normal(jax.numpy.zeros(size.z_dim), 1.0).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=decode(z)).to_event(1), obs=x)

    def guide(x: Any) -> None:
        encode = numpyro.module("encoder", encoder(), (size.batch, size.x_dim))
        mean, logstd = encode(x)
        with numpyro.plate("images", size.batch):
            numpyro.sample("z", dist.Normal(mean, jax.numpy.exp(logstd)).to_event(1))

    return model, guide


def numpyro_step(size: Size, x: Tensor) -> Step:
    """A compiled step of NumPyro's SVI."""
    import jax
    import numpyro
    from numpyro.infer import SVI, Trace_ELBO

    model, guide = numpyro_nets(size)
    svi = SVI(model, guide, numpyro.optim.Adam(LEARNING_RATE), Trace_ELBO())
    data = jax.numpy.asarray(x.numpy())
    state = svi.init(jax.random.PRNGKey(0), data)
    update = jax.jit(svi.update)

    def step() -> None:
        nonlocal state
        state, loss = update(state, data)
        loss.block_until_ready()

    return step


def compiled_loss(vae: ZspVAE, x: Tensor) -> Callable[[], Tensor]:
    """zsp's loss through ``torch.compile(fullgraph=True)``, which has no graph break; its value is the eager one."""
    # Inductor's own random numbers are other ones than eager's, and slower on a processor
    compiled = torch.compile(vae.loss, fullgraph=True, dynamic=False, options={"fallback_random": True})
    torch.manual_seed(1)
    eager = vae.loss(x)
    torch.manual_seed(1)
    torch.testing.assert_close(compiled(x), eager, rtol=1e-5, atol=0.0)
    return lambda: compiled(x)


# -- what is run ----------------------------------------------------------------------------------------------------


def check() -> None:
    """zsp's loss and gradients equal the hand-written ones for the same weights and noise."""
    for size in (SMALL, LARGE):
        x = size.data()
        vae, by_hand = ZspVAE(size, x), HandWrittenVAE(size)
        with torch.no_grad():
            for ours, theirs in zip(vae.parameters(), by_hand.parameters(), strict=True):
                theirs.copy_(ours)
        torch.manual_seed(0)
        loss = vae.loss(x)
        loss.backward()
        for other in (by_hand.loss, by_hand.fused_loss):
            torch.manual_seed(0)
            by_hand.zero_grad()
            expected = other(x)
            expected.backward()
            torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0.0)
            for ours, theirs in zip(vae.parameters(), by_hand.parameters(), strict=True):
                torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def rows(options: Options) -> Iterator[Row]:
    for size in (LARGE, SMALL):
        yield from _rows_of(size, options)


def _rows_of(size: Size, options: Options) -> Iterator[Row]:
    x = size.data()
    vae, by_hand, fused = ZspVAE(size, x), HandWrittenVAE(size), HandWrittenVAE(size)
    steps: dict[str, Step] = {
        "zsp": training_step(lambda: vae.loss(x), vae.parameters()),
        "hand-written": training_step(lambda: by_hand.loss(x), list(by_hand.parameters())),
        "hand-written, fused": training_step(lambda: fused.fused_loss(x), list(fused.parameters())),
    }
    before: dict[str, Step] = {}
    missing = []
    try:
        import pyro
    except ImportError:
        missing.append("Pyro")
    else:
        step = pyro_step(size, x)
        for name, validates in (("Pyro", True), ("Pyro, not validating", False)):  # it validates unless told not to
            steps[name] = step
            before[name] = lambda validates=validates: pyro.enable_validation(validates)
    try:
        steps["NumPyro"] = numpyro_step(size, x)
    except ImportError:
        missing.append("NumPyro")
    if options.compile:
        compiled = ZspVAE(size, x)
        steps["zsp, compiled loss"] = training_step(compiled_loss(compiled, x), compiled.parameters())
    times = interleave(steps, options.rounds(40), before=before, clock=options.clock)

    def row(first: str, second: str, **bars: float | None) -> Row:
        return compare(size.name, times, first, second, threads=options.threads, **bars)

    yield row("zsp", "hand-written", at_most=size.at_most)
    yield row("zsp", "hand-written, fused")
    if "Pyro" in steps:
        yield row("Pyro", "zsp", at_least=size.pyro_at_least)
        yield row("Pyro, not validating", "zsp")
    if "NumPyro" in steps:
        yield row("NumPyro", "zsp")
    if options.compile:
        yield row("zsp, compiled loss", "hand-written")
    for peer in missing:
        yield Row.missing(size.name, peer)


BENCHMARK = Benchmark("vae_step", check, rows)

if __name__ == "__main__":
    main([BENCHMARK])
