r"""The evidence lower bound and its gradient estimators.

.. math:: \mathcal{L}(\theta, \phi) = \mathbb{E}_{q_\phi(z \mid x)}[\log p_\theta(x, z) - \log q_\phi(z \mid x)]
    \le \log p_\theta(x)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, overload

from torch import Tensor

from zsp.inference.variational.analytic_kl import analytic_divergences
from zsp.inference.variational.downstream import Dependencies, Downstream
from zsp.inference.variational.exact import expected_bound
from zsp.inference.variational.moving_mean import MovingMean
from zsp.inference.variational.objective import LogJoint, Objective, Variational
from zsp.inference.variational.path_derivative import log_q_through_draws
from zsp.inference.variational.relax import ControlVariate, relaxed_gradient
from zsp.inference.variational.relaxation import Relaxation
from zsp.inference.variational.reparameterized import require_differentiable_draws, require_path_of_all
from zsp.inference.variational.score_function import (
    Baseline,
    Score,
    advantages,
    baseline_cost,
    score_nodes,
    score_of,
    sums,
)
from zsp.inference.variational.summands import Divergence, Summand, summands_of, total_of
from zsp.inference.variational.terms import Term

__all__ = ["ELBO", "elbo"]


def elbo(
    meta_bn: LogJoint,
    observed: Mapping[str, Any],
    *,
    variational: Variational,
    axis: int | tuple[int, ...] | None = None,
    from_prior: Iterable[str] = (),
    analytic_kl: bool | Iterable[str] = False,
    kl_weight: float | Tensor = 1.0,
    free_bits: float = 0.0,
) -> ELBO:
    r"""Evidence lower bound on :math:`\log p(x)`.

    .. math:: \mathbb{E}_{q(z \mid x)}[\log p(x, z) - \log q(z \mid x)]

    ::

        bound = zsp.elbo(model, {"x": x}, variational=q, axis=0)
        loss = bound.sgvb().mean()     # to minimise
        print(bound.mean())            # to look at

    With a weight and free bits it becomes :math:`\mathbb{E}_q[\log p(x \mid z)] - \beta \sum_z \max(\lambda,
    \mathrm{KL}_z)`, a bound no longer. An annealing schedule is a ``kl_weight`` that differs from step to step (a
    tensor, in compiled code).

    Args:
        meta_bn: the model, or a callable from one dict of values to the log joint, of shape sample + batch.
        observed: node name -> value; a key that names a parameter of the model function rebinds that input.
        variational: the variational net, executed or to be executed: a MetaBayesianNet or reuse_variables function
            (which gets the observed values whose keys name its parameters), or a callable without arguments.
        axis: the sample axes to average over, counted from 0; None keeps them.
        from_prior: names of latents that are drawn from the model itself and left out of both sums.
        analytic_kl: True takes the divergence of a latent's distribution from its prior in closed form wherever torch
            has one and nothing that the prior is conditioned on is drawn given the latent, and samples it elsewhere;
            names ask for exactly these latents, and one that has no closed form is an error. ``terms`` tells which.
            (Near the exact posterior the sampled divergence may give the gradient of less variance.)
        kl_weight: beta, a number or a tensor that broadcasts to sample + batch.
        free_bits: lambda, in nats a latent node: where its divergence, averaged over samples and batch, is below
            lambda, it adds lambda and has no gradient.

    Returns:
        The bound in nats, tensor-like, of shape batch (sample + batch for ``axis=None``); larger is better.

    Raises:
        ValueError: if a latent of the model is missing in the variational net or the reverse, or shapes do not fit.

    Reference: Kingma and Welling 2014, arXiv:1312.6114, equation 2; the weight: Higgins et al. 2017, beta-VAE, equation
    4; free bits: Kingma et al. 2016, arXiv:1606.04934, equation 15.
    """
    return ELBO(
        meta_bn,
        observed,
        variational=variational,
        axis=axis,
        from_prior=from_prior,
        analytic_kl=analytic_kl,
        kl_weight=kl_weight,
        free_bits=free_bits,
    )


class ELBO(Objective):
    """The evidence lower bound, tensor-like; made by :func:`elbo`.

    Differentiating it directly is wrong in general: use an estimator, which returns a cost to minimise.
    """

    _tensor: Tensor | None = None
    _dependencies: Dependencies | None = None
    _all_summands: list[Summand] | None = None
    _divergence = Divergence()
    _is_plain = True  # log p - log q as it stands

    def __init__(
        self,
        meta_bn: LogJoint,
        observed: Mapping[str, Any],
        *,
        variational: Variational,
        axis: int | tuple[int, ...] | None = None,
        from_prior: Iterable[str] = (),
        analytic_kl: bool | Iterable[str] = False,
        kl_weight: float | Tensor = 1.0,
        free_bits: float = 0.0,
    ) -> None:
        super().__init__(meta_bn, observed, variational=variational, axis=axis, from_prior=from_prior)
        if analytic_kl or free_bits or isinstance(kl_weight, Tensor) or kl_weight != 1:
            self._weigh(analytic_kl, kl_weight, free_bits)

    def _weigh(self, analytic_kl: bool | Iterable[str], kl_weight: float | Tensor, free_bits: float) -> None:
        analytic: dict[str, Tensor] = {}
        if analytic_kl:
            if self.bn is None:
                raise ValueError("analytic_kl needs a MetaBayesianNet: a callable log joint shows no distributions.")
            analytic = analytic_divergences(
                self.bn, self.variational, analytic_kl, lambda name: self._depends.prior_depends_on(name)
            )
        self._divergence = Divergence(kl_weight, free_bits, analytic)
        self._is_plain = self._divergence.is_plain

    @property
    def tensor(self) -> Tensor:
        """The bound in nats, averaged over ``axis``."""
        if self._tensor is None:
            if self._is_plain:
                self._tensor = self._mean(self.log_weights)
            else:
                self._tensor = self._mean(total_of([s.value for s in self._summands], self._log_p))
        return self._tensor

    @property
    def terms(self) -> dict[str, Term]:
        """As for any objective; a divergence in closed form stands as ``kl`` alone. Weights are left out."""
        terms = super().terms
        for name, kl in self._divergence.analytic.items():
            terms[name] = Term(None, None, self._mean_of_term(kl))
        return terms

    # -- estimators -------------------------------------------------------------------------------------------------

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
        require_differentiable_draws("sgvb", self.bn, self.variational, "Use reinforce() for it, or a relaxation")
        if not self._is_plain:
            return -self._mean(self._along_paths([]))
        if any([node.use_path_derivative for node in self.variational._stochastic_nodes()]):
            require_path_of_all(self.variational)
            log_q = log_q_through_draws(self.variational)
        else:
            log_q = self.variational._log_joint_of_draws()
        self._require_one_shape(log_q)
        return self._mean(log_q - self._log_p)

    @overload
    def reinforce(
        self,
        variance_reduction: bool = True,
        baseline: None = None,
        moving_mean: MovingMean | None = None,
        *,
        rao_blackwellize: bool = True,
    ) -> Tensor: ...
    @overload
    def reinforce(
        self,
        variance_reduction: Literal[True],
        baseline: Baseline,
        moving_mean: MovingMean | None = None,
        *,
        rao_blackwellize: bool = True,
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def reinforce(
        self,
        *,
        baseline: Baseline,
        moving_mean: MovingMean | None = None,
        rao_blackwellize: bool = True,
    ) -> tuple[Tensor, Tensor]: ...
    def reinforce(
        self,
        variance_reduction: bool = True,
        baseline: Baseline | None = None,
        moving_mean: MovingMean | None = None,
        *,
        rao_blackwellize: bool = True,
    ) -> Tensor | tuple[Tensor, Tensor]:
        r"""The score-function estimator, for draws that are not differentiable: discrete ones, and any other.

        .. math:: \nabla \mathcal{L} = \mathbb{E}\Big[\nabla f
            + \sum_d (f_d - b_d) \nabla \log q(d \mid \cdot)\Big]

        where d runs over the draws without gradient, :math:`f_d` is the sum of those terms of f = log p - log q that
        are downstream of d (Rao-Blackwellised by the dependency graphs of both nets, element by element of the batch),
        and :math:`b_d` a baseline. Draws that are differentiable keep their pathwise gradient, in :math:`\nabla f`.
        The terms of :math:`\nabla f` whose mean is zero, those of :math:`-\log q(d \mid \cdot)`, are left out.

        Baselines: the mean over the other samples of ``axis`` (leave-one-out) unless another is given. A moving mean
        and a tensor may be given together; a neural net of the data makes it NVIL::

            b = net(x)                                             # shape batch
            cost, baseline_cost = bound.reinforce(baseline=b, moving_mean=moving_mean)
            (cost + baseline_cost).mean().backward()

        Each element of the batch is taken to depend on its own draws only, as everywhere in zsp: an axis along which
        data depend on one another's draws is grouped (``group_ndims``). The graphs are found by executing both nets
        once more at the first step for given shapes; see :mod:`zsp.inference.variational.downstream` for where that is
        not possible and the order of declaration is used, which costs variance only. A model whose dependencies change
        with something that is neither an input, a name nor a shape needs ``rao_blackwellize=False``.

        Args:
            variance_reduction: whether there is a baseline.
            baseline: a tensor that broadcasts to sample + batch, for all nodes or by node name; it may depend on the
                data, never on the draws.
            moving_mean: a :class:`zsp.MovingMean`, made once and kept.
            rao_blackwellize: whether a score is multiplied by the terms downstream only, or by all.

        Returns:
            The cost to minimise, of the bound's shape and of value minus the bound. With a ``baseline`` a pair: the
            cost, and what the baseline minimises, half the squared centred signals, summed over the nodes.

        Raises:
            ValueError: if leave-one-out has one sample; if a baseline is given that no node needs or that does not fit.

        Reference: Mnih and Gregor 2014, arXiv:1402.0030; Schulman et al. 2015, arXiv:1506.05254; leave-one-out: Mnih
        and Rezende 2016, arXiv:1602.06725, section 2.3; Kool et al. 2019, equation 8.
        """
        nodes = score_nodes(self.bn, self.variational)
        scores = self._scores(nodes, rao_blackwellize)
        centred = advantages(
            scores,
            self._axis,
            variance_reduction=variance_reduction,
            baseline=baseline,
            moving_mean=moving_mean,
        )
        total = self._along_paths([node.name for net, node in nodes if net is self.variational])
        for score, advantage in zip(scores, centred, strict=True):
            # of value zero, so that the cost is minus the bound
            total = total + (score.log_prob - score.log_prob.detach()) * advantage.detach()
        cost = -self._mean(total)
        if baseline is None:
            return cost
        return cost, self._mean(baseline_cost(centred, self._log_p.detach()))

    def rebar(self, relaxation: Relaxation) -> tuple[Tensor, Tensor]:
        r"""REBAR: the score function with the relaxed objective as a control variate; unbiased, for discrete draws.

        .. math:: \nabla \mathcal{L} = \mathbb{E}\bigl[(f(b) - \eta f(\sigma_t(\tilde z))) \nabla \log q(b)
            + \eta \nabla f(\sigma_t(z)) - \eta \nabla f(\sigma_t(\tilde z))\bigr], \quad f = \log p - \log q

        where b, a bernoulli or one-hot draw, is :math:`[z > 0]` or the largest component of z, :math:`\tilde z` is
        drawn again given b, and :math:`\sigma_t` relaxes z at the temperature t::

            relaxation = zsp.Relaxation(temperature=0.5)           # made once and kept; its parameters are trained too
            cost, variance = zsp.elbo(model, {"x": x}, variational=q, axis=0).rebar(relaxation)
            (cost.mean() + variance).backward()

        Both nets are evaluated at relaxed values, once for each layer of discrete nodes that depend on one another. The
        log probability of a Bernoulli or one-hot node there is its linear extension, :math:`\sum_k x_k \log p_k`, in
        log p and in log q. The model must be continuous in the relaxed values: where it rounds, compares or indexes by
        them, the gradient would be biased (what the first execution finds of this is an error). Differentiable draws
        keep their pathwise gradients, as in :meth:`reinforce`. Where ``axis`` has several samples, what multiplies the
        score is also taken less its mean over the others.

        Args:
            relaxation: temperature t and scale :math:`\eta`, a module that the user owns.

        Returns:
            The cost to minimise, of the bound's shape and of value minus the bound; and a scalar that trains
            ``relaxation`` and nothing else: the mean square of the gradient in the draws' logits, which is its variance
            up to a constant.

        Raises:
            ValueError: if a draw without gradient is not bernoulli or onehot_categorical, or one of them has no log
                probability at relaxed values in the model.

        Reference: Tucker et al. 2017, arXiv:1703.07370, section 3.
        """
        if not isinstance(relaxation, Relaxation):
            raise TypeError(
                f"rebar takes a zsp.Relaxation, made once and kept, but got {type(relaxation).__name__}: "
                "relaxation = zsp.Relaxation(temperature=0.5); bound.rebar(relaxation)."
            )
        return self._relaxed(relaxation, None)

    def relax(self, control_variate: ControlVariate, relaxation: Relaxation | None = None) -> tuple[Tensor, Tensor]:
        r"""RELAX: as :meth:`rebar`, with a control variate of one's own, a network for example; unbiased.

        .. math:: \nabla \mathcal{L} = \mathbb{E}\bigl[(f(b) - c(\tilde z)) \nabla \log q(b)
            + \nabla c(z) - \nabla c(\tilde z)\bigr]

        ::

            net = torch.nn.Sequential(torch.nn.Linear(8, 50), torch.nn.Tanh(), torch.nn.Linear(50, 1))
            c = ...                                             # a module: forward(z) = net(z["b"]).squeeze(-1)
            cost, variance = zsp.elbo(model, {"x": x}, variational=q, axis=0).relax(c)
            (cost.mean() + variance).backward()                 # trains the nets by cost and c by variance

        Without a ``relaxation`` neither net is evaluated at relaxed values, so that labels (``categorical``) and models
        that index or compare are allowed.

        Args:
            control_variate: c, a differentiable function, a module if it is to be trained. It is called for each layer
                of discrete nodes with a dict of their continuous draws, name -> z of shape sample + batch (+ [K]), and
                returns a tensor of shape sample + batch. A layer is a set of nodes that do not depend on one another.
            relaxation: adds the control variate of :meth:`rebar` to c.

        Returns:
            The cost to minimise, of the bound's shape and of value minus the bound; and a scalar that trains
            ``control_variate`` and ``relaxation`` and nothing else, as for :meth:`rebar`.

        Raises:
            ValueError: if a draw without gradient is not bernoulli, categorical or onehot_categorical, or if c returns
                another shape.

        Reference: Grathwohl et al. 2018, arXiv:1711.00123, section 3.
        """
        if not callable(control_variate) or isinstance(control_variate, Relaxation):
            raise TypeError(
                "relax takes a function or module from a dict of continuous draws to a tensor, but got "
                f"{type(control_variate).__name__}. A relaxation alone is for rebar(relaxation); beside a control "
                "variate it comes second: relax(control_variate, relaxation)."
            )
        return self._relaxed(relaxation, control_variate)

    def enumerate(self, max_rows: int = 10_000) -> Tensor:
        r"""The exact expectation over the discrete draws; no variance where all draws are discrete.

        .. math:: \mathcal{L} = \sum_k q(k) \, (\log p(x, k) - \log q(k))

        The sum has a row for each joint value of the variational net's discrete nodes. Elements of the batch share
        rows: N data with a K-way latent each take K rows; n entries that ``group_ndims`` sums take :math:`K^n`. Both
        nets are executed for all rows under ``vmap``. Differentiable draws are drawn anew, with their pathwise
        gradients.

        Args:
            max_rows: the number of rows above which the table is refused.

        Returns:
            The cost to minimise, of the bound's shape. Its value is minus the exact bound where all draws are discrete.

        Raises:
            ValueError: if a draw without gradient has no finite list of values, or the table would be too large.
        """
        self._require_plain("enumerate")
        return -self._mean(expected_bound(self, max_rows))

    def _relaxed(self, relaxation: Relaxation | None, control_variate: ControlVariate | None) -> tuple[Tensor, Tensor]:
        self._require_plain("rebar and relax")
        gradient, variance = relaxed_gradient(self, relaxation, control_variate)
        scored = [node.name for net, node in score_nodes(self.bn, self.variational) if net is self.variational]
        return -self._mean(self._along_paths(scored) + gradient), variance

    def _require_plain(self, estimator: str) -> None:
        if not self._is_plain:
            raise ValueError(
                f"{estimator} evaluates log p - log q as it stands at other values than the draws, but this bound has "
                "analytic_kl, kl_weight or free_bits. Leave them out, or use reinforce()."
            )

    # -- parts ------------------------------------------------------------------------------------------------------

    @property
    def _depends(self) -> Dependencies:
        if self._dependencies is None:
            self._dependencies = Dependencies(self._meta_bn, self.bn, self.variational, self.observed)
        return self._dependencies

    @property
    def _summands(self) -> list[Summand]:
        if self._all_summands is None:
            self._all_summands = summands_of(self.bn, self.variational, self._log_p, self._divergence)
        return self._all_summands

    def _along_paths(self, scored: list[str]) -> Tensor:
        """The objective as a function of its variables, through differentiable draws.

        Args:
            scored: the variational nodes whose log q has a gradient of mean zero, which is left out.
        """
        summands = self._summands
        values = [s.value.detach() if s.kind == "log_q" and s.name in scored else s.value for s in summands]
        if any([node.use_path_derivative for node in self.variational._stochastic_nodes()]):
            require_path_of_all(self.variational)
            if self._divergence.analytic or self._divergence.free_bits:
                raise ValueError(
                    "use_path_derivative leaves a part of log q's gradient out, but analytic_kl and free_bits take log "
                    "q apart. Use the one or the others."
                )
            log_q = log_q_through_draws(self.variational) * self._divergence.weight
            values = [value for s, value in zip(summands, values, strict=True) if s.kind != "log_q"] + [-log_q]
        return total_of(values, self._log_p)

    def _scores(self, nodes: list[Any], rao_blackwellize: bool) -> list[Score]:
        """The draws without gradient and the terms downstream of each."""
        summands = self._summands
        names = [node.name for _, node in nodes]
        everything = frozenset(range(len(summands)))
        chosen = [everything] * len(names)
        if rao_blackwellize and names and len(summands) > 1:
            changes = [self._depends.changed_by(name) for name in names]
            chosen = [
                frozenset([i for i, s in enumerate(summands) if _is_downstream(s, name, change)])
                for name, change in zip(names, changes, strict=True)
            ]
        signals = sums([s.value for s in summands], chosen, self._log_p.detach())
        return [
            Score(node.name, score_of(net, node), signal) for (net, node), signal in zip(nodes, signals, strict=True)
        ]


def _is_downstream(summand: Summand, name: str, change: Downstream) -> bool:
    if not summand.name:  # a whole log joint
        return True
    if summand.kind == "log_p":
        return summand.name in change.conditionals or summand.name in change.values
    if summand.kind == "log_q":
        return summand.name in change.latents
    if summand.kind == "kl":
        has_moved_parent = summand.name in change.latents and summand.name != name
        return has_moved_parent or summand.name in change.conditionals
    return False
