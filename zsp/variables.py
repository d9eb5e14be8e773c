"""Modules and parameters that a decorated function makes at its first execution and finds again at the later ones."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import pickle
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import NoneType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from zsp.bayesian_net import BayesianNet
from zsp.execution import (
    FIRST,
    STRICT,
    Execution,
    can_read_values,
    current_execution,
    is_strict,
    set_execution,
)

__all__ = ["FunctionModule", "ReusableFunction", "Variables", "module", "parameter", "reuse_variables"]

P = ParamSpec("P")
M = TypeVar("M", bound=nn.Module)
Self = TypeVar("Self", bound="FunctionModule")

_creation = threading.RLock()
_PLAIN_TYPES = (int, float, str, NoneType)


def module(name: str, factory: Callable[P, M], *args: P.args, **kwargs: P.kwargs) -> M:
    """A module made at the first execution of a decorated function and reused at the later ones.

    ::

        @zsp.meta_bayesian_net(scope="gen", reuse_variables=True)
        def generator(n, x_dim, z_dim):
            bn = zsp.BayesianNet()
            z = bn.normal("z", torch.zeros(n, z_dim), std=1.0, group_ndims=1)
            bn.bernoulli("x", zsp.module("decoder", nn.Linear, z_dim, x_dim)(z), group_ndims=1)
            return bn

    Args:
        name: the variable's name, unique in the function.
        factory: the module's class, or any function that returns a module.
        *args: given to ``factory`` at the first execution.
        **kwargs: likewise.

    Returns:
        The module, a submodule of the decorated function's net.

    Raises:
        RuntimeError: outside a decorated function, without ``reuse_variables``, or where nothing may be created.
        TypeError: if the factory returns no module.
    """
    execution = current_execution()
    if execution is not None and execution.variables is not None:
        found = execution.variables._modules.get(name)
        if found is not None:
            return found  # type: ignore[return-value]
    variables = _variables_of(execution, "module", name)
    return variables.create(name, functools.partial(factory, *args, **kwargs), nn.Module)


def parameter(name: str, init: Tensor | float | Callable[[], Tensor]) -> nn.Parameter:
    """A parameter made at the first execution of a decorated function and reused at the later ones.

    Args:
        name: the variable's name, unique in the function.
        init: its first value: a tensor, a number, or a function without arguments that returns a tensor.

    Returns:
        The parameter, which belongs to the decorated function's net.

    Raises:
        RuntimeError: as for :func:`module`.
    """
    execution = current_execution()
    if execution is not None and execution.variables is not None:
        found = execution.variables._parameters.get(name)
        if found is not None:
            return found  # type: ignore[return-value]
    variables = _variables_of(execution, "parameter", name)

    def make() -> nn.Parameter:
        value = init() if callable(init) else init
        value = torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.get_default_dtype())
        return nn.Parameter(value.detach().clone())

    return variables.create(name, make, nn.Parameter)


def _variables_of(execution: Execution | None, kind: str, name: str) -> Variables:
    if execution is None:
        raise RuntimeError(
            f"zsp.{kind}({name!r}, ...) works only inside a function decorated with "
            "@zsp.meta_bayesian_net(reuse_variables=True) or @zsp.reuse_variables(scope), which keeps what it makes. "
            "Elsewhere make the torch.nn object yourself and pass it as an argument."
        )
    if execution.variables is None:
        raise RuntimeError(
            f"zsp.{kind}({name!r}, ...) in {execution.owner!r}: this net was decorated with reuse_variables=False, so "
            "that a variable would be made anew, and forgotten, in every execution. Decorate the function with "
            "@zsp.meta_bayesian_net(reuse_variables=True), or make the torch.nn object outside and pass it as an "
            "argument."
        )
    return execution.variables


class Variables(nn.Module):
    """The modules and parameters of one decorated function: what ``zsp.module`` and ``zsp.parameter`` made.

    Attributes:
        is_complete: whether the function has been executed once, so that everything has been made.
        is_handed_out: whether somebody, an optimizer for example, has been given the parameters.
        may_add: whether :meth:`FunctionModule.materialize` is running, which may add variables afterwards.
    """

    def __init__(self, owner: str) -> None:
        super().__init__()
        self.owner = owner
        self.is_complete = False
        self.is_handed_out = False
        self.may_add = False

    def create(self, name: str, make: Callable[[], Any], kind: type) -> Any:
        """Make a variable, or raise where that is not allowed."""
        self._require_creation_allowed(name)
        with _creation:
            found = self._modules.get(name) if kind is nn.Module else self._parameters.get(name)
            if found is not None:  # another thread was first
                return found
            if not name or "." in name or hasattr(self, name):
                raise ValueError(
                    f"a variable of {self.owner!r} cannot be named {name!r}: names are unique, not empty, without "
                    "dots, and not those of torch.nn.Module's own attributes."
                )
            # a net in the middle of another execution, so that nets inside a module's constructor stand alone
            previous = set_execution(None)
            try:
                with torch.enable_grad():
                    made = make()
            finally:
                set_execution(previous)
            if not isinstance(made, kind):
                raise TypeError(
                    f"zsp.module({name!r}, factory) in {self.owner!r}: the factory must return a torch.nn.Module, but "
                    f"it returned {type(made).__name__}."
                )
            if isinstance(made, nn.Module):
                made.train(self.training)
            setattr(self, name, made)
        return made

    def _require_creation_allowed(self, name: str) -> None:
        where = None
        if torch.compiler.is_compiling():
            where = "inside torch.compile"
        elif torch.is_inference_mode_enabled():
            where = "inside torch.inference_mode, whose tensors cannot be trained"
        elif not can_read_values():
            where = "inside a torch.func transform or while tracing"
        elif torch.nn.parallel.DistributedDataParallel._active_ddp_module is not None:  # type: ignore[attr-defined]
            where = "inside a DistributedDataParallel forward, which would not synchronise it"
        if where is not None:
            raise RuntimeError(
                f"variable {name!r} of {self.owner!r} would be created {where}. Create the variables before, in an "
                "ordinary execution: net.materialize(...) runs the net once for that purpose."
            )
        if self.is_complete and self.is_handed_out and not self.may_add:
            raise RuntimeError(
                f"variable {name!r} of {self.owner!r} would be created after the net's parameters were handed out, so "
                "that an optimizer has never seen it and would not train it. Run net.materialize(...) with inputs that "
                "reach this variable before you call parameters()."
            )


class FunctionModule(nn.Module):
    """A decorated function as a module: runs it with its variables, in an execution of its own.

    Base of :class:`ReusableFunction` and :class:`zsp.MetaBayesianNet`.
    """

    _function: Callable[..., Any]
    _scope: str

    def __init__(self, function: Callable[..., Any], scope: str | None, reuse_variables: bool) -> None:
        super().__init__()
        self._function = function
        self._scope = scope if scope is not None else function.__name__
        self._checked_shapes: set[Any] = set()
        self._known_dependencies: dict[Any, Any] = {}  # which node was computed from which, where inference has asked
        self._returned = 0  # which of the nets made in the function it returns
        if reuse_variables:
            if not self._scope or "." in self._scope or hasattr(nn.Module, self._scope):
                raise ValueError(
                    f"scope={self._scope!r} cannot name the variables: it must not be empty, hold a dot, or be the "
                    "name of an attribute of torch.nn.Module."
                )
            self._modules[self._scope] = Variables(self._scope)

    @property
    def scope(self) -> str:
        """The name under which messages and ``state_dict`` speak of this function."""
        return self._scope

    @property
    def _variables(self) -> Variables | None:
        variables = self._modules.get(self._scope)
        return variables if isinstance(variables, Variables) else None

    def _run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], shapes: Any, execution: Execution) -> Any:
        """Run the function in ``execution``; nodes are checked the first time for given ``shapes``, never for None."""
        if shapes is not None and (shapes not in self._checked_shapes or is_strict()):
            execution.checks = STRICT if is_strict() else FIRST
        previous = set_execution(execution)
        try:
            result = self._function(*args, **kwargs)
        finally:
            set_execution(previous)
        if isinstance(result, BayesianNet) and result._index not in (execution.returned, -1):
            # The function makes another net before the one that it returns, so that the wrong one was observed.
            # Which one it returns is known now: run it again, once in this module's life.
            self._returned = execution.returned = result._index
            execution.n_nets = 0
            return self._run(args, kwargs, shapes, execution)
        if execution.checks:
            if execution.variables is not None:
                execution.variables.is_complete = True
            if can_read_values():
                self._checked_shapes.add(shapes)
        return result

    def _materializing(self) -> _Materializing:
        return _Materializing(self._variables)

    # -- what an optimizer and a checkpoint see ---------------------------------------------------------------------

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[Any]:
        """As in torch, but an error before the first execution: the list would lack what has still to be made.

        ``parameters()``, ``named_parameters()`` and the optimizers that take them come here, also through an outer
        module.

        Raises:
            RuntimeError: if the function makes variables and has not been executed yet.
        """
        variables = self._variables
        if variables is not None:
            if not variables.is_complete:
                raise RuntimeError(
                    f"the variables of {self._scope!r} do not exist yet: they are made by its first execution, and an "
                    f"optimizer made now would silently train a part. Execute it first: {self._how_to_materialize()}."
                )
            variables.is_handed_out = True
        return super().named_modules(memo, prefix, remove_duplicate)

    def _how_to_materialize(self) -> str:
        return "net.materialize(...)"

    # -- copies and pickles -----------------------------------------------------------------------------------------

    def __deepcopy__(self: Self, memo: dict[int, Any]) -> Self:
        new = self.__class__.__new__(self.__class__)
        memo[id(self)] = new
        for key, value in self.__dict__.items():
            new.__dict__[key] = value if key in ("_function", "__wrapped__") else copy.deepcopy(value, memo)
        return new

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        state.pop("__wrapped__", None)
        state["_function"] = _import_path(self._function)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._function = _import_function(*state["_function"])
        functools.update_wrapper(self, self._function, updated=())

    def __reduce__(self) -> Any:
        return _new_module, (type(self),), self.__getstate__()


class _Materializing:
    """While it is entered, variables may be added to those that have been handed out."""

    def __init__(self, variables: Variables | None) -> None:
        self._variables = variables

    def __enter__(self) -> None:
        if self._variables is not None:
            self._variables.may_add = True

    def __exit__(self, *error: object) -> None:
        if self._variables is not None:
            self._variables.may_add = False


def _new_module(cls: type[nn.Module]) -> nn.Module:
    return cls.__new__(cls)


def _import_path(function: Callable[..., Any]) -> tuple[str, str]:
    path = (function.__module__, function.__qualname__)
    try:
        found = _import_function(*path)
    except (ImportError, AttributeError):
        found = None
    if found is not function:
        raise pickle.PicklingError(
            f"a net is pickled as its function's import path, but {path[0]}.{path[1]} cannot be imported as this "
            "function: define it at the top level of a module, or save net.state_dict() instead."
        )
    return path


def _import_function(module_name: str, qualname: str) -> Callable[..., Any]:
    found: Any = importlib.import_module(module_name)
    for part in qualname.split("."):
        found = getattr(found, part)
    return getattr(found, "__wrapped__", found)


class ReusableFunction(FunctionModule):
    """A function with one set of variables; made by :func:`reuse_variables`. Calling it runs the function."""

    def __init__(self, function: Callable[..., Any], scope: str | None) -> None:
        super().__init__(function, scope, reuse_variables=True)
        functools.update_wrapper(self, function, updated=())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function with its variables."""
        return self._run_observed({}, args, kwargs)

    def _run_observed(
        self,
        observed: Mapping[str, Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        sample_shape: tuple[int, ...] | None = None,
    ) -> Any:
        shapes = None
        if not torch.compiler.is_compiling():
            shapes = (shape_key((*args, *kwargs.values())), tuple(kwargs), tuple(observed))
        execution = Execution(self._scope, observed, self._variables, self._returned, sample_shape)
        result = self._run(args, kwargs, shapes, execution)
        if isinstance(result, BayesianNet):
            result._rerun = functools.partial(self._run_observed, args=args, kwargs=kwargs)
        return result

    def materialize(self, *args: Any, **kwargs: Any) -> ReusableFunction:
        """Execute the function once, without gradients, so that all its variables exist.

        Args:
            *args: the function's arguments; only their shapes, dtypes and devices matter.
            **kwargs: likewise.

        Returns:
            The module itself.
        """
        with self._materializing(), torch.no_grad():
            self(*args, **kwargs)
        return self

    def new(self) -> ReusableFunction:
        """The same function with another, still empty, set of variables."""
        return ReusableFunction(self._function, self._scope)

    def _how_to_materialize(self) -> str:
        parameters = ", ".join(inspect.signature(self._function).parameters)
        return f"{self._function.__name__}.materialize({parameters})"

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        self._require_variables("load_state_dict")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As in torch; an error before the first execution, when it would be empty.

        Raises:
            RuntimeError: before the first execution.
        """
        self._require_variables("state_dict")
        return super().state_dict(*args, **kwargs)

    def _require_variables(self, what: str) -> None:
        variables = self._variables
        if variables is not None and not variables.is_complete:
            raise RuntimeError(
                f"{what} of {self._scope!r} needs its variables, which its first execution makes. Execute it first: "
                f"{self._how_to_materialize()}."
            )

    def __repr__(self) -> str:
        signature = inspect.signature(self._function)
        return f"<zsp.reuse_variables function {self._function.__name__}{signature}, scope {self._scope!r}>"


def reuse_variables(scope: str | None = None) -> Callable[[Callable[..., Any]], ReusableFunction]:
    """Decorate a function so that what it makes with ``zsp.module`` and ``zsp.parameter`` is made once and reused.

    The usual place is a recognition net::

        @zsp.reuse_variables("q_net")
        def q_net(x, z_dim, n_particles):
            bn = zsp.BayesianNet()
            h = torch.relu(zsp.module("hidden", nn.Linear, x.shape[-1], 500)(x))
            mean = zsp.module("mean", nn.Linear, 500, z_dim)(h)
            logstd = zsp.module("logstd", nn.Linear, 500, z_dim)(h)
            bn.normal("z", mean, logstd=logstd, group_ndims=1, n_samples=n_particles)
            return bn

    Args:
        scope: the name of the set of variables in messages and ``state_dict``; default the function's name.

    Returns:
        A decorator; it gives a :class:`torch.nn.Module` that runs the function when it is called, with
        ``materialize(...)`` to make the variables and ``new()`` for another set of them. The function may return a
        :class:`zsp.BayesianNet` or anything else.
    """
    if callable(scope):
        raise TypeError("write @zsp.reuse_variables() or @zsp.reuse_variables('name'), with parentheses.")
    return lambda function: ReusableFunction(function, scope)


def shape_key(values: Iterable[Any]) -> tuple[Any, ...]:
    """What identifies values for the check at the first execution: a tensor's shape, dtype and device, or a type."""
    key: list[Any] = []
    for value in values:
        if isinstance(value, Tensor):
            key += (value.shape, value.dtype, value.device)
        else:
            key.append(value if isinstance(value, _PLAIN_TYPES) else type(value))
    return tuple(key)
