"""What a node costs beyond its own tensor arithmetic, in microseconds, after the first execution.

A decorated model of 50 equal nodes of 128 x 40 is executed and its log joint taken, again and again, beside the bare
tensor operations that draw the same values and sum the same log densities, each in as few operations as torch allows.
The difference, over 50, is what the net costs a node. (For gamma, exponential and poisson it includes the operations
with which zsp keeps values and gradients right at the edge of the support.)
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import zsp
from benchmarks.timing import Benchmark, Options, Row, Times, interleave, main, show_time

AT_MOST = 15e-6
N_NODES = 50
SHAPE = (128, 40)
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Family(NamedTuple):
    """A row of the table of distributions, and the same by hand.

    Attributes:
        parameters: their values; floating-point tensors, so that both sides can be differentiated.
        declare: the node, from a net, a name and the parameters.
        by_hand: from a value, or None for a draw, and the parameters to the value and its log density, shape [128].
        has_bar: whether the bar is for this family.
    """

    parameters: Callable[[], tuple[Tensor, ...]]
    declare: Callable[..., Tensor]
    by_hand: Callable[..., tuple[Tensor, Tensor]]
    has_bar: bool = False


def _normal_std(x: Tensor | None, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    return _normal(x, mean, std, None)


def _normal_logstd(x: Tensor | None, mean: Tensor, logstd: Tensor) -> tuple[Tensor, Tensor]:
    return _normal(x, mean, logstd.exp(), logstd)


def _normal(x: Tensor | None, mean: Tensor, std: Tensor, logstd: Tensor | None) -> tuple[Tensor, Tensor]:
    if x is None:
        x = torch.addcmul(mean, torch.randn(SHAPE), std)
    square = torch.square((x - mean) / std)
    logstd = std.log() if logstd is None else logstd
    return x, torch.sub(torch.rsub(logstd, -HALF_LOG_2PI), square, alpha=0.5).sum(-1)


def _bernoulli(x: Tensor | None, logits: Tensor) -> tuple[Tensor, Tensor]:
    if x is None:
        with torch.no_grad():
            x = (torch.rand(SHAPE) < logits.sigmoid()).to(logits.dtype)
    return x, -torch.binary_cross_entropy_with_logits(logits, x, None, None, 0).sum(-1)


def _gamma(x: Tensor | None, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    if x is None:
        x = torch._standard_gamma(alpha) / beta
        x = x.clamp(min=torch.finfo(x.dtype).tiny)
    return x, (alpha * beta.log() - alpha.lgamma() + torch.xlogy(alpha - 1, x) - beta * x).sum(-1)


def _categorical(x: Tensor | None, logits: Tensor) -> tuple[Tensor, Tensor]:
    if x is None:
        with torch.no_grad():
            x = torch.multinomial(logits.softmax(-1), 1, replacement=True).squeeze(-1).to(logits.dtype)
    return x, logits.log_softmax(-1).gather(-1, x.long().unsqueeze(-1)).squeeze(-1)


def _laplace(x: Tensor | None, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    if x is None:
        noise = (2 * torch.rand(SHAPE) - 1).clamp(min=torch.finfo(loc.dtype).eps - 1)
        x = loc - scale * noise.sign() * torch.log1p(-noise.abs())
    return x, (-(2 * scale).log() - (x - loc).abs() / scale).sum(-1)


def _exponential(x: Tensor | None, rate: Tensor) -> tuple[Tensor, Tensor]:
    if x is None:
        x = -torch.log1p(-torch.rand(SHAPE)) / rate
    return x, (rate.log() - rate * x).sum(-1)


def _poisson(x: Tensor | None, rate: Tensor) -> tuple[Tensor, Tensor]:
    if x is None:
        with torch.no_grad():
            x = torch.poisson(rate)
    return x, (torch.xlogy(x, rate) - rate - (x + 1).lgamma()).sum(-1)


FAMILIES: dict[str, Family] = {
    "normal(mean, std)": Family(
        lambda: (torch.randn(SHAPE), torch.rand(SHAPE) + 0.5),
        lambda bn, name, mean, std: bn.normal(name, mean, std=std, group_ndims=1),
        _normal_std,
        has_bar=True,
    ),
    "normal(mean, logstd)": Family(
        lambda: (torch.randn(SHAPE), torch.randn(SHAPE)),
        lambda bn, name, mean, logstd: bn.normal(name, mean, logstd=logstd, group_ndims=1),
        _normal_logstd,
        has_bar=True,
    ),
    "bernoulli(logits)": Family(
        lambda: (torch.randn(SHAPE),),
        lambda bn, name, logits: bn.bernoulli(name, logits, group_ndims=1),
        _bernoulli,
        has_bar=True,
    ),
    "gamma(alpha, beta)": Family(
        lambda: (torch.rand(SHAPE) + 1.0, torch.rand(SHAPE) + 0.5),
        lambda bn, name, alpha, beta: bn.gamma(name, alpha, beta, group_ndims=1),
        _gamma,
    ),
    "categorical(logits), 40 labels": Family(
        lambda: (torch.randn(SHAPE),),
        lambda bn, name, logits: bn.categorical(name, logits),
        _categorical,
    ),
    "laplace(loc, scale)": Family(
        lambda: (torch.randn(SHAPE), torch.rand(SHAPE) + 0.5),
        lambda bn, name, loc, scale: bn.laplace(name, loc, scale, group_ndims=1),
        _laplace,
    ),
    "exponential(rate)": Family(
        lambda: (torch.rand(SHAPE) + 0.5,),
        lambda bn, name, rate: bn.exponential(name, rate, group_ndims=1),
        _exponential,
    ),
    "poisson(rate)": Family(
        lambda: (torch.rand(SHAPE) + 0.5,),
        lambda bn, name, rate: bn.poisson(name, rate, group_ndims=1),
        _poisson,
    ),
}


class Pair(NamedTuple):
    """One log joint of ``n`` equal nodes, by zsp and by hand."""

    zsp: Callable[[], Tensor]
    by_hand: Callable[[], Tensor]


def pair(family: Family, n: int, *, observed: bool, needs_grad: bool) -> Pair:
    """Both sides for one family; they compute the same number from the same random state."""
    torch.manual_seed(0)
    parameters = tuple(p.requires_grad_(needs_grad) for p in family.parameters())
    names = [f"node_{i}" for i in range(n)]
    value: Tensor | None = None
    if observed:
        with torch.no_grad():
            value, _ = family.by_hand(None, *parameters)
    values = dict.fromkeys(names, value) if observed else {}

    @zsp.meta_bayesian_net()
    def model() -> zsp.BayesianNet:
        bn = zsp.BayesianNet()
        for name in names:
            family.declare(bn, name, *parameters)
        return bn

    net = model()

    def by_hand() -> Tensor:
        kept = []  # a net keeps its values too
        total: Tensor | None = None
        for _ in range(n):
            x, log_p = family.by_hand(value, *parameters)
            kept.append(x)
            total = log_p if total is None else total + log_p
        assert total is not None
        return total

    return Pair(lambda: net.observe(**values).log_joint(), by_hand)


def check() -> None:
    """Both sides give the same log joint: of a given value, and of a draw where both draw in the same way."""
    for name, family in FAMILIES.items():
        both = pair(family, 2, observed=True, needs_grad=False)
        torch.testing.assert_close(both.zsp(), both.by_hand(), rtol=1e-5, atol=1e-4)
        if name.startswith(("normal", "bernoulli", "gamma", "poisson", "exponential")):
            both = pair(family, 2, observed=False, needs_grad=False)
            torch.manual_seed(1)
            ours = both.zsp()
            torch.manual_seed(1)
            torch.testing.assert_close(ours, both.by_hand(), rtol=1e-5, atol=1e-4)


def rows(options: Options) -> Iterator[Row]:
    for name, family in FAMILIES.items():
        for observed in (False, True):
            for needs_grad in (False, True):
                what = f"{'observed' if observed else 'drawn'}, {'with grad' if needs_grad else 'no grad'}"
                both = pair(family, N_NODES, observed=observed, needs_grad=needs_grad)
                times = _measure(both, needs_grad, options)
                yield _row(f"node {name}, {what}", times, N_NODES, family.has_bar, options)
    both = pair(FAMILIES["normal(mean, std)"], 1, observed=False, needs_grad=False)
    yield _row("one execution with one such node", _measure(both, False, options), 1, False, options)


def _measure(both: Pair, needs_grad: bool, options: Options) -> Times:
    with nullcontext() if needs_grad else torch.no_grad():
        # this thread's own time: what other programs take on a busy machine is more than what is looked for
        return interleave(both._asdict(), options.rounds(60), block=0.004, clock=time.thread_time)


def _row(name: str, times: Times, n: int, has_bar: bool, options: Options) -> Row:
    differences = [(a - b) / n for a, b in zip(times["zsp"], times["by_hand"], strict=True)]
    lower, cost, upper = statistics.quantiles(differences, n=4) if len(differences) > 1 else differences * 3
    zsp_time, by_hand = (statistics.median(times[side]) / n for side in ("zsp", "by_hand"))
    return Row(
        name,
        f"+{show_time(cost)}" if cost >= 0 else show_time(cost),
        f"at most {show_time(AT_MOST)}" if has_bar else "",
        cost <= AT_MOST if has_bar else None,
        f"{show_time(zsp_time)} / {show_time(by_hand)}",
        f"quartiles {lower * 1e6:.1f} to {upper * 1e6:.1f} us",
        options.threads,
    )


BENCHMARK = Benchmark("node_overhead", check, rows)

if __name__ == "__main__":
    main([BENCHMARK])
