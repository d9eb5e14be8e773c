r"""Bayesian nets: what do data say about the weights of a regression?

A net is declared once, by a function, and then observed in any configuration: without observations it is a simulator,
with data it is a posterior up to a constant. Here that posterior is found by stochastic gradient variational Bayes
(SGVB) for two models whose answer is known otherwise:

1. linear regression, whose posterior and evidence have a closed form;
2. logistic regression with two weights, whose posterior can be put on a grid.

Run it: ``python tutorials/01_bayesian_nets.py`` (some 20 seconds). It writes ``regression.png``.

References: Kingma and Welling 2014, arXiv:1312.6114 (SGVB); Roeder et al. 2017, arXiv:1703.09194 (the path derivative);
Bishop 2006, Pattern Recognition and Machine Learning, sections 3.3 and 4.4.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Bernoulli, MultivariateNormal, Normal

import zsp

# ---------------------------------------------------------------------------------------------------------------------
# 1. The model in maths                       2. The same in zsp, line for line
#
#    w ~ N(0, alpha^2 I)                         w = bn.normal("w", torch.zeros(2), std=alpha, group_ndims=1)
#    y | w ~ N(x w, beta^2), n = 1..N            bn.normal("y", w @ x.T, std=beta, group_ndims=1)
#
# group_ndims=1 says that the last axis is one event: the two weights have one log probability, and so have the N data,
# which share the weights. w @ x.T works for one w, of shape [2], and for many, of shape [n_samples, 2].


@zsp.meta_bayesian_net(scope="linear regression")
def linear_regression(x: Tensor, alpha: float, beta: float) -> zsp.BayesianNet:
    bn = zsp.BayesianNet()
    w = bn.normal("w", torch.zeros(2), std=alpha, group_ndims=1)
    bn.normal("y", w @ x.T, std=beta, group_ndims=1)
    return bn


# The variational net: a Gaussian over both weights. It can be correlated, so that it can equal the exact posterior.
# zsp.parameter makes a parameter at the first execution and finds it again later. use_path_derivative=True keeps only
# the part of the gradient that goes through the draw: its noise vanishes as q becomes exact.


@zsp.reuse_variables("q")
def gaussian(n_samples: int) -> zsp.BayesianNet:
    bn = zsp.BayesianNet()
    mean = zsp.parameter("mean", torch.zeros(2))
    off_diagonal = zsp.parameter("off_diagonal", torch.zeros(2, 2))
    log_diagonal = zsp.parameter("log_diagonal", torch.zeros(2))
    cov_tril = off_diagonal.tril(-1) + torch.diag_embed(log_diagonal.exp())
    bn.multivariate_normal_cholesky("w", mean, cov_tril, n_samples=n_samples, use_path_derivative=True)
    return bn


# ---------------------------------------------------------------------------------------------------------------------
# The second pair: y | w ~ Bernoulli(sigmoid(x w)), and a mean-field Gaussian q(w) = prod_d N(w_d | mu_d, sigma_d^2).


@zsp.meta_bayesian_net(scope="logistic regression")
def logistic_regression(x: Tensor, alpha: float) -> zsp.BayesianNet:
    bn = zsp.BayesianNet()
    w = bn.normal("w", torch.zeros(2), std=alpha, group_ndims=1)
    bn.bernoulli("y", w @ x.T, group_ndims=1)
    return bn


@zsp.reuse_variables("q")
def mean_field(n_samples: int) -> zsp.BayesianNet:
    bn = zsp.BayesianNet()
    mean = zsp.parameter("mean", torch.zeros(2))
    logstd = zsp.parameter("logstd", torch.zeros(2))
    bn.normal("w", mean, logstd=logstd, n_samples=n_samples, group_ndims=1, use_path_derivative=True)
    return bn


# ---------------------------------------------------------------------------------------------------------------------
# 3. Data, seeded: an intercept and one feature. The model itself is the simulator: observe w, and y is drawn.


def simulate(model: zsp.MetaBayesianNet, w: Tensor) -> Tensor:
    return model.observe(w=w)["y"].tensor


# ---------------------------------------------------------------------------------------------------------------------
# 4. Inference in one call. elbo executes q, observes its draws and the data in the model, and checks that the two fit;
#    sgvb() is the cost whose gradient is an unbiased estimate of the ELBO's. zsp.fit is the loop.


def infer(
    model: zsp.MetaBayesianNet, q: zsp.ReusableFunction, y: Tensor, n_steps: int, learning_rate: float = 0.05
) -> zsp.History:
    q.materialize(1)  # make q's parameters, so that the optimizer can have them

    def loss(observed: dict[str, Tensor]) -> Tensor:
        return zsp.elbo(model, observed, variational=lambda: q(20), axis=0).sgvb()

    history = zsp.History()
    for rate in (learning_rate, learning_rate / 10, learning_rate / 100):
        optimizer = torch.optim.Adam(q.parameters(), lr=rate)
        epoch = [{"y": y}] * 20  # every step sees all data: twenty steps an epoch
        history = zsp.fit(loss, epoch, optimizer=optimizer, epochs=max(1, n_steps // 60), seed=1, progress=False)
    return history


# ---------------------------------------------------------------------------------------------------------------------
# 5. The known answers.


def linear_answer(x: Tensor, y: Tensor, alpha: float, beta: float) -> tuple[MultivariateNormal, Tensor]:
    """The exact posterior N(S x'y / beta^2, S), S = (x'x / beta^2 + I / alpha^2)^-1, and log p(y)."""
    precision = x.T @ x / beta**2 + torch.eye(2) / alpha**2
    mean = torch.linalg.solve(precision, x.T @ y / beta**2)
    marginal = MultivariateNormal(torch.zeros(len(y)), beta**2 * torch.eye(len(y)) + alpha**2 * x @ x.T)
    return MultivariateNormal(mean, precision_matrix=precision), marginal.log_prob(y)


def logistic_answer(x: Tensor, y: Tensor, alpha: float, n: int = 400) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The posterior on a grid: its points [n * n, 2], their weights (sum 1), and the posterior sd and log p(y)."""
    axis = torch.linspace(-4 * alpha, 4 * alpha, n)
    grid = torch.cartesian_prod(axis, axis)
    log_joint = Normal(0.0, alpha).log_prob(grid).sum(-1) + Bernoulli(logits=grid @ x.T).log_prob(y).sum(-1)
    log_evidence = torch.logsumexp(log_joint, 0) + 2 * torch.log(axis[1] - axis[0])
    weights = torch.softmax(log_joint, 0)
    mean = weights @ grid
    sd = (weights @ (grid - mean) ** 2).sqrt()
    return grid, weights, sd, log_evidence


