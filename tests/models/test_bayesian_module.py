"""Modules as Bayesian models: the log joint by hand, every routine on it, and what is refused."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from scipy import stats
from torch import nn
from torch.distributions import Bernoulli, Categorical, Gamma, HalfCauchy, Laplace, Normal

import zsp
from zsp import models

N = 7


def mlp(n_out: int = 1) -> nn.Sequential:
    layers = [nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, n_out)]
    return nn.Sequential(*layers, nn.Flatten(0)) if n_out == 1 else nn.Sequential(*layers)


def data(n: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(n, 3)
    return x, x[:, 0].sin() + 0.1 * torch.randn(n)


def weights(*chain: int) -> dict[str, torch.Tensor]:
    shapes = {"0.weight": (4, 3), "0.bias": (4,), "2.weight": (1, 4), "2.bias": (1,)}
    return {name: torch.randn(*chain, *shape) for name, shape in shapes.items()}


def output(w: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    hidden = torch.tanh(x @ w["0.weight"].T + w["0.bias"])
    return (hidden @ w["2.weight"].T + w["2.bias"]).squeeze(-1)


def sum_of(dist: torch.distributions.Distribution, *values: torch.Tensor) -> torch.Tensor:
    return torch.stack([dist.log_prob(value).sum() for value in values]).sum()


def layers(w: dict[str, torch.Tensor]) -> dict[str, list[torch.Tensor]]:
    return {"0": [w["0.weight"], w["0.bias"]], "2": [w["2.weight"], w["2.bias"]]}


# -- the log joint ----------------------------------------------------------------------------------------------------


def test_log_joint_with_gaussian_prior_and_given_noise_is_that_by_hand():
    (x, y), w = data(), weights()
    model = models.bayesian(mlp(), prior=models.GaussianPrior(1.5), likelihood=models.NormalLikelihood(0.3))
    expected = sum_of(Normal(0.0, 1.5), *w.values()) + sum_of(Normal(output(w, x), 0.3), y)
    bn = model.observe(x=x, y=y, **w)
    torch.testing.assert_close(bn.log_joint(), expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(bn["output"], output(w, x))
    assert list(bn.nodes) == ["0.weight", "0.bias", "2.weight", "2.bias", "output", "y"]


def test_variance_per_fan_in_is_that_of_the_weights_and_not_the_biases():
    (x, y), w = data(), weights()
    likelihood = sum_of(Normal(output(w, x), 0.3), y)
    scales = {"0.weight": 3**-0.5, "0.bias": 1.0, "2.weight": 0.5, "2.bias": 1.0}
    for prior, family in ((models.GaussianPrior(2.0, True), Normal), (models.LaplacePrior(2.0, True), Laplace)):
        model = models.bayesian(mlp(), prior=prior, likelihood=models.NormalLikelihood(0.3))
        expected = likelihood + sum(sum_of(family(0.0, 2.0 * scales[name]), value) for name, value in w.items())
        torch.testing.assert_close(model.observe(x=x, y=y, **w).log_joint(), expected, atol=1e-10, rtol=0)


def test_per_fan_in_of_a_convolution_counts_a_units_inputs():
    net = nn.Sequential(nn.Conv2d(2, 3, (3, 5)), nn.Flatten(1))
    model = models.bayesian(net, prior=models.GaussianPrior(2.0, True), likelihood=models.NormalLikelihood(1.0))
    std = model.observe(x=torch.randn(1, 2, 4, 6))["0.weight"].dist.stddev
    torch.testing.assert_close(std, torch.full((3, 2, 3, 5), 2 / 30**0.5))


def test_gamma_precisions_of_weights_and_noise():
    (x, y), w = data(), weights()
    precisions = {"0.precision": torch.tensor(0.7), "2.precision": torch.tensor(2.5)}
    noise = torch.tensor(4.0)
    model = models.bayesian(
        mlp(), prior=models.GammaPrecisionPrior(2.0, 3.0), likelihood=models.GammaNoiseLikelihood(5.0, 6.0)
    )
    expected = sum_of(Gamma(2.0, 3.0), *precisions.values()) + sum_of(Gamma(5.0, 6.0), noise)
    for layer, values in layers(w).items():
        expected = expected + sum_of(Normal(0.0, precisions[f"{layer}.precision"] ** -0.5), *values)
    expected = expected + sum_of(Normal(output(w, x), 0.5), y)
    found = model.observe(x=x, y=y, noise_precision=noise, **precisions, **w).log_joint()
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    shared = models.bayesian(
        mlp(), prior=models.GammaPrecisionPrior(2.0, 3.0, per_layer=False), likelihood=models.NormalLikelihood(0.5)
    )
    expected = sum_of(Gamma(2.0, 3.0), noise) + sum_of(Normal(0.0, 0.5), *w.values())
    expected = expected + sum_of(Normal(output(w, x), 0.5), y)
    found = shared.observe(x=x, y=y, precision=noise, **w).log_joint()
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def test_hierarchical_scales():
    (x, y), w = data(), weights()
    stds = {"0.std": torch.tensor(0.4), "2.std": torch.tensor(1.7)}
    model = models.bayesian(mlp(), prior=models.HierarchicalPrior(2.0), likelihood=models.NormalLikelihood(0.5))
    expected = sum_of(HalfCauchy(2.0), *stds.values()) + sum_of(Normal(output(w, x), 0.5), y)
    for layer, values in layers(w).items():
        expected = expected + sum_of(Normal(0.0, stds[f"{layer}.std"]), *values)
    torch.testing.assert_close(model.observe(x=x, y=y, **stds, **w).log_joint(), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("slab", [None, 1.5])
def test_horseshoe(slab):
    (x, y), z, local = data(), weights(), {name: value.abs() for name, value in weights().items()}
    tau = {"0": torch.tensor(0.4), "2": torch.tensor(1.7)}
    prior = models.HorseshoePrior(0.5, slab_scale=slab)
    model = models.bayesian(mlp(), prior=prior, likelihood=models.NormalLikelihood(0.5))
    w = {}
    for name in z:
        scale = tau[name[0]] * local[name]
        w[name] = z[name] * (scale if slab is None else (1 / (1 / scale**2 + 1 / slab**2)) ** 0.5)
    expected = sum_of(HalfCauchy(0.5), *tau.values()) + sum_of(HalfCauchy(1.0), *local.values())
    expected = expected + sum_of(Normal(0.0, 1.0), *z.values()) + sum_of(Normal(output(w, x), 0.5), y)
    given = {f"{layer}.global": value for layer, value in tau.items()}
    given |= {f"{name}.unscaled": value for name, value in z.items()}
    given |= {f"{name}.local": value for name, value in local.items()}
    bn = model.observe(x=x, y=y, **given)
    torch.testing.assert_close(bn.log_joint(), expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(bn["0.weight"], w["0.weight"])


def test_classes_and_a_likelihood_of_ones_own():
    (x, _), w = data(), weights()
    y = torch.tensor([0, 1, 1, 0, 1, 0, 0])
    prior = sum_of(Normal(0.0, 1.0), *w.values())
    model = models.bayesian(mlp(), likelihood=models.BernoulliLikelihood())
    expected = prior + sum_of(Bernoulli(logits=output(w, x)), y.double())
    torch.testing.assert_close(model.observe(x=x, y=y, **w).log_joint(), expected, atol=1e-10, rtol=0)
    more = {**w, "2.weight": torch.randn(3, 4), "2.bias": torch.randn(3)}
    logits = torch.tanh(x @ w["0.weight"].T + w["0.bias"]) @ more["2.weight"].T + more["2.bias"]
    model = models.bayesian(mlp(3), likelihood=models.CategoricalLikelihood())
    expected = sum_of(Normal(0.0, 1.0), *more.values()) + sum_of(Categorical(logits=logits), y)
    torch.testing.assert_close(model.observe(x=x, y=y, **more).log_joint(), expected, atol=1e-10, rtol=0)

    def counts(bn, output, *, group_ndims, total_size):
        bn.poisson("y", output.exp(), group_ndims=group_ndims, total_size=total_size)

    model = models.bayesian(mlp(), likelihood=counts)
    expected = prior + sum_of(torch.distributions.Poisson(output(w, x).exp()), y.double())
    torch.testing.assert_close(model.observe(x=x, y=y, **w).log_joint(), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("chain", [(), (5,)])
def test_a_mini_batch_is_scaled_to_the_whole(chain):
    (x, y), w = data(), weights(*chain)
    whole = models.bayesian(mlp(), likelihood=models.NormalLikelihood(0.3))
    part = models.bayesian(mlp(), likelihood=models.NormalLikelihood(0.3), total_size=70)
    log_density, scaled = (zsp.LogDensity(model, {"x": x, "y": y}) for model in (whole, part))
    position = log_density.unconstrain(w)
    one_by_one = position.reshape(-1, position.shape[-1])
    prior = Normal(0.0, 1.0).log_prob(one_by_one).sum(-1).reshape(chain)
    torch.testing.assert_close(scaled(position), prior + 10 * (log_density(position) - prior))
    rebound = part.bind(total_size=7)
    torch.testing.assert_close(zsp.LogDensity(rebound, {"x": x, "y": y})(position), log_density(position))


# -- chains -----------------------------------------------------------------------------------------------------------

PRIORS = {
    "gaussian": models.GaussianPrior(1.0, per_fan_in=True),
    "laplace": models.LaplacePrior(),
    "gamma": models.GammaPrecisionPrior(),
    "hierarchical": models.HierarchicalPrior(per_fan_in=True),
    "horseshoe": models.HorseshoePrior(slab_scale=2.0),
    "empirical": models.EmpiricalPrior(0.7),
}


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
def test_chains_are_an_axis_and_equal_a_loop(prior):
    x, y = data()
    model = models.bayesian(mlp(), prior=prior, likelihood=models.GammaNoiseLikelihood())
    log_density = zsp.LogDensity(model, {"x": x, "y": y})
    position = torch.randn(2, 3, log_density.n_dims)
    looped = torch.stack([log_density(q) for q in position.flatten(0, 1)]).reshape(2, 3)
    torch.testing.assert_close(log_density(position), looped, atol=1e-10, rtol=1e-12)
    assert [way.value for way in log_density._ways.values()] == ["broadcast"] * len(log_density._ways)
    q = zsp.mean_field(model, {"x": x, "y": y}, n_samples=4)
    bound = zsp.elbo(model, {"x": x, "y": y}, variational=q, axis=0)
    assert bound.sgvb().shape == () and bool(bound.sgvb().isfinite())


def test_layers_that_need_images_sequences_or_several_arguments():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.out = nn.Conv2d(1, 2, 3), nn.Linear(8, 2)
            self.rnn = nn.LSTM(3, 2, batch_first=True)
            self.register_buffer("shift", torch.tensor(0.5))

        def forward(self, image, sequence):
            return self.out(torch.relu(self.conv(image)).flatten(1)) + self.rnn(sequence)[0][:, -1] + self.shift

    net = Sum()
    x = (torch.randn(N, 1, 4, 4), torch.randn(N, 5, 3))
    y = torch.randn(N, 2)
    model = models.bayesian(net, likelihood=models.NormalLikelihood(1.0))
    given = dict(net.named_parameters())
    torch.testing.assert_close(model.observe(x=x, y=y, **given)["output"], net(*x))
    assert "network.module.shift" in model.state_dict()
    log_density = zsp.LogDensity(model, {"x": x, "y": y})
    position = torch.randn(3, log_density.n_dims)
    torch.testing.assert_close(log_density(position), torch.stack([log_density(q) for q in position]))


def test_tied_parameters_are_one_latent():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x))

    model = models.bayesian(Tied(), likelihood=models.NormalLikelihood(1.0))
    x, eye = torch.randn(N, 3), torch.eye(3)
    bn = model.observe(x=x, **{"first.weight": 2 * eye, "first.bias": torch.zeros(3), "second.bias": torch.zeros(3)})
    torch.testing.assert_close(bn["output"], 4 * x)


# -- routines ---------------------------------------------------------------------------------------------------------


def test_a_linear_module_has_the_posterior_and_the_evidence_of_linear_regression():
    """Conjugate: Laplace is exact, so is its evidence; the last layer is then all there is."""
    x, y = data(30)
    net = nn.Sequential(nn.Linear(3, 1, bias=False), nn.Flatten(0))
    model = models.bayesian(net, prior=models.GaussianPrior(2.0), likelihood=models.NormalLikelihood(0.4))
    found = zsp.laplace(model, {"x": x, "y": y}, n_samples=10)
    covariance = torch.linalg.inv(x.T @ x / 0.16 + torch.eye(3) / 4)
    torch.testing.assert_close(found.mode["0.weight"][0], covariance @ x.T @ y / 0.16)
    marginal = stats.multivariate_normal(cov=(4 * x @ x.T + 0.16 * torch.eye(30)).numpy())
    assert found.log_evidence.item() == pytest.approx(marginal.logpdf(y.numpy()), abs=1e-8)


def test_last_layer_laplace_is_linear_regression_on_the_features():
    x, y = data(30)
    net = mlp()
    model = models.bayesian(net, likelihood=models.NormalLikelihood(0.4), latents=["2"])
    start = {name: value for name, value in net.named_parameters() if name.startswith("2.")}
    found = zsp.laplace(model, {"x": x, "y": y}, init=start, n_samples=10)
    with torch.no_grad():
        features = torch.cat([net[:2](x), torch.ones(30, 1)], -1)
    precision = features.T @ features / 0.16 + torch.eye(5)
    mode = torch.linalg.solve(precision, features.T @ y / 0.16)
    torch.testing.assert_close(torch.cat([found.mode["2.weight"][0], found.mode["2.bias"]]), mode)
    marginal = stats.multivariate_normal(cov=(features @ features.T + 0.16 * torch.eye(30)).numpy())
    assert found.log_evidence.item() == pytest.approx(marginal.logpdf(y.numpy()), abs=1e-8)
    assert zsp.predict(model, found.variational, {"x": x[:4]})["y"].shape == (10, 4)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == ["network.module.0.weight", "network.module.0.bias"]


@pytest.mark.filterwarnings("ignore:R-hat is above")
def test_samplers_and_predictions_run():
    x, y = data()
    model = models.bayesian(mlp(), likelihood=models.GammaNoiseLikelihood())
    for kernel in (zsp.HMC(n_leapfrogs=3), zsp.NUTS(max_tree_depth=3)):
        draws = zsp.mcmc(
            model, {"x": x, "y": y}, kernel=kernel, n_samples=4, n_warmup=4, n_chains=3, progress=False, compile=False
        )
        assert draws["0.weight"].shape == (3, 4, 4, 3)
        new = zsp.predict(model, draws, {"x": x[:2]})
        assert new["y"].shape == new["output"].shape == (3, 4, 2)
        w = {name: value[1, 2] for name, value in draws.items()}
        torch.testing.assert_close(new["output"][1, 2], output(w, x[:2]))


@pytest.mark.filterwarnings("ignore")  # of diagnostics: chains are short, and compared as independent replicates
def test_full_batch_sghmc_and_nuts_agree_on_predictive_means_and_variances():
    """Means over chains, which are independent: 48 of each sampler, and a z test of their differences.

    The step of SGHMC is so small that its bias, of the order of learning rate x curvature / 12 of a variance, is below
    a percent.
    """
    x = torch.linspace(-1, 1, 12)[:, None]
    y = torch.tanh(2 * x[:, 0]) + 0.3 * torch.randn(12)
    net = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1), nn.Flatten(0))
    model = models.bayesian(net, likelihood=models.NormalLikelihood(0.5))
    x_new = torch.tensor([[-2.0], [0.0], [0.7], [2.5]])
    kernels = {
        "sghmc": (
            zsp.SGHMC(2e-3, friction=0.1, n_iter_resample_v=None),
            {"n_warmup": 500, "n_samples": 50, "thin": 20},
        ),
        "nuts": (zsp.NUTS(max_tree_depth=5), {"n_warmup": 40, "n_samples": 20}),
    }
    means, squares = {}, {}
    for name, (kernel, lengths) in kernels.items():
        draws = zsp.mcmc(model, {"x": x, "y": y}, kernel=kernel, n_chains=48, progress=False, compile=False, **lengths)
        values = {latent: draws[latent] for latent in weights()}
        f = zsp.predict(model, values_of_all(values), {"x": x_new}, names=["output"])["output"].unflatten(0, (48, -1))
        means[name], squares[name] = f.mean(1), f.square().mean(1)
    for moment in (means, squares):
        a, b = moment["sghmc"], moment["nuts"]
        error = ((a.var(0) + b.var(0)) / 48).sqrt()
        # 6.2 standard errors of Student's t with 48 chains: 1e-7 for all eight comparisons
        assert ((a.mean(0) - b.mean(0)).abs() < 6.2 * error + 0.01 * b.mean(0).abs()).all(), (
            a.mean(0),
            b.mean(0),
            error,
        )


def values_of_all(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Draws of all chains one after the other."""
    return {name: value.flatten(0, 1) for name, value in values.items()}


