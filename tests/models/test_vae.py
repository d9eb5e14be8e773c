"""The ready variational autoencoder: its densities by hand, its bound against numerical integration."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Normal

import zsp
from zsp.models import build_vae, generator


def binary_images(n: int = 5, x_dim: int = 6) -> torch.Tensor:
    return torch.bernoulli(torch.full((n, x_dim), 0.5))


def test_log_joint_is_that_of_its_equations():
    nets, x = build_vae(x_dim=6, z_dim=2, hidden=8), binary_images()
    z = torch.randn(5, 2)
    layers = nets.generator.get_submodule("gen")
    logits = layers.x_logits(torch.relu(layers.hidden_2(torch.relu(layers.hidden_1(z)))))
    expected = Normal(0.0, 1.0).log_prob(z).sum(-1) + Bernoulli(logits=logits).log_prob(x).sum(-1)
    bn = nets.generator.observe(x=x, z=z, n=5)
    torch.testing.assert_close(bn.log_joint(), expected)
    torch.testing.assert_close(bn["x_mean"], torch.sigmoid(logits))


def test_bound_and_importance_sampling_against_numerical_integration():
    """One latent number: log p(x) by the trapezoid rule."""
    nets, x = build_vae(x_dim=6, z_dim=1, hidden=8), binary_images()
    observed = {"x": x, "n": len(x)}
    z = torch.linspace(-9, 9, 4001)[:, None]
    bn = nets.generator.observe(z=z, n=len(z))
    log_likelihood = Bernoulli(logits=bn["x"].dist.logits[:, None]).log_prob(x).sum(-1)
    exact = torch.logsumexp(bn.cond_log_prob("z")[:, None] + log_likelihood, 0) + math.log(18 / 4000)
    estimate = zsp.is_loglikelihood(
        nets.generator, observed, proposal=nets.q_net, n_samples=20_000, chunk=5_000, return_stats=True
    )
    assert (estimate.standard_error < 0.05).all()
    assert ((estimate.log_likelihood - exact).abs() < 5.3 * estimate.standard_error + 1e-3).all()
    bound = zsp.elbo(nets.generator, observed, variational=nets.q_net(x, 20_000)).tensor
    error = bound.std(0) / 20_000**0.5
    assert (bound.mean(0) < exact + 5 * error).all()


def test_a_smaller_last_batch():
    nets = build_vae(x_dim=6, z_dim=2, hidden=8)
    for n in (4, 3):
        x = binary_images(n)
        assert zsp.elbo(nets.generator, {"x": x, "n": n}, variational=nets.q_net, axis=0).sgvb().shape == (n,)


def test_every_parameter_gets_a_gradient():
    nets, x = build_vae(x_dim=6, z_dim=2, hidden=8), binary_images()
    zsp.elbo(nets.generator, {"x": x, "n": len(x)}, variational=nets.q_net, axis=0).sgvb().mean().backward()
    for net in nets:
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_pairs_are_independent_and_save():
    first, second = build_vae(6, 2, 8), build_vae(6, 2, 8)
    x = binary_images()
    assert not torch.equal(first.q_net(x, None)["z"].dist.mean, second.q_net(x, None)["z"].dist.mean)
    for mine, other in zip(first, second, strict=True):
        other.load_state_dict(copy.deepcopy(mine.state_dict()))
    torch.testing.assert_close(first.q_net(x, None)["z"].dist.mean, second.q_net(x, None)["z"].dist.mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_follows_the_dtype_of_its_weights(dtype):
    model = generator(x_dim=6, z_dim=2, hidden=8).materialize(n=1)
    model.to(dtype)
    bn = model.observe(n=3)
    assert bn["z"].dtype == bn["x"].dtype == dtype
    assert bn["x"].shape == (3, 6)


def test_draws_have_an_axis_of_their_own():
    model = generator(x_dim=6, z_dim=2, hidden=8, n_particles=4)
    assert model.observe(n=3)["x"].shape == (4, 3, 6)
    assert isinstance(model, nn.Module)
