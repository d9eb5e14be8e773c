r"""REBAR and RELAX: unbiased gradients for Bernoulli and categorical draws, with a control variate that is learnt.

The draws of a layer, independent of one another given what was drawn before, have the gradient

.. math:: (f(b) - c(z)) \nabla \log q(b) + D \, c'(z) \nabla l

where z is the continuous draw behind b, l its logits, and the terms in c have mean zero for every function c
(:mod:`zsp.inference.variational.relaxation`). REBAR takes :math:`c(z) = \eta f(\text{relaxed } z)`, RELAX a network, or
the sum of both. What c is made of is trained to lower the square of this gradient, hence its variance. Where there are
several samples, f - c is also taken less its mean over the others.

One evaluation serves for z and for the draw from its distribution given b: both have one value here and differ in their
derivatives, which are known (the common random numbers of the papers, taken to the end).

In c of a layer, what was drawn before and what does not depend on the layer keeps its value; discrete draws that depend
on it are relaxed with their own noise, differentiable ones are drawn anew.

Reference: Tucker et al. 2017, arXiv:1703.07370, section 3; Grathwohl et al. 2018, arXiv:1711.00123, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zsp.bayesian_net import BayesianNet
from zsp.inference.enumeration import EnumeratedNet
from zsp.inference.variational.downstream import Parents, find_parents
from zsp.inference.variational.objective import execute_model, latent_values
from zsp.inference.variational.path_derivative import log_prob_at
from zsp.inference.variational.relaxation import (
    ContinuousDraw,
    LateRelaxed,
    Relaxation,
    RelaxedValue,
    continuous_draw,
    require_extension,
)
from zsp.inference.variational.score_function import score_nodes, score_of
from zsp.inference.variational.terms import is_sum_of_terms
from zsp.meta_bayesian_net import MetaBayesianNet
from zsp.node import Node

if TYPE_CHECKING:
    from zsp.inference.variational.elbo import ELBO

__all__ = ["ControlVariate", "relaxed_gradient"]

ControlVariate = Callable[[dict[str, Tensor]], Tensor]
"""From node name -> continuous draw z, for the nodes of one layer, to a tensor of shape sample + batch."""


def relaxed_gradient(
    bound: ELBO, relaxation: Relaxation | None, control_variate: ControlVariate | None
) -> tuple[Tensor, Tensor]:
    """The gradient of the bound in the logits of its discrete draws, and the cost that trains the control variate.

    Args:
        bound: the executed objective, log p - log q as it stands.
        relaxation: for REBAR's part of the control variate.
        control_variate: for a free one.

    Returns:
        A tensor of value 0 and shape sample + batch, whose gradient is that of the bound through its discrete draws;
        and a scalar, the mean square of the gradient, whose own gradient reaches only what the control variate is made
        of.
    """
    estimator = _Estimator(bound, relaxation, control_variate)
    total = torch.zeros_like(bound._log_p)
    square = torch.zeros_like(bound._log_p)
    for layer in layers_of(list(estimator.draws), estimator.parents):
        added, squared = estimator.of_layer(layer)
        total, square = total + added, square + squared
    return total, estimator.to_train(square.mean())


def layers_of(names: list[str], parents: Parents) -> list[list[str]]:
    """The discrete draws in groups, each independent within and dependent on those before it at most."""
    depths: dict[str, int] = {}
    for name in names:
        above = [depths[other] for other in depths if name in descendants_of([other], parents)]
        depths[name] = max(above, default=-1) + 1
    return [[name for name in names if depths[name] == depth] for depth in range(max(depths.values(), default=-1) + 1)]


def descendants_of(names: Iterable[str], parents: Parents) -> set[str]:
    """The nodes computed from these, directly or not; themselves not included."""
    found = set(names)
    for child, of_child in parents.items():  # in order of declaration
        if not found.isdisjoint(of_child):
            found.add(child)
    return found.difference(names)


class _Estimator:
    """The parts that the layers share."""

    def __init__(
        self, bound: ELBO, relaxation: Relaxation | None, control_variate: ControlVariate | None
    ) -> None:
        self.bound, self.relaxation, self.control_variate = bound, relaxation, control_variate
        self.variational = bound.variational
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            raise RuntimeError(
                "rebar and relax differentiate the control variate inside, which torch.compile and torch.func cannot "
                "follow. Call them eagerly, or compile with zsp.fit."
            )
        self.signal = bound.log_weights.detach()
        self.draws = _continuous_draws(bound, are_relaxed=relaxation is not None)
        rerun = self.variational._rerun
        self.parents = find_parents(self.variational, None if rerun is None else lambda: rerun({}))
        self.trained: list[Tensor] = []
        for module in (relaxation, control_variate):
            if isinstance(module, nn.Module):
                self.trained += [p for p in module.parameters() if p.requires_grad]

    def of_layer(self, layer: list[str]) -> tuple[Tensor, Tensor]:
        """The surrogate of a layer's gradient, and its square; both of shape sample + batch."""
        value, slopes = self._control_variate(layer)
        advantage = self._less_other_samples(self.signal - value)
        total = torch.zeros_like(self.signal)
        square = torch.zeros_like(self.signal)
        for name in layer:
            node, draw = self.variational._stochastic(name), self.draws[name]
            log_q = score_of(self.variational, node)
            total = total + (log_q - log_q.detach()) * advantage.detach()
            n_event = draw.z.dim() - self.signal.dim()
            through = draw.slope * slopes[name]
            shift = draw.logits - draw.logits.detach()
            # where a logit is minus infinity the draw's slope is 0
            shift = torch.where(draw.slope > 0, shift, 0.0)
            total = total + _sum_last(through.detach() * shift, n_event)
            gradient = advantage[(..., *(None,) * n_event)] * draw.score + through
            square = square + _sum_last(draw.in_parameters(gradient).square(), n_event)
        return total, square

    def _less_other_samples(self, advantage: Tensor) -> Tensor:
        """Less its mean over the other samples, which do not depend on this one's draws; as it is for one sample."""
        axis = self.bound._axis
        axes = () if axis is None else (axis,) if isinstance(axis, int) else tuple(axis)
        n_samples = math.prod([advantage.shape[a] for a in axes])
        if n_samples < 2:
            return advantage
        return (advantage - advantage.mean(axes, keepdim=True)) * (n_samples / (n_samples - 1))

    def to_train(self, cost: Tensor) -> Tensor:
        """A cost with its gradient in what the control variate is made of, and in nothing else."""
        total = cost.detach()
        if not self.trained or not cost.requires_grad:
            return total
        gradients = torch.autograd.grad(cost, self.trained, allow_unused=True)
        for parameter, gradient in zip(self.trained, gradients, strict=True):
            if gradient is not None:
                total = total + (gradient * (parameter - parameter.detach())).sum().to(total.dtype)
        return total

    def _control_variate(self, layer: list[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """c at the layer's continuous draws, and its gradients there; functions of what c is made of."""
        with torch.enable_grad():
            z = {name: self.draws[name].z.detach().requires_grad_() for name in layer}
            value: Any = 0.0
            if self.relaxation is not None:
                value = self.relaxation.scale * self._relaxed_signal(layer, z, self.relaxation)
            if self.control_variate is not None:
                value = value + self._free(z)
            gradients: Sequence[Tensor | None] = [None] * len(z)
            if value.requires_grad:
                gradients = torch.autograd.grad(
                    value.sum(), list(z.values()), create_graph=bool(self.trained), retain_graph=True, allow_unused=True
                )
        slopes = {
            name: torch.zeros_like(leaf) if gradient is None else gradient
            for (name, leaf), gradient in zip(z.items(), gradients, strict=True)
        }
        return value, slopes

    def _free(self, z: dict[str, Tensor]) -> Tensor:
        assert self.control_variate is not None
        value = self.control_variate(dict(z))
        if not isinstance(value, Tensor) or value.shape != self.signal.shape:
            got = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            shapes = ", ".join(f"{name!r}: {list(draw.shape)}" for name, draw in z.items())
            raise ValueError(
                "the control variate is called with a dict of continuous draws, here {" + shapes + "}, and must return "
                f"a tensor of shape sample + batch, {list(self.signal.shape)}, but it returned {got}."
            )
        return value

    def _relaxed_signal(self, layer: list[str], z: Mapping[str, Tensor], relaxation: Relaxation) -> Tensor:
        """log p - log q with the layer's draws relaxed, of shape sample + batch."""
        variational, draws = self.variational, self.draws
        relaxed = {name: relaxation(draws[name].logits.detach(), z[name], draws[name].is_binary) for name in layer}
        below = descendants_of(layer, self.parents)
        nodes = variational._stochastic_nodes()
        latents: dict[str, Any] = {node.name: node.value.detach() for node in nodes if node.name not in below}
        latents.update((name, RelaxedValue(name, value)) for name, value in relaxed.items())
        if below.isdisjoint([node.name for node in nodes]) and is_sum_of_terms(variational):
            log_q = variational.log_joint()
            for name, value in relaxed.items():
                node = variational._stochastic(name)
                log_q = log_q + log_prob_at(variational, node, value) - log_prob_at(variational, node, node.value)
        else:
            late = {name: LateRelaxed(name, draws[name], relaxation) for name in draws if name in below}
            again = _rerun(variational)({**latents, **late})
            log_q = again.log_joint()
            is_relaxed = below.union(layer).intersection(draws)
            latents = {
                node.name: RelaxedValue(node.name, node.value) if node.name in is_relaxed else node.value
                for node in again._stochastic_nodes()
            }
        return self._log_p(latents, z) - log_q

    def _log_p(self, latents: Mapping[str, Any], z: Mapping[str, Tensor]) -> Tensor:
        """The model's log joint at relaxed values."""
        bound = self.bound
        if not isinstance(bound._meta_bn, (MetaBayesianNet, EnumeratedNet)):
            latents = {name: v.tensor if isinstance(v, RelaxedValue) else v for name, v in latents.items()}
        sample_shape = self.variational._sample_axes()
        _, sampled = latent_values(self.variational, bound.observed, sample_shape)
        bn, log_p = execute_model(bound._meta_bn, bound.observed, latents, sample_shape, sampled)
        if bn is not None and bn._checks:
            for name in z:
                _require_float(bn._stochastic(name), "the model")
            if is_sum_of_terms(bn):
                _require_differentiable(bn, z, bound._depends.in_model)
        return log_p


def _continuous_draws(bound: ELBO, are_relaxed: bool) -> dict[str, ContinuousDraw]:
    """The continuous draw behind each discrete one; an error for any other draw without gradient."""
    variational = bound.variational
    nodes = score_nodes(bound.bn, variational)
    if not nodes:
        raise ValueError(
            "every draw of the variational net is differentiable, so that there is nothing to relax. Use sgvb()."
        )
    draws = {}
    for net, node in nodes:
        draw = continuous_draw(node) if net is variational else None
        if draw is None:
            where = "which the model draws itself (from_prior), has" if net is not variational else "has"
            raise ValueError(
                f"rebar and relax need every draw to be Bernoulli or categorical, or differentiable, but node "
                f"{node.name!r} ({node.kind}) {where} neither a relaxation nor a gradient. Use reinforce()."
            )
        if are_relaxed:
            require_extension(node.name, node.dist)
        _require_float(node, "the variational net")
        if node.value.dim() - node.group_ndims - len(node.dist.event_shape) != bound._log_p.dim():
            raise ValueError(
                f"rebar and relax need a draw for every sample, but node {node.name!r} is drawn once for all of them "
                f"(its value has shape {list(node.value.shape)}, the objective {list(bound._log_p.shape)}, sample + "
                "batch). Declare n_samples on it."
            )
        draws[node.name] = draw
    return draws


def _require_float(node: Node, where: str) -> None:
    if not node.value.is_floating_point():
        raise ValueError(
            f"node {node.name!r} of {where} has dtype={node.value.dtype}, which would cut relaxed values to whole "
            "numbers. Leave dtype out, or give it a floating-point one."
        )


def _require_differentiable(bn: BayesianNet, z: Mapping[str, Tensor], parents: Parents) -> None:
    """Every term that a relaxed node goes into depends on it differentiably: not by rounding, comparing or indexing."""
    for name, leaf in z.items():
        reached = {name}
        for child, of_child in parents.items():
            if reached.isdisjoint(of_child):
                continue
            if child not in [node.name for node in bn._stochastic_nodes()]:  # deterministic: look further
                reached.add(child)
                continue
            term = bn._log_prob(bn._stochastic(child))
            gradient = None
            if term.requires_grad:
                (gradient,) = torch.autograd.grad(term.sum(), leaf, retain_graph=True, allow_unused=True)
            if gradient is None:
                raise ValueError(
                    f"rebar is unbiased for a model that is continuous in its relaxed latents, but node {child!r} "
                    f"depends on {name!r} without a derivative: its value is rounded, compared or used as an index. "
                    f"Write it as arithmetic ({name} * this + (1 - {name}) * that, one-hot vectors times a matrix), or "
                    "use relax(control_variate) without a relaxation."
                )


def _rerun(variational: BayesianNet) -> Callable[[dict[str, Any]], BayesianNet]:
    if variational._rerun is None:
        raise ValueError(
            "rebar executes the variational net again where nodes may depend on one another, but it was made outside a "
            "decorated function. Decorate its function with @zsp.reuse_variables(...) or @zsp.meta_bayesian_net(...)."
        )
    return variational._rerun


def _sum_last(value: Tensor, n_axes: int) -> Tensor:
    return value.sum(tuple(range(-n_axes, 0))) if n_axes else value