def test_learnt_noise_is_the_only_parameter_to_train_and_is_best_at_the_residuals_deviation():
    x, y = data()
    model = models.bayesian(mlp(), likelihood=models.LearntNoiseLikelihood(2.0))
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["likelihood.logstd"]
    w = weights()
    with torch.no_grad():
        model.likelihood.logstd.copy_((y - output(w, x)).square().mean().sqrt().log())
    (gradient,) = torch.autograd.grad(model({"x": x, "y": y, **w}), model.likelihood.logstd)
    assert abs(gradient) < 1e-10


@pytest.mark.parametrize("per_fan_in", [False, True])
def test_the_m_step_maximises_the_mean_log_joint_of_the_draws(per_fan_in):
    x, y = data()
    model = models.bayesian(
        mlp(), prior=models.EmpiricalPrior(per_fan_in=per_fan_in), likelihood=models.NormalLikelihood(0.5)
    )
    log_density = zsp.LogDensity(model, {"x": x, "y": y})
    draws = weights(50)
    model.prior.maximise(draws)
    logstds = list(model.prior.logstd.values())
    gradient = torch.autograd.grad(log_density(log_density.unconstrain(draws)).mean(), logstds)
    torch.testing.assert_close(torch.stack(gradient), torch.zeros(2), atol=1e-10, rtol=0)
    before = logstds[0].item()
    model.prior.maximise({name: 2 * w for name, w in draws.items()}, rate=0.5)
    assert logstds[0].item() == pytest.approx(before + 0.5 * torch.tensor(2.0).log().item())


