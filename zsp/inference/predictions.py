r"""Predictions: what a model says of unobserved nodes and new inputs, given draws of its latents.

.. math:: \tilde y_s \sim p(\tilde y \mid z_s, \tilde x), \quad z_s \sim p(z \mid x, y) \text{ or } q(z)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from zsp import checks
from zsp.bayesian_net import BayesianNet
from zsp.checks.wording import net_name, quoted
from zsp.inference.chains import over_chains
from zsp.inference.draws import Draws
from zsp.inference.variational.objective import Variational, execute_variational, latent_values
from zsp.meta_bayesian_net import MetaBayesianNet
from zsp.node import Node, Unavailable
from zsp.tensor_like import to_tensor

__all__ = ["chunks_of_draws", "predict"]


@torch.no_grad()
def predict(
    meta_bn: MetaBayesianNet,
    draws: Draws | Variational | Mapping[str, Any],
    observed: Mapping[str, Any] | None = None,
    *,
    names: Iterable[str] | None = None,
    n_samples: int | None = None,
    chunk: int | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    r"""Draws of a model's unobserved nodes, and its deterministic nodes, given draws of its latents.

    The model is executed once for each draw, with that draw's values, as if in a loop; several at a time under ``vmap``
    where that can follow the model. ::

        draws = zsp.mcmc(model, {"x": x, "y": y}, kernel=zsp.NUTS())
        new = zsp.predict(model, draws, {"x": x_test})
        new["y"]                                               # [chain, draw, *shape]: the posterior predictive

        q = zsp.mean_field(model, {"x": x, "y": y}, n_samples=10)
        new = zsp.predict(model, q, {"x": x_test}, n_samples=1000, chunk=100)     # [sample, *shape]

    Args:
        meta_bn: the model.
        draws: :class:`zsp.Draws`; or a variational net, executed or to be executed; or name -> draws of each latent,
            shape [sample, *shape].
        observed: node name -> value; a key that names a parameter of the model function rebinds that input, so that
            predictions are made at new ones. A variational net that is to be executed gets them too.
        names: the nodes to return; default all deterministic nodes and all nodes that are drawn. A latent without draws
            that other nodes depend on is drawn from its prior if it is named here, as one of a new group has to be.
        n_samples: the number of draws of a variational net; default what one execution draws.
        chunk: draws held in memory at a time, beside the results; default all.
        seed: of the random numbers, whose order depends on ``chunk``; the caller's random state is given back.

    Returns:
        name -> tensor, of shape [chain, draw, *shape] from :class:`zsp.Draws` and [sample, *shape] otherwise.

    Raises:
        ValueError: if a latent that other nodes depend on has neither draws nor a value and is not in ``names``, there
            is nothing to predict, or names and shapes do not fit.
        NodeError: if ``names`` has a name that is no node.
    """
    if not isinstance(meta_bn, MetaBayesianNet):
        raise TypeError(
            f"predict draws the nodes of a model, which must be a MetaBayesianNet, but got {type(meta_bn).__name__}. "
            "Call the decorated function first: model = build_model(...)."
        )
    if isinstance(names, str):
        raise TypeError(f"names must be a list of names, but got the string {names!r}; write [{names!r}].")
    for what, number in (("n_samples", n_samples), ("chunk", chunk)):
        if number is not None and number < 1:
            raise ValueError(f"{what} must be at least 1, got {number}.")
    observed = {} if observed is None else observed
    wanted = None if names is None else list(names)
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    results: dict[str, Tensor] = {}
    n_done = 0
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        for axes, latents in chunks_of_draws(draws, observed, n_samples, chunk):
            if wanted is None or not n_done:
                first = {name: value[0] for name, value in latents.items()}
                wanted = _nodes_to_return(meta_bn, observed, first, wanted, _known_data(draws))
            execute = functools.partial(_execute, meta_bn, observed, wanted)
            part = over_chains(execute, latents, 1, randomness="different")
            n_part = len(next(iter(latents.values())))
            for name, value in part.items():
                if name not in results:
                    results[name] = value.new_empty((axes.numel(), *value.shape[1:]))
                results[name][n_done : n_done + n_part] = value
            n_done += n_part
    return {name: value.unflatten(0, axes) for name, value in results.items()}


def _execute(
    meta_bn: MetaBayesianNet, observed: Mapping[str, Any], names: Iterable[str], latents: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The values of some nodes in one execution."""
    bn = meta_bn._execute({**observed, **latents})
    found = {}
    for name in names:
        node = bn._nodes[name]
        value = node.value if isinstance(node, Node) else node
        if isinstance(value, Unavailable):
            raise value.error()
        found[name] = value
    return found


# -- draws of the latents ---------------------------------------------------------------------------------------------


def chunks_of_draws(
    draws: Draws | Variational | Mapping[str, Any],
    observed: Mapping[str, Any],
    n_samples: int | None,
    chunk: int | None,
) -> Iterator[tuple[torch.Size, dict[str, Tensor]]]:
    """Latents [at most chunk, *shape] by name, and with each the shape of all their leading axes."""
    if not isinstance(draws, Mapping):
        yield from _chunks_of_net(draws, observed, n_samples, chunk)
        return
    if n_samples is not None:
        raise ValueError(
            f"n_samples={n_samples} is for a variational net, but draws were given. Take as many of them as you want "
            "predictions: draws.thin(10), draws.select(...)."
        )
    if isinstance(draws, Draws):
        axes = torch.Size((draws.n_chains, draws.n_draws))
        values = {name: value.flatten(0, 1) for name, value in draws.items() if name not in draws.deterministic}
    else:
        values = {name: torch.as_tensor(to_tensor(value)) for name, value in draws.items()}
        axes = _one_length(values)
    _require_apart(values, observed)
    size = chunk or axes.numel()
    for start in range(0, axes.numel(), size):
        yield axes, {name: value[start : start + size] for name, value in values.items()}


