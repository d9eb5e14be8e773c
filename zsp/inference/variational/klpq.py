r"""The inclusive divergence of the posterior from the variational net, by self-normalised importance sampling.

.. math:: \mathrm{KL}(p(z \mid x) \,\|\, q(z \mid x)) = \mathbb{E}_{p(z \mid x)}[\log p(z \mid x) - \log q(z \mid x)]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from zsp.inference.variational.objective import LogJoint, Objective, Variational
from zsp.inference.variational.path_derivative import log_q_at_fixed_draws
from zsp.inference.variational.weights import log_mean_exp, normalized_weights, require_axis

__all__ = ["KLpq", "klpq"]


def klpq(
    meta_bn: LogJoint,
    observed: Mapping[str, Any],
    *,
    variational: Variational,
    axis: int | tuple[int, ...] | None = None,
    from_prior: Iterable[str] = (),
) -> KLpq:
    r"""The inclusive divergence KL(p || q) of the posterior from the variational net.

    .. math:: \mathbb{E}_{p(z \mid x)}[\log p(z \mid x) - \log q(z \mid x)]

    It covers the posterior where the ELBO seeks a mode, and needs no differentiable draws. Reweighted wake-sleep is
    made of it (wake-phi), of the importance-weighted bound (wake-theta), and, if wanted, of dreams (sleep-phi)::

        bound = zsp.iw_objective(model, {"x": x}, variational=q, axis=0)
        loss = bound.wake_theta().mean() + bound.klpq().importance().mean()
        loss = loss + zsp.sleep_cost(model, {"x": x}, variational=q).mean()
        loss.backward()

    Each cost has a gradient for one of the nets only, and both nets run once for the first two.

    Args:
        meta_bn: the model, or a callable from one dict of values to the log joint, of shape sample + batch.
        observed: node name -> value; a key that names a parameter of the model function rebinds that input.
        variational: the variational net, executed or to be executed, as for :func:`zsp.elbo`.
        axis: the sample axes over which the weights are normalised, counted from 0; must be given.
        from_prior: names of latents that are drawn from the model itself and left out of both sums.

    Returns:
        An estimate of the divergence in nats, tensor-like, of shape batch, whose bias falls like 1 / K; smaller is
        better.

    Raises:
        ValueError: if ``axis`` is None, or the nets do not fit one another.

    Reference: Bornschein and Bengio 2015, arXiv:1406.2751, section 2; Le et al. 2019, arXiv:1805.10469, section 3.
    """
    return KLpq(meta_bn, observed, variational=variational, axis=axis, from_prior=from_prior)


class KLpq(Objective):
    """The inclusive divergence, tensor-like; made by :func:`klpq`. Use an estimator, which gives a cost to minimise."""

    def __init__(
        self,
        meta_bn: LogJoint,
        observed: Mapping[str, Any],
        *,
        variational: Variational,
        axis: int | tuple[int, ...] | None = None,
        from_prior: Iterable[str] = (),
    ) -> None:
        self._axes = require_axis("KL(p || q)", axis)
        super().__init__(meta_bn, observed, variational=variational, axis=axis, from_prior=from_prior)

    @classmethod
    def _of(cls, objective: Objective) -> KLpq:
        """The divergence at the values at which another objective has executed both nets."""
        new = cls.__new__(cls)
        new.__dict__.update(objective.__dict__)
        new._axes = require_axis("KL(p || q)", objective._axis)
        return new

    @property
    def tensor(self) -> Tensor:
        r"""The estimate, :math:`\sum_k \tilde w_k \log w_k - \log \frac1K \sum_k w_k`, without gradient."""
        log_weights = self.log_weights.detach()
        weights = normalized_weights(log_weights, self._axes)
        return (weights * log_weights).sum(self._axes) - log_mean_exp(log_weights, self._axes)

    def importance(self) -> Tensor:
        r"""Self-normalised importance sampling, of the variational net's variables only (wake-phi).

        .. math:: -\sum_k \tilde w_k \nabla_\phi \log q_\phi(z_k \mid x),
            \quad \tilde w_k \propto p(x, z_k) / q(z_k \mid x), \quad z_k \sim q

        The draws are constants, reparameterised or not. With K samples its bias is of order 1 / K.

        Returns:
            The cost to minimise, the cross-entropy :math:`-\sum_k \tilde w_k \log q(z_k \mid x)`, of shape batch.

        Raises:
            ValueError: if several latents are drawn differentiably by a net that cannot be executed again.

        Reference: Bornschein and Bengio 2015, arXiv:1406.2751, equation 7.
        """
        weights = normalized_weights(self.log_weights.detach(), self._axes)
        return -(weights * log_q_at_fixed_draws(self.variational)).sum(self._axes)