def test_the_module_is_copied_and_the_copy_keeps_its_mode():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1), nn.Flatten(0)).eval()
    before = copy.deepcopy(net.state_dict())
    model = models.bayesian(net, likelihood=models.NormalLikelihood(0.5)).train()
    x, y = data()
    log_density = zsp.LogDensity(model, {"x": x, "y": y})
    log_density(torch.randn(2, log_density.n_dims))
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
        assert torch.equal(model.network.module.state_dict()[name], before[name])
    assert all(p.requires_grad for p in net.parameters())


def test_the_model_pickles_and_follows_its_dtype():
    x, y = data()
    w = weights()
    model = models.bayesian(mlp(), prior=models.GammaPrecisionPrior(), likelihood=models.LearntNoiseLikelihood())
    given = {**w, "0.precision": torch.tensor(1.0), "2.precision": torch.tensor(2.0)}
    same = pickle.loads(pickle.dumps(model))
    torch.testing.assert_close(same.observe(x=x, y=y, **given).log_joint(), model({"x": x, "y": y, **given}))
    small = model.to(torch.float32).observe(x=x.float())
    assert {small[name].dtype for name in ("0.precision", "0.weight", "y")} == {torch.float32}


def test_works_under_the_transforms_and_as_one_compiled_graph():
    x, y = data()
    model = models.bayesian(mlp(), prior=models.GammaPrecisionPrior(), likelihood=models.GammaNoiseLikelihood())
    log_density = zsp.LogDensity(model, {"x": x, "y": y}).prepare(4)
    position = torch.randn(4, log_density.n_dims)
    values = log_density.constrain(position)
    one = {name: value[0] for name, value in values.items()}

    def log_joint(latents):
        return model({"x": x, "y": y, **latents})

    expected = log_joint(one)
    torch.testing.assert_close(torch.func.vmap(log_joint)(values)[0], expected)
    leaves = {name: value.clone().requires_grad_() for name, value in one.items()}
    gradients = torch.autograd.grad(log_joint(leaves), list(leaves.values()))
    for found, gradient in zip(torch.func.grad(log_joint)(one).values(), gradients, strict=True):
        torch.testing.assert_close(found, gradient)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled({"x": x, "y": y, **one}), expected)
    compiled = torch.compile(log_density, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(position), log_density(position))


