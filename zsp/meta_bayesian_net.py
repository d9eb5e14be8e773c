"""A model: a function that declares a Bayesian net, with its inputs and variables, to be observed in any configuration.

    model function --@meta_bayesian_net--> MetaBayesianNet --observe(x=...)--> BayesianNet --log_joint()--> Tensor
"""

from __future__ import annotations

import copy
import dis
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zsp import checks
from zsp.bayesian_net import BayesianNet
from zsp.distributions import NodeMethods
from zsp.execution import Execution
from zsp.variables import FunctionModule, shape_key

if TYPE_CHECKING:
    import networkx

__all__ = ["MetaBayesianNet", "meta_bayesian_net"]

_INPUT = object()  # stands in ``_inputs`` for a value that lives among the module's parameters, buffers or submodules


def meta_bayesian_net(
    scope: str | None = None, reuse_variables: bool = False
) -> Callable[[Callable[..., BayesianNet]], Callable[..., MetaBayesianNet]]:
    """Decorate a function that declares a Bayesian net, so that calling it gives a :class:`MetaBayesianNet`.

    ::

        @zsp.meta_bayesian_net(scope="model")
        def linear_regression(x, alpha, beta):
            bn = zsp.BayesianNet()
            w = bn.normal("w", torch.zeros(x.shape[-1]), std=alpha, group_ndims=1)
            y_mean = bn.deterministic("y_mean", x @ w)
            bn.normal("y", y_mean, std=beta, group_ndims=1)
            return bn

        model = linear_regression(x, alpha=1.0, beta=0.1)
        model.observe(w=w, y=y).log_joint()

    The function's parameters are the model's inputs. They may be left out in the call and given later: a key of
    observed values that names a parameter rebinds that input.

    Args:
        scope: the model's name in messages, and of its variables in ``state_dict``; default the function's name.
        reuse_variables: whether ``zsp.module`` and ``zsp.parameter`` in the function keep what they make.

    Returns:
        The decorator.

    Raises:
        ValueError: at decoration, if a node of the function has the name of one of its parameters.
    """
    if callable(scope):
        raise TypeError("write @zsp.meta_bayesian_net() or @zsp.meta_bayesian_net(scope=...), with parentheses.")

    def decorate(function: Callable[..., BayesianNet]) -> Callable[..., MetaBayesianNet]:
        parameters = inspect.signature(function).parameters
        for name in _literal_node_names(function):
            if name in parameters:
                raise checks.input_and_node(function.__name__, name)

        @functools.wraps(function)
        def build(*args: Any, **kwargs: Any) -> MetaBayesianNet:
            return MetaBayesianNet(function, args, kwargs, scope=scope, reuse_variables=reuse_variables)

        return build

    return decorate


