"""A net of two latents, of any types, whose objectives are known exactly by enumeration and quadrature.

Model: a, then c given a; data x given a, and y given c. Variational net: a, then c given a. Every parameter may have a
copy for each replicate, so that one backward pass gives as many independent gradients.
"""

import itertools
import math

import numpy as np
import torch
from torch.distributions import Bernoulli, Normal

import zsp

TYPES = ("pathwise", "score", "bernoulli")  # a normal with its pathwise gradient, one without, a Bernoulli
COMBINATIONS = list(itertools.product(TYPES, TYPES))
DATA = {"x": 0.9, "y": -0.6}
PHI = {"a_mean": 0.3, "a_logstd": -0.4, "c_mean": -0.2, "c_slope": 0.7, "c_logstd": -0.6}
THETA = {"a_prior": -0.3, "c_bias": 0.2, "c_weight": 0.8, "x_weight": 1.1, "y_weight": -0.7}
PARAMETERS = {**PHI, **THETA}


def is_bernoulli(kind):
    return kind == "bernoulli"


def phi_of(types):
    """The names of the variational parameters in use: a Bernoulli has no scale."""
    return [n for n in PHI if not (n.endswith("logstd") and is_bernoulli(types[n.startswith("c")]))]


def copies(n=None, names=PARAMETERS):
    """Parameters as leaves, one copy for each of n replicates."""
    shape = () if n is None else (n,)
    return {name: torch.full(shape, PARAMETERS[name], requires_grad=True) for name in names}


def declare(bn, kind, name, location, logstd, **options):
    if is_bernoulli(kind):
        return bn.bernoulli(name, location, **options)
    return bn.normal(name, location, logstd=logstd, is_reparameterized=kind == "pathwise", **options)


@zsp.meta_bayesian_net(scope="model")
def build_model(types, theta=None):
    bn = zsp.BayesianNet()
    zero = torch.zeros_like(theta["a_prior"])
    a = declare(bn, types[0], "a", theta["a_prior"], zero)
    c = declare(bn, types[1], "c", theta["c_bias"] + theta["c_weight"] * a, zero)
    bn.normal("x", theta["x_weight"] * a, std=0.8)
    bn.normal("y", theta["y_weight"] * c, std=0.6)
    return bn


MODELS = {types: build_model(types) for types in COMBINATIONS}


@zsp.reuse_variables("q")
def q_net(types, phi, n_samples, path=False):
    bn = zsp.BayesianNet()
    options = {} if not path else {"use_path_derivative": True}
    a = declare(
        bn, types[0], "a", phi["a_mean"], phi["a_logstd"], n_samples=n_samples,
        **({} if is_bernoulli(types[0]) else options),
    )  # fmt: skip
    c_logstd = phi["c_logstd"]
    c = phi["c_mean"] + phi["c_slope"] * a
    declare(bn, types[1], "c", c, c_logstd, **({} if is_bernoulli(types[1]) else options))
    return bn


def objective(function, types, parameters, n_samples=1, path=False, data=DATA, **options):
    """``function`` (zsp.elbo and its like) of the two nets."""
    q = q_net(types, parameters, n_samples, path)
    like = parameters["a_mean"]
    observed = {name: torch.as_tensor(value).to(like).expand_as(like) for name, value in data.items()}
    return function(MODELS[types], {**observed, "theta": parameters}, variational=q, axis=0, **options)


def gradients(cost, parameters, names):
    """name -> gradients, one a replicate."""
    found = torch.autograd.grad(cost.sum(), [parameters[name] for name in names], allow_unused=True)
    return {n: torch.zeros_like(parameters[n]) if g is None else g for n, g in zip(names, found, strict=True)}


# -- by enumeration and quadrature ------------------------------------------------------------------------------------

_POINTS, _WEIGHTS = np.polynomial.hermite_e.hermegauss(24)
_WEIGHTS = _WEIGHTS / math.sqrt(2 * math.pi)


def log_density(kind, value, location, logstd):
    if is_bernoulli(kind):
        return Bernoulli(logits=location).log_prob(value)
    return Normal(location, logstd.exp()).log_prob(value)


def support(kind, location, logstd, n_axes, axis, n_points):
    """(values, weights) of a draw, along an axis of its own; differentiable in the parameters."""
    shape = [1] * n_axes
    shape[axis] = -1
    if is_bernoulli(kind):
        values = torch.tensor([0.0, 1.0]).reshape(shape)
        return values, Bernoulli(logits=location).log_prob(values).exp()
    points, weights = np.polynomial.hermite_e.hermegauss(n_points)
    noise = torch.as_tensor(points).reshape(shape)
    weights = torch.as_tensor(weights / math.sqrt(2 * math.pi)).reshape(shape)
    return location + logstd.exp() * noise, weights


def exact(types, function, n_samples=1, n_points=24):
    """name -> gradient of E[function(log p, log q)], over all values of n_samples draws of both latents.

    ``function`` takes lists of the samples' log densities.
    """
    p = copies()
    n_axes = 2 * n_samples
    log_p, log_q, probability = [], [], torch.ones(())
    zero = torch.zeros(())
    for k in range(n_samples):
        a, wa = support(types[0], p["a_mean"], p["a_logstd"], n_axes, 2 * k, n_points)
        c_location = p["c_mean"] + p["c_slope"] * a
        c, wc = support(types[1], c_location, p["c_logstd"], n_axes, 2 * k + 1, n_points)
        log_q.append(log_density(types[0], a, p["a_mean"], p["a_logstd"]) + log_density(types[1], c, c_location, p["c_logstd"]))
        total = log_density(types[0], a, p["a_prior"], zero)
        total = total + log_density(types[1], c, p["c_bias"] + p["c_weight"] * a, zero)
        total = total + Normal(p["x_weight"] * a, 0.8).log_prob(torch.tensor(DATA["x"]))
        log_p.append(total + Normal(p["y_weight"] * c, 0.6).log_prob(torch.tensor(DATA["y"])))
        probability = probability * wa * wc
    value = (probability * function(log_p, log_q)).sum()
    names = phi_of(types) + list(THETA)
    found = torch.autograd.grad(value, [p[name] for name in names])
    return dict(zip(names, found, strict=True))
