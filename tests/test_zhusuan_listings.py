"""The models of ZhuSuan's tutorials and examples, written in zsp line for line.

Each builds, is observed, and has the log joint that scipy or plain torch gives for it by hand.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.stats as st
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zsp


def close(actual: Tensor, expected: object, shape: tuple[int, ...]) -> None:
    assert actual.shape == shape
    torch.testing.assert_close(actual.detach(), torch.as_tensor(expected), rtol=1e-10, atol=1e-10)


def normal_logpdf(x: Tensor, mean: object, std: object) -> np.ndarray:
    return st.norm.logpdf(x.detach().numpy(), np.asarray(mean), np.asarray(std))


# -- concepts: Bayesian linear regression -----------------------------------------------------------------------------


@zsp.meta_bayesian_net(scope="model")
def bayesian_linear_regression(x, alpha, beta):
    bn = zsp.BayesianNet()
    w = bn.normal("w", torch.zeros([x.shape[-1]]), std=alpha, group_ndims=1)
    y_mean = bn.deterministic("y_mean", torch.sum(w * x, dim=-1))
    bn.normal("y", y_mean, std=beta)
    return bn


def test_a_net_of_its_own_keeps_what_was_observed():
    x, w = torch.randn(5), torch.randn(5)
    bn = zsp.BayesianNet(observed={"w": w})
    node = bn.normal("w", torch.zeros([x.shape[-1]]), std=1.0)
    assert node is w
    assert bn["w"].is_observed()
    close(torch.sum(bn["w"] * x, dim=-1), (w * x).sum(), ())


def test_bayesian_linear_regression():
    x, w, y = torch.randn(5), torch.randn(5), torch.randn(())
    model = bayesian_linear_regression(x, 1.0, 0.1)
    bn = model.observe(w=w, y=y)
    log_pw = normal_logpdf(w, 0.0, 1.0).sum()
    log_py = normal_logpdf(y, (w * x).sum(), 0.1)
    close(bn.log_joint(), log_pw + log_py, ())
    actual = bn.cond_log_prob(["w", "y"])
    close(actual[0], log_pw, ())
    close(actual[1], log_py, ())
    close(bn["y_mean"], (w * x).sum(), ())
    assert [node.name for node in bn.get(["w", "y"])] == ["w", "y"]
    # what is not observed is drawn
    latent = model.observe()
    assert not latent["w"].is_observed()
    assert latent["y"].shape == ()


@zsp.meta_bayesian_net(scope="model")
def ungrouped_linear_regression(x, alpha, beta):
    bn = zsp.BayesianNet()
    w = bn.normal("w", torch.zeros([x.shape[-1]]), std=alpha)
    y_mean = torch.sum(w * x, dim=-1)
    bn.normal("y", y_mean, std=beta)
    return bn


def test_a_log_joint_of_the_models_own():
    """Without group_ndims the prior is one term a weight: the sum is an error, a customised log joint is right."""
    x, w, y = torch.randn(5), torch.randn(5), torch.randn(())
    meta_bn = ungrouped_linear_regression(x, 1.0, 0.1)
    with pytest.raises(ValueError, match="group_ndims=1 on 'w'"):
        meta_bn.observe(w=w, y=y).log_joint()

    def customized_log_joint(bn):
        return torch.sum(bn.cond_log_prob("w"), dim=-1) + bn.cond_log_prob("y")

    meta_bn.log_joint = customized_log_joint
    expected = normal_logpdf(w, 0.0, 1.0).sum() + normal_logpdf(y, (w * x).sum(), 0.1)
    close(meta_bn.observe(w=w, y=y).log_joint(), expected, ())
    close(meta_bn({"w": w, "y": y}), expected, ())


def test_shapes_of_draws_and_of_grouped_log_probabilities():
    """The examples of the concepts page on batch shapes, n_samples and group_ndims."""
    bn = zsp.BayesianNet()
    mean, logstd = torch.tensor([[-1.0, 1.0], [0.0, -2.0]]), torch.tensor([0.0, 1.0])
    assert bn.normal("b", mean, logstd=logstd).shape == (2, 2)
    assert bn.normal("b1", mean, logstd=logstd, n_samples=1).shape == (1, 2, 2)
    assert bn.normal("b10", mean, logstd=logstd, n_samples=10).shape == (10, 2, 2)
    logits = torch.tensor([[0.0, 1.0, -1.0], [2.0, 3.0, 4.0]])
    assert bn.onehot_categorical("c", logits).shape == (2, 3)
    assert bn.onehot_categorical("c10", logits, n_samples=10).shape == (10, 2, 3)
    given = zsp.BayesianNet({"d": torch.zeros(2, 2), "e": torch.zeros(5, 1, 1, 3)})
    given.normal("d", mean, logstd=torch.tensor(0.0), group_ndims=1)
    torch.testing.assert_close(given.cond_log_prob("d"), torch.tensor([-2.83787707, -3.83787707]), rtol=0, atol=1e-8)
    given.normal("e", torch.zeros(2, 1, 3), logstd=torch.tensor(0.0), group_ndims=2)
    assert given.cond_log_prob("e").shape == (5, 2)


# -- logistic regression ----------------------------------------------------------------------------------------------


@zsp.meta_bayesian_net(scope="logistic")
def bayesian_logistic_regression(x, alpha):
    bn = zsp.BayesianNet()
    w = bn.normal("w", torch.zeros([x.shape[-1]]), std=alpha, group_ndims=1)
    bn.bernoulli("y", w @ x.T, group_ndims=1)
    return bn


def test_bayesian_logistic_regression():
    x, w = torch.randn(7, 3), torch.randn(3)
    y = torch.tensor([0, 1, 1, 0, 1, 0, 1])
    p = torch.sigmoid(x @ w).numpy()
    expected = normal_logpdf(w, 0.0, 2.0).sum() + st.bernoulli.logpmf(y.numpy(), p).sum()
    close(bayesian_logistic_regression(x, 2.0).observe(w=w, y=y).log_joint(), expected, ())


# -- vae --------------------------------------------------------------------------------------------------------------


@zsp.meta_bayesian_net(scope="gen", reuse_variables=True)
def build_gen(x_dim, z_dim, n, n_particles=1):
    bn = zsp.BayesianNet()
    z_mean = torch.zeros([n, z_dim])
    z = bn.normal("z", z_mean, std=1.0, group_ndims=1, n_samples=n_particles)
    h = torch.relu(zsp.module("dense_1", nn.Linear, z_dim, 500)(z))
    h = torch.relu(zsp.module("dense_2", nn.Linear, 500, 500)(h))
    x_logits = zsp.module("x_logits", nn.Linear, 500, x_dim)(h)
    bn.deterministic("x_mean", torch.sigmoid(x_logits))
    bn.bernoulli("x", x_logits, group_ndims=1)
    return bn


@zsp.reuse_variables(scope="q_net")
def build_q_net(x, z_dim, n_z_per_x):
    bn = zsp.BayesianNet()
    h = torch.relu(zsp.module("dense_1", nn.Linear, x.shape[-1], 500)(x.to(torch.get_default_dtype())))
    h = torch.relu(zsp.module("dense_2", nn.Linear, 500, 500)(h))
    z_mean = zsp.module("z_mean", nn.Linear, 500, z_dim)(h)
    z_logstd = zsp.module("z_logstd", nn.Linear, 500, z_dim)(h)
    bn.normal("z", z_mean, logstd=z_logstd, group_ndims=1, n_samples=n_z_per_x)
    return bn


def mlp(net: nn.Module, scope: str, x: Tensor, heads: list[str]) -> list[Tensor]:
    """The same two hidden layers and output heads from the weights alone."""
    weights = net.state_dict()

    def linear(name: str, value: Tensor) -> Tensor:
        return value @ weights[f"{scope}.{name}.weight"].T + weights[f"{scope}.{name}.bias"]

    h = linear("dense_2", linear("dense_1", x).clamp(min=0)).clamp(min=0)
    return [linear(head, h) for head in heads]


@pytest.mark.parametrize("n_particles", [1, 3])
def test_vae(n_particles):
    n, x_dim, z_dim = 4, 6, 2
    x = torch.bernoulli(torch.full((n, x_dim), 0.5))
    model = build_gen(x_dim, z_dim, n, n_particles)
    q_net = build_q_net.new()
    variational = q_net(x.int(), z_dim, n_particles)
    z = variational["z"].tensor
    assert z.shape == (n_particles, n, z_dim)

    z_mean, z_logstd = (t.detach() for t in mlp(q_net, "q_net", x, ["z_mean", "z_logstd"]))
    log_q = normal_logpdf(z, z_mean, z_logstd.exp()).sum(-1)
    close(variational.log_joint(), log_q, (n_particles, n))

    bn = model.observe(x=x, z=z)
    (x_logits,) = mlp(model, "gen", z, ["x_logits"])
    log_px = st.bernoulli.logpmf(np.broadcast_to(x.numpy(), x_logits.shape), torch.sigmoid(x_logits).detach()).sum(-1)
    log_p = normal_logpdf(z, 0.0, 1.0).sum(-1) + log_px
    close(bn.log_joint(), log_p, (n_particles, n))
    close(bn["x_mean"], torch.sigmoid(x_logits).detach(), (n_particles, n, x_dim))

    lower_bound = zsp.elbo(model, {"x": x}, variational=variational, axis=0)
    close(lower_bound.tensor, (log_p - log_q).mean(0), (n,))
    close(lower_bound.sgvb(), -(log_p - log_q).mean(0), (n,))
    is_log_likelihood = zsp.is_loglikelihood(model, {"x": x}, proposal=variational, axis=0)
    close(is_log_likelihood, np.log(np.exp(log_p - log_q).mean(0)), (n,))
    # without observations both are drawn, with the same variables
    names = set(model.state_dict())
    assert model.observe()["x"].shape == (n_particles, n, x_dim)
    assert set(model.state_dict()) == names


def test_another_call_of_the_model_function_has_other_variables():
    first, second = build_gen(6, 2, 4).materialize(), build_gen(6, 2, 4).materialize()
    assert not torch.equal(*(net.state_dict()["gen.dense_1.weight"] for net in (first, second)))
    z = torch.randn(1, 4, 2)
    same = first.observe(z=z)["x_mean"], first.observe(z=z)["x_mean"]
    assert torch.equal(*same)


# -- bnn --------------------------------------------------------------------------------------------------------------


@zsp.meta_bayesian_net(scope="bnn", reuse_variables=True)
def build_bnn(x, layer_sizes, n_particles):
    bn = zsp.BayesianNet()
    h = x[None, ...].tile([n_particles, 1, 1])
    for i, (n_in, n_out) in enumerate(pairwise(layer_sizes)):
        w = bn.normal("w" + str(i), torch.zeros([n_out, n_in + 1]), std=1.0, group_ndims=2, n_samples=n_particles)
        h = torch.cat([h, torch.ones(h.shape[:-1])[..., None]], -1)
        h = torch.einsum("imk,ijk->ijm", w, h) / math.sqrt(h.shape[2])
        if i < len(layer_sizes) - 2:
            h = torch.relu(h)
    y_mean = bn.deterministic("y_mean", torch.squeeze(h, 2))
    y_logstd = zsp.parameter("y_logstd", torch.zeros([]))
    bn.normal("y", y_mean, logstd=y_logstd)
    return bn


@zsp.reuse_variables(scope="variational")
def build_mean_field_variational(layer_sizes, n_particles):
    bn = zsp.BayesianNet()
    for i, (n_in, n_out) in enumerate(pairwise(layer_sizes)):
        w_mean = zsp.parameter("w_mean_" + str(i), torch.zeros([n_out, n_in + 1]))
        w_logstd = zsp.parameter("w_logstd_" + str(i), torch.zeros([n_out, n_in + 1]))
        bn.normal("w" + str(i), w_mean, logstd=w_logstd, n_samples=n_particles, group_ndims=2)
    return bn


def test_bnn():
    n, n_train, n_particles, layer_sizes = 5, 50, 3, [2, 4, 1]
    w_names = ["w0", "w1"]
    x, y = torch.randn(n, 2), torch.randn(n)
    model = build_bnn(x, layer_sizes, n_particles)
    variational = build_mean_field_variational.new()(layer_sizes, n_particles)

    def log_joint(bn):
        log_pws = bn.cond_log_prob(w_names)
        log_py_xw = bn.cond_log_prob("y")
        return sum(log_pws) + torch.mean(log_py_xw, 1) * n_train

    model.log_joint = log_joint
    lower_bound = zsp.elbo(model, {"y": y}, variational=variational, axis=0)

    # by hand, one particle after the other
    log_p, log_q, y_mean = [], [], []
    for k in range(n_particles):
        w0, w1 = (variational[name].tensor[k].detach() for name in w_names)
        h = torch.stack([torch.cat([row, torch.ones(1)]) for row in x])
        h = F.relu(h @ w0.T / math.sqrt(3))
        h = torch.cat([h, torch.ones(n, 1)], 1) @ w1.T / math.sqrt(5)
        y_mean.append(h[:, 0])
        prior = normal_logpdf(w0, 0.0, 1.0).sum() + normal_logpdf(w1, 0.0, 1.0).sum()
        log_p.append(prior + normal_logpdf(y, h[:, 0], 1.0).mean() * n_train)
        log_q.append(prior)  # the variational net starts at the prior
    close(lower_bound.bn["y_mean"], torch.stack(y_mean), (n_particles, n))
    close(lower_bound.bn.log_joint(), np.array(log_p), (n_particles,))
    close(lower_bound.tensor, np.mean(log_p) - np.mean(log_q), ())

    cost = lower_bound.sgvb()
    cost.backward()
    assert all(p.grad is not None for p in model.parameters())
    # evaluation: the posterior predictive mean and density from the executed model
    assert torch.mean(lower_bound.bn["y_mean"], 0).shape == (n,)
    log_py_xw = lower_bound.bn.cond_log_prob("y")
    assert (torch.logsumexp(log_py_xw, 0) - math.log(n_particles)).shape == (n,)


@zsp.meta_bayesian_net(scope="bnn", reuse_variables=True)
def bnn_with_total_size(x, layer_sizes, n_train):
    """The same model in zsp's own words: total_size does the scaling and group_ndims the sum."""
    bn = zsp.BayesianNet()
    h = x
    for i, (n_in, n_out) in enumerate(pairwise(layer_sizes)):
        w = bn.normal("w" + str(i), torch.zeros([n_out, n_in + 1]), std=1.0, group_ndims=2)
        h = torch.cat([h, torch.ones(h.shape[:-1])[..., None]], -1)
        h = h @ w.mT / math.sqrt(h.shape[-1])
        if i < len(layer_sizes) - 2:
            h = torch.relu(h)
    y_mean = bn.deterministic("y_mean", h.squeeze(-1))
    bn.normal("y", y_mean, logstd=zsp.parameter("y_logstd", 0.0), group_ndims=1, total_size=n_train)
    return bn


