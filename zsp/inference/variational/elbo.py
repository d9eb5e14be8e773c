r"""The evidence lower bound and its gradient estimators.

.. math:: \mathcal{L}(\theta, \phi) = \mathbb{E}_{q_\phi(z \mid x)}[\log p_\theta(x, z) - \log q_\phi(z \mid x)]
    \le \log p_\theta(x)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from zsp.bayesian_net import BayesianNet
from zsp.inference.variational.objective import LogJoint, Objective, Variational
from zsp.node import Node

__all__ = ["ELBO", "elbo"]


def elbo(
    meta_bn: LogJoint,
    observed: Mapping[str, Any],
    *,
    variational: Variational,
    axis: int | tuple[int, ...] | None = None,
    from_prior: Iterable[str] = (),
) -> ELBO:
    r"""Evidence lower bound on :math:`\log p(x)`.

    .. math:: \mathbb{E}_{q(z \mid x)}[\log p(x, z) - \log q(z \mid x)]

    ::

        bound = zsp.elbo(model, {"x": x}, variational=q, axis=0)
        loss = bound.sgvb().mean()     # to minimise
        print(bound.mean())            # to look at

    Args:
        meta_bn: the model, or a callable from one dict of values to the log joint, of shape sample + batch.
        observed: node name -> value; a key that names a parameter of the model function rebinds that input.
        variational: the variational net, executed or to be executed: a MetaBayesianNet or reuse_variables function
            (which gets the observed values whose keys name its parameters), or a callable without arguments.
        axis: the sample axes to average over, counted from 0; None keeps them.
        from_prior: names of latents that are drawn from the model itself and left out of both sums.

    Returns:
        The bound in nats, tensor-like, of shape batch (sample + batch for ``axis=None``); larger is better.

    Raises:
        ValueError: if a latent of the model is missing in the variational net or the reverse, or shapes do not fit.

    Reference: Kingma and Welling 2014, arXiv:1312.6114, equation 2.
    """
    return ELBO(meta_bn, observed, variational=variational, axis=axis, from_prior=from_prior)


class ELBO(Objective):
    """The evidence lower bound, tensor-like; made by :func:`elbo`.

    Differentiating it directly is wrong in general: use an estimator, which returns a cost to minimise.
    """

    _tensor: Tensor | None = None

    @property
    def tensor(self) -> Tensor:
        """The bound in nats, averaged over ``axis``."""
        if self._tensor is None:
            self._tensor = self._mean(self.log_weights)
        return self._tensor

    def sgvb(self) -> Tensor:
        r"""Stochastic gradient variational Bayes: the reparameterisation estimator.

        Every draw is a differentiable function :math:`z = g_\phi(\epsilon)` of noise, so that

        .. math:: \nabla \mathcal{L} = \mathbb{E}_\epsilon \nabla
            [\log p_\theta(x, g_\phi(\epsilon)) - \log q_\phi(g_\phi(\epsilon) \mid x)].

        With ``use_path_derivative=True`` on the variational nodes, the gradient of :math:`\log q_\phi` with respect to
        its own parameters, whose mean is zero, is left out ("sticking the landing": no variance where q is exact).

        Returns:
            The cost to minimise, minus the bound, of the bound's shape.

        Raises:
            ValueError: if a latent's draw is not differentiable but its distribution has something to learn.

        Reference: Kingma and Welling 2014, arXiv:1312.6114, section 2.3; Roeder et al. 2017, arXiv:1703.09194.
        """
        nodes = self.variational._stochastic_nodes()
        for node in nodes:
            if not node.is_reparameterized and not node.is_observed:
                _require_nothing_to_learn(node)
        if self.bn is not None and self.bn._n_drawn:
            for node in self.bn._stochastic_nodes():
                if not node.is_reparameterized and not node.is_observed:
                    _require_nothing_to_learn(node)
        if any([node.use_path_derivative for node in nodes]):
            log_q = _path_derivative(self.variational, self._log_q)
        else:
            log_q = self.variational._log_joint_of_draws()
        self._require_one_shape(log_q)
        return self._mean(log_q - self._log_p)


def _require_nothing_to_learn(node: Node) -> None:
    """A draw without gradient may only follow a distribution without anything to learn."""
    log_prob = node.dist.log_prob(node.value) if node.log_prob is None else node.log_prob
    if log_prob.requires_grad:
        reason = " (is_reparameterized=False)" if node.dist.has_rsample else f": {node.kind} has no such draw"
        raise ValueError(
            f"sgvb needs draws that are differentiable in their parameters, but node {node.name!r} ({node.kind}) is "
            f"not reparameterised{reason}, and its gradient would be silently wrong. Use a relaxation (bin_concrete, "
            "concrete) or a distribution that has one."
        )


def _path_derivative(variational: BayesianNet, log_q: Tensor) -> Tensor:
    r"""log q with the gradient that flows through the draws only.

    The net is executed again with its draws given as leaves z'; the gradient of log q with respect to them, times the
    draws, has the value and gradient wanted. Each node's parameters still see the other nodes' draws, which makes it
    right for a hierarchical q, where stopping each node's own parameters is not.
    """
    nodes = variational._stochastic_nodes()
    partly = [node.name for node in nodes if not node.use_path_derivative and node.is_reparameterized]
    if partly:
        raise ValueError(
            "use_path_derivative is set on some nodes of the variational net, but not on "
            f"{', '.join(map(repr, partly))}; "
            "log q is one function of all draws: set it on all of them or on none."
        )
    if variational._rerun is None:
        raise ValueError(
            "use_path_derivative evaluates log q again at the drawn values, but this variational net was made outside "
            "a decorated function and cannot be executed again. Decorate its function with @zsp.reuse_variables(...) "
            "or @zsp.meta_bayesian_net(...)."
        )
    with torch.enable_grad():
        leaves = {node.name: node.value.detach().requires_grad_() for node in nodes}
        again = variational._rerun(leaves).log_joint()
        gradients = torch.autograd.grad(again.sum(), list(leaves.values()))
    terms = [variational._log_prob(node) for node in nodes]
    n_samples = math.prod(variational._sample_axes())
    path = torch.zeros((), dtype=log_q.dtype, device=log_q.device)
    for node, gradient in zip(nodes, gradients, strict=True):
        through = gradient * (node.value - node.value.detach())
        has_samples = variational._n_sample_axes(node, nodes, terms) or not variational._sample_axes()
        n_kept = log_q.dim() if has_samples else log_q.dim() - len(variational._sample_axes())
        through = through.flatten(n_kept).sum(-1) if through.dim() > n_kept else through
        # one draw shared by all samples has the sum of their gradients, of which each sample takes its part
        path = path + (through if has_samples else through / n_samples)
    return log_q.detach() + path
