r"""The bound with the expectation over discrete draws taken exactly.

.. math:: \mathcal{L} = \sum_k q(k) \bigl[\log p(x, k) - \log q(k)\bigr]

with k all joint values of the discrete nodes of the variational net (:mod:`zsp.inference.table`). Nothing is left to
chance where all its nodes are discrete; differentiable draws beside them are drawn anew, given each k.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zsp.bayesian_net import BayesianNet
from zsp.inference.table import Table, TableValue, column_of
from zsp.inference.variational.objective import execute_model, latent_values
from zsp.inference.variational.score_function import score_nodes

if TYPE_CHECKING:
    from zsp.inference.variational.elbo import ELBO

__all__ = ["expected_bound"]

_ADVICE = (
    "Use an estimator that draws them: reinforce(), rebar() or, for a tighter bound, iw_objective(...).vimco(); or "
    "fewer latents."
)


def expected_bound(bound: ELBO, max_rows: int) -> Tensor:
    """The bound, of shape sample + batch, differentiable as it stands.

    Args:
        bound: the executed objective, log p - log q as it stands.
        max_rows: the number of rows above which the table is refused.
    """
    variational = bound.variational
    drawn = score_nodes(bound.bn, variational)
    nodes = [node for _, node in drawn]
    if any(net is not variational for net, _ in drawn):
        raise ValueError("enumerate() sums over the variational net's draws: the model must not draw any (from_prior).")
    if not nodes:
        raise ValueError(
            "every draw of the variational net is differentiable, so that there is nothing to enumerate. Use sgvb()."
        )
    rerun = variational._rerun
    if rerun is None:
        raise ValueError(
            "enumerate() executes the variational net for every value of its discrete nodes, but it was made outside a "
            "decorated function. Decorate its function with @zsp.reuse_variables(...) or @zsp.meta_bayesian_net(...)."
        )
    table = Table([column_of(node) for node in nodes], max_rows, _ADVICE)
    names = [node.name for node in nodes]
    n_others = sum(node.name not in names for node in variational._stochastic_nodes())
    # without other draws all samples are equal, and one without the axes stands for them
    sample_shape = variational._sample_axes() if n_others else ()
    like = bound._log_p

    def in_row(row: Tensor) -> tuple[Tensor, Tensor]:
        values: dict[str, Any] = {
            column.name: TableValue(column.name, table.digits(column, row), sample_shape, like)
            for column in table.columns
        }
        bn_q = rerun(values)
        latents, sampled = latent_values(bn_q, bound.observed, sample_shape)
        _, log_p = execute_model(bound._meta_bn, bound.observed, latents, sample_shape, sampled)
        return _log_prob_of(bn_q, names, like), log_p - bn_q.log_joint()

    rows = torch.arange(table.n_rows, device=like.device)
    log_weights, values = torch.func.vmap(in_row, randomness="same")(rows)
    # a value without probability adds nothing, whatever the logarithms there
    values = torch.where(log_weights == -torch.inf, 0.0, values)
    return (log_weights.exp() * values).sum(0).expand(like.shape)


def _log_prob_of(bn: BayesianNet, names: list[str], like: Tensor) -> Tensor:
    """log q of the discrete nodes' values, not scaled."""
    total = torch.zeros((), dtype=like.dtype, device=like.device)
    for name in names:
        total = total + bn._log_prob(bn._stochastic(name))
    return total