def test_total_size_equals_the_customised_log_joint():
    layer_sizes, n_train = [2, 4, 1], 50
    x, y = torch.randn(5, 2), torch.randn(5)
    variational = build_mean_field_variational.new()(layer_sizes, 3)
    by_hand = build_bnn(x, layer_sizes, 3)
    by_hand.log_joint = lambda bn: sum(bn.cond_log_prob(["w0", "w1"])) + bn.cond_log_prob("y").mean(1) * n_train
    ours = bnn_with_total_size(x, layer_sizes, n_train)
    bounds = [zsp.elbo(model, {"y": y}, variational=variational, axis=0).tensor for model in (by_hand, ours)]
    close(bounds[0], bounds[1].detach(), ())


# -- lntm -------------------------------------------------------------------------------------------------------------


@zsp.meta_bayesian_net(scope="lntm")
def lntm(n_chains, n_docs, n_topics, n_vocab, eta_mean, eta_logstd, log_delta):
    bn = zsp.BayesianNet()
    eta_mean = torch.unsqueeze(eta_mean, 0).tile([n_docs, 1])
    eta = bn.normal("eta", eta_mean, logstd=eta_logstd, n_samples=n_chains, group_ndims=1)
    theta = torch.softmax(eta, -1)
    beta = bn.normal("beta", torch.zeros([n_topics, n_vocab]), logstd=log_delta, group_ndims=1)
    phi = torch.softmax(beta, -1)
    doc_word = theta.reshape(-1, n_topics) @ phi
    doc_word = doc_word.reshape(n_chains, n_docs, n_vocab)
    bn.unnormalized_multinomial("x", torch.log(doc_word), normalize_logits=False)
    return bn


