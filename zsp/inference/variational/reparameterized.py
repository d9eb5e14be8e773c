"""What the estimators that differentiate through draws ask of the variational net."""

from __future__ import annotations

from zsp.bayesian_net import BayesianNet
from zsp.inference.variational.score_function import score_nodes

__all__ = ["require_differentiable_draws", "require_path_of_all"]


def require_differentiable_draws(
    estimator: str, bn: BayesianNet | None, variational: BayesianNet, instead: str
) -> None:
    """A draw without gradient may only follow a distribution without anything to learn.

    Args:
        estimator: its name, for the message.
        bn: the executed model.
        variational: the executed variational net.
        instead: what else to do, the beginning of a sentence that goes on with relaxations.
    """
    for net, node in score_nodes(bn, variational):
        if net._log_prob(node).requires_grad:
            reason = " (is_reparameterized=False)" if node.dist.has_rsample else f": {node.kind} has no such draw"
            raise ValueError(
                f"{estimator} needs draws that are differentiable in their parameters, but node {node.name!r} "
                f"({node.kind}) is not reparameterised{reason}, and its gradient would be silently wrong. {instead} "
                "(bin_concrete, concrete) or a distribution that has one."
            )


def require_path_of_all(variational: BayesianNet) -> None:
    """The path derivative is of log q as a whole: all differentiable draws ask for it, or none."""
    nodes = variational._stochastic_nodes()
    partly = [node.name for node in nodes if not node.use_path_derivative and node.is_reparameterized]
    if partly:
        raise ValueError(
            "use_path_derivative is set on some nodes of the variational net, but not on "
            f"{', '.join(map(repr, partly))}; log q is one function of all draws: set it on all of them or on none."
        )
