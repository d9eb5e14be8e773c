"""Variational nets with flows from Pyro and Zuko."""

import pytest
import torch

import zsp
from tests.monte_carlo import assert_mean

D = 2


@zsp.meta_bayesian_net(scope="target")
def target(n):
    bn = zsp.BayesianNet()
    z = bn.normal("z", torch.zeros(n, D), std=1.0, group_ndims=1)
    bn.normal("x", z[..., 0] + 0.4 * z[..., 1].square(), std=0.5)  # a curved posterior
    return bn


def pyro_net(names, context_dim=1):
    """A variational net: a base and a chain of Pyro's transforms, the conditional ones given x."""
    import pyro.distributions.transforms as library

    @zsp.reuse_variables("q")
    def q(x, n_samples):
        bn = zsp.BayesianNet()
        chain = []
        for i, name in enumerate(names):
            if name.startswith("conditional"):
                module = zsp.module(f"t{i}", getattr(library, name), D, context_dim=context_dim)
                chain.append(module.condition(x.unsqueeze(-1)))
            else:
                factory = zsp.distributions.Sylvester if name == "Sylvester" else getattr(library, name)
                chain.append(zsp.module(f"t{i}", factory, D))
        loc, logstd = zsp.parameter("loc", torch.zeros(D)), zsp.parameter("logstd", torch.zeros(D))
        base = zsp.distributions.Normal(loc.expand(len(x), D), logstd.exp())
        bn.flow("z", base, chain, n_samples=n_samples)
        return bn

    return q


def zuko_net(name):
    zuko = pytest.importorskip("zuko")

    @zsp.reuse_variables("q")
    def q(x, n_samples):
        bn = zsp.BayesianNet()
        flow = zsp.module("flow", getattr(zuko.flows, name), features=D, context=1, hidden_features=(16, 16))
        bn.stochastic("z", flow(x.unsqueeze(-1)), n_samples=n_samples)
        return bn

    return q


NETS = {
    "planar": lambda: pyro_net(["conditional_planar"] * 4),
    "radial": lambda: pyro_net(["conditional_radial"] * 4),
    "sylvester": lambda: pyro_net(["Sylvester", "conditional_planar", "Sylvester"]),
    "realnvp": lambda: pyro_net(["conditional_affine_coupling", "affine_coupling"]),
    "maf": lambda: pyro_net(["conditional_affine_autoregressive"] * 2),
    "spline": lambda: pyro_net(["spline_coupling", "conditional_spline_autoregressive"]),
    "zuko_maf": lambda: zuko_net("MAF"),
    "zuko_nsf": lambda: zuko_net("NSF"),
}

X = torch.tensor([-0.5, 0.2, 1.0], dtype=torch.float64)


def log_evidence():
    """log p(x) by quadrature over z2: x given z2 is Gaussian."""
    z = torch.linspace(-9.0, 9.0, 4001)
    log_p = torch.distributions.Normal(0.0, 1.0).log_prob(z)
    log_p = log_p + torch.distributions.Normal(0.4 * z.square(), 1.25**0.5).log_prob(X.unsqueeze(-1))
    return torch.trapezoid(log_p.exp(), z).log()


@pytest.mark.parametrize("build", NETS.values(), ids=NETS)
def test_flows_as_nodes(build):
    torch.manual_seed(2)
    q = build().materialize(X, 1)
    model = target(3)

    # a narrow Gaussian g has E_q[g / q] = 1; an error in the density under q would be one of this mean
    with torch.no_grad():
        bn = q(X, 20_000)
        z = bn["z"].tensor
        narrow = torch.distributions.Normal(z.median(0).values, 0.3 * z.std(0))
        weights = (narrow.log_prob(z).sum(-1) - bn.log_joint()).exp()
    assert weights.shape == (20_000, 3) and bool((weights.std(0) < 8).all())
    assert_mean(weights, 1.0)

    def gap():
        with torch.no_grad():
            bound = zsp.elbo(model, {"x": X}, variational=q(X, 2000), axis=0)
            return (log_evidence() - bound.tensor).mean().item()

    before = gap()
    optimizer = torch.optim.Adam(q.parameters(), lr=0.03)
    for _ in range(60):
        optimizer.zero_grad()
        zsp.elbo(model, {"x": X}, variational=q(X, 32), axis=0).sgvb().mean().backward()
        optimizer.step()
    assert 0 < gap() < 0.5 * before
    stats = zsp.is_loglikelihood(
        model, {"x": X}, proposal=lambda: q(X, 500), n_samples=1200, chunk=100, return_stats=True
    )
    assert bool(((stats.log_likelihood - log_evidence()).abs() < 0.5).all()) and stats.ess.shape == (3,)