def test_lntm():
    n_chains, n_docs, n_topics, n_vocab, log_delta = 2, 3, 4, 6, 0.5
    eta_mean, eta_logstd = torch.randn(n_topics), torch.randn(n_topics) * 0.3
    model = lntm(n_chains, n_docs, n_topics, n_vocab, eta_mean, eta_logstd, log_delta)
    x = torch.randint(0, 5, (n_docs, n_vocab)).to(torch.get_default_dtype())
    eta, beta = torch.randn(n_chains, n_docs, n_topics), torch.randn(n_topics, n_vocab)

    def e_obj(bn):
        return bn.cond_log_prob("eta") + bn.cond_log_prob("x")

    model.log_joint = e_obj
    bn = model.observe(eta=eta, x=x, beta=beta)

    theta, phi = (np.exp(v) / np.exp(v).sum(-1, keepdims=True) for v in (eta.numpy(), beta.numpy()))
    cross_entropy = -np.einsum("dv,cdv->cd", x.numpy(), np.log(np.einsum("cdk,kv->cdv", theta, phi)))
    log_p_eta = normal_logpdf(eta, eta_mean, eta_logstd.exp()).sum(-1)
    log_p_beta = normal_logpdf(beta, 0.0, math.exp(log_delta)).sum(-1)
    close(bn.log_joint(), log_p_eta - cross_entropy, (n_chains, n_docs))
    actual_beta, actual_x = bn.cond_log_prob(["beta", "x"])
    close(actual_beta, log_p_beta, (n_topics,))
    close(actual_x, -cross_entropy, (n_chains, n_docs))
    # the M step: gradient ascent on beta with eta fixed
    beta.requires_grad_()
    log_p_beta_node, log_px = model.observe(eta=eta, x=x, beta=beta).cond_log_prob(["beta", "x"])
    (log_p_beta_node.sum() + log_px.mean(0).sum()).backward()
    assert beta.grad is not None
    assert beta.grad.abs().min() > 0


