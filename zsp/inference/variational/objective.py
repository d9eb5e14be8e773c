"""What the variational objectives share: both nets executed, their log densities, and the shapes that must fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from zsp import checks
from zsp.bayesian_net import BayesianNet
from zsp.inference.enumeration import EnumeratedNet
from zsp.inference.variational.terms import Term, terms_of
from zsp.meta_bayesian_net import MetaBayesianNet
from zsp.node import Unavailable
from zsp.tensor_like import TensorLike
from zsp.variables import ReusableFunction

__all__ = ["LogJoint", "Objective", "Variational", "execute_model", "execute_variational", "latent_values"]

LogJoint = MetaBayesianNet | Callable[[dict[str, Tensor]], Tensor]
"""A model: a net, or its log joint as a function of one dict of latent and observed values."""

Variational = BayesianNet | MetaBayesianNet | Callable[..., BayesianNet]
"""A variational net: executed, or something that executes it."""


class Objective(TensorLike):
    """A variational objective: the model and the variational net, executed at the same latent values.

    Attributes:
        bn: the executed model; None where the model is a callable.
        variational: the executed variational net.
        observed: the observed values and inputs.
    """

    bn: BayesianNet | None
    variational: BayesianNet

    def __init__(
        self,
        meta_bn: LogJoint,
        observed: Mapping[str, Any],
        *,
        variational: Variational,
        axis: int | tuple[int, ...] | None = None,
        from_prior: Iterable[str] = (),
    ) -> None:
        self.observed = observed
        self._meta_bn = meta_bn
        self.variational = bn_q = execute_variational(variational, observed)
        self._axis = axis if axis is None else _sample_axis(bn_q, axis)
        sample_shape = bn_q._sample_axes()
        latents, sampled = latent_values(bn_q, observed, sample_shape)
        latents = self._given_to_model(latents)
        self.bn, self._log_p = execute_model(meta_bn, observed, latents, sample_shape, sampled, tuple(from_prior))
        if self.bn is not None and (self.bn._is_scaled or bn_q._is_scaled):
            _check_total_sizes(self.bn, bn_q, latents)
        if bn_q._checks:
            self._require_one_shape(self._log_q)

    def _given_to_model(self, latents: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors under which the model gets the latents' values."""
        return latents

    @property
    def terms(self) -> dict[str, Term]:
        """The pieces of the objective by node: what each adds to log p and to log q; see :class:`Term`.

        ::

            terms = zsp.elbo(model, {"x": x}, variational=q, axis=0).terms
            print({name: term.kl.mean() for name, term in terms.items() if term.kl is not None})

        Latents that are drawn from the model itself (``from_prior``) have no piece. The tensors are differentiable, so
        that costs of one's own can be made of them; they reuse the log probabilities that the objective has.

        Raises:
            ValueError: if the model's log joint is not a sum over nodes (a callable, or a ``log_joint`` of its own).
        """
        return {name: term.map(self._mean_of_term) for name, term in terms_of(self.bn, self.variational).items()}

    @property
    def _log_q(self) -> Tensor:
        """log q(z | x) at the draws, a function of them and of the variational net's variables."""
        return self.variational.log_joint()

    def _require_one_shape(self, log_q: Tensor) -> None:
        if self._log_p.shape != log_q.shape:
            raise _shapes_differ(self.variational, self._log_p, log_q)

    @property
    def log_weights(self) -> Tensor:
        r""":math:`\log p(x, z) - \log q(z \mid x)`, of shape sample + batch."""
        log_q = self._log_q
        self._require_one_shape(log_q)
        return self._log_p - log_q

    def _mean(self, value: Tensor) -> Tensor:
        return value if self._axis is None else value.mean(self._axis)

    def _mean_of_term(self, value: Tensor) -> Tensor:
        """The mean of one node's term, which may lack the sample axes."""
        return self._mean(value) if value.dim() == self._log_p.dim() else value

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.tensor!r})"


def execute_variational(
    variational: Variational,
    observed: Mapping[str, Any],
    sample_shape: tuple[int, ...] | None = None,
    given: Mapping[str, Tensor] | None = None,
) -> BayesianNet:
    """The variational net, executed now unless it was already.

    A MetaBayesianNet, or a function decorated with ``reuse_variables``, gets those observed values whose keys name its
    parameters, and ``given``, values of its nodes; any other callable is called without arguments.
    """
    if isinstance(variational, BayesianNet):
        return variational
    if isinstance(variational, MetaBayesianNet):
        inputs = {name: value for name, value in observed.items() if name in variational._input_names}
        return variational._execute({**inputs, **(given or {})}, sample_shape=sample_shape)
    if isinstance(variational, ReusableFunction):
        names = variational._function.__code__.co_varnames[: variational._function.__code__.co_argcount]
        inputs = {name: value for name, value in observed.items() if name in names}
        bn = variational._run_observed(given or {}, (), inputs, sample_shape)
    elif callable(variational):
        bn = variational()
    else:
        bn = variational
    if not isinstance(bn, BayesianNet):
        raise TypeError(
            "variational must be an executed zsp.BayesianNet, or a MetaBayesianNet or function that gives one, but got "
            f"{type(bn).__name__}."
        )
    return bn


