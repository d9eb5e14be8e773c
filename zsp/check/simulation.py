"""Drawing latents and data from a model, many times at once, and judging latents by data of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from zsp.checks.wording import quoted, suggestion
from zsp.inference.chains import over_chains
from zsp.inference.log_density import LogDensity
from zsp.inference.problems import element_name
from zsp.meta_bayesian_net import MetaBayesianNet
from zsp.node import Unavailable

__all__ = [
    "LOG_LIKELIHOOD",
    "Quantity",
    "Simulator",
    "evaluate_quantities",
    "own_random_state",
    "per_simulation",
    "scalars",
]

LOG_LIKELIHOOD = "log likelihood"  # the label of that quantity

Values = dict[str, Tensor]
Quantity = Callable[[Values], Tensor]
"""A scalar function of one set of latents and data, by name."""


class Simulator:
    """Draws from a model's joint distribution, and from that of its data given latents.

    Args:
        meta_bn: the model.
        data: the names of the nodes that are data; all other stochastic nodes are latents.

    Attributes:
        latents: the latents' names.
        data: the data's names.

    Raises:
        TypeError: if the model is no MetaBayesianNet.
        ValueError: if a name is no stochastic node, or a node has no draws.
    """

    def __init__(self, meta_bn: MetaBayesianNet, data: Sequence[str] | str) -> None:
        if not isinstance(meta_bn, MetaBayesianNet):
            raise TypeError(
                "the data are drawn from the model, so it must be a MetaBayesianNet, but got "
                f"{type(meta_bn).__name__}. Call the decorated function first: model = build_model(...)."
            )
        self._meta_bn = meta_bn.materialize()
        self._is_looped = False
        self.data = (data,) if isinstance(data, str) else tuple(data)
        nodes = {node.name: node for node in meta_bn._execute({})._stochastic_nodes()}
        for name in self.data:
            if name not in nodes:
                raise ValueError(
                    f"data names {name!r}, but the stochastic nodes of the model are {quoted(nodes)}."
                    f"{suggestion(name, nodes)}"
                )
        for node in nodes.values():
            if isinstance(node.value, Unavailable):
                raise ValueError(
                    f"latents and data are drawn from the model, but {node.name!r} ({node.kind}) has no draws: what "
                    "has an improper prior cannot be simulated. Give it a proper one for the check."
                )
        self.latents = tuple(name for name in nodes if name not in self.data)
        if not self.data or not self.latents:
            missing = "data" if not self.data else "latents"
            raise ValueError(f"a check needs latents and data, but of the nodes {quoted(nodes)} none are {missing}.")

    def draw(self, n: int) -> tuple[Values, Values]:
        """Latents and data from their joint distribution, independent ones: each of shape [n, *shape]."""
        values = self._draw_each({}, n)
        return {name: values[name] for name in self.latents}, {name: values[name] for name in self.data}

    def draw_data(self, latents: Mapping[str, Tensor]) -> Values:
        """Data given latents: both of shape [n, *shape]."""
        values = self._draw_each(dict(latents), len(next(iter(latents.values()))))
        return {name: values[name] for name in self.data}

    @torch.no_grad()
    def log_likelihood(self, values: Values) -> Tensor:
        """log p(data | latents), of one set of latents and data."""
        bn = self._meta_bn._execute(values)
        terms: list[Tensor] = [bn.cond_log_prob(name).sum() for name in self.data]
        return torch.stack(terms).sum()

    def _draw_each(self, given: Values, n: int) -> Values:
        """All stochastic nodes' values in n executions, which are independent given what is given."""

        def execute(index: Tensor, one: Values) -> Values:
            bn = self._meta_bn._execute(one)
            return {node.name: node.value for node in bn._stochastic_nodes()}

        with torch.no_grad():
            if not self._is_looped:
                try:
                    drawn = torch.func.vmap(execute, randomness="different")(torch.arange(n), given)
                except Exception:  # an operator that vmap does not know; an error of the model comes again in the loop
                    self._is_looped = True
                else:
                    # numbers drawn outside torch come once for all executions
                    self._is_looped = n > 1 and any(
                        name not in given and value.is_floating_point() and bool((value == value[:1]).all())
                        for name, value in drawn.items()
                    )
                if not self._is_looped:
                    return drawn
            each = [execute(torch.tensor(i), {k: v[i] for k, v in given.items()}) for i in range(n)]
            return tree_map(lambda *parts: torch.stack(parts), *each)


def per_simulation(log_density: LogDensity, observed: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """The log density of many data sets at once, each given to its own chains.

    What ``inference`` needs in ``sbc(..., batched=True)`` to run the chains of all simulations by one kernel::

        log_density = zsp.LogDensity(model, one_data_set)

        def inference(observed):                                      # {"y": [simulation, *shape]}
            f = zsp.check.per_simulation(log_density, observed)
            state = kernel.init(f, log_density.initial((n_simulations, n_chains)), seed=0)
            ...

    Args:
        log_density: of one data set, of the same shapes.
        observed: node name -> data, shape [simulation, *shape]; all that ``log_density`` observes.

    Returns:
        From positions of shape [simulation, *chain, D] to log densities of shape [simulation, *chain].
    """

    def evaluate(position: Tensor) -> Tensor:
        def one(position: Tensor, observed: dict[str, Tensor]) -> Tensor:
            return log_density.rebind(observed)(position)

        function: Callable[..., Tensor] = one
        for _ in range(position.dim() - 2):  # the chain axes, along which the data are the same
            function = torch.func.vmap(function, in_dims=(0, None))
        return torch.func.vmap(function)(position, dict(observed))

    return evaluate


def evaluate_quantities(quantities: Mapping[str, Quantity], latents: Values, data: Values) -> Values:
    """Every quantity of n sets of latents, with data of their own [n, *shape]; each of shape [n]."""
    with torch.no_grad():
        found = over_chains(lambda v: {name: f(v) for name, f in quantities.items()}, {**latents, **data}, 1)
    for name, value in found.items():
        if value.dim() != 1:
            raise ValueError(
                f"a quantity must be a scalar of one set of latents and data, but {name!r} has shape "
                f"{list(value.shape[1:])}."
            )
    return found


@contextmanager
def own_random_state(seed: int) -> Iterator[None]:
    """Seed torch's generators, and give the caller's random state back at the end."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def scalars(name: str, value: Tensor, n_leading: int) -> Iterator[tuple[str, Tensor]]:
    """(label, elements) of every scalar of a value with this many leading axes."""
    shape = value.shape[n_leading:]
    flat: Any = value.reshape(*value.shape[:n_leading], shape.numel())
    for i in range(shape.numel()):
        yield element_name(name, shape, i), flat[..., i]
