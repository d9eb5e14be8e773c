"""Which node makes an objective not finite."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributions import constraints

from zsp.checks.declarations import check_parameters
from zsp.checks.values import check_log_prob, check_support, check_values

__all__ = ["diagnose"]


def diagnose(objective: Any) -> None:
    """Find the node that makes an objective (or a net's log joint) not finite.

    Looks at every stochastic node of the executed nets in order: parameters that break their constraints, values off
    the support, log probabilities that are not finite. Use it in a training loop of your own::

        bound = zsp.elbo(model, {"x": x}, variational=q)
        loss = bound.sgvb().mean()
        if not loss.isfinite():
            zsp.diagnose(bound)

    Args:
        objective: an objective such as :func:`zsp.elbo` gives, or a :class:`zsp.BayesianNet`.

    Raises:
        ValueError: naming the node, its parameter and the first bad value, if there is one.
    """
    nets = [objective] if hasattr(objective, "_stochastic_nodes") else [objective.variational, objective.bn]
    for bn in nets:
        if bn is None:
            continue
        for node in bn._stochastic_nodes():
            if node.row is not None and node.arguments is not None:
                check_parameters(node.row, node.name, *node.arguments)
            if not isinstance(node.value, Tensor):
                continue
            if node.value.is_floating_point() and node.mask is None:
                what = f"the value of node {node.name!r} ({node.kind})"
                check_values(what, node.value.detach(), constraints.real)
            if node.is_observed:
                check_support(node)
            check_log_prob(node, bn._log_prob(node), strict=True)
