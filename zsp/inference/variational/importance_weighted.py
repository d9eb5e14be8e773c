r"""Bounds on the log evidence from several samples, and their gradient estimators.

.. math:: \mathcal{L}_K^\alpha = \frac{1}{1 - \alpha} \log \frac1K \sum_{k=1}^K w_k^{1 - \alpha},
    \quad w_k = p(x, z_k) / q(z_k \mid x), \quad z_k \sim q

:math:`\alpha = 0` is the importance-weighted bound, :math:`\alpha = 1`, in the limit, the ELBO.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from torch import Tensor

from zsp.inference.variational.gradient_gate import Gate
from zsp.inference.variational.klpq import KLpq
from zsp.inference.variational.leave_one_out import leave_one_out_bounds
from zsp.inference.variational.objective import LogJoint, Objective, Variational
from zsp.inference.variational.path_derivative import log_q_through_draws
from zsp.inference.variational.reparameterized import require_differentiable_draws
from zsp.inference.variational.score_function import score_nodes, score_of
from zsp.inference.variational.weights import log_mean_exp, normalized_weights, require_axis

__all__ = ["ImportanceWeightedObjective", "importance_weighted_objective", "iw_objective", "renyi"]


def importance_weighted_objective(
    meta_bn: LogJoint,
    observed: Mapping[str, Any],
    *,
    variational: Variational,
    axis: int | tuple[int, ...] | None = None,
    from_prior: Iterable[str] = (),
) -> ImportanceWeightedObjective:
    r"""Importance-weighted lower bound on :math:`\log p(x)`; ``zsp.iw_objective`` is the same.

    .. math:: \mathbb{E}\Big[\log \frac1K \sum_{k=1}^K \frac{p(x, z_k)}{q(z_k \mid x)}\Big], \quad z_k \sim q

    It grows with K, from the ELBO at K = 1 to :math:`\log p(x)`. ::

        bound = zsp.iw_objective(model, {"x": x}, variational=q, axis=0)
        loss = bound.sgvb().mean()     # .dreg() for a better gradient of q, .vimco() for discrete latents

    Args:
        meta_bn: the model, or a callable from one dict of values to the log joint, of shape sample + batch.
        observed: node name -> value; a key that names a parameter of the model function rebinds that input.
        variational: the variational net, executed or to be executed, as for :func:`zsp.elbo`.
        axis: the sample axes that hold the K samples, counted from 0; must be given.
        from_prior: names of latents that are drawn from the model itself and left out of both sums.

    Returns:
        The bound in nats, tensor-like, of shape batch; larger is better.

    Raises:
        ValueError: if ``axis`` is None, or the nets do not fit one another.

    Reference: Burda et al. 2016, arXiv:1509.00519, equation 8.
    """
    return ImportanceWeightedObjective(meta_bn, observed, variational=variational, axis=axis, from_prior=from_prior)


iw_objective = importance_weighted_objective


def renyi(
    meta_bn: LogJoint,
    observed: Mapping[str, Any],
    *,
    variational: Variational,
    alpha: float,
    axis: int | tuple[int, ...] | None = None,
    from_prior: Iterable[str] = (),
) -> ImportanceWeightedObjective:
    r"""Renyi's variational bound of order alpha, by K samples.

    .. math:: \frac{1}{1 - \alpha} \log \mathbb{E}_{q}\Big[\Big(\frac{p(x, z)}{q(z \mid x)}\Big)^{1 - \alpha}\Big]

    The larger alpha, the lower the bound and the more q seeks a mode: the ELBO at 1, importance weighting at 0 (where
    the K-sample value is a lower bound of :math:`\log p(x)`), an upper bound, as K grows, below 0.

    Args:
        meta_bn: the model, as for :func:`zsp.iw_objective`.
        observed: likewise.
        variational: likewise.
        alpha: the order, a finite number.
        axis: the sample axes that hold the K samples; must be given.
        from_prior: as for :func:`zsp.iw_objective`.

    Returns:
        The bound in nats, tensor-like, of shape batch, with the same estimators as :func:`zsp.iw_objective`.

    Raises:
        ValueError: if ``axis`` is None, alpha is not finite, or the nets do not fit one another.

    Reference: Li and Turner 2016, arXiv:1602.02311, equations 7 and 10.
    """
    return ImportanceWeightedObjective(
        meta_bn, observed, variational=variational, axis=axis, from_prior=from_prior, alpha=alpha
    )


class ImportanceWeightedObjective(Objective):
    """A bound by K samples, tensor-like; made by :func:`importance_weighted_objective` and :func:`renyi`.

    Use an estimator, which returns a cost to minimise. Costs of different estimators of one objective are
    differentiated in backward passes of their own, except for those of wake-sleep.

    Attributes:
        alpha: the order of Renyi's bound, 0 for the importance-weighted one.
    """

    _tensor: Tensor | None = None

    def __init__(
        self,
        meta_bn: LogJoint,
        observed: Mapping[str, Any],
        *,
        variational: Variational,
        axis: int | tuple[int, ...] | None = None,
        from_prior: Iterable[str] = (),
        alpha: float = 0.0,
    ) -> None:
        self._axes = require_axis("an importance-weighted objective", axis)
        if not math.isfinite(alpha):
            raise ValueError(f"alpha must be a finite number, got {alpha}.")
        self.alpha = alpha
        super().__init__(meta_bn, observed, variational=variational, axis=axis, from_prior=from_prior)

    @property
    def tensor(self) -> Tensor:
        """The bound in nats."""
        if self._tensor is None:
            self._tensor = self._bound(self.log_weights)
        return self._tensor

    # -- estimators -------------------------------------------------------------------------------------------------

    def sgvb(self) -> Tensor:
        r"""The reparameterisation estimator: the gradient of the bound through differentiable draws.

        .. math:: \mathbb{E}_\epsilon \sum_k \tilde w_k \nabla \log w_k, \quad \tilde w = \mathrm{softmax}(\log w)

        Its signal-to-noise ratio for the variational net falls like :math:`K^{-1/2}`: prefer :meth:`dreg`.

        Returns:
            The cost to minimise, minus the bound, of shape batch.

        Raises:
            ValueError: if a latent's draw is not differentiable but its distribution has something to learn; if
                variational nodes have ``use_path_derivative``, which would bias it.

        Reference: Burda et al. 2016, arXiv:1509.00519, section 3; Rainforth et al. 2018, arXiv:1802.04537.
        """
        require_differentiable_draws("sgvb", self.bn, self.variational, "Use vimco() for it, or a relaxation")
        self._require_no_path_derivative("sgvb")
        log_q = self.variational._log_joint_of_draws()
        self._require_one_shape(log_q)
        return -self._bound(self._log_p - log_q)

    def vimco(self, mean: Literal["geometric", "arithmetic"] = "geometric") -> Tensor:
        r"""The score-function estimator of the bound, each sample's signal centred by the others.

        .. math:: \sum_k (\hat L - \hat L_{-k}) \nabla \log q(z_k \mid x) + \sum_k \tilde w_k \nabla \log w_k

        where :math:`\hat L_{-k}` is the bound with the mean of the other weights in place of :math:`w_k`. Needs time
        and memory linear in K. Draws that are differentiable keep their pathwise gradient, in the second sum.

        Args:
            mean: which mean of the other weights; "geometric" as in the paper.

        Returns:
            The cost to minimise, of shape batch and of value minus the bound.

        Raises:
            ValueError: if there is one sample, or a draw without gradient is shared by all samples.

        Reference: Mnih and Rezende 2016, arXiv:1602.06725, equation 11.
        """
        if mean not in ("geometric", "arithmetic"):
            raise ValueError(f"vimco's mean is 'geometric' or 'arithmetic', but got {mean!r}.")
        self._require_no_path_derivative("vimco")
        cost = -self.tensor
        scores = [score_of(net, node) for net, node in self._require_draws_of_each_sample()]
        if scores:
            signal = self._leave_one_out_signal(mean)
            for log_prob in scores:
                cost = cost - ((log_prob - log_prob.detach()) * signal).sum(self._axes)
        return cost

    def dreg(self) -> Tensor:
        r"""The doubly reparameterised estimator: for the variational net, the gradient through the draws only.

        .. math:: \nabla_\phi: \ \mathbb{E}_\epsilon \sum_k (\alpha \tilde w_k + (1 - \alpha) \tilde w_k^2)
            \frac{\partial \log w_k}{\partial z_k} \frac{d z_k}{d \phi},
            \qquad \nabla_\theta: \ \mathbb{E} \sum_k \tilde w_k \nabla_\theta \log p_\theta(x, z_k)

        Unbiased like :meth:`sgvb`, without its falling signal-to-noise ratio, and without variance where q is exact.
        The partial derivatives see the draws of a hierarchical q apart. Variables that the model shares with the
        variational net get the model's part through the densities and the variational net's through the draws.

        Returns:
            The cost to minimise, of shape batch and of value minus the bound.

        Raises:
            ValueError: if a latent's draw is not differentiable but its distribution has something to learn, or is
                shared by all samples.

        Reference: Tucker et al. 2019, arXiv:1810.04152, equation 8; for alpha, the same with weights
            :math:`w^{1-\alpha}`.
        """
        require_differentiable_draws("dreg", self.bn, self.variational, "Use vimco() for it, or a relaxation")
        self._require_draws_of_each_sample(reparameterized=True)
        log_q = log_q_through_draws(self.variational)
        self._require_one_shape(log_q)
        log_weights = (self._log_p - log_q).detach()
        weights = normalized_weights(log_weights if self.alpha == 0 else (1 - self.alpha) * log_weights, self._axes)
        factor = weights if self.alpha == 0 else self.alpha + (1 - self.alpha) * weights
        cost = (weights * (factor * log_q - self._log_p)).sum(self._axes)
        cost = cost - (cost.detach() + self._bound(log_weights))  # of value minus the bound
        return self._with_gradients_multiplied_by(factor, cost)  # those of log p, which carry the weights already

    def wake_theta(self) -> Tensor:
        r"""The gradient of the bound for the model alone, at fixed draws and weights: the model's part of wake-sleep.

        .. math:: \sum_k \tilde w_k \nabla_\theta \log p_\theta(x, z_k)

        It is also the model's part of every other estimator here. See :func:`zsp.klpq` for the whole of it.

        Returns:
            The cost to minimise, minus the bound, of shape batch, without gradient for the variational net.

        Reference: Bornschein and Bengio 2015, arXiv:1406.2751, equation 5.
        """
        cost = -self._bound(self._log_p - self._log_q.detach())
        return self._with_gradients_multiplied_by(self._log_p.new_zeros(()), cost)

    def klpq(self) -> KLpq:
        """KL(p || q) of the same execution, so that wake-sleep runs both nets once; see :func:`zsp.klpq`."""
        return KLpq._of(self)

    # -- parts ------------------------------------------------------------------------------------------------------

    def _given_to_model(self, latents: dict[str, Tensor]) -> dict[str, Tensor]:
        self._gates = []
        given = dict(latents)
        for node in self.variational._stochastic_nodes():
            if node.value.requires_grad:
                gate = Gate(node.value, node.value.dim() - node.group_ndims - len(node.dist.event_shape))
                self._gates.append(gate)
                given[node.name] = gate.value
        return given

    def _with_gradients_multiplied_by(self, factor: Tensor, cost: Tensor) -> Tensor:
        """The cost, with what the model sends back to the draws multiplied by ``factor``, sample by sample."""
        if not cost.requires_grad:
            return cost
        for gate in self._gates:
            cost = gate.multiplied_by(factor, cost, self._axes)
        return cost

    def _bound(self, log_weights: Tensor) -> Tensor:
        if self.alpha == 1:
            return log_weights.mean(self._axes)
        if self.alpha == 0:
            return log_mean_exp(log_weights, self._axes)
        return log_mean_exp((1 - self.alpha) * log_weights, self._axes) / (1 - self.alpha)

    def _leave_one_out_signal(self, mean: Literal["geometric", "arithmetic"]) -> Tensor:
        log_weights = self.log_weights.detach()
        n_axes = len(self._axes)
        samples_first = log_weights.movedim(self._axes, tuple(range(n_axes))).flatten(0, n_axes - 1)
        if self.alpha == 1:
            signal = (samples_first - samples_first.mean(0)) / (len(samples_first) - 1)
        else:
            tempered = (1 - self.alpha) * samples_first
            bound = log_mean_exp(tempered, (0,))
            signal = (bound - leave_one_out_bounds(tempered, mean)) / (1 - self.alpha)
        sizes = [log_weights.shape[a] for a in self._axes]
        return signal.unflatten(0, sizes).movedim(tuple(range(n_axes)), self._axes)

    def _require_draws_of_each_sample(self, reparameterized: bool = False) -> list[Any]:
        """The draws that an estimator treats sample by sample."""
        if reparameterized:
            nodes = [(self.variational, n) for n in self.variational._stochastic_nodes() if n.value.requires_grad]
        else:
            nodes = [(net, n) for net, n in score_nodes(self.bn, self.variational) if net._log_prob(n).requires_grad]
        for net, node in nodes:
            if net._log_prob(node).dim() < self._log_p.dim():
                raise ValueError(
                    f"node {node.name!r} has one draw for all samples of axis={self._axis}, but this estimator weighs "
                    "each sample's own draws. Give it the same n_samples as the others."
                )
        n_samples = math.prod([self._log_p.shape[a] for a in self._axes])
        if nodes and not reparameterized and n_samples < 2:
            raise ValueError(
                "vimco needs two samples or more, whose signals centre one another, but axis="
                f"{self._axis} has one. Draw more: n_samples=k on the variational net's nodes."
            )
        return nodes

    def _require_no_path_derivative(self, estimator: str) -> None:
        nodes = [node.name for node in self.variational._stochastic_nodes() if node.use_path_derivative]
        if nodes:
            raise ValueError(
                f"{estimator}() of an importance-weighted bound with use_path_derivative=True (on "
                f"{', '.join(map(repr, nodes))}) would be biased: the gradient that it leaves out has mean zero in the "
                "ELBO only. Use dreg(), which is the path derivative of this bound, or leave the option out."
            )
