r"""The joint distribution test: does a kernel leave the posterior of a model as it is?

.. math:: (\theta_0, y_0) \sim p(\theta, y), \qquad \theta_{t+1} \sim K_{y_t}(\theta_t, \cdot), \qquad
    y_{t+1} \sim p(y \mid \theta_{t+1})

A kernel that leaves :math:`p(\theta \mid y)` as it is for every y leaves the joint distribution as it is, so that after
any number of rounds :math:`(\theta_T, y_T) \sim p(\theta, y)` again. Geweke compares long averages of one such chain
with averages of independent draws, by standard errors that must come from the chain's autocorrelation. Here there are
many independent chains, each begun at an exact draw: then their last states are independent draws of the joint
distribution too, exactly, and no standard error has to be estimated.

Reference: Geweke 2004, J. American Statistical Association 99, section 3; Grosse & Duvenaud 2014, arXiv:1412.5218.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Any, Protocol

import torch
from torch import Tensor

from zsp.check.simulation import (
    LOG_LIKELIHOOD,
    Quantity,
    Simulator,
    evaluate_quantities,
    own_random_state,
    per_simulation,
    scalars,
)
from zsp.inference.diagnostics import normal_scores
from zsp.inference.log_density import LogDensity
from zsp.meta_bayesian_net import MetaBayesianNet

__all__ = ["GewekeResult", "geweke"]

REFERENCE = 4  # independent draws to compare with, for each chain


class Kernel(Protocol):
    """What moves positions: the two pure functions of every kernel."""

    def init(self, log_density: Any, position: Tensor, *, seed: int) -> Any: ...
    def step(self, log_density: Any, state: Any, *, adapt: bool = False) -> Any: ...


class GewekeResult:
    """Differences between what a kernel leads to and independent draws, by quantity; it shows itself as a table.

    Attributes:
        z: quantity -> (z score of its location, z score of its spread), standard normal where the kernel is right.
        n_chains: the number of chains.
        n_rounds: how often latents and data were drawn anew.
        false_alarm: the probability that a right kernel fails, at most.
        limit: the largest absolute z score that passes.
        passed: whether every z score does.
    """

    def __init__(
        self, z: Mapping[str, tuple[float, float]], *, n_chains: int, n_rounds: int, false_alarm: float
    ) -> None:
        self.z = dict(z)
        self.n_chains = n_chains
        self.n_rounds = n_rounds
        self.false_alarm = false_alarm
        self.limit = NormalDist().inv_cdf(1 - false_alarm / (4 * len(self.z)))

    @property
    def passed(self) -> bool:
        """Whether nothing differs more than chance allows."""
        return not self.failures

    @property
    def failures(self) -> list[str]:
        """The quantities whose location or spread differs."""
        return [label for label, pair in self.z.items() if not max(map(abs, pair)) <= self.limit]

    def __repr__(self) -> str:
        width = max(map(len, self.z))
        failures = set(self.failures)
        lines = [
            f"Geweke's test, {self.n_chains} chains, {self.n_rounds} rounds: {'passed' if self.passed else 'failed'} "
            f"at a false-alarm rate of {self.false_alarm:g} for all together (|z| up to {self.limit:.2f})",
            f"{'':{width}}  z of location  z of spread",
        ]
        for label, (location, spread) in self.z.items():
            lines.append(f"{label:{width}}  {location:13.2f}  {spread:11.2f}{'  <-' if label in failures else ''}")
        return "\n".join(lines)


def geweke(
    kernel: Kernel,
    meta_bn: MetaBayesianNet,
    *,
    data: Sequence[str] | str,
    n_chains: int = 2000,
    n_rounds: int = 50,
    n_steps: int = 1,
    init: Callable[..., Any] | None = None,
    quantities: Mapping[str, Quantity] | None = None,
    false_alarm: float = 0.01,
    seed: int = 0,
) -> GewekeResult:
    r"""Geweke's joint distribution test of a kernel, on a model.

    ::

        print(zsp.check.geweke(zsp.HMC(step_size=0.1, n_leapfrogs=10), model, data="y"))

    Every chain begins at latents and data drawn from the model; in each round the kernel moves the latents given the
    data, and new data are drawn given the latents. Compared with independent draws from the model are every scalar of
    the latents and the log likelihood: by the means of their normal scores (location) and of the squares of these
    (spread), :math:`\Phi^{-1}((r - 3/8) / (N + 1/4))` of the ranks r among both samples. Under a right kernel both
    samples are independent draws of one law, so that the chains' scores are a random choice of all scores, whatever the
    law's tails: the mean and variance of their sum are known exactly, and its law is normal but for terms of order 1/n.
    What the kernel does in its warm-up is not looked at: it steps with ``adapt=False``, from ``init`` in every round.
    An ``init`` that looks for a step size at its position would be found wrong, and rightly: steps whose size depends
    on where they begin leave nothing as it is.

    A wrong kernel needs rounds to drift away, and chains to be seen: a location that is off by d standard deviations
    has a z score of about :math:`0.9\, d \sqrt{n}` for n chains.

    Args:
        kernel: with ``init(log_density, position, seed=...) -> state``, where ``state.position`` is a tensor, and
            ``step(log_density, state, adapt=False) -> (state, info)``.
        meta_bn: the model; its latents are continuous, with proper priors.
        data: names of the nodes that are data.
        n_chains: the number of chains, all run at once.
        n_rounds: how often the latents are moved and the data drawn anew.
        n_steps: the kernel's steps in each round.
        init: what to call instead of ``kernel.init``, with the same arguments: to give a kernel that adapts its step
            size and masses such as were found beforehand, independently of where the chains are.
        quantities: further scalar functions of a dict of one set of latents and data, by label.
        false_alarm: the probability that a right kernel fails the test, at most, all quantities together (Bonferroni).
        seed: of every random number; the caller's random state is given back.

    Returns:
        The z scores, and whether the test is passed.

    Raises:
        ValueError: if names do not fit, a node cannot be drawn, the kernel's ``init`` looks for a step size, or the
            kernel leads to values that are not finite.
    """
    if min(n_chains, n_rounds, n_steps) < 1 or not 0 < false_alarm < 1:
        raise ValueError(
            "n_chains, n_rounds and n_steps must be at least 1 and false_alarm between 0 and 1, got "
            f"{n_chains}, {n_rounds}, {n_steps} and {false_alarm}."
        )
    if init is None and getattr(kernel, "adapt_step_size", False):
        raise ValueError(
            "the kernel looks for a step size where it begins, and geweke begins anew in every round: steps whose size "
            "depends on the position leave no distribution as it is. Give a kernel with a fixed step size "
            "(adapt_step_size=False), or init=, called like kernel.init, which makes a state with one found beforehand."
        )
    with own_random_state(seed):
        simulator = Simulator(meta_bn, data)
        functions = {LOG_LIKELIHOOD: simulator.log_likelihood, **(quantities or {})}
        expected = _quantities(functions, *simulator.draw(REFERENCE * n_chains))
        latents, drawn = simulator.draw(n_chains)
        log_density = LogDensity(meta_bn, {name: value[0] for name, value in drawn.items()})
        position = log_density.unconstrain(latents)
        begin = kernel.init if init is None else init
        for _ in range(n_rounds):
            target = per_simulation(log_density, drawn)
            state = begin(target, position, seed=int(torch.randint(2**31, ()).item()))
            for _ in range(n_steps):
                state, _ = kernel.step(target, state, adapt=False)
            position = state.position.detach()
            latents = log_density.constrain(position)
            _check_finite(latents)
            drawn = simulator.draw_data(latents)
        reached = _quantities(functions, latents, drawn)
    z = {label: _z_scores(value, expected[label]) for label, value in reached.items()}
    return GewekeResult(z, n_chains=n_chains, n_rounds=n_rounds, false_alarm=false_alarm)


def _quantities(
    functions: Mapping[str, Quantity], latents: dict[str, Tensor], data: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Label -> [chain], for every scalar of the latents and every function."""
    found = {label: part for name, value in latents.items() for label, part in scalars(name, value, 1)}
    return {**found, **evaluate_quantities(functions, latents, data)}


def _z_scores(sample: Tensor, reference: Tensor) -> tuple[float, float]:
    """Location and spread of a sample against another of the same law, as standard normal numbers."""
    both = torch.cat([sample, reference]).double().cpu()
    scores = normal_scores(both[None])[0]
    return tuple(_z_of_sum(part, len(sample)) for part in (scores, scores.square()))  # type: ignore[return-value]


def _z_of_sum(scores: Tensor, n: int) -> float:
    """The sum of the first n of N scores, less what it is for a random choice of n, over its standard deviation."""
    size = len(scores)
    centred = scores - scores.mean()
    variance = n * (size - n) / (size * (size - 1)) * centred.square().sum()
    return (centred[:n].sum() / variance.sqrt()).item() if variance > 0 else 0.0


def _check_finite(latents: dict[str, Tensor]) -> None:
    for name, value in latents.items():
        if not bool(value.isfinite().all()):
            raise ValueError(f"the kernel led to values of {name!r} that are not finite.")
