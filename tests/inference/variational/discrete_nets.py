"""Nets with discrete latents whose parameters carry a batch axis of replicates: one gradient a row.

``NETS[name]`` has a model, a variational net and its parameters; ``gradients`` gives one gradient of a cost for each
row, all of them in one backward pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import zsp

__all__ = ["NETS", "Net", "bound_of", "brute_force_bound", "data_of", "gradients", "parameters_of"]

_MODELS: dict[Any, zsp.MetaBayesianNet] = {}
G = torch.Generator().manual_seed(1)


def t(value: Any) -> Tensor:
    """A float64 tensor, whatever the default is while this module is imported."""
    return torch.as_tensor(value, dtype=torch.float64)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=G, dtype=torch.float64)


@dataclass(frozen=True)
class Net:
    """A model and a variational net.

    Attributes:
        model: (n) -> the model for n rows.
        q: (parameters) -> the executed variational net.
        parameters: name -> one row's parameter.
        data: name -> one row's observation.
        supports: name -> all values of a latent in one row, for brute force; in order of declaration.
    """

    model: Callable[[int], Any]
    q: Callable[..., Any]
    parameters: dict[str, Tensor]
    data: dict[str, Tensor]
    supports: dict[str, Tensor]


def parameters_of(net: Net, n: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """The parameters as leaves, one copy for each of n rows."""
    return {k: v.to(dtype).expand(n, *v.shape).clone().requires_grad_() for k, v in net.parameters.items()}


def data_of(net: Net, n: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {k: v.to(dtype).expand(n, *v.shape) for k, v in net.data.items()}


def bound_of(
    net: Net, n: int, n_samples: int | None = None, dtype: torch.dtype = torch.float64
) -> tuple[zsp.ELBO, dict[str, Tensor]]:
    """The bound in n rows, averaged over samples where there are any, and its parameters."""
    parameters = parameters_of(net, n, dtype)
    q = net.q(**parameters, n_samples=n_samples)
    axis = None if n_samples is None else 0
    return zsp.elbo(model_of(net, n), data_of(net, n, dtype), variational=q, axis=axis), parameters


def model_of(net: Net, n: int) -> zsp.MetaBayesianNet:
    """The model for n rows, made once: a new one would be checked anew."""
    return _MODELS.setdefault((net.model, n), net.model(n))


def gradients(
    net: Net,
    cost: Callable[[Any], Tensor],
    n: int,
    n_samples: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor]:
    """Name -> the gradient of the bound in each row's own parameters, of shape [n, ...]."""
    bound, parameters = bound_of(net, n, n_samples, dtype)
    found = torch.autograd.grad(-cost(bound).sum(), list(parameters.values()))
    return dict(zip(parameters, found, strict=True))


def brute_force_bound(net: Net) -> Tensor:
    """The bound of one row, summed over all values in a Python loop; without gradient."""
    model, data = net.model(1), data_of(net, 1)
    bn_q = net.q(**parameters_of(net, 1))
    total = torch.zeros(())
    for values in itertools.product(*net.supports.values()):
        latents = {name: value.unsqueeze(0) for name, value in zip(net.supports, values, strict=True)}
        log_q = bn_q._rerun(latents).log_joint()
        total = total + (log_q.exp() * (model.observe(**latents, **data).log_joint() - log_q)).sum()
    return total.detach()


def vectors(n_values: int, n_entries: int) -> Tensor:
    """All vectors of labels."""
    return torch.cartesian_prod(*[torch.arange(n_values, dtype=torch.float64)] * n_entries).reshape(-1, n_entries)


# -- one Bernoulli vector: p(x | b) couples its entries ---------------------------------------------------------------

W = normal(3, 4)


@zsp.meta_bayesian_net(scope="one")
def one_model(n):
    bn = zsp.BayesianNet()
    b = bn.bernoulli("b", torch.tensor([0.3, -0.5, 0.2]).expand(n, 3), group_ndims=1)
    bn.bernoulli("x", (2 * b - 1) @ W.to(b), group_ndims=1)
    return bn


@zsp.reuse_variables("q_one")
def one_q(logits, n_samples=None):
    bn = zsp.BayesianNet()
    bn.bernoulli("b", logits, group_ndims=1, n_samples=n_samples)
    return bn


X = t([1.0, 0.0, 1.0, 1.0])
ONE = Net(one_model, one_q, {"logits": t([0.5, -1.0, 0.8])}, {"x": X}, {"b": vectors(2, 3)})


# -- two nodes that do not depend on each other -----------------------------------------------------------------------


@zsp.meta_bayesian_net(scope="several")
def several_model(n):
    bn = zsp.BayesianNet()
    a = bn.bernoulli("a", torch.tensor(-0.4).expand(n))
    b = bn.bernoulli("b", torch.tensor([0.3, -0.5]).expand(n, 2), group_ndims=1)
    bn.normal("x", a.unsqueeze(-1) * b + b, std=0.7, group_ndims=1)
    return bn


