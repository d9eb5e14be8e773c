"""Variational layers: laws of their outputs, divergences by quadrature, and training to a known posterior."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import nn
from torch.distributions import Normal, kl_divergence

import zsp
from tests.monte_carlo import assert_less_variance, assert_mean
from zsp import models

N_DRAWS = 20_000


def with_random_parameters(layer: models.VariationalLayer) -> models.VariationalLayer:
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(torch.randn_like(parameter) - (1.0 if name.endswith("logstd") else 0.0))
    return layer


def repeated(function, n: int) -> torch.Tensor:
    """What n calls give, with random numbers of their own."""
    return torch.func.vmap(lambda _: function(), randomness="different")(torch.zeros(n))


def outer_products(draws: torch.Tensor) -> torch.Tensor:
    """Products of the deviations of all pairs of components, whose mean is the covariance."""
    deviations = (draws - draws.mean(0)).flatten(1)
    return torch.einsum("si,sj->sij", deviations, deviations) * (len(draws) / (len(draws) - 1))


def exact_law(layer, x):
    """Mean and covariance of the flattened outputs for one datum, from the outputs' linear dependence on the weights."""

    def output(weight, bias):
        return layer._apply_weight(x, weight, bias).flatten()

    mean = output(layer.weight_mean, layer.bias_mean).detach()
    by_weight, by_bias = torch.autograd.functional.jacobian(output, (layer.weight_mean, layer.bias_mean))
    jacobian = torch.cat([by_weight.flatten(1), by_bias.flatten(1)], 1)
    variance = torch.cat([(2 * layer.weight_logstd).exp().flatten(), (2 * layer.bias_logstd).exp()])
    return mean, (jacobian * variance) @ jacobian.T


LAYERS = {
    "linear": (lambda: nn.Linear(4, 3), (4,)),
    "conv1d": (lambda: nn.Conv1d(2, 2, 2), (2, 3)),
    "conv2d": (lambda: nn.Conv2d(2, 4, 2, stride=2, padding=1, groups=2), (2, 2, 3)),
}


@pytest.mark.parametrize("estimator", models.ESTIMATORS)
@pytest.mark.parametrize("build, shape", LAYERS.values(), ids=LAYERS)
@torch.no_grad()
def test_one_datums_outputs_have_the_mean_and_covariance_of_the_weights_law(build, shape, estimator):
    layer = with_random_parameters(models.VariationalLayer(build(), estimator=estimator))
    x = torch.randn(1, *shape)
    mean, covariance = exact_law(layer, x)
    draws = repeated(lambda: layer(x)[0], 4000).flatten(1)
    assert_mean(draws, mean)
    if estimator == "local":  # positions of a convolution are independent
        n_positions = draws.shape[1] // layer.weight_mean.shape[0]
        same = torch.block_diag(*[torch.ones(1, 1)] * draws.shape[1]) if n_positions > 1 else torch.ones(1)
        covariance = covariance * same
    assert_mean(outer_products(draws), covariance)


@pytest.mark.parametrize("estimator, is_shared", [("local", False), ("flipout", False), ("shared", True)])
@torch.no_grad()
def test_data_of_a_mini_batch_are_uncorrelated_unless_they_share_a_draw(estimator, is_shared):
    layer = with_random_parameters(models.VariationalLayer(nn.Linear(4, 2), estimator=estimator))
    x = torch.randn(1, 4).expand(2, 4)
    draws = repeated(lambda: layer(x), 4000)
    _, covariance = exact_law(layer, x[:1])
    between = outer_products(draws)[:, :2, 2:]
    assert_mean(between, covariance if is_shared else torch.zeros(2, 2))
    assert covariance.diagonal().min() > 0.1  # so that the zero is news


@pytest.mark.parametrize("estimator", models.ESTIMATORS)
@torch.no_grad()
def test_a_linear_layer_on_sequences(estimator):
    layer = with_random_parameters(models.VariationalLayer(nn.Linear(2, 3), estimator=estimator))
    x = torch.randn(5, 2, 2)
    draws = repeated(lambda: layer(x), 2000)
    assert_mean(draws, nn.functional.linear(x, layer.weight_mean, layer.bias_mean))


