r"""A Bayesian neural net, three ways: what does a network not know, and which method says so?

A small network is fitted to a curve whose middle was never measured. Mean-field variational inference, SGHMC and HMC
run on the same model object. HMC, exact but for the number of draws, is the reference: the other two are judged by how
wide their predictions are where there are no data.

Run it: ``python tutorials/06_bayesian_neural_nets.py`` (about a minute). It writes ``three_posteriors.png``.

References: Neal 1996, Bayesian Learning for Neural Networks (HMC); Chen, Fox and Guestrin 2014, arXiv:1402.4102
(SGHMC); Blundell et al. 2015, arXiv:1505.05424 (variational inference); Foong et al. 2019, arXiv:1906.11537 (what it
misses between data).
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

import zsp
from zsp import evaluation, models
from zsp.plots.style import LINE_COLOURS, new_figure_of_panels

# ---------------------------------------------------------------------------------------------------------------------
# 1. The model in maths                               2. The same in zsp, line for line
#
#    W_l ~ N(0, s^2 / n_in), b_l ~ N(0, s^2)             prior=models.GaussianPrior(s, per_fan_in=True)
#    f(x) = W_2 tanh(W_1 x + b_1) + b_2                  net, an ordinary torch module
#    y ~ N(f(x), 0.1^2)                                  likelihood=models.NormalLikelihood(0.1)
#
# zsp.models.bayesian makes a model of any module: its parameters become latents of their own names, "0.weight" and so
# on; x is an input, y the data.


def build_model(hidden: int = 20) -> zsp.MetaBayesianNet:
    net = nn.Sequential(nn.Linear(1, hidden), nn.Tanh(), nn.Linear(hidden, 1), nn.Flatten(0))
    prior = models.GaussianPrior(2.0, per_fan_in=True)
    return models.bayesian(net, prior=prior, likelihood=models.NormalLikelihood(0.1))


# ---------------------------------------------------------------------------------------------------------------------
# 3. Data, seeded: a curve between -2 and 2, measured at both ends only.


def true_curve(x: Tensor) -> Tensor:
    return torch.sin(2 * x) + 0.3 * x


def make_data(n: int) -> tuple[Tensor, Tensor]:
    half = n // 2
    x = torch.cat([torch.rand(half) * 1.2 - 2.0, torch.rand(n - half) * 1.2 + 0.8])
    return x[:, None], true_curve(x) + 0.1 * torch.randn(n)


# ---------------------------------------------------------------------------------------------------------------------
# 4. Inference, each in one call. The three return draws of the latents, name -> [draw, *shape].
#
# zsp.mcmc would warn that R-hat is high for the weights, and rightly: hidden units can be exchanged, and their signs
# turned, so that each chain holds other weights for the same function. What has to agree is the function, so that main
# silences the warning and compares predictions.


def by_variational_inference(model: zsp.MetaBayesianNet, data: dict[str, Tensor], budget: float) -> dict[str, Tensor]:
    """Independent Gaussians, trained by the ELBO; from a draw of the prior, for zeros are a saddle point."""
    first = model.observe(x=data["x"])
    start = {name: node.tensor for name, node in first.nodes.items() if hasattr(node, "tensor") and name != "y"}
    q = zsp.mean_field(model, data, init=start, std=0.05, n_samples=10)
    for learning_rate in (0.02, 0.005):
        zsp.fit(
            lambda batch: zsp.elbo(model, batch, variational=q, axis=0).sgvb(),
            data,
            optimizer=torch.optim.Adam(q.parameters(), lr=learning_rate),
            epochs=max(5, int(2000 * budget)),
            progress=False,
        )
    bn = q.bind(n_samples=1000).observe()
    return {name: node.tensor.detach() for name, node in bn.nodes.items()}


def by_sghmc(model: zsp.MetaBayesianNet, data: dict[str, Tensor], budget: float) -> dict[str, Tensor]:
    """20 chains; with few data every step takes all of them."""
    n_steps = max(40, int(20_000 * budget))
    draws = zsp.mcmc(
        model,
        data,
        kernel=zsp.SGHMC(2e-5, friction=0.05, n_iter_resample_v=None),
        n_warmup=n_steps // 2,
        n_samples=20,
        thin=max(1, n_steps // 40),
        n_chains=20,
        progress=False,
    )
    return {name: draws[name].flatten(0, 1) for name in draws if name not in draws.deterministic}


def by_hmc(model: zsp.MetaBayesianNet, data: dict[str, Tensor], budget: float) -> dict[str, Tensor]:
    """20 chains of trajectories of 50 leapfrogs, with the step size and the mass matrix adapted."""
    n = max(4, int(400 * budget))
    draws = zsp.mcmc(
        model, data, kernel=zsp.HMC(n_leapfrogs=50), n_warmup=n, n_samples=n, n_chains=20, progress=False, compile=False
    )
    return {name: draws[name].flatten(0, 1) for name in draws if name not in draws.deterministic}


METHODS = {"mean-field VI": by_variational_inference, "SGHMC": by_sghmc, "HMC": by_hmc}


def main(budget: float = 1.0, output: str | Path = "tutorial_output") -> dict[str, float]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        x, y = make_data(60)
        x_test, y_test = make_data(400)
        grid = torch.linspace(-3, 3, 121)[:, None]
        middle = grid.squeeze(-1).abs() < 0.5
        model = build_model()
        numbers, curves = {}, {}
        print(f"{'':<14}{'log likelihood':>15}{'inside 90 %':>13}{'sd at data':>12}{'sd in the gap':>15}{'seconds':>9}")
        for name, infer in METHODS.items():
            began = time.perf_counter()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="R-hat is above")
                draws = infer(model, {"x": x, "y": y}, budget)
            seconds = time.perf_counter() - began
            curve = zsp.predict(model, draws, {"x": grid}, names=["output"])["output"]
            curves[name] = curve
            new = zsp.predict(model, draws, {"x": x_test}, names=["y"])["y"]
            log_likelihood = float(evaluation.predictive_log_prob(model, draws, {"x": x_test, "y": y_test}).mean())
            inside = float(evaluation.coverage(evaluation.predictive_interval(new, 0.9), y_test))
            at_data = float(zsp.predict(model, draws, {"x": x}, names=["output"])["output"].std(0).mean())
            in_gap = float(curve.std(0)[middle].mean())
            print(f"{name:<14}{log_likelihood:>15.3f}{inside:>13.2f}{at_data:>12.3f}{in_gap:>15.3f}{seconds:>9.1f}")
            numbers |= {f"log likelihood, {name}": log_likelihood, f"inside, {name}": inside}
            numbers |= {f"sd at data, {name}": at_data, f"sd in the gap, {name}": in_gap}
        path = draw_curves(curves, grid, x, y, Path(output))
        print(f"Wrote {path}.")
        what_goes_wrong(model, x, y)
    return numbers


def draw_curves(curves: dict[str, Tensor], grid: Tensor, x: Tensor, y: Tensor, output: Path) -> Path:
    """The mean and two standard deviations of f, a panel a method."""
    figure, panels = new_figure_of_panels(1, len(curves), 3.6, 3.2, None, sharey=True)
    where = grid.squeeze(-1).numpy()
    for axes, (name, curve) in zip(panels[0], curves.items(), strict=True):
        mean, sd = curve.mean(0).numpy(), curve.std(0).numpy()
        axes.fill_between(where, mean - 2 * sd, mean + 2 * sd, color=LINE_COLOURS[0], alpha=0.2, linewidth=0)
        axes.plot(where, mean, color=LINE_COLOURS[0], label="mean of f, two sd")
        axes.plot(where, true_curve(grid).squeeze(-1), color="black", linewidth=0.8, linestyle="--", label="truth")
        axes.plot(x.squeeze(-1), y, ".", color=LINE_COLOURS[1], markersize=4, label="data")
        axes.set(title=name, xlabel="x", ylim=(-4, 4))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].legend(frameon=False, fontsize=8)
    output.mkdir(parents=True, exist_ok=True)
    path = output / "three_posteriors.png"
    figure.savefig(path)
    return path


# ---------------------------------------------------------------------------------------------------------------------
# 5. A check with a known answer: HMC's draws are the posterior's, up to their number. SGHMC's sd in the gap should be
#    close to HMC's; the mean-field approximation's is too small there, and no amount of training changes that.
#
# 6. What would go wrong, and how to see it.
#
# - The network ends in [n, 1] and y is [n]: torch would broadcast them to n x n residuals; zsp names both shapes.
# - A network in training mode with dropout or batch norm: its output is random, or depends on the other rows.
# - A learning rate of SGHMC that is too large does not diverge at once: it heats the stiffest directions first. Halve
#   it, and see whether the predictions change.


def what_goes_wrong(model: zsp.MetaBayesianNet, x: Tensor, y: Tensor) -> None:
    print("Targets of another shape than the output:")
    try:
        model.observe(x=x, y=y[:, None])
    except ValueError as error:
        print(f"  ValueError: {error}")
    print("Dropout in training mode:")
    try:
        net = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Dropout(0.1), nn.Linear(20, 1))
        models.bayesian(net, likelihood=models.NormalLikelihood(0.1))
    except ValueError as error:
        print(f"  ValueError: {error}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="tutorial_output", help="folder for the figure")
    parser.add_argument("--budget", type=float, default=1.0, help="share of the steps")
    arguments = parser.parse_args()
    main(arguments.budget, arguments.output)
