"""What a row of the table of distributions is, and how it becomes a method of a net.

A row is a function from ZhuSuan's argument names to a ``torch.distributions`` object::

    @node_type(mean=real, std=positive, logstd=real)
    def normal_node(mean=0., *, std=None, logstd=None, **options: Unpack[ReparameterizedOptions]) -> Normal:
        ...

The keyword arguments of :func:`node_type` say what each parameter must be; the annotation of ``**options`` says which
options the node has beside its parameters. :func:`node_method` turns the row into ``bn.normal(name, ...)``: one line in
the table of :mod:`zsp.distributions`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypedDict, TypeVar, get_type_hints

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

__all__ = [
    "TABLE",
    "DiscreteOptions",
    "NodeOptions",
    "NodeType",
    "ReparameterizedOptions",
    "Value",
    "exactly_one",
    "node_method",
    "node_type",
]

Value = Tensor | float
"""A parameter of a distribution: a tensor, or a number that follows the other parameters' dtype and device."""

P = ParamSpec("P")
F = TypeVar("F", bound=Callable[..., Distribution])


class NodeOptions(TypedDict, total=False):
    """The options that every node has.

    Keys:
        n_samples: ``None`` adds no axis; ``k`` adds one leading sample axis of size k. Where the value is given,
            it only declares that axis.
        group_ndims: how many of the last batch axes are one event, so that their log probabilities are summed.
        total_size: N, when the node holds a mini-batch of n out of N data: its term in ``log_joint`` is scaled by
            N / n.
        mask: boolean, broadcastable to the batch shape; where it is False the term counts zero (missing data).
    """

    n_samples: int | None
    group_ndims: int
    total_size: int | None
    mask: Tensor | None


class ReparameterizedOptions(NodeOptions, total=False):
    """The options of nodes whose draws are differentiable functions of their parameters.

    Keys:
        is_reparameterized: whether gradients flow through the draw to the parameters.
        use_path_derivative: whether estimators stop the gradient of log q with respect to its own parameters and keep
            only the path through the draw ("sticking the landing", Roeder et al. 2017, arXiv:1703.09194).
    """

    is_reparameterized: bool
    use_path_derivative: bool


class DiscreteOptions(NodeOptions, total=False):
    """The options of nodes with discrete values.

    Keys:
        dtype: the dtype of the node's value; default the dtype of its parameters.
    """

    dtype: torch.dtype | None


TABLE: dict[str, NodeType] = {}
"""Every row by name. A node method holds its row's name and looks it up here: torch.compile follows a global dict, but
not an object in a closure."""

_OPTION_DEFAULTS: dict[str, Any] = {
    "n_samples": None,
    "group_ndims": 0,
    "is_reparameterized": True,
    "use_path_derivative": False,
    "dtype": None,
    "total_size": None,
    "mask": None,
}


@dataclass(frozen=True)
class NodeType:
    """One row of the table: how to build a distribution from ZhuSuan's arguments, and what they must satisfy.

    Attributes:
        name: the node method's name.
        build: the row's function, from arguments to a distribution.
        arguments: the names of its parameters, in order.
        options: the names of the options that the node has.
        constraints: parameter name -> what its value must satisfy.
        hint: advice, appended to the error for a value outside the support.
        scipy: the same in ``scipy.stats``, by the row's arguments; for the documentation.
    """

    name: str
    build: Callable[..., Distribution]
    arguments: tuple[str, ...]
    options: frozenset[str]
    constraints: dict[str, Constraint] = field(default_factory=dict)
    hint: str = ""
    scipy: str = ""

    def bind(self, args: tuple[Any, ...], parameters: dict[str, Any]) -> dict[str, Any]:
        """The given arguments by name, defaults included."""
        bound = inspect.signature(self.build).bind(*args, **parameters)
        bound.apply_defaults()
        return {name: bound.arguments[name] for name in self.arguments}


def node_type(*, hint: str = "", scipy: str = "", **constraints: Constraint) -> Callable[[F], F]:
    """Declare a function as a row of the table.

    Args:
        hint: advice for the error that a value outside the support gets.
        scipy: the same in ``scipy.stats``, by the row's arguments; for the documentation.
        **constraints: what each parameter must satisfy, by the function's own argument names.

    Returns:
        A decorator that returns the function unchanged, with a ``node_type`` attribute.
    """

    def declare(function: F) -> F:
        own = list(inspect.signature(function).parameters.values())
        options = own.pop() if own else None
        hints = get_type_hints(function, include_extras=True)
        if options is None or options.kind is not inspect.Parameter.VAR_KEYWORD or options.name not in hints:
            raise TypeError(
                f"the last parameter of {function.__name__} must say which options the node has: "
                "**options: Unpack[NodeOptions], or ReparameterizedOptions or DiscreteOptions."
            )
        kind = hints[options.name].__args__[0]  # Unpack[kind]
        row = NodeType(
            name=function.__name__.removesuffix("_node"),
            build=function,
            arguments=tuple(parameter.name for parameter in own),
            options=frozenset(get_type_hints(kind)),
            constraints=constraints,
            hint=hint,
            scipy=scipy,
        )
        if row.name in TABLE:
            raise ValueError(f"there is already a distribution {row.name!r} in the table")
        TABLE[row.name] = row
        function.node_type = row  # type: ignore[attr-defined]
        return function

    return declare