def test_variance_of_the_gradient():
    """Local noise for each datum averages out over a mini-batch; a shared draw does not."""
    x, y = torch.randn(100, 3), torch.randn(100, 2)
    gradients = {}
    for estimator in models.ESTIMATORS:
        torch.manual_seed(1)
        layer = with_random_parameters(models.VariationalLayer(nn.Linear(3, 2), estimator=estimator))
        parameters = dict(layer.named_parameters())

        def loss(mean, layer=layer, parameters=parameters):
            output = torch.func.functional_call(layer, {**parameters, "weight_mean": mean}, (x,))
            return (output - y).square().mean()

        draw = torch.func.grad(loss)
        gradients[estimator] = (
            repeated(lambda draw=draw, layer=layer: draw(layer.weight_mean), 2000).flatten(1).detach()
        )
    assert_mean(gradients["local"] - gradients["shared"], torch.zeros(6))
    assert_mean(gradients["flipout"] - gradients["shared"], torch.zeros(6))
    assert_less_variance(gradients["local"], gradients["shared"])
    assert_less_variance(gradients["flipout"], gradients["shared"])


def test_inputs_of_zero_have_finite_gradients():
    layer = models.VariationalLayer(nn.Linear(3, 2, bias=False))
    layer(torch.zeros(4, 3)).sum().backward()
    assert layer.weight_logstd.grad is not None and bool((layer.weight_logstd.grad == 0).all())


# -- divergences ------------------------------------------------------------------------------------------------------


def quadrature(mean: float, std: float, log_prior) -> float:
    """E_q[log q - log p] on a grid of the noise."""
    q = stats.norm(mean, std)
    value, _ = integrate.quad(
        lambda w: q.pdf(w) * (q.logpdf(w) - log_prior(w)),
        mean - 12 * std,
        mean + 12 * std,
        limit=500,
        points=[0.0, mean],
    )
    return value


def test_divergence_from_a_gaussian():
    mean, logstd = torch.randn(4), torch.randn(4)
    expected = kl_divergence(Normal(mean, logstd.exp()), Normal(0.0, 1.7)).sum()
    torch.testing.assert_close(models.GaussianDivergence(1.7)(mean, logstd), expected)


def test_divergence_from_a_scale_mixture():
    mean, logstd = torch.tensor([0.8]), torch.tensor([-0.5])

    def log_prior(w):
        return math.log(0.25 * stats.norm.pdf(w, 0, 1.5) + 0.75 * stats.norm.pdf(w, 0, 0.3))

    divergence = models.ScaleMixtureDivergence(0.25, 1.5, 0.3)
    draws = repeated(lambda: divergence(mean, logstd), N_DRAWS)
    assert_mean(draws, quadrature(0.8, math.exp(-0.5), log_prior))
    assert draws.std() / N_DRAWS**0.5 < 0.02


def test_divergence_from_the_log_uniform_prior():
    """Molchanov's approximation: against quadrature, up to the constant of the improper prior."""
    alphas = np.array([0.01, 0.1, 0.5, 1.0, 3.0, 10.0, 100.0])
    found, exact = [], []
    for alpha in alphas:
        logstd = torch.tensor([0.5 * math.log(alpha)])
        found.append(models.LogUniformDivergence()(torch.tensor([1.0]), logstd).item())
        # -log q(w) part: -log std; the prior's: E log |w|, by quadrature away from its integrable pole at 0
        value, _ = integrate.quad(
            lambda w, s=alpha**0.5: stats.norm.pdf(w, 1, s) * math.log(abs(w)), 1 - 12 * alpha**0.5, 1 + 12 * alpha**0.5,
            points=[0.0], limit=500,
        )  # fmt: skip
        exact.append(-0.5 * math.log(alpha) + value)
    differences = np.array(found) - np.array(exact)
    assert np.ptp(differences) < 0.02
    assert np.ptp(exact) > 2
    assert found[-1] < 0.02


def test_weights_without_a_mean_cost_nothing_under_the_log_uniform_prior():
    mean = torch.zeros(3, requires_grad=True)
    cost = models.LogUniformDivergence()(mean, torch.zeros(3))
    cost.backward()
    assert cost.item() < 1e-6 and bool(mean.grad.isfinite().all())


