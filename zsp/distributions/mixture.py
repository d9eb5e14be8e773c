r"""Mixtures, :math:`\log p(x) = \log\sum_k \pi_k p_k(x)`, of one family or of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, transform_to
from torch.distributions.constraints import Constraint, real_vector
from typing_extensions import Unpack

from zsp.distributions.lean import Lean, Parameter
from zsp.distributions.node_type import NodeOptions, node_type
from zsp.distributions.tensors import open_uniform, value_dtype

__all__ = ["Mixture", "mixture_node"]


class _AnyOf(Constraint):
    """Values in at least one of several supports.

    Args:
        supports: those of the components.
        is_stacked: whether there is one, whose last axis is that of the components.
    """

    def __init__(self, supports: Sequence[Any], is_stacked: bool) -> None:
        self.supports, self.is_stacked = tuple(supports), is_stacked
        super().__init__()

    @property
    def event_dim(self) -> int:  # type: ignore[override]
        """How many of the last axes are one event."""
        return self.supports[0].event_dim

    @property
    def is_discrete(self) -> bool:  # type: ignore[override]
        """Whether the values are discrete."""
        return self.supports[0].is_discrete

    def check(self, value: Tensor) -> Tensor:
        """Whether each value is in the support of a component."""
        if self.is_stacked:
            return self.supports[0].check(value.unsqueeze(-1 - self.event_dim)).any(-1)
        return torch.stack(torch.broadcast_tensors(*(s.check(value) for s in self.supports))).any(0)


def _is_fixed(support: Any) -> bool:
    """Whether a support depends on no parameters."""
    return not any(isinstance(part, Tensor) for part in vars(support).values())


def _log_prob_inside(dist: Distribution, value: Tensor) -> Tensor:
    """The log density; minus infinity outside the support, where another component's value may lie, without NaN."""
    support: Any = dist.support
    inside = support.check(value)
    mask = inside[(..., *[None] * support.event_dim)]
    if support.is_discrete:
        safe = torch.where(mask, value, 0)
    else:
        safe = torch.where(mask, value, transform_to(support)(torch.zeros_like(value)))
    return torch.where(inside, dist.log_prob(safe), -torch.inf)


