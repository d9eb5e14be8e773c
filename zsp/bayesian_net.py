r"""A Bayesian net: named stochastic and deterministic nodes, in the order in which they were declared.

.. math:: \log p(x_1, \dots, x_n) = \sum_i \log p(x_i \mid x_{\mathrm{parents}(i)})

A net is one execution of a model. A node method returns a plain tensor, the observation where there is one and a draw
otherwise; the net keeps the tensor, the distribution it follows and whether it is observed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar, overload

import torch
from torch import Tensor
from torch.distributions import Distribution

from zsp import checks
from zsp.distributions import NodeMethods, NodeType
from zsp.distributions.tensors import value_dtype
from zsp.execution import FIRST, PLAIN, STRICT, Execution, can_read_values, current_execution, current_tracer, is_strict
from zsp.node import LateValue, Node, StochasticTensor, Unavailable, describe, shape_and_dtype
from zsp.tensor_like import TensorLike, to_tensor

__all__ = ["BayesianNet"]

_LAST_AXES: tuple[tuple[int, ...], ...] = tuple(tuple(range(-n, 0)) for n in range(16))

T = TypeVar("T")


class _Nodes(Mapping[str, T], Generic[T]):
    """A read-only view of a net's nodes by name, in order of declaration."""

    def __init__(self, bn: BayesianNet) -> None:
        self._bn = bn

    def __getitem__(self, name: str) -> T:
        return self._bn[name]  # type: ignore[return-value]

    def __iter__(self) -> Iterator[str]:
        return iter(self._bn._nodes)

    def __len__(self) -> int:
        return len(self._bn._nodes)

    def __repr__(self) -> str:
        return repr(dict(self))


