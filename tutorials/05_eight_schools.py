r"""Eight schools: how does one know that a sampler has failed, and what does one do about it?

Eight schools tried a coaching programme; each reports an effect on test scores and its standard error. A hierarchical
model shares strength between them, and its posterior has the shape of a funnel, down which no step size is small
enough. Written in one way the model makes the sampler fail, and the sampler says so; written in another, the same model
is easy. Given tau everything is normal, so that the right answers are an integral over one number.

Run it: ``python tutorials/05_eight_schools.py`` (about half a minute). It writes ``eight_schools.png``.

References: Rubin 1981, J. Educational Statistics 6 (the data); Gelman et al. 2013, Bayesian Data Analysis, section 5.5;
Betancourt and Girolami 2013, arXiv:1312.0906 (the funnel, centred and non-centred); Vehtari et al. 2021,
arXiv:1903.08008 (R-hat and effective sample sizes).
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import HalfCauchy, Normal

import zsp

SCHOOLS = "ABCDEFGH"

# ---------------------------------------------------------------------------------------------------------------------
# 1. The model in maths                              2. The same in zsp, line for line
#
#    mu ~ N(0, 5)                                      mu = bn.normal("mu", 0.0, std=5.0)
#    tau ~ HalfCauchy(5)                               tau = bn.half_cauchy("tau", 5.0)
#    theta_j ~ N(mu, tau), the true effects            theta = bn.normal("theta", mu.expand(8), std=tau, group_ndims=1)
#    y_j ~ N(theta_j, sigma_j), the reported ones      bn.normal("y", theta, std=sigma, group_ndims=1)
#
# This is the centred form. The non-centred one says the same with z_j ~ N(0, 1) and theta_j = mu + tau z_j: the law of
# mu, tau and theta is the same, but what is sampled now is z, whose width does not depend on tau.


@zsp.meta_bayesian_net(scope="centred")
def centred(sigma: Tensor) -> zsp.BayesianNet:
    bn = zsp.BayesianNet()
    mu = bn.normal("mu", 0.0, std=5.0)
    tau = bn.half_cauchy("tau", 5.0)
    theta = bn.normal("theta", mu.expand(len(sigma)), std=tau, group_ndims=1)
    bn.normal("y", theta, std=sigma, group_ndims=1)
    return bn


@zsp.meta_bayesian_net(scope="non_centred")
def non_centred(sigma: Tensor) -> zsp.BayesianNet:
    bn = zsp.BayesianNet()
    mu = bn.normal("mu", 0.0, std=5.0)
    tau = bn.half_cauchy("tau", 5.0)
    z = bn.normal("z", torch.zeros(len(sigma)), std=1.0, group_ndims=1)
    theta = bn.deterministic("theta", mu + tau * z)
    bn.normal("y", theta, std=sigma, group_ndims=1)
    return bn


def main(budget: float = 1.0, output: str | Path = "tutorial_output") -> dict[str, float]:
    """Run the tutorial.

    Args:
        budget: of draws; 1 is the real thing, tests use less.
        output: the folder for the figure.

    Returns:
        The numbers that are printed.
    """
    # -----------------------------------------------------------------------------------------------------------------
    # 3. Data: the reported effects and their standard errors.
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    exact = by_quadrature(y, sigma)

    # -----------------------------------------------------------------------------------------------------------------
    # 4. Inference in one call, for each way to write the model. What zsp.mcmc warns of is kept in draws.problems() too.
    n = max(20, int(1000 * budget))
    careful = zsp.NUTS(target_acceptance_rate=0.95)
    runs: dict[str, zsp.Draws] = {}
    for name, model, kernel in (
        ("centred", centred(sigma), zsp.NUTS()),
        ("centred, small steps", centred(sigma), careful),
        ("non-centred", non_centred(sigma), zsp.NUTS()),
    ):
        draws = runs[name] = sample(model, y, n // 2 if kernel is careful else n, kernel)
        n_leapfrogs = draws.info.n_leapfrogs.double().mean()
        print(f"{name}: {draws.n_chains} chains of {draws.n_draws} draws, {n_leapfrogs:.0f} leapfrog steps a draw")
        for problem in draws.problems() or ["no problems found"]:
            print(f"  {problem}")

    # -----------------------------------------------------------------------------------------------------------------
    # 5. A check with a known answer. The draws that diverge are not spread over the posterior: they gather at small
    #    tau, where the funnel narrows, and below that place draws are missing.
    divergent = runs["centred"].info.is_divergent.bool()
    log_tau = runs["centred"]["tau"].log()
    if divergent.any():
        print(f"centred, median of log tau: {log_tau[divergent].median():.2f} of the draws that diverge, "
              f"{log_tau.median():.2f} of all")  # fmt: skip
    print("                          P(tau < 1)    E[tau]        E[theta] of school A")
    print(f"  by quadrature           {exact.p_small:.3f}         {exact.tau:6.2f}        {exact.theta[0]:6.2f}")
    numbers = {"exact P": exact.p_small, "exact tau": exact.tau}
    for name, draws in runs.items():
        found = {"P": (draws["tau"] < 1.0).double(), "tau": draws["tau"], "theta": draws["theta"][..., 0]}
        cells = []
        for what, values in found.items():
            mean, error = values.mean().item(), float(zsp.inference.diagnostics.mcse_mean(values.double()))
            numbers |= {f"{name}, {what}": mean, f"{name}, {what} error": error}
            cells.append(f"{mean:6.3f} +- {error:.3f}" if what == "P" else f"{mean:6.2f} +- {error:.2f}")
        print(f"  {name:<22} {cells[0]}   {cells[1]}   {cells[2]}")
        numbers[f"{name}, divergences"] = int(draws.info.is_divergent.sum())
        numbers[f"{name}, problems"] = len(draws.problems())
    print(runs["non-centred"].summary(["mu", "tau", "theta"]))

    what_goes_wrong(sigma, y)

    figure = draw(runs, exact, y, sigma)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "eight_schools.png", dpi=150)
    print(f"figure: {folder / 'eight_schools.png'}")
    return numbers


def sample(model: zsp.MetaBayesianNet, y: Tensor, n: int, kernel: zsp.NUTS) -> zsp.Draws:
    """Four chains of n draws each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the problems are printed, all together
        # ten numbers and eight data: compiled code would not pay for the time that it takes to compile
        return zsp.mcmc(
            model, {"y": y}, kernel=kernel, n_samples=n, n_warmup=min(n, 300), progress=False, compile=False
        )


