r"""Importance weighting: what do more samples buy, and what do they cost the recognition net?

The importance-weighted bound of K samples is tighter the larger K is. Its gradient for the model gets better with it;
its gradient for the recognition net drowns in noise. On a model whose evidence and whose best recognition net are
known exactly, one sees the bound close, the signal drown, and how the doubly reparameterised gradient (DReG) mends it.

Run it: ``python tutorials/04_importance_weighting.py`` (about half a minute). It writes ``importance_weighting.png``.

References: Burda, Grosse and Salakhutdinov 2016, arXiv:1509.00519 (the bound, IWAE); Rainforth et al. 2018,
arXiv:1802.04537 (the signal-to-noise ratio falls like K^-1/2); Tucker et al. 2019, arXiv:1810.04152 (DReG, whose ratio
grows like K^1/2).
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal

import zsp

DIM = 3
N_DATA = 50
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

# ---------------------------------------------------------------------------------------------------------------------
# 1. The model in maths, for each of n data          2. The same in zsp, line for line
#
#    z ~ N(mu, I)                                      z = bn.normal("z", mu.expand(n, DIM), std=1.0, group_ndims=1)
#    x | z ~ N(z, I)                                   bn.normal("x", z, std=1.0, group_ndims=1)
#
# and the recognition net q(z | x) = N(A x + b, 2/3 I). It cannot be exact, for the posterior is N((mu + x) / 2, I / 2);
# the best it can do, for every K, is A = I / 2 and b = mu / 2. And log p(x) is known: x ~ N(mu, 2 I).


@zsp.meta_bayesian_net(scope="gen", reuse_variables=True)
def build_gen(n: int) -> zsp.BayesianNet:
    bn = zsp.BayesianNet()
    mu = zsp.parameter("mu", torch.zeros(DIM))
    z = bn.normal("z", mu.expand(n, DIM), std=1.0, group_ndims=1)
    bn.normal("x", z, std=1.0, group_ndims=1)
    return bn


@zsp.reuse_variables("q_net")
def build_q_net(x: Tensor, n_samples: int = 1) -> zsp.BayesianNet:
    bn = zsp.BayesianNet()
    z_mean = zsp.module("z_mean", nn.Linear, DIM, DIM)(x)
    bn.normal("z", z_mean, std=math.sqrt(2 / 3), n_samples=n_samples, group_ndims=1)
    return bn


Estimator = Callable[[Any], Tensor]
ESTIMATORS: dict[str, Estimator] = {"IWAE": lambda bound: bound.sgvb(), "DReG": lambda bound: bound.dreg()}


def main(budget: float = 1.0, output: str | Path = "tutorial_output") -> dict[str, float]:
    """Run the tutorial.

    Args:
        budget: of repeats and training steps; 1 is the real thing, tests use less.
        output: the folder for the figure.

    Returns:
        The numbers that are printed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)

        # -------------------------------------------------------------------------------------------------------------
        # 3. Data, from the model at mu = 1. Both nets begin near where they are best, as in Rainforth et al.
        x = 1.0 + math.sqrt(2.0) * torch.randn(N_DATA, DIM)
        model = build_gen(n=N_DATA).materialize()
        q_net = build_q_net.new()
        q_net.materialize(x)
        place_near_the_best(model, q_net, x.mean(0))

        # -------------------------------------------------------------------------------------------------------------
        # 4. and 5. The bound in one call, and its known answer.
        n_repeats = max(20, int(200 * budget))
        evidence = float(log_evidence(model, x).mean())
        bounds, errors = zip(*[bound_of(model, q_net, x, k, n_repeats) for k in SIZES], strict=True)
        print(f"log p(x), exact              {evidence:9.4f} nats a datum")
        for k, value, error in list(zip(SIZES, bounds, errors, strict=True))[::3]:
            print(f"L_K at K = {k:<4}              {value:9.4f} +- {error:.4f}, below by {evidence - value:.4f}")

        # The gradients' signal-to-noise ratios: size of the mean over standard deviation, all parameters together. The
        # mean is the same for both estimators, and is taken from the less noisy one.
        ratios = signal_to_noise(model, q_net, x, n_repeats)
        large = [i for i, k in enumerate(SIZES) if k >= 8]
        slopes = {name: slope([SIZES[i] for i in large], [values[i] for i in large]) for name, values in ratios.items()}
        print("signal-to-noise ratios of one gradient, and their slopes against K, both logarithmic, from K = 8 on:")
        for name, values in ratios.items():
            shown = ", ".join(f"{values[SIZES.index(k)]:8.3f}" for k in (1, 8, 64, 512))
            print(f"  {name:<14} K = 1, 8, 64, 512: {shown}   slope {slopes[name]:5.2f}")

        # What it means for training: how far the recognition net stays from its best, after as many steps of as many
        # samples, by each estimator. The learning rate is the same: what differs is the noise.
        steps = max(5, int(400 * budget))
        distances = {
            name: [train(model, q_net, x, estimate, k, steps) for k in (1, 8, 64)]
            for name, estimate in ESTIMATORS.items()
        }
        for name, values in distances.items():
            shown = ", ".join(f"{value:.4f}" for value in values)
            print(f"{name}, distance of A and b from the best, K = 1, 8, 64: {shown}")

        what_goes_wrong(model, q_net, x)
    figure = draw(evidence, bounds, errors, ratios, distances)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "importance_weighting.png", dpi=150)
    print(f"figure: {folder / 'importance_weighting.png'}")
    return {
        "evidence": evidence,
        **{f"bound, {k}": value for k, value in zip(SIZES, bounds, strict=True)},
        **{f"bound error, {k}": value for k, value in zip(SIZES, errors, strict=True)},
        **{f"slope, {name}": value for name, value in slopes.items()},
        **{f"distance, {name}": values[-1] for name, values in distances.items()},
    }


