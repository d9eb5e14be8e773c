r"""The variational autoencoder of binary images.

.. math::
    z &\sim \mathrm{N}(0, I), \quad x \mid z \sim \mathrm{Bernoulli}(\sigma(f_\theta(z))) \\
    q_\phi(z \mid x) &= \mathrm{N}(\mu_\phi(x), \operatorname{diag} \sigma_\phi(x)^2)

with networks f and (mu, log sigma) of two hidden layers. Where images are grey, their intensities are taken as
probabilities and pixels are drawn anew at every step, as in Burda et al. 2016, section 5.

Reference: Kingma and Welling 2014, arXiv:1312.6114; Burda et al. 2016, arXiv:1509.00519.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

import zsp
from zsp.models.networks import dense

__all__ = ["VAE", "build_vae", "generator"]


@zsp.meta_bayesian_net(scope="gen", reuse_variables=True)
def generator(n: int, x_dim: int, z_dim: int, hidden: int = 500, n_particles: int | None = None) -> zsp.BayesianNet:
    """The generator p(z) p(x | z); nodes ``z``, ``x_mean`` (probabilities of the pixels) and ``x``.

    Args:
        n: the number of images. It changes with the batch, so give it among the observed values:
            ``{"x": x, "n": len(x)}``.
        x_dim: pixels of an image.
        z_dim: size of the latent representation.
        hidden: width of both hidden layers.
        n_particles: draws of ``z`` for each image; None draws one, without an axis of its own.
    """
    bn = zsp.BayesianNet()
    first = zsp.module("hidden_1", nn.Linear, z_dim, hidden)
    z_mean = first.weight.new_zeros(n, z_dim)  # the prior has the weights' dtype and device
    z = bn.normal("z", z_mean, std=1.0, group_ndims=1, n_samples=n_particles)
    h = torch.relu(first(z))
    h = torch.relu(dense("hidden_2", h, hidden))
    x_logits = dense("x_logits", h, x_dim)
    bn.deterministic("x_mean", torch.sigmoid(x_logits))
    bn.bernoulli("x", x_logits, group_ndims=1)
    return bn


class VAE(NamedTuple):
    """The two nets of a variational autoencoder, to be given to an objective.

    Attributes:
        generator: the model; observe ``{"x": x, "n": len(x)}``.
        q_net: the recognition net; ``q_net(x, n_particles)`` gives its net, with the node ``z``.
    """

    generator: zsp.MetaBayesianNet
    q_net: zsp.ReusableFunction


def build_vae(x_dim: int = 784, z_dim: int = 40, hidden: int = 500) -> VAE:
    """A new variational autoencoder, with all its variables made.

    ::

        generator, q_net = zsp.models.build_vae(x_dim=64, z_dim=8, hidden=200)
        optimizer = torch.optim.Adam([*generator.parameters(), *q_net.parameters()], lr=1e-3)
        bound = zsp.elbo(generator, {"x": x, "n": len(x)}, variational=q_net, axis=0)
        bound.sgvb().mean().backward()

    Args:
        x_dim: pixels of an image, which is a vector of zeros and ones.
        z_dim: size of the latent representation.
        hidden: width of the two hidden layers of each net.

    Returns:
        The pair (generator, q_net). Move both with ``.to()``; save them with ``state_dict()``.
    """

    @zsp.reuse_variables("q_net")
    def q_net(x: Tensor, n_particles: int | None = 1) -> zsp.BayesianNet:
        bn = zsp.BayesianNet()
        h = torch.relu(dense("hidden_1", x, hidden))
        h = torch.relu(dense("hidden_2", h, hidden))
        z_mean = dense("z_mean", h, z_dim)
        z_logstd = dense("z_logstd", h, z_dim)
        bn.normal("z", z_mean, logstd=z_logstd, group_ndims=1, n_samples=n_particles)
        return bn

    model = generator(x_dim=x_dim, z_dim=z_dim, hidden=hidden)
    return VAE(model.materialize(n=1), q_net.materialize(torch.zeros(1, x_dim)))
