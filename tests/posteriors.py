"""The posteriors of posteriordb as zsp nets, and their reference answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import zsp

__all__ = ["POSTERIORS", "Posterior", "Reference", "load"]


class Reference(NamedTuple):
    """What is known of a latent or deterministic node, shape [*shape] each."""

    mean: Tensor
    sd: Tensor
    mcse_mean: Tensor
    mcse_sd: Tensor


class Posterior(NamedTuple):
    """A model, its data, and the answers by node name."""

    model: zsp.MetaBayesianNet
    observed: dict[str, Tensor]
    reference: dict[str, Reference]


@zsp.meta_bayesian_net(scope="eight_schools_centered")
def eight_schools_centered(sigma):
    bn = zsp.BayesianNet()
    mu = bn.normal("mu", 0.0, std=5.0)
    tau = bn.half_cauchy("tau", 5.0)
    theta = bn.normal("theta", mu.expand(len(sigma)), std=tau, group_ndims=1)
    bn.normal("y", theta, std=sigma, group_ndims=1)
    return bn


@zsp.meta_bayesian_net(scope="eight_schools_noncentered")
def eight_schools_noncentered(sigma):
    bn = zsp.BayesianNet()
    mu = bn.normal("mu", 0.0, std=5.0)
    tau = bn.half_cauchy("tau", 5.0)
    z = bn.normal("z", torch.zeros(len(sigma)), std=1.0, group_ndims=1)
    theta = bn.deterministic("theta", mu + tau * z)
    bn.normal("y", theta, std=sigma, group_ndims=1)
    return bn


def linear_regression(beta_prior: Callable, sigma_prior: Callable) -> Any:
    """y ~ N(x beta, sigma); the priors are functions from the net and a name (and a length) to a value."""

    @zsp.meta_bayesian_net(scope="linear_regression")
    def model(x):
        bn = zsp.BayesianNet()
        beta = beta_prior(bn, "beta", x.shape[-1])
        sigma = sigma_prior(bn, "sigma")
        bn.normal("y", x @ beta, std=sigma, group_ndims=1)
        return bn

    return model


def flat(bn, name, n):
    return bn.flat(name, (n,), group_ndims=1)


def positive(bn, name):
    return bn.flat(name, support=torch.distributions.constraints.positive)


@zsp.meta_bayesian_net(scope="autoregression")
def autoregression(lagged):
    bn = zsp.BayesianNet()
    alpha = bn.normal("alpha", 0.0, std=10.0)
    beta = bn.normal("beta", torch.zeros(lagged.shape[-1]), std=10.0, group_ndims=1)
    sigma = bn.half_cauchy("sigma", 2.5)
    bn.normal("y", alpha + lagged @ beta, std=sigma, group_ndims=1)
    return bn


@zsp.meta_bayesian_net(scope="garch")
def garch(y, sigma1):
    """The data are an input too: each volatility depends on the datum before. beta1's support depends on alpha1."""
    bn = zsp.BayesianNet()
    mu = bn.flat("mu")
    alpha0 = bn.flat("alpha0", support=torch.distributions.constraints.positive)
    alpha1 = bn.uniform("alpha1", 0.0, 1.0)
    # uniform's density is 1 / (1 - alpha1), the prior is flat
    beta1 = bn.flat("beta1", support=torch.distributions.constraints.interval(0.0, 1 - alpha1))
    shocks = alpha0 + alpha1 * (y[:-1] - mu).square()
    # s[t]^2 = shock[t] + beta1 s[t-1]^2, written out as a convolution so that no loop over time is needed
    n = len(y)
    start = torch.cat([(sigma1**2).reshape(1), shocks])
    powers = beta1 ** torch.arange(n)
    variance = torch.fft.irfft(torch.fft.rfft(powers, 2 * n) * torch.fft.rfft(start, 2 * n), 2 * n)[:n]
    bn.normal("r", mu.expand(n), std=variance.sqrt(), group_ndims=1)
    return bn


@zsp.meta_bayesian_net(scope="gp_regression")
def gp_regression(x):
    bn = zsp.BayesianNet()
    rho = bn.gamma("rho", 25.0, 4.0)
    alpha = bn.half_normal("alpha", 2.0)
    sigma = bn.half_normal("sigma", 1.0)
    kernel = alpha**2 * torch.exp(-0.5 * (x[:, None] - x).square() / rho**2)
    covariance = kernel + sigma * torch.eye(len(x))  # sigma is a variance
    bn.multivariate_normal_cholesky("y", torch.zeros(len(x)), torch.linalg.cholesky(covariance))
    return bn


