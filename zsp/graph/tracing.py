r"""Which nodes' values each tensor of one execution came from.

A :class:`Tracer` watches an execution below autograd: every operator is seen when it is dispatched, so that discrete
draws, views, in-place changes, ``vmap`` and compiled C++ code are all followed. Each storage has a label, the set of
nodes whose values it was computed from, either one for the whole storage or one for each of its elements:

- views share their storage's label; copies, stacking and indexing by constants move labels with the elements;
- an elementwise operator unites the labels of the elements that it combines, any other operator those of everything
  that it is given (so that ``h[t]`` of ``h = linear(torch.stack(z))`` counts as computed from every ``z``);
- indexing by a node's value takes the labels of the index and of everything that could have been chosen;
- a value that leaves torch (``.item()``, ``bool``, ``float``, ``.tolist()``, ``.numpy()``, a branch) is *read*, and
  whatever is declared afterwards depends on it. Printing is no read, nor is what distributions look at to check their
  arguments.

A label follows a node's value only as far as the next named node: labels are direct parents.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from zsp.execution import set_tracer
from zsp.node import Unavailable

if TYPE_CHECKING:
    from zsp.bayesian_net import BayesianNet
    from zsp.node import Node

__all__ = ["Declared", "Tracer"]

T = TypeVar("T")

_NOTHING: frozenset[int] = frozenset()
_aten: Any = torch.ops.aten

# Modules whose own reads are no business of the model: they check arguments or draw.
_QUIET = ("torch.distributions", "pyro.distributions", "zsp.distributions", "zsp.bayesian_net", "zsp.checks")

_PRINTS = frozenset({torch.Tensor.__repr__, torch.Tensor.__format__})
# values that leave torch, or enter a new tensor, without an operator being dispatched
_READS = frozenset(
    {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.__dlpack__, torch.Tensor.data_ptr}
    | {torch.Tensor.untyped_storage, torch.Tensor.storage}
)
_COPIES = frozenset({torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor, torch.Tensor.new_tensor})

# operators that only move elements -> the positions of the arguments whose elements they move
_MOVES: dict[Any, tuple[int, ...]] = {
    _aten.cat.default: (0,),
    _aten.stack.default: (0,),
    _aten.index.Tensor: (0,),
    _aten.index_select.default: (0,),
    _aten.gather.default: (0,),
    _aten.repeat.default: (0,),
    _aten.flip.default: (0,),
    _aten.roll.default: (0,),
    _aten.tril.default: (0,),
    _aten.triu.default: (0,),
    _aten.index_put.default: (0, 2),
    _aten.index_put_.default: (0, 2),
    _aten.slice_scatter.default: (0, 1),
    _aten.select_scatter.default: (0, 1),
}
# those of them whose choice is itself a value
_INDEXES = frozenset(
    {_aten.index.Tensor, _aten.index_select.default, _aten.gather.default}
    | {_aten.index_put.default, _aten.index_put_.default}
)
_SAME = frozenset({_aten.clone.default, _aten._to_copy.default, _aten.copy.default})
_ERASES = frozenset({_aten.zero_.default, _aten.fill_.Scalar})

Label = int | Tensor
"""A row of the tracer's table of sets: one for a whole tensor, or a tensor of them, one for each element."""


@dataclass
class Declared:
    """A declaration: the net, the node's name, and the declarations that it depends on directly, by number.

    Attributes:
        parents: what its parameters, or its tensor, were computed from.
        origin: what its value was computed from: a given value has nothing to do with the parameters.
    """

    bn: BayesianNet
    name: str
    parents: frozenset[int]
    origin: frozenset[int]


@dataclass
class _Shadow:
    """The label of a storage; holding the storage keeps its address from being given to another."""

    storage: Any
    itemsize: int
    label: Label


@dataclass
class _Mark:
    """A label of one tensor object, in place of its storage's or beside it."""

    tensor: Tensor
    label: int
    replaces: bool