@zsp.reuse_variables("q_several")
def several_q(l_a, l_b, n_samples=None):
    bn = zsp.BayesianNet()
    bn.bernoulli("a", l_a, n_samples=n_samples)
    bn.bernoulli("b", l_b, group_ndims=1, n_samples=n_samples)
    return bn


SEVERAL = Net(
    several_model,
    several_q,
    {"l_a": t(0.6), "l_b": t([-0.3, 0.9])},
    {"x": t([1.4, 0.2])},
    {"a": t([0, 1]), "b": vectors(2, 2)},
)


# -- two layers in both nets ------------------------------------------------------------------------------------------

U, V = normal(2, 2), normal(2, 2)


@zsp.meta_bayesian_net(scope="layers")
def layers_model(n):
    bn = zsp.BayesianNet()
    b = bn.bernoulli("b", torch.tensor([0.2, -0.3]).expand(n, 2), group_ndims=1)
    a = bn.bernoulli("a", (2 * b - 1) @ U.to(b), group_ndims=1)
    bn.bernoulli("x", (2 * a - 1) @ W[:2].to(a), group_ndims=1)
    return bn


@zsp.reuse_variables("q_layers")
def layers_q(l_a, l_b, slope, n_samples=None):
    bn = zsp.BayesianNet()
    a = bn.bernoulli("a", l_a, group_ndims=1, n_samples=n_samples)
    bn.bernoulli("b", l_b + slope * ((2 * a - 1) @ V.to(a)), group_ndims=1)
    return bn


LAYERS = Net(
    layers_model,
    layers_q,
    {"l_a": t([0.3, -0.6]), "l_b": t([0.1, 0.5]), "slope": t([0.7, -0.4])},
    {"x": X},
    {"a": vectors(2, 2), "b": vectors(2, 2)},
)


# -- a one-hot vector, and a Bernoulli draw below it ------------------------------------------------------------------

MEANS = normal(4, 2)


@zsp.meta_bayesian_net(scope="one_hot")
def one_hot_model(n):
    bn = zsp.BayesianNet()
    k = bn.onehot_categorical("k", torch.tensor([0.1, 0.4, -0.2, 0.0]).expand(n, 4))
    bn.normal("x", k @ MEANS.to(k), std=0.8, group_ndims=1)
    return bn


@zsp.reuse_variables("q_one_hot")
def one_hot_q(logits, n_samples=None):
    bn = zsp.BayesianNet()
    bn.onehot_categorical("k", logits, n_samples=n_samples)
    return bn


ONE_HOT = Net(
    one_hot_model,
    one_hot_q,
    {"logits": t([0.5, -0.2, 0.1, -0.8])},
    {"x": t([0.4, -0.3])},
    {"k": torch.eye(4, dtype=torch.float64)},
)


@zsp.meta_bayesian_net(scope="one_hot_layers")
def one_hot_layers_model(n):
    bn = zsp.BayesianNet()
    k = bn.onehot_categorical("k", torch.zeros(n, 3))
    b = bn.bernoulli("b", k @ torch.tensor([0.5, -0.5, 1.0]).to(k))
    bn.normal("x", k @ MEANS[:3].to(k) + b.unsqueeze(-1), std=0.9, group_ndims=1)
    return bn


@zsp.reuse_variables("q_one_hot_layers")
def one_hot_layers_q(l_k, l_b, n_samples=None):
    bn = zsp.BayesianNet()
    k = bn.onehot_categorical("k", l_k, n_samples=n_samples)
    bn.bernoulli("b", (k * l_b).sum(-1))
    return bn


ONE_HOT_LAYERS = Net(
    one_hot_layers_model,
    one_hot_layers_q,
    {"l_k": t([0.5, -0.2, 0.3]), "l_b": t([-0.8, 0.2, 0.6])},
    {"x": t([1.0, 0.1])},
    {"k": torch.eye(3, dtype=torch.float64), "b": t([0, 1])},
)


# -- labels, which the model indexes by -------------------------------------------------------------------------------


@zsp.meta_bayesian_net(scope="labels")
def labels_model(n):
    bn = zsp.BayesianNet()
    k = bn.categorical("k", torch.tensor([0.1, 0.4, -0.2, 0.0]).expand(n, 4))
    bn.normal("x", MEANS[k.long()], std=0.8, group_ndims=1)
    return bn


@zsp.reuse_variables("q_labels")
def labels_q(logits, n_samples=None):
    bn = zsp.BayesianNet()
    bn.categorical("k", logits, n_samples=n_samples)
    return bn


LABELS = Net(labels_model, labels_q, ONE_HOT.parameters, ONE_HOT.data, {"k": t([0, 1, 2, 3])})

NETS = {
    "one": ONE,
    "several": SEVERAL,
    "two layers": LAYERS,
    "one-hot": ONE_HOT,
    "one-hot, then Bernoulli": ONE_HOT_LAYERS,
    "labels": LABELS,
}
