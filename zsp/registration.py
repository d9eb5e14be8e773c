"""Distributions of the user's own as node methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

from zsp.bayesian_net import BayesianNet
from zsp.distributions.node_type import TABLE, node_method, node_type

__all__ = ["register_distribution"]

F = TypeVar("F", bound=Callable[..., Distribution])

_registered: set[str] = set()


def register_distribution(*, hint: str = "", **constraints: Constraint) -> Callable[[F], F]:
    """Decorate a function so that it becomes a node method of every net.

    ::

        from torch.distributions import constraints
        from typing_extensions import Unpack

        @zsp.register_distribution(low=constraints.positive, high=constraints.positive)
        def log_uniform(low, high, **options: Unpack[zsp.distributions.ReparameterizedOptions]):
            base = torch.distributions.Uniform(torch.log(low), torch.log(high), validate_args=False)
            exp = torch.distributions.ExpTransform()
            return torch.distributions.TransformedDistribution(base, [exp], validate_args=False)

        bn.log_uniform("rate", torch.tensor(0.1), torch.tensor(10.0), n_samples=5)

    The function maps the method's arguments to a distribution; the annotation of its last parameter says which options
    the node has. Registering a name again replaces it, so that a notebook cell can be run twice. For editors and type
    checkers to see the method too, subclass instead:
    ``class MyNet(zsp.BayesianNet): log_uniform = zsp.distributions.node_method(log_uniform)``.

    Args:
        hint: advice for the error that a value outside the support gets.
        **constraints: what each parameter must satisfy, by the function's own argument names.

    Returns:
        The decorator, which returns the function.

    Raises:
        ValueError: for the name of a method that zsp itself has.
        TypeError: if the function's last parameter is not ``**options: Unpack[...]``.
    """

    def register(function: F) -> F:
        name = function.__name__.removesuffix("_node")
        if name in _registered:
            TABLE.pop(name, None)
        elif hasattr(BayesianNet, name):
            raise ValueError(
                f"bn.{name} exists already and is zsp's own: give your distribution another name than {name!r}."
            )
        declared = node_type(hint=hint, scipy="", **constraints)(function)
        setattr(BayesianNet, name, node_method(declared))
        _registered.add(name)
        return declared

    return register
