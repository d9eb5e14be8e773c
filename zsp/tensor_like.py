"""Objects that stand for a tensor: torch functions and arithmetic take them as they take the tensor."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor

__all__ = ["TensorLike", "to_tensor"]


class TensorLike:
    """Base of objects with a ``tensor`` that should be usable wherever the tensor is.

    ``torch.exp(obj)``, ``obj + 1``, ``obj.mean()`` and ``obj[0]`` act on ``obj.tensor``. (Not a Tensor subclass: those
    break compiled modules and deepcopy.)
    """

    @property
    def tensor(self) -> Tensor:
        """The tensor that the object stands for."""
        raise NotImplementedError

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*(to_tensor(arg) for arg in args), **{k: to_tensor(v) for k, v in (kwargs or {}).items()})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if not hasattr(Tensor, name):
            raise AttributeError(f"neither {type(self).__name__} nor the tensor that it stands for has {name!r}")
        return getattr(self.tensor, name)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.tensor.__array__(*args, **kwargs)

    def __hash__(self) -> int:
        return id(self)


def to_tensor(value: Any) -> Any:
    """The tensor of a tensor-like, also inside lists and tuples; everything else as it is."""
    if isinstance(value, TensorLike):
        return value.tensor
    if isinstance(value, (list, tuple)) and any(isinstance(item, TensorLike) for item in value):
        return type(value)(to_tensor(item) for item in value)
    return value


def _unary(function: Callable[[Any], Any]) -> Callable[[TensorLike], Any]:
    return lambda self: function(self.tensor)


def _binary(function: Callable[[Any, Any], Any]) -> Callable[[TensorLike, Any], Any]:
    return lambda self, other: function(self.tensor, to_tensor(other))


def _reflected(function: Callable[[Any, Any], Any]) -> Callable[[TensorLike, Any], Any]:
    return lambda self, other: function(to_tensor(other), self.tensor)


for _name in ("neg", "pos", "abs", "invert"):
    setattr(TensorLike, f"__{_name}__", _unary(getattr(operator, _name)))
for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor"):
    setattr(TensorLike, f"__{_name.rstrip('_')}__", _binary(getattr(operator, _name)))
    setattr(TensorLike, f"__r{_name.rstrip('_')}__", _reflected(getattr(operator, _name)))
for _name in ("eq", "ne", "lt", "le", "gt", "ge", "getitem"):
    setattr(TensorLike, f"__{_name}__", _binary(getattr(operator, _name)))
for _builtin in (len, iter, bool, float, int):
    setattr(TensorLike, f"__{_builtin.__name__}__", _unary(_builtin))
del _name, _builtin
