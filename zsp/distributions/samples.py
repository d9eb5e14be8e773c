"""Distributions that are known through samples: data (empirical), a simulator's output (implicit), a point (delta)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint
from typing_extensions import Unpack

from zsp.distributions.lean import Lean, Parameter
from zsp.distributions.node_type import NodeOptions, ReparameterizedOptions, node_type
from zsp.distributions.supports import Anything, Point

__all__ = ["Delta", "Empirical", "Implicit", "delta_node", "empirical_node", "implicit_node"]


def _as_shape(shape: Any) -> torch.Size:
    return torch.Size((shape,) if isinstance(shape, int) else shape)


class Empirical(Distribution):
    """A distribution that is known only through its data: it has neither draws nor a density of its own.

    Its log density at given data is 0: what it is cannot depend on anything in the model, so it is a constant of the
    log joint. (ZhuSuan raises there, and with it the whole log joint.)

    Args:
        dtype: dtype of a value; default any.
        batch_shape: shape of the independent values.
        value_shape: shape of one value.
        is_continuous: whether values are continuous; default whether ``dtype`` is not an integer or boolean one.
    """

    has_sample = False
    arg_constraints: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]

    def __init__(
        self,
        dtype: torch.dtype | None = None,
        batch_shape: Any = (),
        value_shape: Any = (),
        is_continuous: bool | None = None,
    ) -> None:
        self.dtype = dtype
        self.is_continuous = dtype is None or dtype.is_floating_point if is_continuous is None else is_continuous
        self._batch_shape, self._event_shape = _as_shape(batch_shape), _as_shape(value_shape)
        self._validate_args = False

    @property
    def support(self) -> Constraint:  # type: ignore[override]
        """Anything but NaN."""
        return Anything(len(self._event_shape), is_discrete=not self.is_continuous)

    def expand(self, batch_shape, _instance=None) -> Empirical:
        """The same distribution with another batch shape."""
        return Empirical(self.dtype, batch_shape, self._event_shape, self.is_continuous)

    def sample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """There are no draws.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "empirical is a distribution known only through its data, which cannot be drawn from: observe the node. "
            "For the output of a simulator use bn.implicit(name, samples)."
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Zero, in the dtype of ``value`` (the default dtype for discrete values)."""
        shape = torch.broadcast_shapes(value.shape[: value.dim() - len(self._event_shape)], self._batch_shape)
        dtype = value.dtype if value.is_floating_point() else torch.get_default_dtype()
        return value.new_zeros(shape, dtype=dtype)


class Implicit(Distribution):
    """A distribution known only through a draw that the caller makes, such as the output of a generator network.

    Args:
        samples: the draw, shape batch + value_shape; gradients flow through it.
        value_shape: shape of one value.
    """

    has_log_prob = False
    has_rsample = True
    arg_constraints: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]

    def __init__(self, samples: Tensor, value_shape: Any = ()) -> None:
        samples, value_shape = torch.as_tensor(samples), _as_shape(value_shape)
        n_batch = samples.dim() - len(value_shape)
        if n_batch < 0 or samples.shape[n_batch:] != value_shape:
            raise ValueError(
                f"implicit needs samples of shape [..., *value_shape], but got samples of shape {list(samples.shape)} "
                f"and value_shape {list(value_shape)}."
            )
        self.samples = samples
        self._batch_shape, self._event_shape = samples.shape[:n_batch], value_shape
        self._validate_args = False

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the samples."""
        return self.samples.dtype

    @property
    def parameter(self) -> Tensor:
        """The samples."""
        return self.samples

    @property
    def support(self) -> Constraint:  # type: ignore[override]
        """Anything but NaN."""
        return Anything(len(self._event_shape), is_discrete=not self.samples.is_floating_point())

    def expand(self, batch_shape, _instance=None) -> Implicit:
        """The same draw expanded to ``batch_shape``."""
        return Implicit(self.samples.expand((*batch_shape, *self._event_shape)), self._event_shape)

    def rsample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """The given samples; ``sample_shape`` may be () or ones, for there is only one draw.

        Raises:
            ValueError: for another ``sample_shape``.
        """
        if torch.Size(sample_shape).numel() != 1:
            raise ValueError(
                f"implicit holds one given draw and cannot make a sample axis {list(sample_shape)}. Run the simulator "
                "with that axis, so that the samples have it, and leave n_samples out."
            )
        return self.samples.reshape((*sample_shape, *self.samples.shape))

    def sample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """The given samples, without gradient."""
        return self.rsample(sample_shape).detach()

    def log_prob(self, value: Tensor) -> Tensor:
        """There is no density.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "implicit is known through its samples only and has no density, so it cannot be part of a log joint. Leave "
            "the node out of it (net.log_joint = ...), compare samples instead (as a GAN does), or give the node a "
            "distribution with a density, such as bn.normal(name, samples, std=...)."
        )


class Delta(Lean):
    """A variable that is certain: zero log density at its value, minus infinity elsewhere.

    Args:
        value: the value, a tensor or a number; its shape is the batch shape.
    """

    has_rsample = True
    value = Parameter()
    _value: Tensor

    def __init__(self, value: Tensor | float) -> None:
        self._set(value=value)

    @property
    def support(self) -> Constraint:  # type: ignore[override]
        """The value."""
        return Point(self._value)

    @property
    def mean(self) -> Tensor:
        """The value."""
        return self.value

    @property
    def variance(self) -> Tensor:
        """Zero."""
        return torch.zeros_like(self.value)

    def rsample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """The value, differentiable, of shape sample_shape + batch."""
        return self._value.expand(self._shape(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Zero where ``value`` is the point, minus infinity elsewhere."""
        dtype = self._value.dtype if self._value.is_floating_point() else torch.get_default_dtype()
        return torch.where(value == self._value, 0.0, -torch.inf).to(dtype)


@node_type(hint="An empirical value may be anything but NaN.")
def empirical_node(
    dtype: torch.dtype | None = None,
    batch_shape: Any = (),
    value_shape: Any = (),
    is_continuous: bool | None = None,
    **options: Unpack[NodeOptions],
) -> Empirical:
    r"""Node for data from an unknown distribution; it must be observed, and its term in the log joint is 0.

    Args:
        dtype: dtype of the value; default any.
        batch_shape: shape of the independent values.
        value_shape: shape of one value.
        is_continuous: whether values are continuous; default by ``dtype``.
    """
    return Empirical(dtype, batch_shape, value_shape, is_continuous)


@node_type()
def implicit_node(samples: Tensor, value_shape: Any = (), **options: Unpack[NodeOptions]) -> Implicit:
    r"""Node whose draw is given, as the output of a simulator or generator network; it has no density.

    Args:
        samples: the draw, shape batch + value_shape; gradients flow through it.
        value_shape: shape of one value.
    """
    return Implicit(samples, value_shape)


@node_type(hint="A delta node can only take its own value; for noise around it use bn.normal with a small std.")
def delta_node(value: Tensor | float, **options: Unpack[ReparameterizedOptions]) -> Delta:
    r"""Certain node: x is the given value.

    .. math:: \log p(x) = 0 \text{ if } x = v, \quad -\infty \text{ otherwise}

    Args:
        value: v; its shape is the batch shape.
    """
    return Delta(value)
