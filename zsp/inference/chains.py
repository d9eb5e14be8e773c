"""How to run a model over chains: at once on values with a chain axis, or chain by chain under ``vmap``.

A model that is written for one value of each latent may or may not broadcast over a leading axis: ``w @ x.T`` does,
but ``x @ w`` mixes the chains up, sometimes without an error, and sometimes only for some numbers of chains. So the two
ways are compared, at different random positions and for the number of chains that is asked for.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["TOTAL", "Terms", "Way", "choose_way", "in_own_thread", "over_chains"]

T = TypeVar("T")

Terms = dict[str, Tensor]
"""What a log density is a sum of, by name, and the sum itself under :data:`TOTAL`."""

TOTAL = "log density"

_N_LOOPED = 3  # chains by which vmap is compared with a loop


class Way(enum.Enum):
    """How a model is run over chains."""

    BROADCAST = "broadcast"
    MAP = "vmap"


def choose_way(positions: Tensor, *, single: Callable[[Tensor], Terms], broadcast: Callable[[Tensor], Terms]) -> Way:
    """Whether broadcasting over chains gives what a loop over them gives: every term, and the gradient of the sum.

    Args:
        positions: one for each chain, all different, shape [chain, D].
        single: from one chain's position, shape [D], to its terms, scalars.
        broadcast: from all positions to the terms, each of shape [chain]; it may lack terms other than the sum.

    Returns:
        BROADCAST where it does, MAP otherwise.

    Raises:
        ValueError: if neither broadcasting nor ``vmap`` gives what a loop over the chains gives.
    """
    weights = torch.linspace(1, 2, positions.shape[0], dtype=positions.dtype, device=positions.device)
    looped = _evaluate(lambda q: _loop(single, q), positions[:_N_LOOPED], weights)
    reason: Exception | None = None
    try:
        expected = _evaluate(torch.func.vmap(single), positions, weights)
        is_mappable = _agree({name: term[:_N_LOOPED] for name, term in expected.items()}, looped)
    except Exception as error:  # whatever the model raises: it cannot be run this way
        is_mappable, reason = False, error
    if not is_mappable:
        expected = _evaluate(lambda q: _loop(single, q), positions, weights)
    try:
        does_broadcast = _agree(_evaluate(broadcast, positions, weights), expected)
    except Exception:
        does_broadcast = False
    if does_broadcast:
        return Way.BROADCAST
    if is_mappable:
        return Way.MAP
    raise ValueError(
        f"the model cannot be run over {positions.shape[0]} chains: it does not broadcast over a leading axis of its "
        f"latents, and torch.func.vmap {'gives other values' if reason is None else f'fails ({reason})'}. Write it so "
        "that it broadcasts (w @ x.T instead of x @ w, sums over the last axes), or without what vmap cannot follow "
        "(branches on values, .item(), changes in place); or run one chain at a time."
    ) from reason


def over_chains(
    function: Callable[[Any], T],
    values: Any,
    n_axes: int,
    chunk_size: int | None = None,
    randomness: Literal["error", "different"] = "error",
) -> T:
    """What ``function`` gives for each chain, under ``vmap`` or, where that cannot follow it, in a loop.

    Args:
        function: from one chain's values to a tree of tensors.
        values: a tree of tensors, each with the chain axes first.
        n_axes: the number of chain axes.
        chunk_size: how many chains to hold in memory at a time; default all.
        randomness: "different" where the function draws random numbers, its own for each chain.

    Returns:
        The tree of tensors, each with the chain axes first.
    """
    if n_axes == 0:
        return function(values)
    chain = tree_leaves(values)[0].shape[:n_axes]
    flat = tree_map(lambda value: value.flatten(0, n_axes - 1), values)
    try:
        results = torch.func.vmap(function, chunk_size=chunk_size, randomness=randomness)(flat)
    except RuntimeError:  # an operator that vmap does not know; an error of the model comes again
        each = [function(tree_map(lambda value, i=i: value[i], flat)) for i in range(chain.numel())]
        results = tree_map(lambda *parts: torch.stack(parts), *each)
    return tree_map(lambda value: value.unflatten(0, chain), results)


def in_own_thread(function: Callable[[], T]) -> T:
    """Call ``function`` where no torch transform, trace or mode of the calling thread is active."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _loop(single: Callable[[Tensor], Terms], positions: Tensor) -> Terms:
    each = [single(position) for position in positions]
    return {name: torch.stack([terms[name] for terms in each]) for name in each[0]}


def _evaluate(function: Callable[[Tensor], Terms], positions: Tensor, weights: Tensor) -> Terms:
    """The terms, and under the name "gradient" that of the weighted sum over the chains."""
    with torch.inference_mode(False), torch.enable_grad():
        positions = positions.clone().requires_grad_()
        terms = function(positions)
        total = terms[TOTAL]
        if total.shape != positions.shape[:1]:
            raise ValueError(f"the log density has shape {list(total.shape)} for {positions.shape[0]} chains")
        gradient = torch.zeros_like(positions)
        if total.requires_grad:
            found = torch.autograd.grad((total * weights[: total.shape[0]]).sum(), positions, allow_unused=True)[0]
            gradient = gradient if found is None else found
    return {"gradient": gradient, **{name: term.detach() for name, term in terms.items()}}


def _agree(found: Terms, expected: Terms) -> bool:
    return all(_is_equal(value, expected[name]) for name, value in found.items())


def _is_equal(a: Tensor, b: Tensor) -> bool:
    """Equal up to rounding, chain by chain; values that are not finite must be so in both."""
    if a.shape != b.shape:
        return False
    tolerance = torch.finfo(b.dtype).eps ** 0.55  # 2e-9 in float64, 2e-4 in float32
    a, b = a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1)
    finite = b.isfinite()
    scale = 1 + torch.where(finite, b, 0).abs().amax(-1, keepdim=True)
    close = torch.where(finite, (a - b).abs() <= tolerance * scale, (a == b) | (a.isnan() & b.isnan()))
    return bool(close.all())
