r"""log q of the draws with some of its gradients left out: through the draws only, or at fixed draws only.

With :math:`z = g_\phi(\epsilon)`, the gradient of :math:`\log q_\phi(z)` has two parts,

.. math:: \frac{d}{d\phi} \log q_\phi(g_\phi(\epsilon))
    = \frac{\partial \log q_\phi(z)}{\partial z} \frac{d z}{d \phi} + \frac{\partial \log q_\phi(z)}{\partial \phi},

the path derivative and the score, whose mean is zero.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from types import NoneType
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from zsp.bayesian_net import BayesianNet
from zsp.inference.variational.terms import is_sum_of_terms, scale_of
from zsp.node import Node

__all__ = ["log_prob_at", "log_q_at_fixed_draws", "log_q_through_draws"]


def log_q_through_draws(variational: BayesianNet) -> Tensor:
    r"""log q with the gradient that flows through the draws only, :math:`\partial_z \log q \cdot dz / d\phi`.

    The variables are stopped, not the draws. A net of one node has its distribution built again from detached
    parameters. In a net of several, where a node's parameters are also the other draws' way to it, log q is evaluated
    again at the drawn values z', and its gradient with respect to them, times the draws, has the value and gradient
    wanted; stopping each node's own parameters would stop the other draws as well.

    Args:
        variational: the executed variational net.

    Returns:
        log q, of shape sample + batch.

    Raises:
        ValueError: if there are several nodes and the net cannot be executed again.
    """
    nodes = variational._stochastic_nodes()
    moving = [node for node in nodes if node.is_reparameterized and not node.is_observed]
    if not moving:
        return variational.log_joint().detach()
    if len(nodes) == 1 and is_sum_of_terms(variational):
        stopped = _stopped_distribution(nodes[0])
        if stopped is not None:
            return _log_prob_of(variational, nodes[0], dist=stopped)
    log_q = variational.log_joint()
    n_sample_axes = len(variational._sample_axes())
    n_samples = math.prod(variational._sample_axes())
    terms = [variational._log_prob(node) for node in nodes]
    path = torch.zeros((), dtype=log_q.dtype, device=log_q.device)
    for node, gradient in zip(moving, _partial_derivatives(variational, nodes, moving), strict=True):
        through = gradient * (node.value - node.value.detach())
        has_samples = not n_sample_axes or bool(variational._n_sample_axes(node, nodes, terms))
        n_kept = log_q.dim() if has_samples else log_q.dim() - n_sample_axes
        through = through.flatten(n_kept).sum(-1) if through.dim() > n_kept else through
        # one draw shared by all samples has the sum of their gradients, of which each sample takes its part
        path = path + (through if has_samples else through / n_samples)
    return log_q.detach() + path


def log_q_at_fixed_draws(variational: BayesianNet) -> Tensor:
    r"""log q as a function of its variables at fixed draws, :math:`\partial_\phi \log q_\phi(z)`.

    Args:
        variational: the executed variational net.

    Raises:
        ValueError: if draws are reparameterised, there are several nodes, and the net cannot be executed again.
    """
    nodes = variational._stochastic_nodes()
    if not any(node.is_reparameterized and not node.is_observed and node.value.requires_grad for node in nodes):
        return variational.log_joint()
    if len(nodes) == 1 and is_sum_of_terms(variational):
        return log_prob_at(variational, nodes[0], nodes[0].value.detach())
    rerun = _rerun(
        variational,
        "this estimator needs log q as a function of its variables only, with the draws fixed, but some draws are "
        "reparameterised: declare them with is_reparameterized=False. Otherwise log q is evaluated again",
    )
    return rerun({node.name: node.value.detach() for node in nodes}).log_joint()


def log_prob_at(bn: BayesianNet, node: Node, value: Tensor) -> Tensor:
    """The node's scaled log probability at another value of the same shape."""
    return _log_prob_of(bn, node, value=value)


def _log_prob_of(bn: BayesianNet, node: Node, **changes: Any) -> Tensor:
    """The scaled log probability of the node with some of its attributes changed."""
    changed = copy.copy(node)
    changed.log_prob = None
    for name, value in changes.items():
        setattr(changed, name, value)
    log_prob = bn._log_prob(changed)
    return log_prob if node.total_size is None else log_prob * scale_of(bn, node.name)


def _stopped_distribution(node: Node) -> Distribution | None:
    """The node's distribution with its parameters detached; None where not all of them can be seen."""
    if node.row is None or node.arguments is None:
        return None
    args, kwargs = node.arguments
    if not all(isinstance(a, (Tensor, int, float, NoneType)) for a in (*args, *kwargs.values())):
        return None  # a distribution or a transform, with parameters of its own
    return node.row.build(*[_detached(a) for a in args], **{name: _detached(a) for name, a in kwargs.items()})


def _detached(argument: Any) -> Any:
    return argument.detach() if isinstance(argument, Tensor) else argument


def _partial_derivatives(variational: BayesianNet, nodes: list[Node], moving: list[Node]) -> tuple[Tensor, ...]:
    """The gradients of log q with respect to each draw, the other draws and the variables fixed, as constants."""
    if len(nodes) == 1 and is_sum_of_terms(variational):

        def evaluate(*given: Tensor) -> Tensor:
            return log_prob_at(variational, nodes[0], given[0]).sum()

    else:
        rerun = _rerun(variational, "the path derivative evaluates log q again at the drawn values")
        fixed = {node.name: node.value.detach() for node in nodes if node not in moving}

        def evaluate(*given: Tensor) -> Tensor:
            leaves = {node.name: value for node, value in zip(moving, given, strict=True)}
            return rerun({**fixed, **leaves}).log_joint().sum()

    return _gradients(evaluate, [node.value.detach() for node in moving])


def _rerun(variational: BayesianNet, why: str) -> Callable[[dict[str, Tensor]], BayesianNet]:
    if variational._rerun is None:
        raise ValueError(
            f"{why}, but this variational net was made outside a decorated function and cannot be executed again. "
            "Decorate its function with @zsp.reuse_variables(...) or @zsp.meta_bayesian_net(...)."
        )
    return variational._rerun


def _gradients(function: Callable[..., Tensor], values: list[Tensor]) -> tuple[Tensor, ...]:
    """The gradients of a scalar function at ``values``, as constants."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():  # these have no autograd.grad
        return tuple(g.detach() for g in torch.func.grad(function, argnums=tuple(range(len(values))))(*values))
    with torch.enable_grad():
        leaves = [value.detach().requires_grad_() for value in values]
        return torch.autograd.grad(function(*leaves), leaves)