def node_method(function: Callable[P, Distribution]) -> Callable[Concatenate[Any, str, P], Tensor]:
    """The method of :class:`zsp.BayesianNet` that declares a node of this type and returns its value."""
    row: NodeType = function.node_type  # type: ignore[attr-defined]
    row_name = row.name
    reparameterizes = "is_reparameterized" in row.options
    discrete = "dtype" in row.options

    if reparameterizes:

        def method(
            self,
            name,
            *args,
            n_samples=None,
            group_ndims=0,
            is_reparameterized=True,
            use_path_derivative=False,
            total_size=None,
            mask=None,
            **parameters,
        ):
            return self._declare(
                TABLE[row_name], name, args, parameters, n_samples, group_ndims, total_size, mask,
                is_reparameterized=is_reparameterized, use_path_derivative=use_path_derivative,
            )  # fmt: skip

    elif discrete:

        def method(
            self, name, *args, n_samples=None, group_ndims=0, dtype=None, total_size=None, mask=None, **parameters
        ):
            return self._declare(
                TABLE[row_name], name, args, parameters, n_samples, group_ndims, total_size, mask, dtype=dtype,
            )  # fmt: skip

    else:

        def method(self, name, *args, n_samples=None, group_ndims=0, total_size=None, mask=None, **parameters):
            return self._declare(TABLE[row_name], name, args, parameters, n_samples, group_ndims, total_size, mask)

    functools.update_wrapper(method, function)
    method.__name__ = row.name
    method.__qualname__ = f"BayesianNet.{row.name}"
    del method.__wrapped__  # type: ignore[attr-defined]  # the signature below is the method's own
    method.__signature__ = _method_signature(function, row)  # type: ignore[attr-defined]
    method.__doc__ = _method_doc(function, row)
    return method


def exactly_one(first: str, second: str, *, both: bool) -> ValueError:
    """The error for two exclusive parameters of which both or neither are given."""
    got = "both were given" if both else "neither was given"
    return ValueError(f"exactly one of {first}=... and {second}=... is needed, but {got}")


def _method_signature(function: Callable[..., Any], row: NodeType) -> inspect.Signature:
    keyword_only = inspect.Parameter.KEYWORD_ONLY
    *own, _ = inspect.signature(function).parameters.values()
    options = [
        inspect.Parameter(option, keyword_only, default=default)
        for option, default in _OPTION_DEFAULTS.items()
        if option in row.options
    ]
    positional = [
        inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD),
        inspect.Parameter("name", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation="str"),
        *(parameter for parameter in own if parameter.kind is not keyword_only),
    ]
    named = [parameter for parameter in own if parameter.kind is keyword_only]
    return inspect.Signature([*positional, *named, *options], return_annotation="Tensor")


_OPTION_DOCS = {
    "n_samples": "``None`` adds no axis; k adds one leading sample axis of size k.",
    "group_ndims": "how many of the last batch axes are one event (their log probabilities are summed).",
    "is_reparameterized": "whether gradients flow through the draw to the parameters.",
    "use_path_derivative": "keep only the gradient's path through the draw (arXiv:1703.09194).",
    "dtype": "the dtype of the value; default the dtype of the parameters.",
    "total_size": "N, when the node holds n of N data: its term in ``log_joint`` is scaled by N / n.",
    "mask": "boolean, broadcastable to the batch shape; terms where it is False count zero.",
}


def _method_doc(function: Callable[..., Any], row: NodeType) -> str:
    own = inspect.cleandoc(function.__doc__ or "").rstrip()
    options = "\n".join(f"    {name}: {_OPTION_DOCS[name]}" for name in _OPTION_DEFAULTS if name in row.options)
    return (
        f"{own}\n\nOptions:\n{options}\n\nReturns:\n"
        "    The node's value: the observation where one is given, a draw otherwise; a plain tensor of shape\n"
        "    sample + batch + event.\n"
    )