# -- what is refused --------------------------------------------------------------------------------------------------

NOISE = models.NormalLikelihood(1.0)


@pytest.mark.parametrize(
    "module, text",
    [
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), r"the layer '1' \(BatchNorm1d\) is in training mode"),
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)), r"the layer '1' \(Dropout\) drops units at random"),
        (nn.LSTM(2, 2, num_layers=2, dropout=0.1), "the layer LSTM drops units at random"),
        (nn.Sequential(nn.ReLU()), r"the module \(Sequential\) has no parameters to put a prior on"),
        (nn.LazyLinear(2), "the parameter 'weight' has no shape yet: run the module once"),
    ],
)
def test_modules_without_a_likelihood_of_single_data_are_refused(module, text):
    with pytest.raises(ValueError, match=text):
        models.bayesian(module, likelihood=NOISE)


def test_layers_in_training_mode_without_effect_are_taken():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0), nn.LayerNorm(2), nn.GroupNorm(1, 2))
    models.bayesian(net, likelihood=NOISE).observe(x=torch.randn(3, 2))


def test_mistakes_in_the_call():
    with pytest.raises(ValueError, match=r"latents names '2.weigth', which is no parameter.*Did you mean '2.weight'"):
        models.bayesian(mlp(), likelihood=NOISE, latents=["2.weigth"])
    with pytest.raises(TypeError, match=r"latents must be a list of names, but got the string '2'"):
        models.bayesian(mlp(), likelihood=NOISE, latents="2")
    with pytest.raises(ValueError, match="latents is empty"):
        models.bayesian(mlp(), likelihood=NOISE, latents=[])
    with pytest.raises(TypeError, match=r"likelihood must be an object such as zsp.models.NormalLikelihood.*the class"):
        models.bayesian(mlp(), likelihood=models.NormalLikelihood)
    with pytest.raises(TypeError, match=r"prior must be an object such as zsp.models.GaussianPrior.*got 1.0"):
        models.bayesian(mlp(), prior=1.0, likelihood=NOISE)
    with pytest.raises(TypeError, match=r"needs a torch.nn.Module, but got function"):
        models.bayesian(lambda x: x, likelihood=NOISE)
    with pytest.raises(ValueError, match="GaussianPrior: std must be a positive number, got -1.0"):
        models.GaussianPrior(-1.0)
    with pytest.raises(ValueError, match="GammaNoiseLikelihood: beta must be a positive number, got 0"):
        models.GammaNoiseLikelihood(beta=0)