def test_lntm_without_e_obj_says_what_does_not_fit():
    """Its own nodes have three batch shapes; ZhuSuan would sum them all the same."""
    model = lntm(2, 3, 4, 6, torch.zeros(4), torch.zeros(4), 0.0)
    with pytest.raises(ValueError, match="'beta'"):
        model.observe(x=torch.ones(3, 6)).log_joint()


# -- examples ---------------------------------------------------------------------------------------------------------


@zsp.meta_bayesian_net()
def gaussian(n_x, stdev, n_particles):
    bn = zsp.BayesianNet()
    bn.normal("x", torch.zeros([n_x]), std=stdev, n_samples=n_particles, group_ndims=1)
    return bn


def test_toy_gaussian():
    stdev = 1 / (torch.arange(3) + 1)
    x = torch.randn(10, 3)
    model = gaussian(3, stdev.to(x), 10)
    close(model.observe(x=x).log_joint(), normal_logpdf(x, 0.0, stdev).sum(-1), (10,))
    assert model.observe()["x"].shape == (10, 3)


@zsp.meta_bayesian_net(scope="sbn", reuse_variables=True)
def build_sbn(n, x_dim, h_dim, n_particles):
    bn = zsp.BayesianNet()
    h3_logits = torch.zeros([n, h_dim])
    h3 = bn.bernoulli("h3", h3_logits, group_ndims=1, n_samples=n_particles)
    h2_logits = zsp.module("h2", nn.Linear, h_dim, h_dim)(h3)
    h2 = bn.bernoulli("h2", h2_logits, group_ndims=1)
    h1_logits = zsp.module("h1", nn.Linear, h_dim, h_dim)(h2)
    h1 = bn.bernoulli("h1", h1_logits, group_ndims=1)
    x_logits = zsp.module("x", nn.Linear, h_dim, x_dim)(h1)
    bn.bernoulli("x", x_logits, group_ndims=1)
    return bn


