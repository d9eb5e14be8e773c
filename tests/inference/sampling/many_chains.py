"""What the tests of the kernels for many chains share: chains that begin at exact draws, and stay there or do not."""

from __future__ import annotations

from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from tests.inference.compilation.calls import compiled
from tests.inference.sampling.targets import tuning
from tests.monte_carlo import assert_ks, assert_mean
from zsp.inference.compilation.tracing import trace
from zsp.inference.sampling.arrays import to_numpy, to_torch
from zsp.inference.sampling.kernel import Density
from zsp.inference.sampling.metric import Identity
from zsp.inference.sampling.shared_trajectory import Place

__all__ = ["assert_standard_normal", "assert_traced_equals_eager", "begin", "place_at", "run", "straightened"]


def begin(kernel, log_density, position, metric=None, seed=0) -> tuple[Density, Any, torch.Generator]:
    """The density, the kernel's state at the positions, and a generator for the steps that follow."""
    density, generator = Density(log_density), torch.Generator().manual_seed(seed)
    step_size = position.new_full(position.shape[:1], kernel.step_size)
    metric = metric or Identity()
    adaptation = kernel.start_adaptation(step_size, position)
    return density, kernel.begin(density, position, metric, adaptation, generator), generator


def run(kernel, log_density, position, n_transitions, *, metric=None, seed=0, is_adapting=0.0):
    """The last draws, and the reports of all transitions, after some transitions from a position [chain, D]."""
    metric = metric or Identity()
    density, state, generator = begin(kernel, log_density, position, metric, seed)
    told = tuning(metric, is_adapting=is_adapting, target=kernel.target_acceptance_rate)
    state, told = to_numpy((state, told))
    reports: list[Any] = []
    while len(reports) < n_transitions:
        noise = tree_map(lambda leaf: leaf[0].numpy(), kernel.draw_noise(1, position, generator))
        with numpy.errstate(all="ignore"):  # as the run loop does
            state, ended = kernel.advance(density, state, noise, told)
        if ended is not None:
            draw = ended.position
            reports.append(to_torch(ended.info))
    return torch.from_numpy(draw), reports


def straightened(banana: Tensor) -> Tensor:
    """Independent standard normal numbers, where the argument has the banana's law."""
    a, b, c = banana.unbind(-1)
    return torch.stack([a, (b - a.square()) / 0.1, c * torch.exp(-a / 2)], -1)


def assert_standard_normal(draws: Tensor) -> None:
    """Independent rows [n, D] are standard normal: each column's law, all products of two columns."""
    from scipy.stats import norm

    for column in draws.T:
        assert_ks(column.numpy(), norm.cdf)
    products = (draws[:, :, None] * draws[:, None]).flatten(1)
    assert_mean(products, torch.eye(draws.shape[1]).flatten())


def place_at(log_density, position, momentum, metric=None) -> tuple[Density, Place]:
    metric = metric or Identity()
    density = Density(log_density)
    value, gradient = density(metric.push(position))
    return density, Place(position, momentum, metric.pull(gradient), value)


def assert_traced_equals_eager(kernel, log_density, position, n_steps, *, is_compiled=False, atol=1e-9):
    """One step as a graph without branches leads, from step to step, where the eager code leads on numpy's arrays."""
    told = tuning(Identity(), is_adapting=1.0, target=kernel.target_acceptance_rate)
    density, state, generator = begin(kernel, log_density, position)
    noise = kernel.draw_noise(n_steps, position, generator)
    example = (state, tree_map(lambda leaf: leaf[0], noise), told)

    def advance(*given):
        return kernel.advance(density, *given)

    step = compiled(advance, *example) if is_compiled else _graph(advance, *example)
    traced, eager = state, to_numpy(state)
    n_ended = 0
    for i in range(n_steps):
        one = tree_map(lambda leaf, i=i: leaf[i], noise)
        traced, made = step(traced, one, told)
        eager, ended = kernel.advance(density, eager, to_numpy(one), to_numpy(told))
        assert bool(made.is_done.all()) == (ended is not None)
        for a, b in [(traced, eager)] + ([] if ended is None else [(made, ended)]):
            for x, y in zip(tree_flatten(a)[0], tree_flatten(b)[0], strict=True):
                torch.testing.assert_close(x.double(), torch.as_tensor(y).double(), atol=atol, rtol=atol)
        n_ended += ended is not None
    assert n_ended > 5


def _graph(function, *example):
    traced = trace(function, *example)

    def call(*arguments):
        return tree_unflatten(traced.graph(*tree_flatten(arguments)[0], *traced.constants), traced.structure)

    return call
