r"""The sleep phase: the variational net learns to infer the latents of data that the model dreams.

.. math:: \mathbb{E}_{p_\theta(x)}[\mathrm{KL}(p_\theta(z \mid x) \,\|\, q_\phi(z \mid x))]
    = \mathrm{const} - \mathbb{E}_{p_\theta(z, x)}[\log q_\phi(z \mid x)]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zsp.checks.wording import quoted
from zsp.inference.variational.objective import execute_variational
from zsp.meta_bayesian_net import MetaBayesianNet
from zsp.variables import ReusableFunction

__all__ = ["sleep_cost"]


def sleep_cost(
    meta_bn: MetaBayesianNet, observed: Mapping[str, Any], *, variational: MetaBayesianNet | ReusableFunction
) -> Tensor:
    r"""Minus log q of the latents behind dreamt data, the cost of the sleep phase (sleep-phi).

    .. math:: -\log q_\phi(z \mid x), \quad (z, x) \sim p_\theta

    Both latents and data are drawn from the model; the variational net is executed at the dreamt data, with the dreamt
    latents as its values. Exact, without weights, but at the model's data and not at those observed. See
    :func:`zsp.klpq` for the whole of reweighted wake-sleep.

    Args:
        meta_bn: the model.
        observed: which nodes are data, and the values of inputs, as for the other objectives; the data themselves are
            replaced by dreams.
        variational: the variational net, to be executed: a MetaBayesianNet or a reuse_variables function, whose
            parameters that are named like data get the dreams.

    Returns:
        The cost to minimise, of the shape of log q: sample + batch as the model draws them. It has a gradient for the
        variational net only.

    Raises:
        ValueError: if the variational net lacks a latent of the model, or has one that the model lacks.

    Reference: Hinton et al. 1995, The wake-sleep algorithm for unsupervised neural networks; Bornschein and Bengio
        2015, arXiv:1406.2751, equation 8.
    """
    if not isinstance(meta_bn, MetaBayesianNet):
        raise TypeError(f"the sleep phase draws from the model, which must be a MetaBayesianNet, not {_kind(meta_bn)}.")
    if not isinstance(variational, (MetaBayesianNet, ReusableFunction)):
        raise TypeError(
            "the sleep phase executes the variational net at dreamt data: it must be a MetaBayesianNet or a function "
            f"decorated with @zsp.reuse_variables, not {_kind(variational)}."
        )
    inputs = {name: value for name, value in observed.items() if name in meta_bn._input_names}
    with torch.no_grad():
        dream = meta_bn.observe(**inputs)
    values = {node.name: node.value for node in dream._stochastic_nodes()}
    data = {name: values.pop(name) for name in observed if name in values}
    bn = execute_variational(variational, {**observed, **data}, given=values)
    latents = {node.name for node in bn._stochastic_nodes()}
    if latents != set(values):
        raise ValueError(
            f"the model dreams the latents {quoted(values)}, but the variational net has {quoted(latents)}. They must "
            "be the same; data are the nodes that observed names."
        )
    return -bn.log_joint()


def _kind(value: Any) -> str:
    return type(value).__name__
