"""One training step (loss, backward, Adam) of every gradient estimator: zsp, hand-written PyTorch, Pyro.

A variational autoencoder 784-200-50 with 50 samples of each image: Gaussian latents for the pathwise estimators,
Bernoulli latents with a learnt prior for the others. A batch of 20 images is measured against the hand-written step. A
batch of 4 has the bar against Pyro; the larger the batch, the more all of them spend in the same matrix products, and
the batch of 20 is printed beside it, and what a hand-written step reaches in both. All of them update by torch's fused
Adam, the fastest, so that what is the same in all takes the least of a step. ``check`` makes sure that zsp and the
hand-written step compute the same cost and the same gradients from the same random numbers.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import zsp
from benchmarks.timing import Benchmark, Options, Row, Times, compare, interleave, main
from benchmarks.vae_step import LEARNING_RATE, Step, relu_layers, training_step


class Size(NamedTuple):
    """Sizes of the nets, of the batch, and the number of samples."""

    x_dim: int = 784
    hidden: int = 200
    z_dim: int = 50
    batch: int = 20
    n_samples: int = 50

    def data(self) -> Tensor:
        """Binary pixels."""
        generator = torch.Generator().manual_seed(0)
        return torch.bernoulli(torch.full((self.batch, self.x_dim), 0.4), generator=generator)


LARGE, SMALL = Size(), Size(batch=4)
N_ROUNDS = 61  # ratios near one take many


# -- zsp --------------------------------------------------------------------------------------------------------------


@zsp.meta_bayesian_net(scope="gen", reuse_variables=True)
def generator(size: Size, is_discrete: bool) -> zsp.BayesianNet:
    bn = zsp.BayesianNet()
    if is_discrete:
        prior = zsp.parameter("prior", torch.zeros(size.z_dim))
        z = bn.bernoulli("z", prior.expand(size.batch, -1), group_ndims=1)
    else:
        z = bn.normal("z", torch.zeros(size.batch, size.z_dim), std=1.0, group_ndims=1)
    h = torch.relu(zsp.module("hidden", nn.Linear, size.z_dim, size.hidden)(z))
    bn.bernoulli("x", zsp.module("logits", nn.Linear, size.hidden, size.x_dim)(h), group_ndims=1)
    return bn


@zsp.reuse_variables("q_net")
def q_net(x: Tensor, size: Size, is_discrete: bool, path: bool) -> zsp.BayesianNet:
    bn = zsp.BayesianNet()
    h = torch.relu(zsp.module("hidden", nn.Linear, size.x_dim, size.hidden)(x))
    location = zsp.module("location", nn.Linear, size.hidden, size.z_dim)(h)
    if is_discrete:
        bn.bernoulli("z", location, n_samples=size.n_samples, group_ndims=1)
    else:
        logstd = zsp.module("logstd", nn.Linear, size.hidden, size.z_dim)(h)
        bn.normal("z", location, logstd=logstd, n_samples=size.n_samples, group_ndims=1, use_path_derivative=path)
    return bn


class ZspNets:
    """Both nets and the cost of an estimator, as a user of zsp writes them."""

    def __init__(self, estimator: Estimator, size: Size, x: Tensor) -> None:
        self.estimator, self.size = estimator, size
        self.model = generator(size, estimator.is_discrete).materialize()
        self.q = q_net.new().materialize(x, size, estimator.is_discrete, False)
        self.baseline = baseline_net(size)
        self.moving_mean = zsp.MovingMean()

    def parameters(self) -> list[nn.Parameter]:
        extra = self.baseline.parameters() if self.estimator.has_baseline else []
        return [*self.model.parameters(), *self.q.parameters(), *extra]

    def loss(self, x: Tensor) -> Tensor:
        return self.estimator.zsp(self, x).mean()

    def objective(self, function: Callable[..., Any], x: Tensor, path: bool = False, **options: Any) -> Any:
        variational = self.q(x, self.size, self.estimator.is_discrete, path)
        return function(self.model, {"x": x}, variational=variational, axis=0, **options)

    def nvil(self, x: Tensor) -> Tensor:
        baseline = self.baseline(x).squeeze(-1)
        cost, baseline_cost = self.objective(zsp.elbo, x).reinforce(baseline=baseline, moving_mean=self.moving_mean)
        return cost + baseline_cost

    def wake_sleep(self, x: Tensor) -> Tensor:
        bound = self.objective(zsp.iw_objective, x)
        return bound.wake_theta() + bound.klpq().importance()


# -- by hand ----------------------------------------------------------------------------------------------------------


def baseline_net(size: Size) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size.x_dim, 100), nn.ReLU(), nn.Linear(100, 1))


class HandWritten(nn.Module):
    """The same by hand; its parameters are in the order of :class:`ZspNets`'s."""

    def __init__(self, estimator: Estimator, size: Size) -> None:
        super().__init__()
        self.estimator, self.size = estimator, size
        if estimator.is_discrete:
            self.prior = nn.Parameter(torch.zeros(size.z_dim))
        self.decoder_hidden = nn.Linear(size.z_dim, size.hidden)
        self.decoder_logits = nn.Linear(size.hidden, size.x_dim)
        self.encoder_hidden = nn.Linear(size.x_dim, size.hidden)
        self.location = nn.Linear(size.hidden, size.z_dim)
        if not estimator.is_discrete:
            self.logstd = nn.Linear(size.hidden, size.z_dim)
        if estimator.has_baseline:
            self.baseline = baseline_net(size)
        self.mean = torch.zeros(())
        self.weight = torch.zeros(())

    def loss(self, x: Tensor) -> Tensor:
        return self.estimator.by_hand(self, x).mean()

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        logits = self.decoder_logits(torch.relu(self.decoder_hidden(z)))
        return -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)

    def gaussian(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, log scale, and draws of the latents."""
        h = torch.relu(self.encoder_hidden(x))
        mean, logstd = self.location(h), self.logstd(h)
        z = mean + torch.randn(self.size.n_samples, *mean.shape) * logstd.exp()
        return mean, logstd, z

    def sgvb_terms(self, x: Tensor, stops: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Draws, log p(x, z) and log q(z | x); with ``stops``, the last through the draws only."""
        mean, logstd, z = self.gaussian(x)
        log_p = self.log_likelihood(x, z) + (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum(-1)
        if stops:
            mean, logstd = mean.detach(), logstd.detach()
        log_q = (-0.5 * ((z - mean) / logstd.exp()) ** 2 - logstd - 0.5 * math.log(2 * math.pi)).sum(-1)
        return z, log_p, log_q

    def sgvb(self, x: Tensor, stops: bool = False) -> Tensor:
        _, log_p, log_q = self.sgvb_terms(x, stops)
        return -(log_p - log_q).mean(0)

    def analytic(self, x: Tensor) -> Tensor:
        mean, logstd, z = self.gaussian(x)
        kl = (0.5 * ((2 * logstd).exp() + mean**2 - 1) - logstd).sum(-1)
        return kl - self.log_likelihood(x, z).mean(0)

    def renyi(self, x: Tensor, alpha: float) -> Tensor:
        _, log_p, log_q = self.sgvb_terms(x)
        log_w = (1 - alpha) * (log_p - log_q) if alpha else log_p - log_q
        return (math.log(self.size.n_samples) - torch.logsumexp(log_w, 0)) / (1 - alpha)

    def dreg(self, x: Tensor) -> Tensor:
        z, log_p, log_q = self.sgvb_terms(x, stops=True)
        log_w = log_p - log_q
        weights = torch.softmax(log_w.detach(), 0)
        z.register_hook(lambda gradient: weights.unsqueeze(-1) * gradient)
        bound = torch.logsumexp(log_w.detach(), 0) - math.log(self.size.n_samples)
        return -(weights * (log_w - log_w.detach())).sum(0) - bound

    def discrete_terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x, z) and log q(z | x)."""
        logits = self.location(torch.relu(self.encoder_hidden(x)))
        with torch.no_grad():
            z = (torch.rand(self.size.n_samples, *logits.shape) < logits.sigmoid()).to(logits.dtype)
        log_q = -F.binary_cross_entropy_with_logits(logits.expand_as(z), z, reduction="none").sum(-1)
        log_p = -F.binary_cross_entropy_with_logits(self.prior.expand_as(z), z, reduction="none").sum(-1)
        return log_p + self.log_likelihood(x, z), log_q

    def leave_one_out(self, x: Tensor) -> Tensor:
        log_p, log_q = self.discrete_terms(x)
        signal = (log_p - log_q).detach()
        centred = (signal - signal.mean(0)) * (len(signal) / (len(signal) - 1))
        return -(log_p - log_q.detach() + (log_q - log_q.detach()) * centred).mean(0)

    def moving_mean(self, x: Tensor, baseline: Tensor | None = None) -> Tensor:
        log_p, log_q = self.discrete_terms(x)
        signal = (log_p - log_q).detach()
        if baseline is not None:
            signal = signal - baseline
        with torch.no_grad():
            before = self.mean / self.weight.clamp_min(1e-30)
            self.mean = torch.lerp(self.mean, signal.mean(), 0.2)
            self.weight = torch.lerp(self.weight, torch.ones(()), 0.2)
        centred = signal - before
        cost = -(log_p - log_q.detach() + (log_q - log_q.detach()) * centred.detach()).mean(0)
        return cost if baseline is None else cost + (0.5 * centred**2).mean(0)

    def nvil(self, x: Tensor) -> Tensor:
        return self.moving_mean(x, self.baseline(x).squeeze(-1))

    def vimco(self, x: Tensor) -> Tensor:
        log_p, log_q = self.discrete_terms(x)
        log_w = log_p - log_q
        k = len(log_w)
        bound = torch.logsumexp(log_w, 0) - math.log(k)
        with torch.no_grad():
            empty = torch.full_like(log_w[:1], -math.inf)
            before = torch.cat([empty, torch.logcumsumexp(log_w[:-1], 0)])
            after = torch.cat([torch.logcumsumexp(log_w[1:].flip(0), 0).flip(0), empty])
            others = (log_w.sum(0) - log_w) / (k - 1)
            signal = bound - torch.logaddexp(torch.logaddexp(before, after), others) + math.log(k)
        return -bound - ((log_q - log_q.detach()) * signal).sum(0)

    def wake_sleep(self, x: Tensor) -> Tensor:
        log_p, log_q = self.discrete_terms(x)
        log_w = log_p - log_q.detach()
        weights = torch.softmax(log_w.detach(), 0)
        return math.log(len(log_w)) - torch.logsumexp(log_w, 0) - (weights * log_q).sum(0)


# -- Pyro -------------------------------------------------------------------------------------------------------------


def pyro_step(estimator: Estimator, size: Size, x: Tensor) -> Step:
    """A step of Pyro's SVI with its own estimator, the samples in a vectorised plate, as its tutorials do."""
    import pyro
    import pyro.distributions as dist
    from pyro import infer

    decoder = nn.Sequential(relu_layers((size.z_dim, size.hidden)), nn.Linear(size.hidden, size.x_dim))
    trunk = relu_layers((size.x_dim, size.hidden))
    heads = {name: nn.Linear(size.hidden, size.z_dim) for name in ("location", "logstd")}
    encoder = nn.ModuleDict({"trunk": trunk, **heads})
    options = {"baseline": {"use_decaying_avg_baseline": True}} if estimator.pyro == "TraceGraph_ELBO" else {}

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        zeros = x.new_zeros(len(x), size.z_dim)
        with pyro.plate("images", len(x)):
            if estimator.is_discrete:
                prior = pyro.param("prior", lambda: torch.zeros(size.z_dim))
                z = pyro.sample("z", dist.Bernoulli(logits=prior.expand_as(zeros)).to_event(1))
            else:
                z = pyro.sample("z", dist.Normal(zeros, 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("images", len(x)):
            h = trunk(x)
            if estimator.is_discrete:
                pyro.sample("z", dist.Bernoulli(logits=heads["location"](h)).to_event(1), infer=options)
            else:
                pyro.sample("z", dist.Normal(heads["location"](h), heads["logstd"](h).exp()).to_event(1))

    pyro.clear_param_store()
    more = {"alpha": estimator.alpha} if estimator.pyro == "RenyiELBO" else {}
    loss = getattr(infer, estimator.pyro)(
        num_particles=size.n_samples, vectorize_particles=True, max_plate_nesting=1, **more
    )
    svi = infer.SVI(model, guide, pyro.optim.Adam({"lr": LEARNING_RATE, "fused": True}), loss=loss)
    return lambda: svi.step(x)


# -- what is compared -------------------------------------------------------------------------------------------------


class Estimator(NamedTuple):
    """An estimator: how zsp and a hand-written step compute it, and what Pyro calls it."""

    name: str
    zsp: Callable[[ZspNets, Tensor], Tensor]
    by_hand: Callable[[HandWritten, Tensor], Tensor]
    pyro: str = ""
    is_discrete: bool = False
    has_baseline: bool = False
    alpha: float = 0.0


ESTIMATORS = (
    Estimator("ELBO, SGVB", lambda n, x: n.objective(zsp.elbo, x).sgvb(), lambda n, x: n.sgvb(x), "Trace_ELBO"),
    Estimator(
        "ELBO, path derivative",
        lambda n, x: n.objective(zsp.elbo, x, path=True).sgvb(),
        lambda n, x: n.sgvb(x, stops=True),
    ),
    Estimator(
        "ELBO, analytic KL",
        lambda n, x: n.objective(zsp.elbo, x, analytic_kl=True).sgvb(),
        lambda n, x: n.analytic(x),
        "TraceMeanField_ELBO",
    ),
    Estimator("IWAE", lambda n, x: n.objective(zsp.iw_objective, x).sgvb(), lambda n, x: n.renyi(x, 0.0), "RenyiELBO"),
    Estimator("DReG", lambda n, x: n.objective(zsp.iw_objective, x).dreg(), lambda n, x: n.dreg(x)),
    Estimator(
        "Renyi 1/2",
        lambda n, x: n.objective(zsp.renyi, x, alpha=0.5).sgvb(),
        lambda n, x: n.renyi(x, 0.5),
        "RenyiELBO",
        alpha=0.5,
    ),
    Estimator(
        "REINFORCE, leave-one-out",
        lambda n, x: n.objective(zsp.elbo, x).reinforce(),
        lambda n, x: n.leave_one_out(x),
        is_discrete=True,
    ),
    Estimator(
        "REINFORCE, moving mean",
        lambda n, x: n.objective(zsp.elbo, x).reinforce(moving_mean=n.moving_mean),
        lambda n, x: n.moving_mean(x),
        "TraceGraph_ELBO",
        is_discrete=True,
    ),
    Estimator("NVIL", lambda n, x: n.nvil(x), lambda n, x: n.nvil(x), is_discrete=True, has_baseline=True),
    Estimator(
        "VIMCO", lambda n, x: n.objective(zsp.iw_objective, x).vimco(), lambda n, x: n.vimco(x), is_discrete=True
    ),
    Estimator(
        "wake-sleep",
        lambda n, x: n.wake_sleep(x),
        lambda n, x: n.wake_sleep(x),
        "ReweightedWakeSleep",
        is_discrete=True,
    ),
)


def check() -> None:
    """zsp's cost and gradients equal the hand-written ones for the same weights and random numbers, in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        for estimator in ESTIMATORS:
            _check(estimator, Size(batch=3, n_samples=6))
    finally:
        torch.set_default_dtype(before)


def _check(estimator: Estimator, size: Size) -> None:
    x = size.data()
    ours, theirs = ZspNets(estimator, size, x), HandWritten(estimator, size)
    with torch.no_grad():
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            b.copy_(a)

    def message(text: str) -> str:
        return f"{estimator.name}: {text}"

    for _ in range(2):  # at the second step a moving mean has something to say
        losses = []
        for net in (ours, theirs):
            torch.manual_seed(0)
            for parameter in net.parameters():
                parameter.grad = None
            losses.append(net.loss(x))
            losses[-1].backward()
        torch.testing.assert_close(*losses, rtol=1e-9, atol=0.0, msg=message)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-10, msg=message)


def rows(options: Options) -> Iterator[Row]:
    for estimator in ESTIMATORS:
        yield _beside_hand_written(estimator, LARGE, options)
    for estimator in ESTIMATORS:
        if estimator.pyro:
            yield from _beside_pyro(estimator, (SMALL, LARGE), options)
    yield _vimco_memory()


def _beside_hand_written(estimator: Estimator, size: Size, options: Options) -> Row:
    x = size.data()
    ours, theirs = ZspNets(estimator, size, x), HandWritten(estimator, size)
    steps = {
        "zsp": training_step(lambda: ours.loss(x), ours.parameters(), fused=True),
        "hand-written": training_step(lambda: theirs.loss(x), list(theirs.parameters()), fused=True),
    }
    times = interleave(steps, options.rounds(N_ROUNDS), clock=options.clock)
    return compare(estimator.name, times, "zsp", "hand-written", at_most=1.05, threads=options.threads)


def _beside_pyro(estimator: Estimator, sizes: tuple[Size, Size], options: Options) -> Iterator[Row]:
    """With a bar for the first size."""
    for size, bar in zip(sizes, (1.5, None), strict=True):
        x = size.data()
        ours = ZspNets(estimator, size, x)
        name, peer = f"{estimator.name}, batch {size.batch}", f"Pyro's {estimator.pyro}"
        by_hand = HandWritten(estimator, size)
        steps: dict[str, Step] = {
            "zsp": training_step(lambda: ours.loss(x), ours.parameters(), fused=True),  # noqa: B023
            "hand-written": training_step(lambda: by_hand.loss(x), list(by_hand.parameters()), fused=True),  # noqa: B023
        }
        try:
            steps[peer] = pyro_step(estimator, size, x)
        except ImportError:
            yield Row.missing(name, "Pyro")
            continue
        times: Times = interleave(steps, options.rounds(10), clock=options.clock)
        yield compare(name, times, peer, "zsp", at_least=bar, threads=options.threads)
        yield compare(name, times, peer, "hand-written", threads=options.threads)


class _Allocated(TorchDispatchMode):
    """Counts the bytes of all results that operators allocate."""

    def __init__(self) -> None:
        super().__init__()
        self.n_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor._base is None:
                self.n_bytes += tensor.numel() * tensor.element_size()
        return result


def vimco_bytes(n_samples: int) -> int:
    """What VIMCO's estimator allocates beyond its bound."""
    size = Size(6, 5, 2, batch=3, n_samples=n_samples)
    x = size.data()
    nets = ZspNets(next(e for e in ESTIMATORS if e.name == "VIMCO"), size, x)
    bound = nets.objective(zsp.iw_objective, x)
    with _Allocated() as allocated:
        bound.vimco()
    return allocated.n_bytes


def _vimco_memory() -> Row:
    fewer, more = vimco_bytes(500), vimco_bytes(1000)
    ratio = more / fewer
    times = f"{more / 2**10:.4g} KiB / {fewer / 2**10:.4g} KiB"
    return Row("VIMCO: bytes for K = 1000 / K = 500", f"{ratio:.3g}", "at most 2.1", ratio <= 2.1, times)


BENCHMARK = Benchmark("estimators", check, rows)

if __name__ == "__main__":
    main([BENCHMARK])
