r"""Divergences between a latent's two distributions in closed form.

.. math:: \mathbb{E}_{q}[\log q(z \mid \cdot) - \log p(z \mid \cdot)]
    = \mathrm{KL}(q(z \mid \cdot) \,\|\, p(z \mid \cdot))

given the draws that both are conditioned on, where nothing that p(z | .) is conditioned on was computed from z. The
divergence then has no noise from z; the whole bound may have more or less, for near the exact posterior the noise of
log q cancels that of the likelihood.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from zsp.bayesian_net import BayesianNet
from zsp.checks.wording import quoted
from zsp.inference.variational.terms import scale_of

__all__ = ["analytic_divergences"]

_LAST_AXES = tuple(tuple(range(-n, 0)) for n in range(16))


def analytic_divergences(
    bn: BayesianNet,
    variational: BayesianNet,
    wanted: bool | Iterable[str],
    prior_depends_on: Callable[[str], bool],
) -> dict[str, Tensor]:
    """Latent -> its divergence in closed form, of shape sample + batch or batch.

    Args:
        bn: the executed model.
        variational: the executed variational net.
        wanted: True for all latents that have one; names for exactly these.
        prior_depends_on: whether what the prior of a latent is conditioned on was computed from that latent.

    Raises:
        ValueError: if a latent that is named has no closed form.
    """
    latents = {node.name for node in variational._stochastic_nodes()}
    names = sorted(latents) if wanted is True else [wanted] if isinstance(wanted, str) else list(wanted or ())
    found = {}
    for name in names:
        if name not in latents:
            raise ValueError(f"analytic_kl names {name!r}, but the variational net's latents are {quoted(latents)}.")
        kl = _divergence(bn, variational, name, prior_depends_on)
        if isinstance(kl, Tensor):
            found[name] = kl
        elif wanted is not True:
            raise ValueError(
                f"analytic_kl asks for the divergence of {name!r} in closed form, but {kl}. Leave the name out "
                "(analytic_kl=True takes closed forms where there are any), and it is sampled."
            )
    return found


def _divergence(
    bn: BayesianNet, variational: BayesianNet, name: str, prior_depends_on: Callable[[str], bool]
) -> Tensor | str:
    """The latent's divergence, grouped, masked and scaled; or why it has no closed form."""
    q = variational._stochastic(name)
    if name not in bn._nodes:
        return "it is no node of the model"
    p = bn._stochastic(name)
    if q.is_observed:
        return "the variational net observes it"
    if p.group_ndims != q.group_ndims or p.dist.event_shape != q.dist.event_shape:
        return "its axes are grouped differently in the two nets"
    if p.mask is not q.mask:
        return "its masks in the two nets are not the same tensor"
    if len(variational._stochastic_nodes()) > 1 and prior_depends_on(name):
        return "its prior is conditioned on latents that the variational net draws given it"
    try:
        kl = kl_divergence(q.dist, p.dist)
    except NotImplementedError:
        return f"torch has none from {q.kind} to {p.kind}"
    if q.mask is not None:
        kl = torch.where(q.mask, kl, torch.zeros_like(kl))
    axes = _LAST_AXES[q.group_ndims]
    kl = kl.sum(axes) if axes else kl
    return kl if q.total_size is None else kl * scale_of(variational, name)