@zsp.reuse_variables(scope="q_sbn")
def build_q_sbn(x, h_dim, n_particles):
    bn = zsp.BayesianNet()
    h1_logits = zsp.module("h1", nn.Linear, x.shape[-1], h_dim)(x)
    h1 = bn.bernoulli("h1", h1_logits, group_ndims=1, n_samples=n_particles)
    h2_logits = zsp.module("h2", nn.Linear, h_dim, h_dim)(h1)
    h2 = bn.bernoulli("h2", h2_logits, group_ndims=1)
    h3_logits = zsp.module("h3", nn.Linear, h_dim, h_dim)(h2)
    bn.bernoulli("h3", h3_logits, group_ndims=1)
    return bn


def bernoulli_logpmf(value: Tensor, net: nn.Module, scope: str, name: str, parent: Tensor) -> np.ndarray:
    weights = net.state_dict()
    logits = parent @ weights[f"{scope}.{name}.weight"].T + weights[f"{scope}.{name}.bias"]
    p = torch.sigmoid(logits).numpy()
    return st.bernoulli.logpmf(np.broadcast_to(value.numpy(), p.shape), p).sum(-1)


def test_sigmoid_belief_net():
    n, x_dim, h_dim, n_particles = 4, 6, 3, 5
    x = torch.bernoulli(torch.full((n, x_dim), 0.5))
    model, q_net = build_sbn(n, x_dim, h_dim, n_particles), build_q_sbn.new()
    variational = q_net(x, h_dim, n_particles)
    h1, h2, h3 = (node.tensor for node in variational.get(["h1", "h2", "h3"]))
    assert h3.shape == (n_particles, n, h_dim)
    bn = model.observe(x=x, h1=h1, h2=h2, h3=h3)
    log_q = (
        np.broadcast_to(bernoulli_logpmf(h1, q_net, "q_sbn", "h1", x.expand(n_particles, n, x_dim)), (n_particles, n))
        + bernoulli_logpmf(h2, q_net, "q_sbn", "h2", h1)
        + bernoulli_logpmf(h3, q_net, "q_sbn", "h3", h2)
    )
    close(variational.log_joint(), log_q, (n_particles, n))
    log_p = (
        np.full((n_particles, n), h_dim * math.log(0.5))
        + bernoulli_logpmf(h2, model, "sbn", "h2", h3)
        + bernoulli_logpmf(h1, model, "sbn", "h1", h2)
        + bernoulli_logpmf(x, model, "sbn", "x", h1)
    )
    close(bn.log_joint(), log_p, (n_particles, n))
    lower_bound = zsp.elbo(model, {"x": x}, variational=variational, axis=0)
    close(lower_bound.tensor, (log_p - log_q).mean(0), (n,))
    with pytest.raises(ValueError, match="is not reparameterised"):
        lower_bound.sgvb()


