r"""The pieces of a variational objective by node: what each adds to log p and to log q.

.. math:: \log p(x, z) - \log q(z \mid x)
    = \sum_{\text{data } x} \log p(x \mid \cdot)
    - \sum_{\text{latents } z} (\log q(z \mid \cdot) - \log p(z \mid \cdot))
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import NamedTuple

from torch import Tensor

from zsp.bayesian_net import BayesianNet

__all__ = ["Term", "is_sum_of_terms", "scale_of", "scaled_terms", "terms_of"]


class Term(NamedTuple):
    """What one node adds to an objective, scaled by its ``total_size``; each of shape batch (sample + batch).

    Attributes:
        log_p: its log probability under the model; for data, what is reconstructed.
        log_q: a latent's log probability under the variational net; None for data, and where ``kl`` is a closed form.
        kl: a latent's part of the divergence of the variational net from the prior: log q - log p at the draws, or the
            closed form (``analytic_kl``), where ``log_p`` and ``log_q`` are None. None for data.
    """

    log_p: Tensor | None
    log_q: Tensor | None = None
    kl: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Term:
        """The term with ``function`` applied to each of its tensors."""
        return Term(*(None if value is None else function(value) for value in self))


def terms_of(bn: BayesianNet | None, variational: BayesianNet) -> dict[str, Term]:
    """Node name -> its term, data and latents in the model's order of declaration.

    Args:
        bn: the executed model; None for a callable, which raises.
        variational: the executed variational net.
    """
    if bn is None or not is_sum_of_terms(bn) or not is_sum_of_terms(variational):
        what = "a callable" if bn is None else "a log_joint of its own"
        raise ValueError(
            f"the pieces of the objective are asked for by node, but a net whose log joint is {what} is not known to "
            "be a sum over nodes. Use a MetaBayesianNet without a log_joint of its own."
        )
    log_p, log_q = scaled_terms(bn), scaled_terms(variational)
    terms = {name: Term(log_p[name]) for name in log_p if name not in log_q}
    terms.update({name: Term(log_p[name], log_q[name], log_q[name] - log_p[name]) for name in log_q if name in log_p})
    return {name: terms[name] for name in log_p}


def is_sum_of_terms(bn: BayesianNet | None) -> bool:
    """Whether the net's log joint is the sum of its nodes' scaled log probabilities."""
    return bn is not None and bn._custom_log_joint is None


def scaled_terms(bn: BayesianNet, without: Container[str] = ()) -> dict[str, Tensor]:
    """Node name -> log probability, scaled by its ``total_size``: the summands of ``bn.log_joint()``.

    Args:
        bn: the executed net.
        without: names of nodes whose log probabilities are not needed.
    """
    nodes = [node for node in bn._stochastic_nodes() if node.name not in bn._excluded and node.name not in without]
    terms = {node.name: bn._log_prob(node) for node in nodes}
    if not bn._is_scaled:
        return terms
    return {name: term if (s := scale_of(bn, name)) == 1 else term * s for name, term in terms.items()}


def scale_of(bn: BayesianNet, name: str) -> float:
    """N / n for a node with ``total_size=N`` that holds n data; 1 for any other."""
    node = bn._stochastic(name)
    if node.total_size is None:
        return 1.0
    nodes = [other for other in bn._stochastic_nodes() if other.name not in bn._excluded]
    return node.total_size / bn._n_data(node, nodes, [bn._log_prob(other) for other in nodes])
