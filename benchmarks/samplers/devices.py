"""How chains run in JAX: vectorised, and on all of its devices; with two of these, half of the chains on each core."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

__all__ = ["over_chains", "vectorised"]


def over_chains(function: Callable[..., tuple[Any, Any]], n_chains: int) -> Callable[..., tuple[Any, Any]]:
    """Compile a function of pytrees whose leaves have chains in axis 0.

    Args:
        function: gives a pair of pytrees, chains in axis 0 of the first one's leaves and in axis 1 of the second one's.
        n_chains: those of one device where the devices do not divide it.

    Returns:
        The same function of the same shapes.
    """
    n_devices = jax.local_device_count()
    if n_devices == 1 or n_chains % n_devices:
        return jax.jit(function)
    mapped = jax.pmap(function, out_axes=(0, 1))

    def split(leaf: Any) -> Any:
        return leaf.reshape(n_devices, n_chains // n_devices, *leaf.shape[1:])

    def run(*arguments: Any) -> tuple[Any, Any]:
        first, second = mapped(*jax.tree_util.tree_map(split, arguments))
        return (
            jax.tree_util.tree_map(lambda leaf: leaf.reshape(n_chains, *leaf.shape[2:]), first),
            jax.tree_util.tree_map(lambda leaf: leaf.reshape(leaf.shape[0], n_chains, *leaf.shape[3:]), second),
        )

    return run


def vectorised(function: Callable[..., Any], n_chains: int) -> Callable[..., Any]:
    """``jax.vmap``; for one chain the function without it, of which XLA makes faster code."""
    if n_chains > 1:
        return jax.vmap(function)

    def run(*arguments: Any) -> Any:
        one = jax.tree_util.tree_map(lambda leaf: leaf[0], arguments)
        return jax.tree_util.tree_map(lambda leaf: leaf[None], function(*one))

    return run