@zsp.meta_bayesian_net(scope="pmf")
def pmf(n, m, d, n_particles, alpha_u, alpha_v, alpha_pred, select_u, select_v):
    bn = zsp.BayesianNet()
    u = bn.normal("u", torch.zeros([n, d]), std=alpha_u, n_samples=n_particles, group_ndims=1)
    v = bn.normal("v", torch.zeros([m, d]), std=alpha_v, n_samples=n_particles, group_ndims=1)
    r_pred = torch.sum(u[:, select_u] * v[:, select_v], dim=2)
    bn.normal("r", torch.sigmoid(r_pred), std=alpha_pred)
    return bn


def test_probabilistic_matrix_factorization():
    select_u, select_v = torch.tensor([0, 1, 1, 2]), torch.tensor([1, 0, 1, 1])
    model = pmf(3, 2, 5, 2, 1.0, 1.5, 0.2, select_u, select_v)
    u, v, r = torch.randn(2, 3, 5), torch.randn(2, 2, 5), torch.rand(4)
    model.log_joint = lambda bn: sum(bn.cond_log_prob(name).sum(-1) for name in ("u", "v", "r"))
    r_mean = torch.stack([torch.sigmoid((u[:, a] * v[:, b]).sum(-1)) for a, b in zip(select_u, select_v, strict=True)], 1)
    expected = (
        normal_logpdf(u, 0.0, 1.0).sum((1, 2))
        + normal_logpdf(v, 0.0, 1.5).sum((1, 2))
        + st.norm.logpdf(r.numpy(), r_mean.numpy(), 0.2).sum(-1)
    )
    close(model.observe(u=u, v=v, r=r).log_joint(), expected, (2,))