@zsp.meta_bayesian_net(scope="radon")
def radon(county, n_counties):
    bn = zsp.BayesianNet()
    mu = bn.normal("mu_alpha", 0.0, std=10.0)
    sigma_alpha = bn.half_normal("sigma_alpha", 1.0)
    sigma_y = bn.half_normal("sigma_y", 1.0)
    alpha = bn.normal("alpha", mu.expand(n_counties), std=sigma_alpha, group_ndims=1)
    bn.normal("y", alpha[county], std=sigma_y, group_ndims=1)
    return bn


@zsp.meta_bayesian_net(scope="wells")
def wells(x):
    bn = zsp.BayesianNet()
    beta = bn.flat("beta", (2,), group_ndims=1)
    bn.bernoulli("y", x @ beta, group_ndims=1)
    return bn


def _with_intercept(*columns: Tensor) -> Tensor:
    return torch.stack([torch.ones_like(columns[0]), *columns], -1)


def _mesquite(d: dict[str, Tensor]) -> tuple[zsp.MetaBayesianNet, dict[str, Tensor]]:
    names = "diam1", "diam2", "canopy_height", "total_height", "density"
    x = _with_intercept(*(d[name].log() for name in names), d["group"])
    return linear_regression(flat, positive)(x), {"y": d["weight"].log()}


def _ark(d: dict[str, Tensor]) -> tuple[zsp.MetaBayesianNet, dict[str, Tensor]]:
    k = int(d["K"])
    lagged = torch.stack([d["y"][k - i - 1 : len(d["y"]) - i - 1] for i in range(k)], -1)
    return autoregression(lagged), {"y": d["y"][k:]}


def _half_cauchy(bn, name):
    return bn.half_cauchy(name, 2.5)


def _half_normal(bn, name):
    return bn.half_normal(name, 10.0)


def _normal(bn, name, n):
    return bn.normal(name, torch.zeros(n), std=10.0, group_ndims=1)


POSTERIORS: dict[str, Callable[[dict[str, Tensor]], tuple[zsp.MetaBayesianNet, dict[str, Tensor]]]] = {
    "eight_schools-eight_schools_centered": lambda d: (eight_schools_centered(d["sigma"]), {"y": d["y"]}),
    "eight_schools-eight_schools_noncentered": lambda d: (eight_schools_noncentered(d["sigma"]), {"y": d["y"]}),
    "earnings-logearn_height": lambda d: (
        linear_regression(flat, positive)(_with_intercept(d["height"])), {"y": d["earn"].log()},
    ),
    "kidiq-kidscore_momiq": lambda d: (
        linear_regression(flat, _half_cauchy)(_with_intercept(d["mom_iq"])), {"y": d["kid_score"]},
    ),
    "mesquite-logmesquite": _mesquite,
    "sblrc-blr": lambda d: (linear_regression(_normal, _half_normal)(d["X"]), {"y": d["y"]}),
    "arK-arK": _ark,
    "garch-garch11": lambda d: (garch(d["y"], d["sigma1"]), {"r": d["y"]}),
    "gp_pois_regr-gp_regr": lambda d: (gp_regression(d["x"]), {"y": d["y"]}),
    "radon_mn-radon_partially_pooled_centered": lambda d: (
        radon(d["county_idx"].long() - 1, int(d["J"])), {"y": d["log_radon"]},
    ),
    "wells_data-wells_dist": lambda d: (wells(_with_intercept(d["dist"])), {"y": d["switched"]}),
}  # fmt: skip


def load(folder: Path, name: str) -> Posterior:
    """A posterior from the folder of data sets."""
    content = json.loads((folder / "posteriordb" / f"{name}.json").read_text())
    data = {key: torch.tensor(value, dtype=torch.get_default_dtype()) for key, value in content["data"].items()}
    model, observed = POSTERIORS[name](data)
    return Posterior(model, observed, _references(content["reference"]))


def _references(scalars: dict[str, dict[str, float]]) -> dict[str, Reference]:
    """Stan's ``beta[1]``, ``beta[2]`` as one node ``beta``."""
    grouped: dict[str, list[dict[str, float]]] = {}
    for label, values in scalars.items():
        grouped.setdefault(label.partition("[")[0], []).append(values)
    references = {}
    for name, rows in grouped.items():
        is_scalar = name in scalars
        columns = torch.tensor([[row["mean"], row["sd"], row["mcse_mean"]] for row in rows]).unbind(-1)
        mean, sd, mcse_mean = (column[0] if is_scalar else column for column in columns)
        # of independent draws of a normal distribution, of which mcse_mean tells the number; 0 for quadrature
        references[name] = Reference(mean, sd, mcse_mean, mcse_mean / 2**0.5)
    return references