class BayesianNet(NodeMethods):
    r"""A directed graphical model with the values that one execution gave to its nodes.

    Inside a function decorated with :func:`zsp.meta_bayesian_net` it receives the observations given to ``observe``;
    anywhere else it has those given here, or none::

        bn = zsp.BayesianNet({"y": y})
        w = bn.normal("w", 0.0, std=1.0)
        bn.normal("y", w * x, std=0.1, group_ndims=1)
        bn.log_joint()

    A net made outside a decorated function checks its nodes every time; a decorated one only at the first execution for
    given shapes.

    Args:
        observed: node name -> value. A value may be a tensor, a number or an array.
    """

    # what a net begins with; most nets keep most of it
    _n_used = 0  # given values that nodes took
    _n_drawn = 0  # stochastic nodes without a given value
    _is_scaled = False  # whether some node has a total_size
    _index = -1  # which of its execution's nets without observations of their own it is
    _owner = ""
    _execution: Execution | None = None  # the execution whose observations it receives
    _sample_shape: tuple[int, ...] | None = None
    _custom_log_joint: Callable[[BayesianNet], Tensor] | None = None
    _rerun: Callable[[Mapping[str, Any]], BayesianNet] | None = None

    def __init__(self, observed: Mapping[str, Any] | None = None) -> None:
        self._nodes: dict[str, Node | Tensor] = {}
        self._declared: list[Node] = []  # the stochastic ones
        self._observed: Mapping[str, Any] = {} if observed is None else dict(observed)
        execution = current_execution()
        if execution is None:
            self._checks = PLAIN if torch.compiler.is_compiling() else STRICT if is_strict() else FIRST
            return
        self._owner = execution.owner
        self._checks = execution.checks
        if observed is None:
            self._index = execution.n_nets
            execution.n_nets += 1
            if self._index == execution.returned:
                self._execution = execution
                self._observed = execution.observed
                self._sample_shape = execution.sample_shape

    @property
    def _with_samples(self) -> frozenset[str]:
        """Names of the given latents that carry the sample axes which an inference routine asked for."""
        return self._execution.with_samples if self._execution is not None else frozenset()

    @property
    def _excluded(self) -> frozenset[str]:
        """Names of nodes that the log joint leaves out."""
        return self._execution.excluded if self._execution is not None else frozenset()

    # -- declaring nodes ------------------------------------------------------------------------------------------

    def stochastic(
        self,
        name: str,
        dist: Distribution,
        *,
        n_samples: int | None = None,
        group_ndims: int = 0,
        is_reparameterized: bool = True,
        use_path_derivative: bool = False,
        total_size: int | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Declare a node that follows any ``torch.distributions`` or ``pyro.distributions`` object.

        Args:
            name: the node's name, unique in the net.
            dist: the distribution.
            n_samples: ``None`` adds no axis; k adds one leading sample axis of size k.
            group_ndims: how many of the last batch axes are one event (their log probabilities are summed).
            is_reparameterized: whether gradients flow through the draw, where the distribution allows it.
            use_path_derivative: keep only the gradient's path through the draw (arXiv:1703.09194).
            total_size: N, when the node holds n of N data: its term in ``log_joint`` is scaled by N / n.
            mask: boolean, broadcastable to the batch shape; terms where it is False count zero.

        Returns:
            The node's value: the observation where one is given, a draw otherwise.

        Raises:
            TypeError: if ``dist`` is not a distribution.
            ValueError: for whatever does not fit; the message says what.
        """
        if not isinstance(dist, Distribution):
            raise TypeError(
                f"bn.stochastic({name!r}, dist) needs a torch.distributions or pyro.distributions object as dist, "
                f"but got {type(dist).__name__}."
            )
        node = Node(
            None, name, dist, None, n_samples, group_ndims, total_size, mask,
            is_reparameterized and dist.has_rsample, use_path_derivative,
        )  # fmt: skip
        return self._add(node, self._observed.get(name), None)

    def _declare(
        self,
        row: NodeType,
        name: str,
        args: tuple[Any, ...],
        parameters: dict[str, Any],
        n_samples: int | None,
        group_ndims: int,
        total_size: int | None,
        mask: Tensor | None,
        is_reparameterized: bool = True,
        use_path_derivative: bool = False,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Declare a node of the table: what ``bn.normal(...)`` and its like call."""
        value = self._observed.get(name)
        has_tensor = False
        for argument in args:
            if isinstance(argument, Tensor):
                has_tensor = True
            elif isinstance(argument, TensorLike):
                has_tensor, args = True, tuple(to_tensor(a) for a in args)
        for key, argument in parameters.items():
            if key not in row.arguments:
                raise checks.unknown_argument(row, name, key)
            if isinstance(argument, Tensor):
                has_tensor = True
            elif isinstance(argument, TensorLike):
                has_tensor, parameters = True, {k: to_tensor(v) for k, v in parameters.items()}
        if value is not None and not has_tensor and isinstance(value, (Tensor, TensorLike)):
            args, parameters = _numbers_like(to_tensor(value), row, args, parameters)
        if self._checks:
            for argument in (*args, *parameters.values()):
                if isinstance(argument, Unavailable):
                    raise argument.error()
            checks.check_parameters(row, name, args, parameters)
        try:
            dist = row.build(*args, **parameters)
        except (ValueError, TypeError, RuntimeError) as error:
            raise checks.cannot_build(row, name, args, parameters, error) from error
        if self._checks:
            checks.check_fit(row, name, dist, dtype)
        node = Node(
            row, name, dist, (args, parameters), n_samples, group_ndims, total_size, mask,
            is_reparameterized and dist.has_rsample, use_path_derivative,
        )  # fmt: skip
        return self._add(node, value, dtype)

    def _add(self, node: Node, value: Any, dtype: torch.dtype | None) -> Any:
        """Take a declared node into the net, with the given value or, where that is None, a draw."""
        name, dist, n_samples = node.name, node.dist, node.n_samples
        if name in self._nodes:
            raise checks.duplicate_name(self, name)
        if self._checks:
            checks.check_declaration(self, node)
        given = value
        if given is not None:
            self._n_used += 1
            node.is_observed = True
            wanted = getattr(dist, "dtype", None) if dtype is None else dtype
            if self._checks or wanted is None or not isinstance(value, Tensor) or value.dtype != wanted:
                value = self._given(node.row, name, dist, value, dtype)
            if self._sample_shape is not None and name in self._with_samples:
                node.with_samples = True
            elif n_samples is not None:
                # a given value carries the declared axis if it is one axis longer than a draw without it
                node.with_samples = value.dim() > len(dist.batch_shape) + len(dist.event_shape)
        else:
            self._n_drawn += 1
            sample_shape: tuple[int, ...] = ()
            if n_samples is not None:
                sample_shape = (n_samples,) if self._sample_shape is None else self._sample_shape
                node.with_samples = True
            try:
                value = dist.rsample(sample_shape) if node.is_reparameterized else dist.sample(sample_shape)
            except NotImplementedError as error:
                value = Unavailable(name, node.kind, str(error))
            else:
                if dtype is not None:
                    value = value.to(dtype)
        node.value = value
        if node.total_size is not None:
            self._is_scaled = True
        self._nodes[name] = node
        self._declared.append(node)
        if self._checks:
            # a late value answers for itself, and may be a relaxed one off the support
            if given is not None and not isinstance(given, LateValue) and can_read_values():
                checks.check_support(node)
            tracer = current_tracer()
            if tracer is not None:
                value = node.value = tracer.stochastic(self, node)
        return value

    def _given(self, row: NodeType | None, name: str, dist: Distribution, value: Any, dtype: torch.dtype | None) -> Any:
        """The observation as a tensor of the node's dtype."""
        wanted = dtype if dtype is not None else value_dtype(dist)
        if isinstance(value, LateValue):
            value = value.value_of(dist)
            value = value if wanted is None else value.to(wanted)
        elif not isinstance(value, Tensor):
            value = checks.as_tensor(name, value, like=dist, dtype=wanted)
        if self._checks:
            checks.check_given(row, name, dist, value, wanted)
        if wanted is not None and value.dtype != wanted:
            value = value.to(wanted)
        return value

    def deterministic(self, name: str, tensor: Tensor) -> Tensor:
        """Give a name to a function of other nodes, so that it can be read from the net.

        Args:
            name: the node's name, unique in the net.
            tensor: its value.

        Returns:
            ``tensor``.
        """
        if name in self._nodes:
            raise checks.duplicate_name(self, name)
        if self._checks:
            checks.check_deterministic(self, name, tensor)
            tracer = current_tracer()
            if tracer is not None:
                tensor = tracer.deterministic(self, name, to_tensor(tensor))
        self._nodes[name] = tensor = to_tensor(tensor)
        return tensor

    # -- reading the net ------------------------------------------------------------------------------------------

    @property
    def nodes(self) -> Mapping[str, StochasticTensor | Tensor]:
        """All nodes by name, in order of declaration: a :class:`StochasticTensor` or, if deterministic, a tensor."""
        return _Nodes(self)

    def __getitem__(self, name: str) -> Any:
        """The node of that name: a :class:`StochasticTensor` or, if it is deterministic, its tensor."""
        node = self._nodes.get(name)
        if node is None:
            raise checks.unknown_node(self, name)
        return StochasticTensor(self, name) if isinstance(node, Node) else node

    def get(self, name_or_names: Any) -> Any:
        """The node of that name, or the list of nodes for several names."""
        return _each(self.__getitem__, name_or_names)

    @overload
    def cond_log_prob(self, name_or_names: str) -> Tensor: ...
    @overload
    def cond_log_prob(self, name_or_names: list[str] | tuple[str, ...]) -> list[Tensor]: ...
    def cond_log_prob(self, name_or_names: Any) -> Any:
        """Log probability of each node's value given its parents' values, masked and grouped, never scaled.

        Args:
            name_or_names: one name, or a list of them.

        Returns:
            A tensor of shape sample + batch (without the grouped axes), or the list of them for a list of names.
        """
        return _each(lambda name: self._log_prob(self._stochastic(name)), name_or_names)

    def pointwise_log_prob(self, name: str) -> Tensor:
        """Log probability of each single value of a node: masked, before grouping, never scaled.

        Args:
            name: the node's name.

        Returns:
            A tensor of shape sample + batch, with the axes that ``group_ndims`` sums.
        """
        return self._ungrouped_log_prob(self._stochastic(name))

    def log_joint(self) -> Tensor:
        r"""Log joint density of the values of all stochastic nodes.

        .. math:: \sum_i s_i \log p(x_i \mid x_{\mathrm{parents}(i)})

        with :math:`s_i = N / n` for a node with ``total_size=N`` that holds n data, 1 otherwise. Where the
        :class:`zsp.MetaBayesianNet` has a ``log_joint`` of its own, its result (inside it, this is the sum again).

        Returns:
            A tensor of shape sample + batch.

        Raises:
            ValueError: if the terms do not have one sample shape S and one batch shape B, each of shape S + B or B.
        """
        custom = self._custom_log_joint
        if custom is None:
            return self._default_log_joint()
        self._custom_log_joint = None
        try:
            return custom(self)
        finally:
            self._custom_log_joint = custom

    def _default_log_joint(self) -> Tensor:
        nodes, excluded = self._declared, self._excluded
        if excluded:
            nodes = [node for node in nodes if node.name not in excluded]
        if not nodes:
            raise checks.no_stochastic_nodes(self)
        terms = [self._log_prob(node) for node in nodes]
        if self._checks:
            checks.check_one_batch_shape(self, nodes, terms)
        if self._is_scaled:
            terms = [
                term if node.total_size is None else term * (node.total_size / self._n_data(node, nodes, terms))
                for node, term in zip(nodes, terms, strict=True)
            ]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total

    def _log_joint_of_draws(self) -> Tensor:
        """The log joint as a function of the noise behind the draws, for gradients of the whole composition only.

        Its value, and its gradient with respect to variables, are those of ``log_joint()``.
        """
        if self._custom_log_joint is not None or self._is_scaled or self._checks:
            return self.log_joint()
        total = None
        for node in self._declared:
            term = None
            if node.is_reparameterized and not node.is_observed and node.mask is None:
                of_draw = getattr(node.dist, "log_prob_of_draw", None)
                if of_draw is not None:
                    term = of_draw(node.value, _LAST_AXES[node.group_ndims])
            if term is None:
                term = self._log_prob(node)
            total = term if total is None else total + term
        return self.log_joint() if total is None else total

    def _n_data(self, node: Node, nodes: list[Node], terms: list[Tensor]) -> int:
        """The size of the first axis after the sample axes."""
        shape = self._ungrouped_shape(node)
        return shape[self._n_sample_axes(node, nodes, terms)]

    def _n_sample_axes(self, node: Node, nodes: list[Node], terms: list[Tensor]) -> int:
        """How many leading axes of the node's log probability are sample axes."""
        known = next(((n, t) for n, t in zip(nodes, terms, strict=True) if n.with_samples), None)
        if known is None:
            return 0
        n_axes = len(self._sample_axes())
        if node.with_samples:
            return n_axes
        own = next(t for n, t in zip(nodes, terms, strict=True) if n is node)
        return n_axes if own.dim() == known[1].dim() else 0

    def _sample_axes(self) -> tuple[int, ...]:
        """S: the sizes of the sample axes that this execution declares; empty where it declares none."""
        if self._sample_shape is not None:
            return self._sample_shape
        for node in self._declared:
            if node.with_samples and isinstance(node.value, Tensor):
                return (node.value.shape[0],)
        return ()

    def _ungrouped_shape(self, node: Node) -> tuple[int, ...]:
        n_event = len(node.dist.event_shape)
        value_shape = node.value.shape[: node.value.dim() - n_event]
        return torch.broadcast_shapes(value_shape, node.dist.batch_shape)

    # -- log probabilities ----------------------------------------------------------------------------------------

    def _log_prob(self, node: Node) -> Tensor:
        cached = node.log_prob
        if cached is not None and (cached.requires_grad or not torch.is_grad_enabled()):
            return cached
        axes = _LAST_AXES[node.group_ndims]
        summed = getattr(node.dist, "summed_log_prob", None)  # where a distribution sums cheaper than term by term
        if axes and summed is not None and node.mask is None and isinstance(node.value, Tensor):
            log_prob = summed(node.value, axes)
        else:
            log_prob = self._ungrouped_log_prob(node)
            if axes:
                log_prob = log_prob.sum(axes)
        node.log_prob = log_prob
        if self._checks and can_read_values():
            checks.check_log_prob(node, log_prob, strict=self._checks == STRICT)
        return log_prob

    def _ungrouped_log_prob(self, node: Node) -> Tensor:
        value = node.value
        if isinstance(value, Unavailable):
            raise value.error()
        if node.mask is None:
            return node.dist.log_prob(value)
        mask = node.mask
        batch_mask = mask.reshape(mask.shape + (1,) * len(node.dist.event_shape))
        # a value on the support wherever the mask is False: the branch not taken must have a finite gradient
        value = torch.where(batch_mask, value, checks.feasible_value(node, value))
        log_prob = node.dist.log_prob(value)
        return torch.where(mask, log_prob, torch.zeros_like(log_prob))

    def _stochastic(self, name: str) -> Node:
        node = self._nodes.get(name)
        if not isinstance(node, Node):
            raise checks.unknown_node(self, name, only_stochastic=True)
        return node

    def _stochastic_nodes(self) -> list[Node]:
        return self._declared

    # -- looking at the net ---------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        title = f"BayesianNet {self._owner!r}" if self._owner else "BayesianNet"
        lines = [f"  {describe(node, name)}" for name, node in self._nodes.items()]
        return "\n".join([f"{title}({'' if lines else 'no nodes'}", *lines, ")"]) if lines else f"{title}(no nodes)"

    def _repr_html_(self) -> str:
        import html

        head = "".join(f"<th>{column}</th>" for column in ("node", "distribution", "shape", "dtype", "observed"))
        rows = []
        for name, node in self._nodes.items():
            value = node.value if isinstance(node, Node) else node
            shape, dtype = shape_and_dtype(value)
            kind = node.kind if isinstance(node, Node) else "deterministic"
            observed = "" if not isinstance(node, Node) else "yes" if node.is_observed else "no"
            cells = "".join(f"<td>{html.escape(text)}</td>" for text in (name, kind, shape, dtype, observed))
            rows.append(f"<tr>{cells}</tr>")
        title = html.escape(f"BayesianNet {self._owner}".strip())
        return f"<table><caption>{title}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _each(function: Callable[[str], Any], name_or_names: Any) -> Any:
    if isinstance(name_or_names, str):
        return function(name_or_names)
    return [function(name) for name in name_or_names]


def _numbers_like(
    value: Tensor, row: NodeType, args: tuple[Any, ...], parameters: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Parameters that are all numbers, as tensors of the given value's dtype and device."""
    dtype = value.dtype if value.is_floating_point() else torch.get_default_dtype()

    def convert(name: str, argument: Any) -> Any:
        if name in row.constraints and isinstance(argument, (int, float)) and not isinstance(argument, bool):
            return torch.full((), argument, dtype=dtype, device=value.device)
        return argument

    return (
        tuple(convert(name, argument) for name, argument in zip(row.arguments, args, strict=False)),
        {name: convert(name, argument) for name, argument in parameters.items()},
    )