class Tracer:
    """Follows the values of the nodes that nets declare inside :meth:`run`.

    Args:
        follows_indices: whether ``stack[index]`` counts as computed from the chosen elements only; without, from all of
            them, which holds for any other index of the same shape as well.

    Attributes:
        declared: what was declared, in order; labels are sets of positions in this list.
        has_read_values: whether the model looked at a value, so that another execution may branch otherwise.
    """

    def __init__(self, follows_indices: bool = True) -> None:
        self._follows_indices = follows_indices
        self.has_read_values = False
        self.declared: list[Declared] = []
        self._sets: list[frozenset[int]] = [_NOTHING]
        self._rows: dict[frozenset[int], int] = {_NOTHING: 0}
        self._shadows: dict[int, _Shadow] = {}
        self._marks: dict[int, _Mark] = {}
        self._of_nodes: set[int] = set()  # storages that hold a node's value
        self._read = _NOTHING  # what everything declared from here on depends on
        self._pending: frozenset[int] | None = None  # what the torch function that is running has read

    def run(self, function: Callable[[], T]) -> T:
        """Call ``function`` and follow what it computes in this thread."""
        previous = set_tracer(self)
        try:
            with _uncompiled(), _Operators(self), _Functions(self):
                return function()
        finally:
            set_tracer(previous)

    # -- what nets tell ---------------------------------------------------------------------------------------------

    def stochastic(self, bn: BayesianNet, node: Node) -> Any:
        """A stochastic node was declared.

        Returns:
            The value that the model goes on with: a copy that only this node owns, for a given tensor may also be
            another node's value, or a constant.
        """
        with _untraced():
            seen: set[int] = set()
            parents = self._read
            for tensor in _tensors_inside((node.dist, node.arguments, node.mask), seen):
                parents |= self._sources(tensor)
            origin = self._read | (self._sources(node.value) if isinstance(node.value, Tensor) else _NOTHING)
        if not node.is_observed:
            parents = origin = parents | origin
        number = self._declare(bn, node.name, parents, origin)
        if isinstance(node.value, Unavailable):
            return Needed(node.name, node.kind, node.value._reason)
        return self._own(node.value, number)

    def deterministic(self, bn: BayesianNet, name: str, tensor: Any) -> Any:
        """A deterministic node was declared; from here on ``tensor`` is its value, whoever holds it."""
        if not isinstance(tensor, Tensor):
            self._declare(bn, name, self._read, self._read)
            return tensor
        with _untraced():
            origin = self._read | self._sources(tensor)
            number = self._declare(bn, name, origin, origin)
            row = self._row(frozenset((number,)))
            plain = _unwrapped(tensor)
            key = _storage_key(plain)
            if key in self._shadows and key not in self._of_nodes and id(plain) not in self._marks:
                self._write(plain, row)
            else:
                self._marks[id(plain)] = _Mark(plain, row, replaces=True)
        return self._own(tensor, number)

    def parents(self, bn: BayesianNet) -> dict[str, list[str]]:
        """Name of each node of ``bn`` -> its direct parents, both in order of declaration.

        Nodes of other nets that were made on the way are passed through.
        """
        through: list[frozenset[int]] = []  # a node -> itself, or the nodes of ``bn`` that its value came from
        parents: dict[str, list[str]] = {}
        for number, declared in enumerate(self.declared):  # parents come before children
            if declared.bn is bn:
                found = _NOTHING.union(*(through[parent] for parent in declared.parents))
                parents[declared.name] = [self.declared[parent].name for parent in sorted(found)]
                through.append(frozenset((number,)))
            else:
                through.append(_NOTHING.union(*(through[parent] for parent in declared.origin)))
        return parents

    def _declare(self, bn: BayesianNet, name: str, parents: frozenset[int], origin: frozenset[int]) -> int:
        self.declared.append(Declared(bn, name, parents, origin))
        return len(self.declared) - 1

    def _own(self, value: Any, number: int) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value.clone(memory_format=torch.contiguous_format) if value.layout == torch.strided else value.clone()
        with _untraced():
            plain = _unwrapped(value)
            self._write(plain, self._row(frozenset((number,))))
            self._of_nodes.add(_storage_key(plain))
        return value

    # -- labels -----------------------------------------------------------------------------------------------------

    def _row(self, sources: frozenset[int]) -> int:
        row = self._rows.get(sources)
        if row is None:
            row = self._rows[sources] = len(self._sets)
            self._sets.append(sources)
        return row

    def _label(self, tensor: Tensor) -> Label:
        mark = self._marks.get(id(tensor))
        if mark is not None and mark.replaces:
            return mark.label
        shadow = self._shadows.get(_storage_key(tensor))
        label: Label = 0
        if shadow is not None:
            label = shadow.label
            if isinstance(label, Tensor):
                if shadow.itemsize == tensor.itemsize:
                    label = label.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
                else:
                    label = self._row(self._united(label))
        return label if mark is None else self._combined([label, mark.label], tensor.shape)

    def _united(self, label: Label) -> frozenset[int]:
        if not isinstance(label, Tensor):
            return self._sets[label]
        return _NOTHING.union(*(self._sets[row] for row in label.unique().tolist()))

    def _sources(self, tensor: Tensor) -> frozenset[int]:
        return self._united(self._label(_unwrapped(tensor)))

    def _combined(self, labels: Iterable[Label], shape: tuple[int, ...]) -> Label:
        """The elementwise union, broadcast to ``shape``."""
        whole = _NOTHING
        each: list[Tensor] = []
        for label in labels:
            if isinstance(label, Tensor):
                each.append(label)
            else:
                whole |= self._sets[label]
        if not each:
            return self._row(whole)
        total = torch.full((), self._row(whole))
        for label in each:
            n = len(self._sets)
            pairs, where = (total * n + label).unique(return_inverse=True)
            rows = [self._row(self._sets[pair // n] | self._sets[pair % n]) for pair in pairs.tolist()]
            total = torch.tensor(rows)[where]
        return total.expand(shape)

    def _write(self, tensor: Tensor, label: Label) -> None:
        """The elements of ``tensor`` have these labels from now on."""
        key = _storage_key(tensor)
        shadow = self._shadows.get(key)
        mark = self._marks.get(id(tensor))
        if mark is not None and mark.replaces:
            del self._marks[id(tensor)]
        if not key:  # no storage of its own (sparse)
            self._marks[id(tensor)] = _Mark(tensor, self._row(self._united(label)), replaces=True)
            return
        n = tensor.untyped_storage().nbytes() // tensor.itemsize
        if shadow is None:
            if isinstance(label, int) and label == 0:
                return
            shadow = self._shadows[key] = _Shadow(tensor.untyped_storage(), tensor.itemsize, 0)
        elif shadow.itemsize != tensor.itemsize:
            shadow.label = self._row(self._united(shadow.label) | self._united(label))
            return
        if isinstance(label, int):
            if isinstance(shadow.label, int) and shadow.label == label:
                return
            if tensor.numel() >= n and tensor.is_contiguous():
                shadow.label = label
                return
        if isinstance(shadow.label, int):
            shadow.label = torch.full((n,), shadow.label)
        region = shadow.label.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        if isinstance(label, Tensor):
            region.copy_(label)
        else:
            region.fill_(label)

    def _add(self, tensor: Tensor, sources: frozenset[int], is_view: bool) -> None:
        """``tensor`` was also computed from ``sources``; if it is a view, what it is a view of was not."""
        if is_view:
            mark = self._marks.get(id(tensor))
            before = self._sets[mark.label] if mark is not None else _NOTHING
            replaces = mark is not None and mark.replaces
            self._marks[id(tensor)] = _Mark(tensor, self._row(before | sources), replaces)
        else:
            self._write(tensor, self._combined([self._label(tensor), self._row(sources)], tensor.shape))

    def _inherit(self, outputs: Iterable[Tensor], inputs: Iterable[Tensor]) -> None:
        """A view of a tensor that has a label of its own has it too."""
        if not self._marks:
            return
        marks = [mark for mark in map(self._marks.get, map(id, inputs)) if mark is not None]
        for output in outputs:
            for mark in marks:
                if output is not mark.tensor and id(output) not in self._marks:
                    key = _storage_key(output)
                    if key and key == _storage_key(mark.tensor):
                        self._marks[id(output)] = _Mark(output, mark.label, mark.replaces)

    # -- what is computed -------------------------------------------------------------------------------------------

    def function(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """A torch function is called from Python: values that it reads inside are read for its result."""
        outer, self._pending = self._pending, _NOTHING
        try:
            result = func(*args, **kwargs)
        finally:
            read, self._pending = self._pending, outer
        assert read is not None
        with _untraced():
            if func in _PRINTS:
                return result
            inputs = [_unwrapped(tensor) for tensor in _tensors((args, kwargs))]
            outputs = [_unwrapped(tensor) for tensor in _tensors(result)]
            self._inherit(outputs, inputs)
            name = getattr(func, "__name__", "")
            if func in _READS and not _is_quiet():
                self.has_read_values = True
            if func in _READS or func in _COPIES:
                read = read.union(*(self._sources(tensor) for tensor in inputs))
            if not read:
                return result
            if name == "__getitem__":  # any element of it could have been chosen
                read |= self._sources(inputs[0])
            if name == "__setitem__":
                self._add(inputs[0], read.union(*(self._sources(tensor) for tensor in inputs)), is_view=False)
            elif outputs:
                keys = {_storage_key(tensor) for tensor in inputs} - {0}
                for output in outputs:
                    self._add(output, read, is_view=_storage_key(output) in keys)
            else:
                self._was_read(read)
        return result

    def operator(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """An operator is dispatched."""
        if torch.Tag.data_dependent_output in func.tags and not _is_quiet():
            self.has_read_values = True
        inputs = _tensors((args, kwargs))
        labels = [self._label(tensor) for tensor in inputs]
        if not any(isinstance(label, Tensor) or label for label in labels):
            return func(*args, **kwargs)
        before = {id(tensor): label for tensor, label in zip(inputs, labels, strict=True)}
        if func._schema.is_mutable:  # the labels of what is overwritten are those of before
            before = {k: label.clone() if isinstance(label, Tensor) else label for k, label in before.items()}
        result = func(*args, **kwargs)
        outputs = _tensors(result)
        if not outputs and torch.Tag.data_dependent_output in func.tags:
            self._was_read(_NOTHING.union(*(self._united(label) for label in labels)))
        written = _written(func, args, kwargs)
        for tensor in written:
            self._write(tensor, self._result(func, args, before, tensor))
        keys = {_storage_key(tensor) for tensor in inputs} - {0}
        for output in outputs:
            if _storage_key(output) not in keys:
                self._write(output, self._result(func, args, before, output))
        self._inherit(outputs, inputs)
        return result

    def _result(self, func: Any, args: tuple[Any, ...], labels: Mapping[int, Label], output: Tensor) -> Label:
        """The label of an operator's result."""
        if func in _ERASES:
            return 0
        if func in _SAME:
            return labels.get(id(args[0]), 0)
        if func is _aten.copy_.default:
            label = labels.get(id(args[1]), 0)
            return label.expand(output.shape) if isinstance(label, Tensor) else label
        moved = _MOVES.get(func)
        if moved is not None and (self._follows_indices or func not in _INDEXES):
            others = [tensor for i, arg in enumerate(args) if i not in moved for tensor in _tensors(arg)]
            if not any(self._united(labels.get(id(tensor), 0)) for tensor in others):
                same = (self._as_labels(arg, labels) if i in moved else _on_cpu(arg) for i, arg in enumerate(args))
                return func(*same)
        if torch.Tag.pointwise in func.tags:
            return self._combined(labels.values(), output.shape)
        return self._row(_NOTHING.union(*(self._united(label) for label in labels.values())))

    def _as_labels(self, value: Any, labels: Mapping[int, Label]) -> Any:
        if isinstance(value, (list, tuple)):
            return [self._as_labels(item, labels) for item in value]
        label = labels.get(id(value), 0)
        return label.clone() if isinstance(label, Tensor) else torch.full(value.shape, label)

    def _was_read(self, sources: frozenset[int]) -> None:
        if self._pending is not None:
            self._pending |= sources
        elif sources and not _is_quiet():
            self._read |= sources


class Needed(Unavailable):
    """The value of a node that cannot be drawn, in a graph: the error says how to give it."""

    def error(self) -> Any:
        """The error that a use of the value raises."""
        return ValueError(
            f"the graph needs a value of node {self._name!r} ({self._kind}), which other nodes use: it was not given "
            f"and has no draws. {self._reason} Give it: graph({self._name}=...)."
        )


class _Functions(TorchFunctionMode):
    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._tracer.function(func, args, kwargs or {})


class _Operators(TorchDispatchMode):
    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():
            return self._tracer.operator(func, args, kwargs or {})


def _uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Compiled modules run their Python code here, whose operators can be seen."""
    if "torch._dynamo" not in sys.modules:  # nothing has been compiled, and importing it takes seconds
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")


@contextlib.contextmanager
def _untraced() -> Iterator[None]:
    with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
        yield


def _is_quiet() -> bool:
    """Whether the value is read by a distribution or a check, not by the model."""
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_code is not Tracer.run.__code__:
        if frame.f_globals.get("__name__", "").startswith(_QUIET):
            return True
        frame = frame.f_back
    return False


def _storage_key(tensor: Tensor) -> int:
    """The address of the tensor's storage; 0 for a tensor that has none, such as a sparse one."""
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else 0


def _unwrapped(tensor: Tensor) -> Tensor:
    """The tensor inside those that ``vmap`` and ``grad`` work on."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The arguments that the operator changes."""
    written = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written += _tensors(args[i] if i < len(args) else kwargs.get(argument.name))
    return written


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples, dicts and slices."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple, set)):
        return [tensor for item in value for tensor in _tensors(item)]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in _tensors(item)]
    if isinstance(value, slice):
        return _tensors((value.start, value.stop, value.step))
    return []


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cpu()
    return [_on_cpu(item) for item in value] if isinstance(value, (list, tuple)) else value


def _tensors_inside(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """The tensors that an object, such as a distribution, holds: in attributes, containers and closures."""
    if isinstance(value, Tensor):
        yield value
        return
    if value is None or isinstance(value, (str, bytes, int, float, type)) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Mapping):
        inside: Iterable[Any] = value.values()
    elif isinstance(value, (list, tuple, set, frozenset)):
        inside = value
    elif isinstance(value, types.FunctionType):
        inside = (value.__defaults__, value.__kwdefaults__, *_cells(value))
    elif isinstance(value, types.MethodType):
        inside = (value.__self__, value.__func__)
    elif isinstance(value, functools.partial):
        inside = (value.func, value.args, value.keywords)
    else:
        inside = getattr(value, "__dict__", {}).values()
    for item in inside:
        yield from _tensors_inside(item, seen)


def _cells(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # a variable that has no value yet
            yield cell.cell_contents
