r"""Discrete draws as thresholds of continuous ones, and their relaxation.

A Bernoulli draw with logit l is :math:`b = [z > 0], \; z = l + \epsilon` with logistic noise; a categorical one with
log probabilities l is the largest component of :math:`z = l + g` with Gumbel noise. Given b, z can be drawn from its
conditional distribution, and

.. math:: \nabla \mathbb{E}[c(z)] = \mathbb{E}[c(z) \nabla \log p(b)] + \mathbb{E}[c'(\tilde z) \, \nabla \tilde z],

with :math:`\tilde z` the same draw written as a function of b, l and noise of its own. Its derivative in l at fixed
noise is :math:`1 - D`, that of z is 1, so that with both at one value

.. math:: c'(z) \, D - c(z) \nabla \log p(b)

has mean zero: a control variate. D is :math:`\sigma(-s l) / \sigma(s (z - l)), \; s = 2 b - 1`, for a Bernoulli draw,
and :math:`e^{z_k - z_b}` for component k of a categorical one.

Reference: Tucker et al. 2017, arXiv:1703.07370, section 3 and appendix; Grathwohl et al. 2018, arXiv:1711.00123,
section 3 and appendix.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import one_hot, softplus

from zsp.distributions.bernoulli import Bernoulli
from zsp.distributions.categorical import Categorical, OneHotCategorical
from zsp.distributions.tensors import open_uniform
from zsp.node import LateValue, Node

__all__ = ["ContinuousDraw", "LateRelaxed", "Relaxation", "RelaxedValue", "continuous_draw"]


class Relaxation(nn.Module):
    r"""The relaxation of REBAR: a temperature, and a scale of the control variate; both are learnt.

    A module that the user owns, so that it is saved, moved and trained with the rest::

        relaxation = zsp.Relaxation()
        optimizer = torch.optim.Adam([*model.parameters(), *q.parameters(), *relaxation.parameters()])

        cost, variance = zsp.elbo(model, {"x": x}, variational=q, axis=0).rebar(relaxation)
        (cost.mean() + variance).backward()

    A relaxed value is :math:`\sigma((\kappa l + \epsilon) / t)`, softmax for categorical nodes, with
    :math:`\kappa = (t^2 + t + 1) / (t + 1)`: the discrete value as t goes to 0, the probability as it goes to infinity.

    Args:
        temperature: t > 0, to begin with.
        scale: :math:`\eta`, what the control variate is multiplied by, to begin with.

    Raises:
        ValueError: for a temperature that is not positive.

    Reference: Tucker et al. 2017, arXiv:1703.07370, section 3.
    """

    def __init__(self, temperature: float = 0.5, scale: float = 1.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, but got {temperature}.")
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    @property
    def temperature(self) -> Tensor:
        """The temperature t, a positive scalar."""
        return self.log_temperature.exp()

    def forward(self, logits: Tensor, z: Tensor, is_binary: bool) -> Tensor:
        """A relaxed value in the unit interval or the simplex.

        Args:
            logits: of a Bernoulli draw, or log probabilities along the last axis.
            z: the continuous draw, logits + noise.
            is_binary: whether it is a Bernoulli draw.
        """
        t = self.temperature
        # kappa l + noise = z + (kappa - 1) l, which has no difference of infinite log probabilities
        argument = (z + t.square() / (t + 1) * logits) / t
        return argument.sigmoid() if is_binary else argument.softmax(-1)

    def extra_repr(self) -> str:
        """The current values."""
        return f"temperature={self.temperature.item():.3g}, scale={self.scale.item():.3g}"


class ContinuousDraw(NamedTuple):
    """The continuous draw behind a discrete one.

    Attributes:
        is_binary: whether the node is Bernoulli.
        logits: its logit, or its log probabilities; a function of the variational net's variables.
        z: the draw, a constant of shape sample + batch (+ [K]).
        slope: D, the derivative of z in the logits less that of the conditional draw; a constant of the same shape.
        score: the derivative of log p(b) in the logits, a constant of the same shape.
    """

    is_binary: bool
    logits: Tensor
    z: Tensor
    slope: Tensor
    score: Tensor

    def in_parameters(self, gradient: Tensor) -> Tensor:
        """A gradient in ``logits`` as one in the parameters before log probabilities are normalised."""
        if self.is_binary:
            return gradient
        return gradient - self.logits.detach().exp() * gradient.sum(-1, keepdim=True)


def continuous_draw(node: Node) -> ContinuousDraw | None:
    """Draw z given the node's discrete value; None for a node that is no Bernoulli or categorical one of zsp."""
    dist, value = node.dist, node.value.detach()
    if isinstance(dist, Bernoulli):
        return _binary_draw(dist.logits, value.to(dist.dtype))
    if isinstance(dist, OneHotCategorical):
        return _categorical_draw(dist.logits.log_softmax(-1), value.to(dist.dtype))
    if isinstance(dist, Categorical):
        return _categorical_draw(dist.logits, one_hot(value.long(), dist.logits.shape[-1]).to(dist.dtype))
    return None