def main(budget: float = 1.0, output: str | Path = "tutorial_output") -> dict[str, float]:
    """Run the tutorial.

    Args:
        budget: of optimisation steps; 1 is the real thing, tests use less.
        output: the folder for the figure.

    Returns:
        The numbers that are printed.
    """
    n_steps = max(60, int(3000 * budget))
    numbers: dict[str, float] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = torch.stack([torch.ones(30), torch.linspace(-1.0, 2.0, 30)], 1)

        print("Linear regression")
        alpha, beta = 1.0, 0.5
        model = linear_regression(x, alpha, beta)
        y = simulate(model, torch.tensor([0.3, -1.0]))
        posterior, log_evidence = linear_answer(x, y, alpha, beta)

        # Before any optimisation: Bayes' rule says that log p(w, y) - log p(w | y) is log p(y) for every w.
        w = posterior.sample((5,))
        differences = torch.stack([model.observe(w=w_k, y=y).log_joint() for w_k in w]) - posterior.log_prob(w)
        print(f"  log p(y), exactly                         {log_evidence:9.4f}")
        print(f"  log p(w, y) - log p(w | y) at five w      {differences.min():9.4f} to {differences.max():.4f}")

        q = gaussian.new()
        infer(model, q, y, n_steps)
        bound = zsp.elbo(model, {"y": y}, variational=q(1000))
        weights = bound.tensor.detach()
        q_dist = bound.variational["w"].dist
        print(f"  ELBO after {n_steps} steps                     {weights.mean():9.4f}")
        print(f"  its spread over 1000 draws of w           {weights.std():9.4f}   (0 where q is the posterior)")
        print(f"  posterior mean   exact {_row(posterior.mean)}   q {_row(q_dist.mean)}")
        print(f"  posterior sd     exact {_row(posterior.stddev)}   q {_row(q_dist.stddev)}")
        numbers |= {"linear_evidence": float(log_evidence), "linear_elbo": float(weights.mean())}
        numbers |= {"identity": float((differences - log_evidence).abs().max()), "spread": float(weights.std())}

        print("Logistic regression")
        alpha = 2.0
        logistic = logistic_regression(x, alpha)
        labels = simulate(logistic, torch.tensor([-0.5, 1.5]))
        grid, grid_weights, sd, logistic_evidence = logistic_answer(x, labels, alpha)
        q_logistic = mean_field.new()
        infer(logistic, q_logistic, labels, n_steps)
        with torch.no_grad():
            elbo = zsp.elbo(logistic, {"y": labels}, variational=q_logistic(1000), axis=0).tensor
        estimate = zsp.is_loglikelihood(
            logistic, {"y": labels}, proposal=lambda: q_logistic(1000), n_samples=20_000, return_stats=True
        )
        q_sd = q_logistic(1)["w"].dist.stddev
        print(f"  log p(y) on a grid                        {logistic_evidence:9.4f}")
        print(f"  ELBO of a mean-field q                    {elbo:9.4f}   (lower by KL(q || posterior))")
        print(
            f"  importance sampling with q as proposal    {estimate.log_likelihood:9.4f}   (s.e. "
            f"{estimate.standard_error:.4f}, ESS {estimate.ess:.0f} of 20000 draws)"
        )
        print(f"  posterior sd     grid  {_row(sd)}   q {_row(q_sd)}   (mean field: too sure)")
        numbers |= {"logistic_evidence": float(logistic_evidence), "logistic_elbo": float(elbo)}
        numbers |= {"logistic_is": float(estimate.log_likelihood), "logistic_is_se": float(estimate.standard_error)}

        what_goes_wrong(x, y)
        figure = draw(posterior, q_dist, grid, grid_weights, q_logistic(1)["w"].dist)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "regression.png", dpi=150)
    print(f"figure: {folder / 'regression.png'}")
    return numbers