class Exact(NamedTuple):
    """What the draws should say."""

    log_tau: Tensor  # a grid
    density: Tensor  # of log tau, there
    p_small: float  # P(tau < 1)
    tau: float  # the posterior mean
    theta: Tensor  # the posterior means, for each school


def by_quadrature(y: Tensor, sigma: Tensor) -> Exact:
    """Given tau, mu and theta are normal and known; what is left is an integral over log tau."""
    y, sigma = y.double(), sigma.double()
    log_tau = torch.linspace(-9.0, 6.0, 6001, dtype=torch.float64)[:, None]
    tau = log_tau.exp()
    variance = sigma**2 + tau**2  # of y_j given mu and tau
    mu_variance = 1 / (1 / 25 + (1 / variance).sum(-1, keepdim=True))
    mu = mu_variance * (y / variance).sum(-1, keepdim=True)
    # p(y | tau) = p(y | mu, tau) p(mu) / p(mu | y, tau), at any mu
    log_likelihood = Normal(mu, variance.sqrt()).log_prob(y).sum(-1) + Normal(0.0, 5.0).log_prob(mu)[:, 0]
    log_likelihood = log_likelihood - Normal(mu, mu_variance.sqrt()).log_prob(mu)[:, 0]
    log_prior = HalfCauchy(torch.tensor(5.0, dtype=torch.float64)).log_prob(tau)[:, 0] + log_tau[:, 0]
    weights = torch.softmax(log_likelihood + log_prior, 0)
    theta = (tau**2 * y + sigma**2 * mu) / variance
    return Exact(
        log_tau[:, 0],
        weights / (log_tau[1, 0] - log_tau[0, 0]),
        float(weights[log_tau[:, 0] < 0].sum()),
        float(weights @ tau[:, 0]),
        weights @ theta,
    )


# ---------------------------------------------------------------------------------------------------------------------
# What to take home
#
# - Look at the warnings before the means. The centred run's means look reasonable; divergences, R-hat and the effective
#   sample sizes say that they are not to be trusted, and the funnel says why.
# - Smaller steps (target_acceptance_rate=0.95) help, and cost: fewer trajectories diverge, each takes more steps. They
#   do not widen the neck.
# - Another parameterisation does: sample z, compute theta. With much data for each school it would be the other way
#   round, for then the data, not tau, set the width of theta: the centred form is the one to try first.
#
# 6. What would go wrong otherwise, and how to see it.


