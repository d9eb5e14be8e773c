r"""Any torch module with Gaussian weights in its linear and convolutional layers, trained by its evidence lower bound.

.. math:: \mathcal L = \mathbb{E}_{q(w)}[\log p(y \mid f_w(x))] - \mathrm{KL}(q(w) \,\|\, p(w))
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import zsp
from zsp.models.likelihoods import Likelihood
from zsp.models.variational_layers import VariationalLayer
from zsp.models.weight_divergences import WeightDivergence

__all__ = ["variational"]


def variational(
    module: nn.Module,
    *,
    likelihood: Likelihood,
    divergence: WeightDivergence | None = None,
    estimator: str = "local",
    std: float = 0.05,
    total_size: int | None = None,
) -> zsp.MetaBayesianNet:
    r"""A torch module whose linear and convolutional layers have Gaussian weights, as a model to be trained.

    .. math:: \mathcal L = \mathbb{E}_{q(w)}[\log p(y \mid f_w(x))] - \mathrm{KL}(q(w) \,\|\, p(w))

    Its log joint is an estimate of this bound with one draw of the weights, which never become nodes: they are what the
    layers integrate out, or draw for each datum apart. The divergence is the deterministic node ``kl``. ::

        model = zsp.models.variational(net, likelihood=zsp.models.CategoricalLikelihood(), total_size=60_000)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        zsp.fit(lambda batch: -model(batch) / 60_000, {"x": x, "y": y}, optimizer=optimizer, batch_size=100)
        draws = torch.stack([model.observe(x=x_test)["output"] for _ in range(100)])       # one execution, one draw

    The module is copied. Its other layers stay as they are: their parameters are trained without a prior.

    Args:
        module: the network; its first axis of input and output is that of the data.
        likelihood: declares ``y`` given the output, as for :func:`zsp.models.bayesian`.
        divergence: of the weights from their prior; default :class:`zsp.models.GaussianDivergence` from N(0, 1).
        estimator: "local" (local reparameterisation), "flipout" or "shared" (Bayes by backprop); see
            :class:`zsp.models.VariationalLayer`.
        std: the weights' standard deviation to begin with; the means begin at the module's values.
        total_size: N, when ``y`` holds a mini-batch of N data: the likelihood's term is scaled, the divergence is not.

    Returns:
        The model, with the input ``x`` and the nodes ``output``, ``kl`` and ``y``.

    Raises:
        ValueError: if the module has no layer to be made variational, and as for :class:`zsp.models.VariationalLayer`.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"variational needs a torch.nn.Module, but got {type(module).__name__}.")
    network = copy.deepcopy(module)
    options: dict[str, Any] = {"std": std, "divergence": divergence, "estimator": estimator}
    if VariationalLayer.takes(network):
        network = VariationalLayer(network, **options)
    else:
        _replace_layers(network, options)
    if not any(isinstance(part, VariationalLayer) for part in network.modules()):
        raise ValueError(
            f"the module ({type(module).__name__}) has no nn.Linear, nn.Conv1d, nn.Conv2d or nn.Conv3d to be made "
            "variational. zsp.models.bayesian with zsp.mean_field takes any module."
        )
    model = _variational_module(network=network, likelihood=likelihood, total_size=total_size)
    model.log_joint = _lower_bound  # type: ignore[misc]
    return model


def _replace_layers(
    network: nn.Module, options: dict[str, Any], done: dict[nn.Module, VariationalLayer] | None = None
) -> None:
    """Variational layers in place of all layers that have such; one for a layer that is used in several places."""
    done = {} if done is None else done
    for name, part in list(network._modules.items()):  # named_children() names a shared layer once only
        if part is None:
            continue
        if VariationalLayer.takes(part):
            if part not in done:
                done[part] = VariationalLayer(part, **options)
            setattr(network, name, done[part])
        elif not isinstance(part, VariationalLayer):
            _replace_layers(part, options, done)


@zsp.meta_bayesian_net(scope="variational")
def _variational_module(x: Any, network: nn.Module, likelihood: Likelihood, total_size: int | None) -> zsp.BayesianNet:
    """The net of :func:`variational`."""
    bn = zsp.BayesianNet()
    output = bn.deterministic("output", network(*x) if isinstance(x, tuple) else network(x))
    layers = [part for part in network.modules() if isinstance(part, VariationalLayer)]
    bn.deterministic("kl", torch.stack([layer.kl() for layer in layers]).sum())
    likelihood(bn, output, group_ndims=output.dim(), total_size=total_size)
    return bn


def _lower_bound(bn: zsp.BayesianNet) -> Tensor:
    """The evidence lower bound, estimated with the draws that the layers made."""
    return bn.log_joint() - bn["kl"]