# -- the model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", models.ESTIMATORS)
def test_log_joint_has_the_mean_of_the_evidence_lower_bound(estimator):
    """Linear regression: the bound in closed form."""
    x, y = torch.randn(10, 2), torch.randn(10)
    net = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))
    model = models.variational(
        net, likelihood=models.NormalLikelihood(0.7), estimator=estimator, std=0.4, total_size=30
    )
    layer = with_random_parameters(model.network[0])
    mean = (x @ layer.weight_mean.T + layer.bias_mean).squeeze(-1)
    variance = (x.square() @ (2 * layer.weight_logstd).exp().T + (2 * layer.bias_logstd).exp()).squeeze(-1)
    fit = (Normal(mean, 0.7).log_prob(y) - 0.5 * variance / 0.49).sum()
    pairs = ((layer.weight_mean, layer.weight_logstd), (layer.bias_mean, layer.bias_logstd))
    kl = sum(kl_divergence(Normal(m, s.exp()), Normal(0.0, 1.0)).sum() for m, s in pairs)
    with torch.no_grad():
        draws = repeated(lambda: model({"x": x, "y": y}), 2000)
        bn = model.observe(x=x, y=y)
        torch.testing.assert_close(bn["kl"], kl)
        torch.testing.assert_close(bn.log_joint(), 3 * bn.cond_log_prob("y") - kl)
    assert_mean(draws, (3 * fit - kl).detach())


def test_training_finds_the_factorised_posterior():
    """Orthogonal inputs: the posterior of the weights is factorised, and the bound's maximum is the evidence."""
    x = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).repeat(20, 1)
    y = x @ torch.tensor([0.5, -1.0]) + 0.5 * torch.randn(40)
    net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Flatten(0))
    model = models.variational(net, likelihood=models.NormalLikelihood(0.5))
    data = {"x": x, "y": y}
    for learning_rate in (0.03, 0.003):
        optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
        zsp.fit(lambda batch: -model(batch), data, optimizer=optimizer, epochs=400, progress=False)
    layer = model.network[0]
    precision = 40 / 0.25 + 1
    torch.testing.assert_close(layer.weight_mean[0].detach(), x.T @ y / 0.25 / precision, atol=0.02, rtol=0)
    torch.testing.assert_close(
        layer.weight_logstd.detach().exp(), torch.full((1, 2), precision**-0.5), rtol=0.1, atol=0
    )


def test_every_linear_and_convolutional_layer_is_replaced_and_the_module_is_not_changed():
    shared = nn.Linear(4, 4)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(1), nn.ModuleDict({"a": shared})["a"], shared, nn.LayerNorm(4))
    model = models.variational(net, likelihood=models.CategoricalLikelihood(), estimator="flipout")
    kinds = [type(part) for part in model.network]
    assert kinds == [
        models.VariationalLayer,
        nn.Flatten,
        models.VariationalLayer,
        models.VariationalLayer,
        nn.LayerNorm,
    ]
    assert model.network[2] is model.network[3] and isinstance(net[0], nn.Conv2d)
    torch.testing.assert_close(model.network[0].weight_mean.detach(), net[0].weight.detach())
    data = {"x": torch.randn(6, 1, 3, 3), "y": torch.randint(4, (6,))}
    model(data).backward()
    assert all(p.grad is not None for p in model.parameters())
    same = pickle.loads(pickle.dumps(model))
    torch.testing.assert_close(same.observe(x=data["x"])["kl"], model.observe(x=data["x"])["kl"])
    one = models.variational(nn.Linear(2, 3), likelihood=models.NormalLikelihood(1.0))
    assert one.observe(x=torch.randn(5, 2))["y"].shape == (5, 3)


def test_mistakes():
    with pytest.raises(
        TypeError, match="VariationalLayer takes nn.Linear, nn.Conv1d, nn.Conv2d or nn.Conv3d, but got LSTM"
    ):
        models.VariationalLayer(nn.LSTM(2, 2))
    with pytest.raises(ValueError, match="estimator must be one of 'local', 'flipout', 'shared', got 'locl'"):
        models.VariationalLayer(nn.Linear(2, 2), estimator="locl")
    with pytest.raises(ValueError, match="std must be a positive number, got 0"):
        models.VariationalLayer(nn.Linear(2, 2), std=0)
    with pytest.raises(ValueError, match="pads with zeros only, but the layer has padding_mode='circular'"):
        models.VariationalLayer(nn.Conv1d(2, 2, 3, padding=1, padding_mode="circular"))
    with pytest.raises(
        ValueError, match=r"has no nn.Linear.* zsp.models.bayesian with zsp.mean_field takes any module"
    ):
        models.variational(nn.Sequential(nn.LayerNorm(2)), likelihood=models.NormalLikelihood(1.0))
    with pytest.raises(TypeError, match="variational needs a torch.nn.Module, but got function"):
        models.variational(lambda x: x, likelihood=models.NormalLikelihood(1.0))
    with pytest.raises(ValueError, match="ScaleMixtureDivergence: weight must be between 0 and 1, got 2"):
        models.ScaleMixtureDivergence(2)
    with pytest.raises(ValueError, match="GaussianDivergence: std must be a positive number, got -1"):
        models.GaussianDivergence(-1)
