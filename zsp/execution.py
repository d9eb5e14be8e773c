"""One execution of a model function: what it observes, where its variables live, whether its nodes are checked.

An execution is entered only while a decorated function runs, in a ``threading.local``: nets in other threads, and nets
built inside a net, have executions of their own or none. There is no other global state in zsp.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from zsp.graph.tracing import Tracer
    from zsp.variables import Variables

__all__ = [
    "FIRST",
    "PLAIN",
    "STRICT",
    "Execution",
    "can_read_values",
    "checked",
    "current_execution",
    "current_tracer",
    "is_strict",
    "set_execution",
    "set_tracer",
]

PLAIN, FIRST, STRICT = 0, 1, 2
"""How much is checked: nothing; everything, at the first execution for given shapes; also that every log probability is
finite, inside :func:`checked`."""


class _Local(threading.local):
    """What a thread is in. The defaults are the class's: looking for an attribute in vain takes a microsecond."""

    execution: Execution | None = None
    tracer: Tracer | None = None
    strict = False


_local = _Local()


class Execution:
    """What a decorated function's run gives to the nets and variables made inside it.

    Attributes:
        owner: the function's name, for messages.
        observed: node name -> given value, for the net that the function returns.
        variables: where ``zsp.module`` and ``zsp.parameter`` keep what they make; None where that is not allowed.
        checks: PLAIN, FIRST or STRICT; PLAIN until it is set.
        sample_shape: the size of the sample axes that an inference routine asks for; None leaves it to ``n_samples``.
        with_samples: names of the given latents that carry those axes.
        excluded: names of nodes that the log joint leaves out.
        input_names: the function's parameters, which no node may be named after.
        n_nets: how many nets have been made so far without observations of their own.
        returned: which of them (counted from 0) is the one that the function returns, and so gets ``observed``.
    """

    __slots__ = (
        "checks",
        "excluded",
        "input_names",
        "n_nets",
        "observed",
        "owner",
        "returned",
        "sample_shape",
        "variables",
        "with_samples",
    )

    def __init__(
        self,
        owner: str,
        observed: Mapping[str, Any],
        variables: Variables | None,
        returned: int = 0,
        sample_shape: tuple[int, ...] | None = None,
        with_samples: frozenset[str] = frozenset(),
        excluded: frozenset[str] = frozenset(),
        input_names: frozenset[str] = frozenset(),
    ) -> None:
        self.owner = owner
        self.observed = observed
        self.variables = variables
        self.checks = PLAIN
        self.returned = returned
        self.sample_shape = sample_shape
        self.with_samples = with_samples
        self.excluded = excluded
        self.input_names = input_names
        self.n_nets = 0


def current_execution() -> Execution | None:
    """The execution that this thread is in."""
    return _local.execution


def set_execution(execution: Execution | None) -> Execution | None:
    """Enter ``execution`` and return the one that was current, to be set again afterwards."""
    previous = _local.execution
    _local.execution = execution
    return previous


def current_tracer() -> Tracer | None:
    """What follows the values in this thread, for the graph of a net."""
    return _local.tracer


def set_tracer(tracer: Tracer | None) -> Tracer | None:
    """Tell checked nets in this thread to report to ``tracer`` and return the one before, to be set again."""
    previous = _local.tracer
    _local.tracer = tracer
    return previous


@contextmanager
def checked() -> Iterator[None]:
    """Check every node of every net that is executed inside, and that its log probability is finite.

    Outside, a net checks its nodes at the first execution for given shapes only, so that a training loop pays nothing.
    Use it to look for the node that makes a loss not finite::

        with zsp.checked():
            loss = zsp.elbo(model, {"x": x}, variational=q).sgvb().mean()
    """
    previous = _local.strict
    _local.strict = True
    try:
        yield
    finally:
        _local.strict = previous


def is_strict() -> bool:
    """Whether this thread is inside :func:`checked`."""
    return _local.strict


def can_read_values() -> bool:
    """Whether a tensor's values can be looked at here: not inside a functorch transform or while torch traces."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > (current_tracer() is not None)
    )
