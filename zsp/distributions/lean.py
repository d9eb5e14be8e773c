"""The base of distributions that keep their parameters as they were given, so that a node costs little.

torch's classes expand every parameter to the batch shape when they are made, which costs more than the log density of a
small node. Here a parameter is stored as given; the attribute expands it when it is read::

    class Exponential(Lean):
        rate = Parameter()

        def __init__(self, rate):
            self._set(rate=rate)
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution

from zsp.distributions.tensors import as_tensors, broadcast_shape

__all__ = ["Lean", "Parameter"]


class Parameter:
    """A parameter, expanded to batch + event when it is read; ``dist._name`` is what was given.

    Args:
        event_dim: the number of its own last axes that are no batch axes.
    """

    def __init__(self, event_dim: int = 0) -> None:
        self.event_dim = event_dim

    def __set_name__(self, owner: Any, name: str) -> None:
        self.slot = f"_{name}"
        owner._parameters = {**owner._parameters, name: self}

    def __get__(self, dist: Any, owner: Any = None) -> Any:
        if dist is None:
            return self
        value = getattr(dist, self.slot)
        return value.expand(dist._batch_shape + value.shape[value.dim() - self.event_dim :])

    def __set__(self, dist: Any, value: Tensor) -> None:
        setattr(dist, self.slot, value)


class Lean(Distribution):
    """A distribution that stores its parameters as given and does not validate them (a checked net does)."""

    _parameters: ClassVar[dict[str, Parameter]] = {}
    _validate_args = False
    arg_constraints: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]

    def _set(self, event_shape: tuple[int, ...] = (), **parameters: Any) -> None:
        """Store the parameters, as tensors, and the shapes that they imply."""
        batch_shape = torch.Size()
        for (name, value), tensor in zip(parameters.items(), as_tensors(*parameters.values()), strict=True):
            own = self._parameters[name].event_dim
            if own > tensor.dim():
                raise ValueError(
                    f"{type(self).__name__} needs {name} with at least {own} axes, but got shape {list(tensor.shape)} "
                    f"from {value!r}."
                )
            batch_shape = broadcast_shape(batch_shape, tensor.shape[: tensor.dim() - own])
            self.__dict__[self._parameters[name].slot] = tensor
        self._batch_shape = batch_shape
        self._event_shape = torch.Size(event_shape)

    def parameters_fit(self) -> tuple[Tensor, str] | None:
        """Whether the parameters fit one another, and what they must satisfy in words; None where nothing is asked.

        A constraint looks at one parameter at a time; this is for the rest, and a checked net calls it.
        """
        return None

    @property
    def parameter(self) -> Tensor:
        """A parameter, as it was given: values follow its dtype and device."""
        return getattr(self, next(iter(self._parameters.values())).slot)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters and of the values."""
        return self.parameter.dtype

    def expand(self, batch_shape, _instance=None):
        """The same distribution with its parameters expanded to ``batch_shape``."""
        new = object.__new__(type(self))
        new.__dict__.update((key, value) for key, value in self.__dict__.items() if key.startswith("_"))
        new._batch_shape = torch.Size(batch_shape)
        for name, parameter in self._parameters.items():
            if getattr(self, parameter.slot, None) is not None:
                setattr(new, parameter.slot, getattr(new, name))
        return new

    def sample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """A draw without gradient, of shape sample_shape + batch + event."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def _shape(self, sample_shape: Any) -> tuple[int, ...]:
        return (*sample_shape, *self._batch_shape, *self._event_shape)

    def __repr__(self) -> str:
        shapes = ", ".join(
            f"{name}: {list(getattr(self, p.slot).shape)}"
            for name, p in self._parameters.items()
            if getattr(self, p.slot, None) is not None
        )
        return f"{type(self).__name__}({shapes})"
