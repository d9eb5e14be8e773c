r"""The log density of a net's latents in an unconstrained space.

.. math:: \log p(x, f(q)) + \sum_i \log\Bigl|\det\frac{\partial f_i}{\partial q_i}\Bigr|

q is one vector for all latents; each is mapped by a bijector f_i onto the support that its node has in that execution,
which may depend on other latents (``u ~ uniform(0, theta)``).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions.constraints import Constraint

from zsp.bayesian_net import BayesianNet
from zsp.execution import can_read_values
from zsp.inference.bijectors import Bijector, Unconstrained, bijector_of
from zsp.inference.chains import TOTAL, Terms, Way, choose_way, in_own_thread, over_chains
from zsp.inference.enumeration import EnumeratedNet
from zsp.inference.latents import Latent, latents_of_callable, latents_of_net
from zsp.inference.layout import Layout
from zsp.inference.variational.objective import LogJoint
from zsp.meta_bayesian_net import MetaBayesianNet
from zsp.node import Node
from zsp.variables import shape_key

__all__ = ["Evaluation", "LogDensity", "sum_from"]


class Evaluation(NamedTuple):
    """What a net holds at positions of its latents; every tensor has the chain axes first.

    Attributes:
        values: the latents in their own space, by name.
        deterministic: the deterministic nodes; none for a callable.
        log_likelihood: of each value of the observed nodes, before grouping; none for a callable.
    """

    values: dict[str, Tensor]
    deterministic: dict[str, Tensor]
    log_likelihood: dict[str, Tensor]


class LogDensity:
    r"""The log density of a net's latents as a function of one unconstrained vector, over any number of chains.

    ::

        log_density = LogDensity(model, {"x": x, "y": y})
        position = log_density.initial(64)                             # [chain, D]
        log_p = log_density(position)                                  # [chain]
        (gradient,) = torch.autograd.grad(log_p.sum(), position)

    The model never sees the chain axes. It runs over them by broadcasting where that gives what a loop over the chains
    gives, for that number of chains, and under ``torch.func.vmap`` otherwise; which of the two is found out at the
    first evaluation for a number of chains, by comparing them at random positions.

    Args:
        meta_bn: the model (also with discrete latents summed out, by :func:`zsp.enumerate_latents`), or a callable from
            one dict of values, latents and observed ones merged, to a scalar log joint.
        observed: node name -> value; a key that names a parameter of the model function rebinds that input.
        latents: the names to sample, default all unobserved stochastic nodes; for a callable a dict of example tensors
            of one chain's shape.
        supports: for a callable, name -> ``torch.distributions`` constraint of the latents that have one.

    Attributes:
        names: the latents, in the order in which the vector holds them.
        shapes: name -> shape of its value in one chain.
        sizes: name -> how many unconstrained numbers it is.
        n_dims: D, the length of the vector.
        batch_shape: of the model's log joint in one chain, which the log density sums over.
        dtype: of positions.
        device: of positions.

    Raises:
        ValueError: if a latent cannot be sampled (it is discrete, certain, without density, declares ``n_samples``),
            names do not fit, or the model's log joint does not.
    """

    def __init__(
        self,
        meta_bn: LogJoint,
        observed: Mapping[str, Any],
        *,
        latents: Iterable[str] | Mapping[str, Tensor] | None = None,
        supports: Mapping[str, Constraint] | None = None,
    ) -> None:
        self._meta_bn, self._observed = meta_bn, dict(observed)
        with _same_random_state(), torch.no_grad():
            if isinstance(meta_bn, MetaBayesianNet):
                if supports is not None:
                    raise ValueError("supports is for a callable; a net's nodes know their supports.")
                latents_found = latents_of_net(meta_bn, observed, latents)
            elif isinstance(meta_bn, EnumeratedNet) and not isinstance(latents, Mapping):
                latents_found = latents_of_net(meta_bn.meta_bn, observed, latents, meta_bn.names)
            elif callable(meta_bn):
                latents_found = latents_of_callable(latents, supports, observed)
            else:
                raise TypeError(
                    "the model must be a MetaBayesianNet or a callable from a dict of values to the log joint, but got "
                    f"{type(meta_bn).__name__}. Call the decorated function first: model = build_model(...)."
                )
            self._set_layout(latents_found)
            self._try_one_chain()

    def _set_layout(self, latents: list[Latent]) -> None:
        self.layout = layout = Layout(latents)
        self.names, self.shapes, self.sizes, self.n_dims = layout.names, layout.shapes, layout.sizes, layout.n_dims
        self.dtype, self.device = layout.dtype, layout.device
        self._name_set = frozenset(self.names)
        is_net = isinstance(self._meta_bn, MetaBayesianNet)
        self._is_fixed = not is_net or all(latent.bijector.is_fixed for latent in latents)
        self._all_ways: dict[Any, dict[torch.Size, Way]] = {}
        self._ways = self._all_ways.setdefault(self._observed_key(), {})

    def _observed_key(self) -> Any:
        return tuple(self._observed), shape_key(self._observed.values())

    def _try_one_chain(self) -> None:
        """The model at one position: a scalar or batch-shaped log joint, the same when it is evaluated again."""
        position = self._positions(1)[0]
        self.batch_shape = self._execute(position, ())[0].shape
        first, second = self._direct(position, ()), self._direct(position, ())
        if not torch.equal(first.nan_to_num(), second.nan_to_num()):
            raise ValueError(
                f"the log joint is {first.item():g} and then {second.item():g} at the same values of all latents: the "
                "model draws random numbers of its own. Is a module in training mode (dropout)? Call model.eval()."
            )

    # -- evaluating ---------------------------------------------------------------------------------------------------

    def __call__(self, position: Tensor) -> Tensor:
        """The log density at a position.

        Args:
            position: unconstrained, shape [*chain, D].

        Returns:
            The log density, shape [*chain].

        Raises:
            ValueError: if the last axis is not D long.
            TypeError: if the dtype is not that of the latents.
        """
        chain = position.shape[:-1]
        way = self._ways.get(chain)
        if way is None or position.shape[-1] != self.n_dims or position.dtype != self.dtype:
            self.layout.check(position)
            way = self._choose(chain)
        if way is Way.BROADCAST:
            # of one chain, what is summed over everything is right, but for its shape
            return self._direct(position, chain).expand(chain)
        return self._mapped(position)

    def prepare(self, chain: int | tuple[int, ...] = ()) -> LogDensity:
        """Find out how to run over chains of this shape; needed before ``torch.compile``, which cannot.

        Args:
            chain: the number of chains, or the shape of several chain axes.

        Returns:
            The log density itself.
        """
        self._choose(torch.Size((chain,) if isinstance(chain, int) else chain))
        return self

    def rebind(self, observed: Mapping[str, Any]) -> LogDensity:
        """The log density of the same latents for other observed values, such as the next mini-batch.

        Args:
            observed: as at the beginning; the latents must be the same.

        Returns:
            Another log density; what was found out about chains is kept where the shapes are the same.
        """
        view = copy.copy(self)
        view._observed = dict(observed)
        view._ways = self._all_ways.setdefault(view._observed_key(), {})
        return view

    def _choose(self, chain: torch.Size) -> Way:
        way = self._ways.get(chain)
        if way is None:
            if not chain:
                way = Way.BROADCAST
            elif torch.compiler.is_compiling():
                raise RuntimeError(
                    f"how to run the model over chains of shape {list(chain)} has not been found out yet, and cannot "
                    f"be inside torch.compile. Call log_density.prepare({tuple(chain)}) before."
                )
            elif can_read_values():
                way = self._compare(chain)
            else:  # inside a torch.func transform or while tracing: a thread of its own is outside
                way = in_own_thread(lambda: self._compare(chain))
            self._ways[chain] = way
        return way

    def _compare(self, chain: torch.Size) -> Way:
        with _same_random_state():
            positions = self._positions(chain.numel())
            return choose_way(
                positions,
                single=lambda q: self._terms(q, ()),
                broadcast=lambda q: {
                    name: term.flatten() for name, term in self._terms(q.reshape(*chain, self.n_dims), chain).items()
                },
            )

    def _positions(self, n: int) -> Tensor:
        """n different positions, the same in every run."""
        generator = torch.Generator().manual_seed(0)
        return (torch.rand(n, self.n_dims, dtype=self.dtype, generator=generator) * 2 - 1).to(self.device)

    def _direct(self, position: Tensor, chain: tuple[int, ...]) -> Tensor:
        """The log density of all chains by one execution of the model on values with chain axes."""
        log_joint, jacobians, _ = self._execute(position, chain)
        return _total(log_joint, jacobians, len(chain))

    def _mapped(self, position: Tensor) -> Tensor:
        """The log density of all chains, each by an execution of its own, under vmap."""
        flat = position.reshape(-1, self.n_dims)
        return torch.func.vmap(lambda q: self._direct(q, ()))(flat).reshape(position.shape[:-1])

    def _execute(self, position: Tensor, chain: tuple[int, ...]) -> tuple[Tensor, list[Tensor], BayesianNet | None]:
        """The log joint, the log-Jacobians' terms, and the executed net where there is one."""
        terms: list[Tensor] = []
        if isinstance(self._meta_bn, MetaBayesianNet):
            bn = self._net({name: Unconstrained(part, terms) for name, part in self.layout.unpack(position)}, chain)
            return bn.log_joint(), terms, bn
        log_joint = self._meta_bn({**self._observed, **self._constrain(position, terms)})
        is_plain = not isinstance(self._meta_bn, EnumeratedNet)
        if not isinstance(log_joint, Tensor) or (is_plain and not chain and log_joint.dim()):
            got = f"shape {list(log_joint.shape)}" if isinstance(log_joint, Tensor) else type(log_joint).__name__
            raise TypeError(
                f"a callable must return the log joint of one chain's values as a scalar tensor, but got {got}. Sum "
                "over the data; the chain axes are added outside."
            )
        return log_joint, terms, None

    def _terms(self, position: Tensor, chain: tuple[int, ...]) -> Terms:
        """The log density and what it is a sum of, each of the chains' shape."""
        log_joint, jacobians, bn = self._execute(position, chain)
        terms = {f"log-Jacobian {i}": term for i, term in enumerate(jacobians)}
        if bn is not None:
            terms.update({f"node {n.name}": n.log_prob for n in bn._stochastic_nodes() if n.log_prob is not None})
        n_axes = len(chain)
        # a node that depends on no latent has no chain axes, and says nothing about them
        terms = {name: sum_from(term, n_axes) for name, term in terms.items() if term.shape[:n_axes] == chain}
        return {**terms, TOTAL: _total(log_joint, jacobians, n_axes)}

    # -- values and positions -----------------------------------------------------------------------------------------

    def _constrain(self, position: Tensor, jacobians: list[Tensor]) -> dict[str, Tensor]:
        """The latents' values where no support depends on another value; their log-Jacobians join the list."""
        values = {}
        for latent, (name, part) in zip(self.layout.latents, self.layout.unpack(position), strict=True):
            values[name], terms = latent.bijector.constrain(part)
            if terms is not None:
                jacobians.append(terms)
        return values

    def constrain(self, position: Tensor) -> dict[str, Tensor]:
        """The latents' values at a position.

        Args:
            position: unconstrained, shape [*chain, D].

        Returns:
            name -> value on the node's support, shape [*chain, *shape].
        """
        self.layout.check(position)
        if self._is_fixed:
            return self._constrain(position, [])
        return over_chains(lambda q: self._values(self._net(q, ())), position, position.dim() - 1)

    def unconstrain(self, values: Mapping[str, Any]) -> Tensor:
        """The position at which the latents have given values.

        Args:
            values: name -> value on the node's support, shape [*chain, *shape], for all latents.

        Returns:
            The position, shape [*chain, D].

        Raises:
            ValueError: if names or shapes do not fit, or a value is not inside its support.
        """
        given, chain = self.layout.values(values)
        one = self._unconstrain_one
        position = one(given) if self._is_fixed else over_chains(one, given, len(chain))
        if can_read_values() and not bool(position.isfinite().all()):
            parts = dict(self.layout.unpack(position.detach()))
            name = next(name for name, part in parts.items() if not bool(part.isfinite().all()))
            raise ValueError(
                f"a value given for {name!r} is not inside its support (or is at its end): the unconstrained value is "
                "not finite. Give values inside, for example draws from the prior."
            )
        return position

    def bijectors_at(self, point: Tensor | Mapping[str, Tensor], chain: tuple[int, ...]) -> list[Bijector]:
        """The latents' bijectors, of the supports that the nodes have at a position or at values by name."""
        if self._is_fixed:
            return [latent.bijector for latent in self.layout.latents]
        if not chain or self._choose(torch.Size(chain)) is Way.BROADCAST:
            return self._bijectors_of(self._net(point, chain))

        def bounds(one: Any) -> list[tuple[Tensor, ...]]:
            found = self._bijectors_of(self._net(one, ()))
            return [
                tuple(torch.as_tensor(bound, device=self.device).expand(latent.shape) for bound in bijector.bounds)
                for latent, bijector in zip(self.layout.latents, found, strict=True)
            ]

        found = over_chains(bounds, point, len(chain))
        return [latent.bijector.with_bounds(ends) for latent, ends in zip(self.layout.latents, found, strict=True)]

    def _bijectors_of(self, bn: BayesianNet) -> list[Bijector]:
        return [bijector_of(bn._stochastic(name).dist.support) for name in self.names]

    def _unconstrain_one(self, values: dict[str, Tensor]) -> Tensor:
        """The position of one chain, by the supports that the nodes have at its values."""
        bijectors = self.bijectors_at(values, ())
        return self.layout.pack([b.unconstrain(values[name]) for name, b in zip(self.names, bijectors, strict=True)])

    def initial(self, n_chains: int | tuple[int, ...], *, generator: torch.Generator | None = None) -> Tensor:
        """Positions to begin with, uniform between -2 and 2 in every unconstrained dimension.

        Args:
            n_chains: the number of chains, or the shape of several chain axes.
            generator: to draw with, default torch's.

        Returns:
            Positions, shape [*chain, D]; their log density is not looked at.
        """
        chain = (n_chains,) if isinstance(n_chains, int) else tuple(n_chains)
        device = self.device if generator is None else generator.device
        noise = torch.rand((*chain, self.n_dims), dtype=self.dtype, device=device, generator=generator)
        return (noise * 4 - 2).to(self.device)

    # -- what the net holds at a position -----------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(
        self, position: Tensor, *, chunk_size: int | None = None, with_log_likelihood: bool = True
    ) -> Evaluation:
        """The latents' values, the deterministic nodes and the pointwise log likelihood, without gradient.

        The model is executed for one chain at a time, under ``vmap`` where that can follow it.

        Args:
            position: unconstrained, shape [*chain, D].
            chunk_size: how many chains to hold in memory at a time; default all.
            with_log_likelihood: whether to compute the log likelihood, or leave it empty.

        Returns:
            The values, all with the chain axes first.
        """
        self.layout.check(position)
        if not isinstance(self._meta_bn, MetaBayesianNet):
            return Evaluation(self.constrain(position), {}, {})
        evaluate = functools.partial(self._evaluate_one, with_log_likelihood=with_log_likelihood)
        return Evaluation(*over_chains(evaluate, position, position.dim() - 1, chunk_size))

    def _evaluate_one(
        self, position: Tensor, with_log_likelihood: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        bn = self._net(position, ())
        deterministic = {name: node for name, node in bn._nodes.items() if not isinstance(node, Node)}
        likelihood = {
            node.name: bn.pointwise_log_prob(node.name)
            for node in bn._stochastic_nodes()
            if with_log_likelihood and node.name not in self._name_set and getattr(node.dist, "has_log_prob", True)
        }
        return self._values(bn), deterministic, likelihood

    def _net(self, point: Tensor | Mapping[str, Any], chain: tuple[int, ...]) -> BayesianNet:
        """The net executed at a position, or at values by name."""
        assert isinstance(self._meta_bn, MetaBayesianNet)
        if isinstance(point, Tensor):
            point = {name: Unconstrained(part, []) for name, part in self.layout.unpack(point)}
        return self._meta_bn._execute(
            {**self._observed, **point},
            sample_shape=chain or None,
            with_samples=self._name_set if chain else frozenset(),
        )

    def _values(self, bn: BayesianNet) -> dict[str, Tensor]:
        return {name: bn._stochastic(name).value for name in self.names}

    def __repr__(self) -> str:
        latents = ", ".join(f"{latent.name}: {list(latent.shape)}" for latent in self.layout.latents)
        return f"<zsp.LogDensity of {self.n_dims} unconstrained dimensions ({latents})>"


def _total(log_joint: Tensor, jacobians: list[Tensor], n_axes: int) -> Tensor:
    """The log density: the log joint's batch axes are summed over, for it is that of all latents together."""
    total = sum_from(log_joint, n_axes)
    for term in jacobians:
        total = total + sum_from(term, n_axes)
    return total


def sum_from(term: Tensor, n_axes: int) -> Tensor:
    """The sum over all but the first axes."""
    return term.flatten(n_axes).sum(-1) if term.dim() > n_axes else term


@contextmanager
def _same_random_state() -> Iterator[None]:
    """Give the caller's random state back."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        yield