def what_goes_wrong(sigma: Tensor, y: Tensor) -> None:
    print("theta without group_ndims=1, eight log probabilities where tau has one:")

    @zsp.meta_bayesian_net(scope="forgetful")
    def forgetful() -> zsp.BayesianNet:
        bn = zsp.BayesianNet()
        mu = bn.normal("mu", 0.0, std=5.0)
        tau = bn.half_cauchy("tau", 5.0)
        theta = bn.normal("theta", mu.expand(8), std=tau)
        bn.normal("y", theta, std=sigma, group_ndims=1)
        return bn

    _show(lambda: sample(forgetful(), y, 10, zsp.NUTS()))
    print("an improper density for tau instead of a prior, and a scale that may be negative:")

    @zsp.meta_bayesian_net(scope="negative")
    def negative() -> zsp.BayesianNet:
        bn = zsp.BayesianNet()
        tau = bn.flat("tau")
        theta = bn.normal("theta", torch.zeros(8), std=tau, group_ndims=1)
        bn.normal("y", theta, std=sigma, group_ndims=1)
        return bn

    _show(lambda: sample(negative(), y, 10, zsp.NUTS()))


def _show(call: Callable[[], Any]) -> None:
    try:
        call()
    except ValueError as error:
        print(f"  ValueError: {error}")


def draw(runs: dict[str, zsp.Draws], exact: Exact, y: Tensor, sigma: Tensor) -> Any:
    """The picture: the funnel in both forms, the law of tau, and what becomes of the schools."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8.5), layout="constrained")
    panels = figure.subplots(2, 2)
    blue, red, green = "#332288", "#D81B60", "#117733"
    for axes, name in zip(panels[0], ("centred", "non-centred"), strict=True):
        draws = runs[name]
        log_tau, theta = draws["tau"].log().flatten(), draws["theta"][..., 0].flatten()
        is_divergent = draws.info.is_divergent.bool().flatten()
        axes.plot(theta, log_tau, ".", color=blue, alpha=0.25, ms=4, mew=0)
        axes.plot(theta[is_divergent], log_tau[is_divergent], "x", color=red, ms=6, label="diverging")
        axes.set_xlim(-20, 45)
        axes.set_ylim(-4.5, 4.0)
        axes.set_xlabel("theta of school A")
        axes.set_ylabel("log tau")
        axes.set_title(f"{name[0].upper()}{name[1:]}: {int(is_divergent.sum())} of {len(theta)} draws diverge")
        if is_divergent.any():
            axes.legend(loc="lower right")
    law, schools = panels[1]
    bins = torch.linspace(-4.5, 4.0, 35).tolist()
    for name, colour in (("centred", red), ("non-centred", green)):
        values = runs[name]["tau"].log().flatten().numpy()
        law.hist(values, bins, density=True, histtype="step", lw=1.8, color=colour, label=name)
    law.plot(exact.log_tau, exact.density, "k-", lw=1.2, label="by quadrature")
    law.set_xlim(-4.5, 4.0)
    law.set_xlabel("log tau")
    law.set_ylabel("posterior density")
    law.set_title("The law of tau")
    law.legend(loc="upper left")
    places = torch.arange(len(y))
    schools.errorbar(places - 0.12, y, sigma, fmt="s", color="0.6", capsize=3, label="reported, with standard error")
    theta = runs["non-centred"]["theta"].flatten(0, 1)
    schools.errorbar(places + 0.12, theta.mean(0), theta.std(0), fmt="o", color=green, capsize=3, label="posterior")
    schools.plot(places + 0.12, exact.theta, "k_", ms=12, label="posterior mean, by quadrature")
    schools.axhline(runs["non-centred"]["mu"].mean(), color=green, lw=0.8, ls=":")
    schools.set_xticks(places.tolist(), list(SCHOOLS))
    schools.set_xlabel("school")
    schools.set_ylabel("effect of the programme")
    schools.set_title("What becomes of the schools")
    schools.legend(loc="upper right", fontsize=9)
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="tutorial_output", help="folder for the figure")
    parser.add_argument("--budget", type=float, default=1.0, help="share of the draws")
    arguments = parser.parse_args()
    main(arguments.budget, arguments.output)
