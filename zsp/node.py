"""A node of a net: what the net keeps of it, and the view that a user reads it through."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from zsp.distributions import NodeType
from zsp.tensor_like import TensorLike

if TYPE_CHECKING:
    from zsp.bayesian_net import BayesianNet

__all__ = ["LateValue", "Node", "StochasticTensor", "Unavailable", "UnavailableError", "describe", "shape_and_dtype"]


class Node:
    """What a net keeps of a stochastic node: what was declared, then the value that the net gave it.

    Attributes:
        row: its row in the table of distributions; None for ``bn.stochastic``.
        name: its name.
        dist: its distribution.
        arguments: positional and named arguments that the row built the distribution from.
        n_samples, group_ndims, total_size, mask, is_reparameterized, use_path_derivative: its options.
        value: the observation, a draw, or an :class:`Unavailable`.
        is_observed: whether the value was given.
        with_samples: whether the value is known to carry the net's sample axes.
        log_prob: the log probability, once it has been asked for.
    """

    __slots__ = (
        "arguments",
        "dist",
        "group_ndims",
        "is_observed",
        "is_reparameterized",
        "log_prob",
        "mask",
        "n_samples",
        "name",
        "row",
        "total_size",
        "use_path_derivative",
        "value",
        "with_samples",
    )

    def __init__(
        self,
        row: NodeType | None,
        name: str,
        dist: Distribution,
        arguments: tuple[tuple[Any, ...], dict[str, Any]] | None,
        n_samples: int | None,
        group_ndims: int,
        total_size: int | None,
        mask: Tensor | None,
        is_reparameterized: bool,
        use_path_derivative: bool,
    ) -> None:
        self.row = row
        self.name = name
        self.dist = dist
        self.arguments = arguments
        self.n_samples = n_samples
        self.group_ndims = group_ndims
        self.total_size = total_size
        self.mask = mask
        self.is_reparameterized = is_reparameterized
        self.use_path_derivative = use_path_derivative
        self.value: Any = None
        self.is_observed = False
        self.with_samples = False
        self.log_prob: Tensor | None = None

    @property
    def kind(self) -> str:
        """The distribution's name as the user wrote it."""
        return self.row.name if self.row is not None else type(self.dist).__name__


class StochasticTensor(TensorLike):
    """A view of a stochastic node, made when it is asked for; torch functions and arithmetic take it like its tensor.

    Attributes:
        bn: the net.
        name: the node's name.
    """

    def __init__(self, bn: BayesianNet, name: str) -> None:
        self.bn = bn
        self.name = name

    @property
    def _node(self) -> Node:
        return self.bn._stochastic(self.name)

    @property
    def tensor(self) -> Tensor:
        """The node's value: the observation where it has one, a draw otherwise."""
        value = self._node.value
        if isinstance(value, Unavailable):
            raise value.error()
        return value

    @property
    def dist(self) -> Distribution:
        """The distribution that the node follows, given its parents' values."""
        return self._node.dist

    @property
    def shape(self) -> torch.Size:
        """The value's shape: sample + batch + event."""
        return self.tensor.shape

    @property
    def dtype(self) -> torch.dtype:
        """The value's dtype."""
        return self.tensor.dtype

    @property
    def cond_log_p(self) -> Tensor:
        """Log probability of the value given its parents' values; see :meth:`BayesianNet.cond_log_prob`."""
        return self.bn.cond_log_prob(self.name)

    def is_observed(self) -> bool:
        """Whether the value was given."""
        return self._node.is_observed

    def __repr__(self) -> str:
        return f"StochasticTensor({describe(self._node)})"


class LateValue(TensorLike):
    """A given value that takes its final form once the node's distribution is known; see :meth:`value_of`.

    Its ``tensor`` has the dtype and device that the value will have.
    """

    def value_of(self, dist: Distribution) -> Tensor:
        """The value of the node that follows ``dist``."""
        raise NotImplementedError


class UnavailableError(NotImplementedError):
    """The value of a node that cannot be drawn was used.

    Attributes:
        node: the node's name.
    """

    node = ""


class Unavailable:
    """The value of an unobserved node that cannot be drawn; any use of it raises and says why."""

    def __init__(self, name: str, kind: str, reason: str) -> None:
        self._name, self._kind, self._reason = name, kind, reason

    def error(self) -> UnavailableError:
        """The error that a use of the value raises."""
        error = UnavailableError(
            f"node {self._name!r} ({self._kind}) is not observed and has no draw, but its value is used. "
            f"{self._reason} Observe it: observe({self._name}=...)."
        )
        error.node = self._name
        return error

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = torch.utils._pytree.tree_leaves((args, kwargs))  # torch.stack takes a list
        raise next(argument for argument in given if isinstance(argument, Unavailable)).error()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise self.error()

    def __repr__(self) -> str:
        return f"<no value: {self._name!r} ({self._kind}) is not observed>"


def _raise_unavailable(self: Unavailable, *args: Any) -> Any:
    raise self.error()


for _name in (
    "add radd sub rsub mul rmul truediv rtruediv pow rpow matmul rmatmul neg abs getitem len iter float int bool array"
).split():
    setattr(Unavailable, f"__{_name}__", _raise_unavailable)
del _name


def shape_and_dtype(value: Any) -> tuple[str, str]:
    """A value's shape and dtype as text."""
    if isinstance(value, Tensor):
        return str(list(value.shape)), str(value.dtype).removeprefix("torch.")
    return "no value", ""


def describe(node: Node | Tensor, name: str = "") -> str:
    """A node in one line: name, distribution, shape, dtype, observed or not."""
    if isinstance(node, Node):
        shape, dtype = shape_and_dtype(node.value)
        return f"{node.name!r}: {node.kind} {shape} {dtype}{', observed' if node.is_observed else ''}".rstrip()
    shape, dtype = shape_and_dtype(node)
    return f"{name!r}: deterministic {shape} {dtype}".rstrip()