def _binary_draw(logits: Tensor, b: Tensor) -> ContinuousDraw:
    fixed = logits.detach()
    sign = 2 * b - 1
    # the inverse distribution function of logistic noise, cut where z has the sign that b says
    z = sign * softplus(open_uniform(b.shape, fixed).logit() + softplus(sign * fixed))
    slope = (softplus(sign * (fixed - z)) - softplus(sign * fixed)).exp()
    return ContinuousDraw(True, logits, z, slope, b - fixed.sigmoid())


def _categorical_draw(log_p: Tensor, chosen: Tensor) -> ContinuousDraw:
    fixed = log_p.detach()
    log_noise = (-open_uniform(chosen.shape, fixed).log()).log()  # of exponential variables
    largest = (chosen * log_noise).sum(-1, keepdim=True)
    z = -torch.where(chosen > 0, largest, torch.logaddexp(log_noise - fixed, largest))
    return ContinuousDraw(False, log_p, z, (z + largest).exp(), chosen)


class RelaxedValue(LateValue):
    r"""A relaxed value, given to a node whose log probability has a smooth extension to it.

    The log probability of a Bernoulli or one-hot node, :math:`\sum_k x_k \log p_k`, is linear in the value, and so
    has one. A node without is an error.

    Args:
        name: the node's name.
        value: its relaxed value.
    """

    def __init__(self, name: str, value: Tensor) -> None:
        self._name, self._value = name, value

    @property
    def tensor(self) -> Tensor:
        """The relaxed value."""
        return self._value

    def value_of(self, dist: Distribution) -> Tensor:
        """The relaxed value.

        Raises:
            ValueError: if the distribution has no log probability there.
        """
        require_extension(self._name, dist)
        return self._value


class LateRelaxed(RelaxedValue):
    """A relaxed value that is drawn with known noise once the node's logits are known.

    Args:
        name: the node's name.
        draw: its continuous draw at other logits, whose noise is used again.
        relaxation: how it is relaxed.
    """

    def __init__(self, name: str, draw: ContinuousDraw, relaxation: Relaxation) -> None:
        super().__init__(name, draw.z)
        self._draw, self._relaxation = draw, relaxation

    def value_of(self, dist: Distribution) -> Tensor:
        """The relaxed value at the distribution's logits."""
        require_extension(self._name, dist)
        draw = self._draw
        given: Tensor = dist.logits  # type: ignore[attr-defined]
        logits = given if draw.is_binary else given.log_softmax(-1)
        before = draw.logits.detach()
        noise = torch.where(before == -torch.inf, 0.0, draw.z - before)
        return self._relaxation(logits, logits + noise, draw.is_binary)


def require_extension(name: str, dist: Distribution) -> None:
    """The distribution's log probability has a smooth extension to relaxed values.

    Raises:
        ValueError: if it has none.
    """
    if getattr(dist, "relaxed_support", None) is None:
        raise ValueError(
            f"rebar evaluates both nets at relaxed values, but node {name!r} ({type(dist).__name__}) has no log "
            "probability there: bernoulli and onehot_categorical nodes have one. For labels use onehot_categorical in "
            "both nets, or relax(control_variate) without a relaxation."
        )