def latent_values(
    variational: BayesianNet, observed: Mapping[str, Any], sample_shape: tuple[int, ...]
) -> tuple[dict[str, Tensor], frozenset[str]]:
    """The values of the variational net's stochastic nodes, and the names of those with sample axes."""
    nodes = variational._stochastic_nodes()
    latents = {}
    are_known = True
    for node in nodes:
        if node.name in observed:
            raise ValueError(
                f"{node.name!r} is both observed and a node of the variational net. A latent has a variational "
                "distribution, an observation has none: remove it from one of the two."
            )
        if isinstance(node.value, Unavailable):
            raise node.value.error()
        latents[node.name] = node.value
        are_known = are_known and node.with_samples
    if not sample_shape:
        return latents, frozenset()
    if are_known:
        return latents, frozenset(latents)
    terms = [variational._log_prob(node) for node in nodes]
    sampled = (node.name for node in nodes if variational._n_sample_axes(node, nodes, terms))
    return latents, frozenset(sampled)


def execute_model(
    meta_bn: LogJoint,
    observed: Mapping[str, Any],
    latents: Mapping[str, Tensor],
    sample_shape: tuple[int, ...],
    sampled: frozenset[str],
    from_prior: tuple[str, ...] = (),
) -> tuple[BayesianNet | None, Tensor]:
    """The model executed at the given values, and its log joint there.

    Args:
        meta_bn: the model.
        observed: observed values and inputs.
        latents: latent values.
        sample_shape: the sizes of the sample axes.
        sampled: names of the latents that carry these axes.
        from_prior: names of latents to be drawn from the model itself and left out of its log joint.
    """
    if isinstance(meta_bn, EnumeratedNet):
        values = {**observed, **latents}
        return None, meta_bn._log_joint(values, sample_shape, sampled, frozenset(from_prior))
    if isinstance(meta_bn, MetaBayesianNet):
        bn = meta_bn._execute(
            {**observed, **latents},
            sample_shape=sample_shape or None,
            with_samples=sampled,
            excluded=frozenset(from_prior),
            latents=latents,
        )
        _check_latents(bn, latents, from_prior)
        return bn, bn.log_joint()
    if from_prior:
        raise ValueError("from_prior needs a MetaBayesianNet as the model: a callable log joint cannot draw latents.")
    if not callable(meta_bn):
        raise TypeError(
            "the model must be a MetaBayesianNet or a callable from a dict of values to the log joint, but got "
            f"{type(meta_bn).__name__}. Call the decorated function first: model = build_model(...)."
        )
    log_p = meta_bn({**observed, **latents})
    if not isinstance(log_p, Tensor):
        raise TypeError(
            f"the model, a callable on a dict, must return its log joint as a tensor, but it returned "
            f"{type(log_p).__name__}. A function decorated with meta_bayesian_net is called first: "
            "model = build_model(...)."
        )
    return None, log_p


def _sample_axis(variational: BayesianNet, axis: int | tuple[int, ...]) -> int | tuple[int, ...]:
    declared = len(variational._sample_axes())
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    wrong = [a for a in axes if not 0 <= a < declared]
    if wrong:
        has = f"the leading {declared} axis" if declared == 1 else f"{declared} of them"
        raise ValueError(
            f"axis={axis} is to reduce sample axes, but the variational net declares {has if declared else 'none'}. "
            "Sample axes are declared by n_samples=k on its nodes, come first, and are counted from 0."
        )
    return axis


def _check_latents(bn: BayesianNet, latents: Mapping[str, Any], from_prior: tuple[str, ...]) -> None:
    if not bn._n_drawn and not from_prior:
        return
    nodes = {node.name: node for node in bn._stochastic_nodes()}
    for name in from_prior:
        if name not in nodes or nodes[name].is_observed:
            what = "has no such stochastic node" if name not in nodes else "was given a value for it"
            raise ValueError(
                f"from_prior names {name!r}, but the model {what}. Name latents that the model should draw."
            )
    forgotten = [name for name, node in nodes.items() if not node.is_observed and name not in from_prior]
    if forgotten:
        raise checks.forgotten_latents(bn, forgotten, latents)


def _check_total_sizes(bn: BayesianNet, variational: BayesianNet, latents: Mapping[str, Any]) -> None:
    for name in latents:
        in_model, in_variational = bn._stochastic(name).total_size, variational._stochastic(name).total_size
        if in_model != in_variational:
            raise ValueError(
                f"the latent {name!r} has total_size={in_model} in the model and total_size={in_variational} in the "
                "variational net, so that its two terms would be scaled differently. Give both the same."
            )


def _shapes_differ(variational: BayesianNet, log_p: Tensor, log_q: Tensor) -> ValueError:
    return ValueError(
        f"the model's log joint has shape {list(log_p.shape)} and the variational net's {list(log_q.shape)}, but they "
        f"must be equal: sample {list(variational._sample_axes())} + one batch shape. Where the model has more axes, "
        "its data share the latents: group them into one event (group_ndims=1 on the data's node). Where the "
        "variational net has more, group the latents' axes there."
    )