class Mixture(Lean):
    r"""A mixture of K components.

    Args:
        logits: unnormalised log weights, shape [..., K].
        components: a distribution whose last batch axis is K, or a list of K distributions with one event shape.
    """

    logits = Parameter(event_dim=1)
    _logits: Tensor

    def __init__(self, logits: Tensor, components: Distribution | Sequence[Distribution]) -> None:
        self._set(logits=logits)
        n = self._logits.shape[-1]
        if isinstance(components, Distribution):
            if not components.batch_shape or components.batch_shape[-1] != n:
                raise ValueError(
                    f"a mixture of {n} (the last axis of logits, {list(self._logits.shape)}) needs components whose "
                    f"last batch axis is {n}, but {components} has batch shape {list(components.batch_shape)}. For "
                    "components of different kinds give a list."
                )
            event, batch = components.event_shape, components.batch_shape[:-1]
        else:
            components = list(components)
            events = {tuple(component.event_shape) for component in components}
            if len(components) != n or len(events) != 1:
                raise ValueError(
                    f"a mixture of {n} (the last axis of logits, {list(self._logits.shape)}) needs a list of {n} "
                    f"distributions with one event shape, but got {len(components)} with event shapes "
                    f"{[list(event) for event in sorted(events)]}."
                )
            if len({bool(component.support.is_discrete) for component in components}) != 1:  # type: ignore[union-attr]
                raise ValueError("the components of a mixture must be all discrete or all continuous")
            event = components[0].event_shape
            batch = torch.broadcast_shapes(*(component.batch_shape for component in components))
        self._components = components
        self._batch_shape = torch.broadcast_shapes(self._logits.shape[:-1], batch)
        self._event_shape = event

    @property
    def components(self) -> Distribution | list[Distribution]:
        """The components, as they were given."""
        return self._components  # type: ignore[return-value]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the values: that of the components."""
        first = self._components if isinstance(self._components, Distribution) else self._components[0]
        return value_dtype(first) or self._logits.dtype

    @property
    def support(self) -> Any:  # type: ignore[override]
        """The components' support where they share one, values in any of their supports otherwise."""
        if isinstance(self._components, Distribution):
            support: Any = self._components.support
            return support if _is_fixed(support) else _AnyOf([support], True)
        supports: list[Any] = [component.support for component in self._components]
        if all(type(s) is type(supports[0]) and _is_fixed(s) and vars(s) == vars(supports[0]) for s in supports):
            return supports[0]
        return _AnyOf(supports, False)

    def expand(self, batch_shape, _instance=None) -> Mixture:  # type: ignore[override]
        """The same distribution with its parameters expanded to ``batch_shape``."""
        n = self._logits.shape[-1]
        if isinstance(self._components, Distribution):
            components: Any = self._components.expand((*batch_shape, n))
        else:
            components = [component.expand(batch_shape) for component in self._components]
        return Mixture(self._logits.expand((*batch_shape, n)), components)

    def _stack(self, tensors: Sequence[Tensor]) -> Tensor:
        """One tensor of each component, along a new last batch axis."""
        shape = (*self._batch_shape, *self._event_shape)
        return torch.stack([tensor.expand(shape) for tensor in tensors], -1 - len(self._event_shape))

    def _moment(self, name: str) -> Tensor:
        if isinstance(self._components, Distribution):
            return getattr(self._components, name)
        return self._stack([getattr(component, name) for component in self._components])

    def _average(self, values: Tensor) -> Tensor:
        n_event = len(self._event_shape)
        weights = self.logits.softmax(-1)
        return (values * weights[(..., *[None] * n_event)]).sum(-1 - n_event)

    @property
    def mean(self) -> Tensor:
        """The weighted mean of the components' means."""
        return self._average(self._moment("mean"))

    @property
    def variance(self) -> Tensor:
        """The mean of the components' variances and the variance of their means."""
        means = self._moment("mean")
        between = self._average((means - self._average(means).unsqueeze(-1 - len(self._event_shape))) ** 2)
        return self._average(self._moment("variance")) + between

    def cdf(self, value: Tensor) -> Tensor:
        """Distribution function, where the components have one."""
        if isinstance(self._components, Distribution):
            parts = self._components.cdf(value.unsqueeze(-1))
        else:
            parts = torch.stack(torch.broadcast_tensors(*(c.cdf(value) for c in self._components)), -1)
        return (parts * self._logits.softmax(-1)).sum(-1)

    def sample(self, sample_shape=()) -> Tensor:  # type: ignore[override]
        """A draw, of shape sample_shape + batch + event."""
        with torch.no_grad():
            shape, n_event, n = self._shape(sample_shape), len(self._event_shape), self._logits.shape[-1]
            batch = shape[: len(shape) - n_event]
            size = torch.Size(sample_shape)
            if isinstance(self._components, Distribution):
                draws = self._components.expand((*self._batch_shape, n)).sample(size)
            else:
                drawn = [component.expand(self._batch_shape).sample(size) for component in self._components]
                draws = torch.stack(drawn, -1 - n_event)
            # the largest of logits + Gumbel noise is a draw of the component
            gumbel = -(-open_uniform((*batch, n), self._logits).log()).log()
            chosen = (self._logits + gumbel).argmax(-1, keepdim=True)[(..., *[None] * n_event)]
            chosen = chosen.expand(*batch, 1, *self._event_shape)
            return draws.gather(-1 - n_event, chosen).squeeze(-1 - n_event)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at ``value``."""
        if isinstance(self._components, Distribution):
            wide = value.unsqueeze(-1 - len(self._event_shape))
            is_shared = _is_fixed(self._components.support)
            log_p = self._components.log_prob(wide) if is_shared else _log_prob_inside(self._components, wide)
        else:
            parts = [_log_prob_inside(component, value) for component in self._components]
            log_p = torch.stack(torch.broadcast_tensors(*parts), -1)
        return torch.logsumexp(log_p + self._logits.log_softmax(-1), -1)


@node_type(logits=real_vector, hint="The value must lie in the support of at least one component.")
def mixture_node(
    logits: Tensor, components: Distribution | Sequence[Distribution], **options: Unpack[NodeOptions]
) -> Mixture:
    r"""Mixture node of K components, the label summed out.

    .. math:: \log p(x) = \log\sum_k \pi_k p_k(x), \quad \pi = \mathrm{softmax}(l)

    The components are one distribution with a last batch axis of K, or a list of K distributions with one event shape::

        bn.mixture("x", logits, zsp.distributions.Normal(means, stds))               # logits, means, stds [..., K]
        bn.mixture("y", logits, [zsp.distributions.Normal(0., 1.), zsp.distributions.Cauchy(0., 1.)])

    Its draws are not differentiable in the parameters.

    Args:
        logits: unnormalised log weights l, shape [..., K].
        components: distributions of ``zsp.distributions`` or ``torch.distributions``.
    """
    return Mixture(logits, components)