class MetaBayesianNet(FunctionModule):
    """A model that can be observed in any configuration; a module, whose ``forward(values)`` is the log joint.

    Made by calling a function decorated with :func:`meta_bayesian_net`. Modules and parameters among the arguments
    become submodules and parameters; other tensors become buffers that move with ``.to()`` and are not saved.

    Args:
        function: declares and returns a :class:`zsp.BayesianNet`.
        args: its positional arguments, any of them.
        kwargs: its keyword arguments, any of them.
        scope: the model's name.
        reuse_variables: whether the function's variables are kept.

    Raises:
        TypeError: if the arguments do not fit the function's signature.
    """

    def __init__(
        self,
        function: Callable[..., BayesianNet],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        scope: str | None = None,
        reuse_variables: bool = False,
    ) -> None:
        super().__init__(function, scope, reuse_variables)
        self._custom_log_joint: Callable[[BayesianNet], Tensor] | None = None
        parameters = inspect.signature(function).parameters.values()
        variable = [p.name for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        if variable:
            raise TypeError(
                f"the model function {function.__name__!r} has the parameter *{variable[0]}, but a model's inputs need "
                "names: spell them out, or pass one list or dict."
            )
        self._positional_only = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_ONLY)
        self._input_names = frozenset(p.name for p in parameters)
        bound = inspect.signature(function).bind_partial(*args, **(kwargs or {}))
        bound.apply_defaults()
        self._inputs: dict[str, Any] = {}
        self._held: tuple[str, ...] = ()
        for name, value in bound.arguments.items():
            self._set_input(name, value)

    def _set_input(self, name: str, value: Any) -> None:
        """Keep an input: what torch should move, save or train as a part of the module, anything else as it is."""
        for members in (self._modules, self._parameters, self._buffers):
            members.pop(name, None)
        if name == self._scope and self._variables is not None:
            raise ValueError(
                f"the scope {self._scope!r} is also the name of a parameter of the function: rename one of them."
            )
        self._inputs[name] = _INPUT
        if isinstance(value, nn.Module):
            self._modules[name] = value
        elif isinstance(value, nn.Parameter):
            self._parameters[name] = value
        elif isinstance(value, Tensor):
            self._buffers[name] = value
            self._non_persistent_buffers_set.add(name)
        else:
            self._inputs[name] = value
            if isinstance(value, (list, tuple)) and value and all(isinstance(v, nn.Module) for v in value):
                self._modules[name] = nn.ModuleList(value)
            elif isinstance(value, dict) and value and all(isinstance(v, nn.Module) for v in value.values()):
                self._modules[name] = nn.ModuleDict(value)
        self._held = tuple(key for key, held in self._inputs.items() if held is _INPUT)

    # -- observing --------------------------------------------------------------------------------------------------

    def observe(self, **values: Any) -> BayesianNet:
        """Execute the model with some of its nodes observed.

        Args:
            **values: node name -> value. A key that names a parameter of the function rebinds that input instead.

        Returns:
            The net: the given values, and draws for the nodes that are not given.

        Raises:
            ValueError: if a key is neither a node nor an input, or a value does not fit its node.
        """
        return self._execute(values)

    def forward(self, values: Mapping[str, Any]) -> Tensor:
        """The log joint of ``values``, a mapping as ``observe`` takes it.

        Args:
            values: node or input name -> value.

        Returns:
            ``observe(**values).log_joint()``, of shape sample + batch.
        """
        return self._execute(values).log_joint()

    def _execute(
        self,
        values: Mapping[str, Any],
        *,
        sample_shape: tuple[int, ...] | None = None,
        with_samples: frozenset[str] = frozenset(),
        excluded: frozenset[str] = frozenset(),
        latents: Iterable[str] = (),
    ) -> BayesianNet:
        """Execute the model; inference routines say which latents they give and which sample axes those carry."""
        inputs = dict(self._inputs)
        for name in self._held:
            held = self._buffers.get(name)
            if held is None:
                held = self._parameters.get(name)
            inputs[name] = self._modules[name] if held is None else held
        observed = {}
        for name, value in values.items():
            if name in self._input_names:
                inputs[name] = value
            elif value is None:
                raise ValueError(f"the value given for {name!r} is None; leave the key out to draw the node.")
            else:
                observed[name] = value
        if len(inputs) < len(self._input_names):
            name = next(name for name in inspect.signature(self._function).parameters if name not in inputs)
            raise ValueError(
                f"the input {name!r} of the model {self._scope!r} has no value. Give it when the model is made "
                f"({self._function.__name__}({name}=...)), with bind({name}=...), or as a key of the observed values."
            )
        shapes = None
        if not torch.compiler.is_compiling():
            shapes = (tuple(values), shape_key(values.values()), sample_shape, with_samples, excluded)
        args = tuple(inputs.pop(name) for name in self._positional_only) if self._positional_only else ()
        execution = Execution(
            self._scope, observed, self._variables, self._returned, sample_shape, with_samples, excluded,
            self._input_names,
        )  # fmt: skip
        bn = self._run(args, inputs, shapes, execution)
        if not isinstance(bn, BayesianNet):
            raise TypeError(
                f"the model function {self._function.__name__!r} must return the BayesianNet that it declares, but it "
                f"returned {type(bn).__name__}. Is 'return bn' missing?"
            )
        if bn._execution is not execution:
            if observed:
                why = "was made with observations of its own" if bn._index < 0 else "was made by another model function"
                raise ValueError(
                    f"the net that {self._function.__name__!r} returns {why}, so that it cannot take those for "
                    f"{', '.join(map(repr, observed))}. Make it with zsp.BayesianNet()."
                )
        elif bn._n_used != len(observed):
            raise checks.unknown_observations(bn, sorted(self._input_names), latents)
        bn._custom_log_joint = self._custom_log_joint
        bn._rerun = functools.partial(self._rerun, values)
        return bn

    def _rerun(self, values: Mapping[str, Any], observed: Mapping[str, Any]) -> BayesianNet:
        return self._execute({**values, **observed})

    def graph(self, **values: Any) -> networkx.DiGraph:
        """The dependency graph of the model, found by executing it once; see :mod:`zsp.graph`.

        Args:
            **values: as for :meth:`observe`.

        Returns:
            A directed graph of stochastic and deterministic nodes, with an edge from each node to those whose
            parameters were computed from its value.

        Raises:
            ValueError: as for :meth:`observe`, and if the value of a node that has no draws is needed.
        """
        from zsp.graph import dependency_graph

        return dependency_graph(self, values)

    # -- views, variables, the log joint ----------------------------------------------------------------------------

    def bind(self, **inputs: Any) -> MetaBayesianNet:
        """A view of the model with other inputs and the same variables.

        Args:
            **inputs: parameter name -> value.

        Returns:
            Another MetaBayesianNet. Variables made through either of the two belong to both.

        Raises:
            ValueError: for a name that is no parameter of the function.
        """
        unknown = [name for name in inputs if name not in self._input_names]
        if unknown:
            raise ValueError(
                f"the model {self._scope!r} has no input {unknown[0]!r}; its inputs are "
                f"{', '.join(map(repr, sorted(self._input_names))) or 'none'}. Nodes are observed with observe(...)."
            )
        view = self.__class__.__new__(self.__class__)
        view.__dict__.update(self.__dict__)
        for members in ("_modules", "_parameters", "_buffers", "_inputs", "_non_persistent_buffers_set"):
            view.__dict__[members] = copy.copy(self.__dict__[members])
        view.__dict__["_checked_shapes"] = set()
        for name, value in inputs.items():
            view._set_input(name, value)
        return view

    def materialize(self, values: Mapping[str, Any] | None = None, /, **more: Any) -> MetaBayesianNet:
        """Execute the model once, without gradients, so that all its variables exist.

        Args:
            values: inputs and observations, as ``observe`` takes them; for what is not given, the inputs that the model
                already has and draws.
            **more: likewise.

        Returns:
            The model itself.
        """
        with self._materializing(), torch.no_grad():
            self._execute({**(values or {}), **more})
        return self

    def _how_to_materialize(self) -> str:
        return "model.materialize(...)"

    @property
    def log_joint(self) -> Callable[[BayesianNet], Tensor] | None:
        """The model's own log joint, a function or module from a net to a tensor; None for the sum over all nodes.

        ::

            def log_joint(bn):
                log_pw, log_py = bn.cond_log_prob(["w", "y"])
                return log_pw + log_py.mean(-1) * n_train

            model.log_joint = log_joint

        Inside it, ``bn.log_joint()`` is the sum over all nodes.
        """
        return self._custom_log_joint

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "log_joint":
            # torch would make a module an attribute of its own; this is a property that may hold one
            if value is not None and not callable(value):
                raise TypeError(
                    f"log_joint must be a function from a BayesianNet to a tensor, got {type(value).__name__}."
                )
            self._modules.pop("_custom_log_joint", None)
            self.__dict__.pop("_custom_log_joint", None)
            if not isinstance(value, nn.Module):
                self.__dict__["_custom_log_joint"] = value
                return
            name = "_custom_log_joint"
        super().__setattr__(name, value)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As in torch; before the first execution the model is materialized, so that nothing is missing."""
        self._complete()
        return super().state_dict(*args, **kwargs)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        self._complete()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _complete(self) -> None:
        variables = self._variables
        if variables is not None and not variables.is_complete:
            self.materialize()

    def __repr__(self) -> str:
        inputs = ", ".join(f"{name}={_show_input(self._input(name))}" for name in self._inputs)
        return f"<zsp.MetaBayesianNet {self._scope!r}: {self._function.__name__}({inputs})>"

    def _input(self, name: str) -> Any:
        value = self._inputs[name]
        if value is not _INPUT:
            return value
        for members in (self._modules, self._parameters, self._buffers):
            if name in members:
                return members[name]  # type: ignore[index]
        raise AssertionError(name)


def _show_input(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"tensor{list(value.shape)}"
    if isinstance(value, nn.Module):
        return type(value).__name__
    text = repr(value)
    return text if len(text) <= 40 else type(value).__name__


def _literal_node_names(function: Callable[..., Any]) -> list[str]:
    """The names of nodes that the function declares by a literal, read from its bytecode: bn.normal("x", ...)."""
    code = getattr(function, "__code__", None)
    if code is None:
        return []
    methods = {name for name in vars(NodeMethods) if not name.startswith("_")} | {"stochastic", "deterministic"}
    names = []
    after_method = False
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_METHOD", "LOAD_ATTR"):
            after_method = instruction.argval in methods
        elif instruction.opname.startswith("LOAD_CONST"):
            if after_method and isinstance(instruction.argval, str):
                names.append(instruction.argval)
            after_method = False
        elif instruction.opname not in ("PUSH_NULL", "CACHE", "PRECALL", "NOP"):
            after_method = False
    return names