@torch.no_grad()
def place_near_the_best(model: zsp.MetaBayesianNet, q_net: zsp.ReusableFunction, mean: Tensor) -> None:
    """The maximum of the likelihood and the best recognition net for it, all moved by N(0, 0.1^2)."""
    (mu,) = model.parameters()
    mu.copy_(mean)
    for parameter, best in zip(q_net.parameters(), best_q_net(mu), strict=True):
        parameter.copy_(best + 0.1 * torch.randn_like(best))
    mu.add_(0.1 * torch.randn_like(mu))


def best_q_net(mu: Tensor) -> tuple[Tensor, Tensor]:
    return 0.5 * torch.eye(DIM), 0.5 * mu


@torch.no_grad()
def log_evidence(model: zsp.MetaBayesianNet, x: Tensor) -> Tensor:
    (mu,) = model.parameters()
    return Normal(mu, math.sqrt(2.0)).log_prob(x).sum(-1)


def bound(model: zsp.MetaBayesianNet, q_net: zsp.ReusableFunction, x: Tensor, k: int) -> Any:
    return zsp.iw_objective(model, {"x": x}, variational=q_net(x, n_samples=k), axis=0)


@torch.no_grad()
def bound_of(
    model: zsp.MetaBayesianNet, q_net: zsp.ReusableFunction, x: Tensor, k: int, n_repeats: int
) -> tuple[float, float]:
    """The mean of L_K over data and repeats, and its standard error."""
    values = torch.stack([bound(model, q_net, x, k).tensor.mean() for _ in range(2 * n_repeats)])
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


# ---------------------------------------------------------------------------------------------------------------------
# Why it drowns. The gap log p(x) - E[L_K] is about a variance over 2 K: the mean gradient for q falls like 1 / K, for a
# bound that is nearly tight hardly depends on q. The noise of the plain estimator falls only like K^-1/2. DReG leaves
# out a term whose mean is known to be zero, and its noise falls like K^-3/2.


def signal_to_noise(
    model: zsp.MetaBayesianNet, q_net: zsp.ReusableFunction, x: Tensor, n_repeats: int
) -> dict[str, list[float]]:
    """Each gradient's ratio for every K: the norm of its mean over the root of its summed variances."""
    groups = {"model": list(model.parameters()), "q": list(q_net.parameters())}
    ratios: dict[str, list[float]] = {"IWAE, model": [], "IWAE, q": [], "DReG, q": []}
    for k in SIZES:
        found = {
            (name, group): gradients(lambda k=k: bound(model, q_net, x, k), estimate, parameters, n_repeats)
            for name, estimate in ESTIMATORS.items()
            for group, parameters in groups.items()
        }
        for label, values in ratios.items():
            name, group = label.split(", ")
            least_noisy = found["DReG", group]
            # the mean of the draws is off by its own noise too, whose square is known
            square = least_noisy.mean(0).square().sum() - least_noisy.var(0).sum() / len(least_noisy)
            values.append(float((square.clamp_min(1e-20) / found[name, group].var(0).sum()).sqrt()))
    return ratios


def gradients(
    make_bound: Callable[[], Any], estimate: Estimator, parameters: list[nn.Parameter], n_repeats: int
) -> Tensor:
    """Independent gradients of one cost, shape [repeat, number]."""
    rows = []
    for _ in range(n_repeats):
        found = torch.autograd.grad(estimate(make_bound()).mean(), parameters)
        rows.append(torch.cat([part.flatten() for part in found]))
    return torch.stack(rows)


def slope(sizes: list[int], values: list[float]) -> float:
    """Of a line through the logarithms."""
    x, y = torch.tensor(sizes).log().double(), torch.tensor(values).log().double()
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())