def test_data_of_another_shape_than_the_output():
    x, y = data()
    column = models.bayesian(mlp()[:3], likelihood=NOISE)
    with pytest.raises(
        ValueError, match=r"y has shape \[7\], but the module's output.*\[7, 1\]. Let the module end in nn.F"
    ):
        column.observe(x=x, y=y)
    model = models.bayesian(mlp(), likelihood=NOISE)
    with pytest.raises(ValueError, match=r"y has shape \[1\].* has shape \[7\]. Give y the shape \[7\]"):
        model.observe(x=x, y=y[:1])
    with pytest.raises(
        ValueError, match=r"CategoricalLikelihood needs an output of shape \[n, ..., K\].* but got \[7\]"
    ):
        models.bayesian(mlp(), likelihood=models.CategoricalLikelihood()).observe(x=x)


def test_modules_that_return_no_tensor():
    with pytest.raises(
        TypeError, match="must return one tensor whose first axis is that of the data, but it returned tuple"
    ):
        models.bayesian(nn.LSTM(3, 2), likelihood=NOISE).observe(x=torch.randn(2, 5, 3))


def test_an_empirical_prior_that_no_model_has():
    prior = models.EmpiricalPrior()
    model = models.bayesian(mlp(), prior=prior, likelihood=NOISE)
    with pytest.raises(ValueError, match=r"not part of a model.* Call model.prior.maximise"):
        prior.maximise(weights(2))
    with pytest.raises(ValueError, match="maximise needs draws of '0.weight', but got those of '2.bias'"):
        model.prior.maximise({"2.bias": torch.ones(1)})
