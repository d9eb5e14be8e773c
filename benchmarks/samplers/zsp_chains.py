"""zsp: nets, or a callable for the Gaussian, through ``zsp.mcmc``."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

import zsp
from benchmarks.samplers.problems import Problem
from benchmarks.samplers.sampled import Clock, Sampled, tensors
from zsp.inference.sampling.runner import MOST_TRANSITIONS

__all__ = ["hmc", "log_density", "nuts", "target"]


@zsp.meta_bayesian_net()
def _logistic(x: Tensor) -> zsp.BayesianNet:
    bn = zsp.BayesianNet()
    w = bn.normal("w", x.new_zeros(x.shape[1]), std=1.0, group_ndims=1)
    bn.bernoulli("y", w @ x.T, group_ndims=1)
    return bn


@zsp.meta_bayesian_net()
def _schools(s: Tensor) -> zsp.BayesianNet:
    bn = zsp.BayesianNet()
    mu = bn.normal("mu", s.new_zeros(()), std=5.0)
    tau = bn.half_cauchy("tau", s.new_tensor(5.0))
    z = bn.normal("z", torch.zeros_like(s), std=1.0, group_ndims=1)
    bn.normal("y", mu[..., None] + tau[..., None] * z, std=s, group_ndims=1)
    return bn


def target(problem: Problem, device: str = "cpu") -> tuple[Any, dict[str, Tensor], dict[str, Any]]:
    """Model, observations, and what else ``zsp.mcmc`` is told."""
    data = tensors(problem, device)
    if problem.kind == "gaussian":
        precision = data["precision"]

        def gaussian(values: dict[str, Tensor]) -> Tensor:
            return -0.5 * (values["x"] @ precision * values["x"]).sum(-1)

        return gaussian, {}, {"latents": {"x": precision.new_zeros(problem.n_dims)}}
    net = _logistic(data["x"]) if problem.kind == "logistic" else _schools(data["s"])
    return net, {"y": data["y"]}, {}


def log_density(problem: Problem, position: np.ndarray) -> np.ndarray:
    """At unconstrained positions [chain, D]."""
    model, observed, more = target(problem)
    return zsp.LogDensity(model, observed, **more)(torch.from_numpy(position)).detach().numpy()


class _Stamped:
    """A kernel that notes when it is asked for the random numbers of a block of steps.

    Everything a run does after its warm-up (steps, storing what ended in them) happens between two of these calls, and
    nothing else does: neither compiling, which the first block of each kind waits for, nor what is done with the draws.
    """

    clock: ClassVar[Clock] = time.perf_counter
    stamps: ClassVar[list[tuple[float, int]]] = []  # since the kernel last began with a new tuning; and how many steps

    def begin(self, *arguments: Any) -> Any:
        self.stamps.clear()
        return super().begin(*arguments)  # type: ignore[misc]

    def draw_noise(self, n_steps: int, *arguments: Any) -> Any:
        self.stamps.append((_Stamped.clock(), n_steps))
        return super().draw_noise(n_steps, *arguments)  # type: ignore[misc]


def _seconds_per_step(stamps: list[tuple[float, int]]) -> float:
    """Of all blocks but the last, whose end is not seen."""
    return (stamps[-1][0] - stamps[0][0]) / sum(n_steps for _, n_steps in stamps[:-1])


class _NUTS(_Stamped, zsp.NUTS):
    pass


class _HMC(_Stamped, zsp.HMC):
    pass


def nuts(
    problem: Problem,
    n_chains: int,
    n_warmup: int,
    n_samples: int,
    clock: Clock = time.perf_counter,
    *,
    compile: bool,
    device: str = "cpu",
) -> Callable[[int], Sampled]:
    """A function from a seed to one run of NUTS."""
    model, observed, more = target(problem, device)

    def run(seed: int) -> Sampled:
        _Stamped.clock = clock
        draws = _quietly(
            model, observed, kernel=_NUTS(), n_samples=n_samples, n_warmup=n_warmup, n_chains=n_chains, seed=seed,
            progress=False, compile=compile, **more,
        )  # fmt: skip
        seconds = _seconds_per_step(_Stamped.stamps) * sum(n_steps for _, n_steps in _Stamped.stamps)
        latents = [value.flatten(2) if value.dim() > 2 else value[..., None] for value in draws.values()]
        return Sampled(torch.cat(latents, -1).cpu(), seconds, int(draws.info.n_leapfrogs.sum()))

    return run


def hmc(
    problem: Problem,
    n_chains: int,
    n_transitions: int,
    step_size: float,
    n_leapfrogs: int,
    clock: Clock = time.perf_counter,
    *,
    compile: bool,
) -> Callable[[], float]:
    """A function that makes at least ``n_transitions`` of HMC, nothing adapted, and says what one of them took."""
    model, observed, more = target(problem)
    kernel = _HMC(step_size=step_size, n_leapfrogs=n_leapfrogs, adapt_step_size=False, adapt_mass=False)
    n_samples = n_transitions + 2 * MOST_TRANSITIONS  # the first block compiles, the end of the last one is not seen

    def run() -> float:
        _Stamped.clock = clock
        _quietly(
            model, observed, kernel=kernel, n_samples=n_samples, n_warmup=0, n_chains=n_chains, progress=False,
            compile=compile, **more,
        )  # fmt: skip
        return _seconds_per_step(_Stamped.stamps[1:])

    return run


def _quietly(*arguments: Any, **options: Any) -> zsp.Draws:
    """``zsp.mcmc`` without what it says of too few draws; a run that should be compiled and is not is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.filterwarnings("error", ".*compile", UserWarning)
        return zsp.mcmc(*arguments, **options)