def train(
    model: zsp.MetaBayesianNet, q_net: zsp.ReusableFunction, x: Tensor, estimate: Estimator, k: int, steps: int
) -> float:
    """Root mean square distance of A and b from the best, after Adam on q alone, averaged over the second half."""
    (mu,) = model.parameters()
    own = copy.deepcopy(q_net)
    optimizer = torch.optim.Adam(own.parameters(), lr=0.01)
    squares = []
    for i in range(steps):
        cost = estimate(bound(model, own, x, k)).mean()
        optimizer.zero_grad()
        cost.backward(inputs=list(own.parameters()))
        optimizer.step()
        if 2 * i >= steps - 1:
            parts = [(p - best).square().sum() for p, best in zip(own.parameters(), best_q_net(mu), strict=True)]
            squares.append(torch.stack(parts).sum().item() / (DIM * DIM + DIM))
    return math.sqrt(sum(squares) / len(squares))


# ---------------------------------------------------------------------------------------------------------------------
# Which one, then?
#
# - To evaluate a model: the bound with K as large as memory allows (zsp.is_loglikelihood does it in chunks).
# - To train the model: the same; its gradient only gains from K.
# - To train q with a large K: dreg(), always. It costs one more evaluation of log q.
#
# 6. What would go wrong, and how to see it.


def what_goes_wrong(model: zsp.MetaBayesianNet, q_net: zsp.ReusableFunction, x: Tensor) -> None:
    print("without axis, nothing says which axis holds the K samples:")
    _show(lambda: zsp.iw_objective(model, {"x": x}, variational=q_net(x, n_samples=8)))
    print("sgvb of path derivatives, which are biased for K > 1:")

    @zsp.reuse_variables("q_path")
    def q_path(x: Tensor) -> zsp.BayesianNet:
        bn = zsp.BayesianNet()
        bn.normal("z", 0.5 * x, std=1.0, n_samples=8, group_ndims=1, use_path_derivative=True)
        return bn

    _show(lambda: zsp.iw_objective(model, {"x": x}, variational=q_path(x), axis=0).sgvb())


def _show(call: Callable[[], Any]) -> None:
    try:
        call()
    except ValueError as error:
        print(f"  ValueError: {error}")


def draw(
    evidence: float,
    bounds: tuple[float, ...],
    errors: tuple[float, ...],
    ratios: dict[str, list[float]],
    distances: dict[str, list[float]],
) -> Any:
    """The picture: the bound closes, the signal drowns, and what the training comes to."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    colours = {"IWAE": "#CC6677", "DReG": "#117733"}
    colours |= {"IWAE, model": "#88CCEE", "IWAE, q": colours["IWAE"], "DReG, q": colours["DReG"]}
    gaps = [evidence - value for value in bounds]
    left.errorbar(SIZES, gaps, errors, fmt="o-", color="#332288", capsize=3, label="log p(x) - E[L_K]")
    left.plot(SIZES, [gaps[3] * 8 / k for k in SIZES], "k:", lw=1, label="a line like 1 / K")
    left.set_xscale("log")
    left.set_yscale("log", nonpositive="mask")
    left.set_title("The bound closes")
    left.set_xlabel("K")
    left.set_ylabel("nats a datum")
    left.legend()
    for name, values in ratios.items():
        middle.loglog(SIZES, values, "o-", color=colours[name], label=name)
    for name, power, text in (("IWAE, q", -0.5, "like $K^{-1/2}$"), ("DReG, q", 0.5, "like $K^{1/2}$")):
        last = ratios[name][-1]
        middle.loglog(SIZES[3:], [last * (k / SIZES[-1]) ** power for k in SIZES[3:]], "k:", lw=1)
        place = (SIZES[5], last * (SIZES[5] / SIZES[-1]) ** power)
        middle.annotate(text, place, xytext=(10, -14 if power > 0 else 8), textcoords="offset points")
    middle.set_title("The signal of q's gradient drowns, but in DReG")
    middle.set_xlabel("K")
    middle.set_ylabel("signal-to-noise ratio of one gradient")
    middle.legend()
    for i, (name, values) in enumerate(distances.items()):
        right.bar([j + 0.4 * (i - 0.5) for j in range(3)], values, 0.36, color=colours[name], label=name)
    right.set_xticks(range(3), ["1", "8", "64"])
    right.set_xlabel("K")
    right.set_ylabel("distance of q from the best one")
    right.set_title("What the training comes to")
    right.legend()
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="tutorial_output", help="folder for the figure")
    parser.add_argument("--budget", type=float, default=1.0, help="share of the repeats and training steps")
    arguments = parser.parse_args()
    main(arguments.budget, arguments.output)