# ---------------------------------------------------------------------------------------------------------------------
# 6. What would go wrong, and how to see it.
#
# - Without group_ndims=1 on y, its log probability has shape [30] and that of w shape []. Summed as they are, the prior
#   would be counted 30 times, silently. zsp refuses; the text is printed below.
# - A misspelt or forgotten name: model.observe(Y=y) lists the names that there are. A latent that q lacks is named.
# - A q that cannot be right: the logistic q above has no correlation, so its ELBO stays below the evidence. The ESS of
#   the importance weights tells how far to trust it; here it is a good proposal all the same.


@zsp.meta_bayesian_net(scope="ungrouped")
def without_group_ndims(x: Tensor) -> zsp.BayesianNet:
    bn = zsp.BayesianNet()
    w = bn.normal("w", torch.zeros(2), std=1.0, group_ndims=1)
    bn.normal("y", w @ x.T, std=0.5)
    return bn


def what_goes_wrong(x: Tensor, y: Tensor) -> None:
    print("Without group_ndims=1 on y:")
    try:
        without_group_ndims(x).observe(y=y).log_joint()
    except ValueError as error:
        print(f"  ValueError: {error}")
    print("A misspelt name:")
    try:
        linear_regression(x, 1.0, 0.5).observe(Y=y)
    except ValueError as error:
        print(f"  ValueError: {error}")


def draw(
    posterior: MultivariateNormal, q: MultivariateNormal, grid: Tensor, grid_weights: Tensor, q_logistic: Normal
) -> Figure:
    """Both posteriors, the known answer filled and the variational one as lines at one and two standard deviations."""
    figure = Figure(figsize=(10.0, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for radius in (1.0, 2.0):
        left.fill(*_ellipse(posterior.mean, posterior.scale_tril, radius), color="#88CCEE", alpha=0.5)
        left.plot(*_ellipse(q.mean.detach(), q.scale_tril.detach(), radius), color="#882255", linewidth=1.5)
        tril = torch.diag(q_logistic.stddev.detach())
        right.plot(*_ellipse(q_logistic.mean.detach(), tril, radius), color="#882255", linewidth=1.5)
    n = math.isqrt(len(grid))
    axis = grid[:n, 1]
    mass = grid_weights.sort(descending=True).values
    held = mass.cumsum(0)
    levels = [float(mass[int((held < share).sum())]) for share in (0.865, 0.393)]  # what 2 and 1 sd hold in the plane
    heights = grid_weights.reshape(n, n).T
    right.contourf(axis, axis, heights, levels=[*levels, float(mass[0])], colors=["#CFEAF6", "#A5D8F2"])
    mean = grid_weights @ grid
    right.set_xlim(float(mean[0]) - 1.3, float(mean[0]) + 1.3)
    right.set_ylim(float(mean[1]) - 1.5, float(mean[1]) + 1.5)
    left.set(title="Linear: exact (filled), q (lines)", xlabel="$w_0$", ylabel="$w_1$")
    right.set(title="Logistic: grid (filled), mean-field q (lines)", xlabel="$w_0$", ylabel="$w_1$")
    return figure


def _ellipse(mean: Tensor, tril: Tensor, radius: float) -> tuple[list[float], list[float]]:
    angle = torch.linspace(0, 2 * math.pi, 100)
    points = mean + radius * torch.stack([angle.cos(), angle.sin()], 1) @ tril.T
    return points[:, 0].tolist(), points[:, 1].tolist()


def _row(values: Tensor) -> str:
    return "[" + ", ".join(f"{value:7.4f}" for value in values.tolist()) + "]"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="tutorial_output", help="folder for the figure")
    parser.add_argument("--budget", type=float, default=1.0, help="share of the optimisation steps")
    arguments = parser.parse_args()
    main(arguments.budget, arguments.output)