def _chunks_of_net(
    variational: Any, observed: Mapping[str, Any], n_samples: int | None, chunk: int | None
) -> Iterator[tuple[torch.Size, dict[str, Tensor]]]:
    axes = None if n_samples is None else torch.Size((n_samples,))
    n_done = 0
    while axes is None or n_done < axes.numel():
        left = None if axes is None else axes.numel() - n_done  # without n_samples, one execution says how many
        bn = execute_variational(variational, observed, None if left is None else (min(chunk or left, left),))
        own = bn._sample_axes() if any(node.with_samples for node in bn._stochastic_nodes()) else ()
        if not own:
            raise ValueError(
                "the variational net declares no sample axis, so that it holds one draw only. Declare it with "
                "n_samples=k on its nodes; zsp.mean_field(..., n_samples=1) takes it as an argument."
            )
        latents, sampled = latent_values(bn, observed, own)
        flat = {
            name: (value if name in sampled else value.expand(own + value.shape)).flatten(0, len(own) - 1)
            for name, value in latents.items()
        }
        n_drawn = math.prod(own)
        axes = torch.Size(own) if axes is None else axes
        n_used = min(n_drawn, axes.numel() - n_done)
        if n_done + n_drawn < axes.numel() and isinstance(variational, BayesianNet):
            raise ValueError(
                f"n_samples={n_samples}, but the executed variational net holds {n_drawn} draws. Give a "
                "MetaBayesianNet, a reuse_variables function or a callable, so that it can be executed again."
            )
        step = chunk or n_used
        for start in range(0, n_used, step):
            yield axes, {name: value[start : min(start + step, n_used)] for name, value in flat.items()}
        n_done += n_used


def _one_length(values: Mapping[str, Tensor]) -> torch.Size:
    """The common length of the draws of all latents, as a shape."""
    if not values:
        raise ValueError("draws is empty: give a tensor of draws, shape [sample, *shape], for each latent.")
    lengths = {value.shape[:1] for value in values.values()}
    length = lengths.pop()
    if lengths or not length or not length[0]:
        shown = ", ".join(f"{name!r} has shape {list(value.shape)}" for name, value in values.items())
        raise ValueError(
            f"draws of every latent must have one sample axis in front, of the same length, but {shown}. One value is "
            "one draw: value.unsqueeze(0)."
        )
    return length


def _require_apart(values: Mapping[str, Any], observed: Mapping[str, Any]) -> None:
    both = [name for name in values if name in observed]
    if both:
        raise ValueError(
            f"{quoted(both)} has draws and is also among the observed values: remove it from one of the two."
        )


# -- nodes to predict -------------------------------------------------------------------------------------------------


def _known_data(draws: Any) -> frozenset[str]:
    """Nodes that were data when the draws were made, so that drawing them is what is wanted."""
    return frozenset(draws.observed) if isinstance(draws, Draws) else frozenset()


def _nodes_to_return(
    meta_bn: MetaBayesianNet,
    observed: Mapping[str, Any],
    latents: Mapping[str, Tensor],
    names: list[str] | None,
    known_data: frozenset[str],
) -> list[str]:
    """The names of the nodes to return, found by one execution outside ``vmap``, where all checks work."""
    bn = meta_bn._execute({**observed, **latents})
    drawn = [node.name for node in bn._stochastic_nodes() if not node.is_observed]
    named = [] if names is None else names
    for name in named:
        if name not in bn._nodes:
            raise checks.unknown_node(bn, name)
        if name in observed:
            raise ValueError(f"names has {name!r}, which is observed: leave it out of one of the two.")
    undecided = [name for name in drawn if name not in named and name not in known_data]
    wanted = [name for name in bn._nodes if name in drawn or not isinstance(bn._nodes[name], Node)]
    wanted = wanted if names is None else named
    if not wanted:
        raise ValueError(
            f"there is nothing to predict: {net_name(bn)} has no deterministic node, and all its stochastic nodes "
            f"({quoted(node.name for node in bn._stochastic_nodes())}) are given. Leave those to be predicted out of "
            "the observed values."
        )
    if undecided:
        _require_leaves(meta_bn, {**observed, **latents}, bn, undecided, wanted, latents)
    return wanted


def _require_leaves(
    meta_bn: MetaBayesianNet,
    values: Mapping[str, Any],
    bn: BayesianNet,
    drawn: list[str],
    wanted: list[str],
    latents: Mapping[str, Any],
) -> None:
    """Nothing that is asked for depends on a drawn node that other stochastic nodes depend on, as a latent is."""
    from zsp.graph import ancestors, descendants

    graph = meta_bn.graph(**values)
    needed = set(wanted).union(*(ancestors(graph, name) for name in wanted))
    stochastic = {node.name for node in bn._stochastic_nodes()}
    forgotten = [name for name in drawn if name in needed and stochastic.intersection(descendants(graph, name))]
    if forgotten:
        raise ValueError(
            f"{quoted(forgotten)} of {net_name(bn)}, which other nodes depend on, has neither draws (there are draws "
            f"of {quoted(latents)}) nor an observed value. Give one of the two; or, to have it drawn from its prior, "
            f"name it: names=[{forgotten[0]!r}, ...]."
        )
