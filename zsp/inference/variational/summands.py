r"""The ELBO as a sum of terms: log probabilities of data, and each latent's part of the divergence from the prior.

.. math:: \sum_x \log p(x \mid \cdot) - \beta \sum_z \max(\lambda, \mathrm{KL}_z)

where :math:`\mathrm{KL}_z` is :math:`\log q(z \mid \cdot) - \log p(z \mid \cdot)` at the draw, or its expectation in
closed form.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from zsp.bayesian_net import BayesianNet
from zsp.checks.wording import broadcasts_to
from zsp.inference.variational.terms import is_sum_of_terms, scale_of, scaled_terms

__all__ = ["Divergence", "Summand", "summands_of", "total_of"]


class Summand(NamedTuple):
    """One term of the ELBO, with its sign and weight.

    Attributes:
        kind: whose log probability it is; "kl" for a divergence in closed form, "constant" for what free bits add.
        name: the node; empty for a whole log joint.
        value: of shape sample + batch, batch, or a scalar.
    """

    kind: Literal["log_p", "log_q", "kl", "constant"]
    name: str
    value: Tensor


class Divergence(NamedTuple):
    """How the divergence from the prior is weighed.

    Attributes:
        weight: beta.
        free_bits: lambda, in nats a latent.
        analytic: latent -> its divergence in closed form, scaled by ``total_size``, of shape sample + batch or batch.
    """

    weight: float | Tensor = 1.0
    free_bits: float = 0.0
    analytic: Mapping[str, Tensor] = {}

    @property
    def is_plain(self) -> bool:
        """Whether the objective is log p - log q as it stands."""
        is_one = not isinstance(self.weight, Tensor) and self.weight == 1
        return is_one and not self.free_bits and not self.analytic


def summands_of(
    bn: BayesianNet | None, variational: BayesianNet, log_p: Tensor, divergence: Divergence
) -> list[Summand]:
    """The terms of the ELBO.

    Args:
        bn: the executed model; None where it is a callable, which counts as one term.
        variational: the executed variational net.
        log_p: the model's log joint.
        divergence: how each latent's part is weighed.
    """
    if bn is None or not is_sum_of_terms(bn) or not is_sum_of_terms(variational):
        if not divergence.is_plain:
            raise ValueError(
                "analytic_kl, kl_weight and free_bits need log p as a sum over nodes, but the model is a callable or "
                "has a log_joint of its own. Weigh the terms there instead."
            )
        q_terms = scaled_terms(variational) if is_sum_of_terms(variational) else {"": variational.log_joint()}
        parts = [Summand("log_p", "", log_p)]
        return parts + [Summand("log_q", name, -term) for name, term in q_terms.items()]
    p_terms, q_terms = scaled_terms(bn), scaled_terms(variational, without=divergence.analytic)
    latents = [node.name for node in variational._stochastic_nodes() if node.name not in variational._excluded]
    summands = [Summand("log_p", name, term) for name, term in p_terms.items() if name not in latents]
    for name in latents:
        if name in divergence.analytic:
            parts = [Summand("kl", name, -divergence.analytic[name])]
        else:
            parts = [Summand("log_q", name, -q_terms[name])]
            parts += [Summand("log_p", name, p_terms[name])] if name in p_terms else []
        if divergence.free_bits:
            parts = _with_free_bits(parts, divergence.free_bits * scale_of(variational, name), name)
        summands += parts
    return _weighted(summands, divergence.weight, set(latents), log_p.shape)


def total_of(values: Iterable[Tensor], like: Tensor) -> Tensor:
    """The sum, of the shape of ``like``."""
    total = None
    for value in values:
        total = value if total is None else total + value
    if total is None:
        return torch.zeros_like(like)
    return total if total.shape == like.shape else total.expand(like.shape)


def _with_free_bits(parts: list[Summand], free_nats: float, name: str) -> list[Summand]:
    """A latent whose divergence, averaged over samples and batch, is below ``free_nats`` adds these, a constant."""
    with torch.no_grad():
        kl = -functools.reduce(torch.add, [part.value for part in parts])
        is_above = (kl.mean() >= free_nats).to(kl.dtype)
    kept = [part._replace(value=part.value * is_above) for part in parts]
    return [*kept, Summand("constant", name, free_nats * (is_above - 1))]


def _weighted(summands: list[Summand], weight: float | Tensor, latents: set[str], shape: torch.Size) -> list[Summand]:
    if isinstance(weight, Tensor):
        if not broadcasts_to(weight.shape, shape):
            raise ValueError(
                f"kl_weight must be a number or broadcast to the objective's shape, sample + batch {list(shape)}, but "
                f"it has shape {list(weight.shape)}."
            )
    elif weight == 1:
        return summands
    return [s._replace(value=s.value * weight) if s.name in latents else s for s in summands]
