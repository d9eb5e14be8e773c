r"""Bayesian neural nets on the UCI regression sets: test error and log likelihood on the splits of the literature.

    python tutorials/bnn_uci.py --sets boston,concrete,energy,yacht,wine --jobs 2 --out bnn_uci.jsonl

One hidden layer of 50 rectified units, inputs and targets standardised with the training rows' statistics, and

.. math::
    w \sim \mathrm{N}(0, s^2 / n_{\mathrm{in}}), \quad b \sim \mathrm{N}(0, s^2), \quad
    \gamma \sim \mathrm{Gamma}(\alpha, \beta), \quad y \mid x \sim \mathrm{N}(f(x), \gamma^{-1}).

One protocol for all sets. 20 nets are trained from random weights to a mode each, by Adam (the first of them is the row
"map", their mixture the row "ensemble"). From there SGHMC runs as 20 chains, with the learning rate c / lambda, where
lambda is the largest curvature of the log posterior at these modes. c, the friction and the prior of the noise are
first guesses, which were never varied; the prior of the weights was chosen on one inner validation split each of boston
and concrete (``--validate`` holds out a fifth of the training rows and reports on those instead of the test rows). MC
dropout chooses its rate and noise on such a validation split of each training set. Before the prior was chosen, test
figures of split 0 of boston and energy had been printed.

Results are appended to ``--out``, one line a split, and what is there is not run again. The data are the files of
"uci" in the folder that ZSP_DATA names.

References: Hernández-Lobato and Adams 2015, arXiv:1502.05336 (PBP, splits); Gal and Ghahramani 2016, arXiv:1506.02142
(dropout; the figures shown are those of the authors' corrected code of 2018, ten times the epochs); Chen et al. 2014,
arXiv:1402.4102 (SGHMC).
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import zsp
from zsp import datasets, evaluation, models


class Anchor(NamedTuple):
    """Published test figures, mean over the splits."""

    name: str
    rmse: float
    log_likelihood: float


FILES = {
    "boston": "bostonHousing", "concrete": "concrete", "energy": "energy", "yacht": "yacht",
    "wine": "wine-quality-red", "power": "power-plant", "kin8nm": "kin8nm",
}  # fmt: skip
ANCHORS = {
    "boston": [Anchor("PBP", 3.01, -2.57), Anchor("dropout, Gal 2018", 2.90, -2.40)],
    "concrete": [Anchor("PBP", 5.67, -3.16), Anchor("dropout, Gal 2018", 4.82, -2.93)],
    "energy": [Anchor("PBP", 1.80, -2.04), Anchor("dropout, Gal 2018", 0.54, -1.21)],
    "yacht": [Anchor("PBP", 1.02, -1.63), Anchor("dropout, Gal 2018", 0.67, -1.25)],
    "wine": [Anchor("PBP", 0.64, -0.97), Anchor("dropout, Gal 2018", 0.62, -0.93)],
    "power": [Anchor("dropout, Gal 2018", 4.01, -2.80)],
    "kin8nm": [Anchor("dropout, Gal 2018", 0.08, 1.14)],
}
METHODS = ("map", "ensemble", "dropout", "sghmc")
SHOWN = ("rmse", "log_likelihood", "coverage", "seconds")
HIDDEN = 50
RATES = (0.005, 0.01, 0.05, 0.1)  # of dropout, Gal's grid


# ---------------------------------------------------------------------------------------------------------------------
# The data.


class Split(NamedTuple):
    """Standardised rows to train on and to test on.

    Attributes:
        x, y: training inputs [n, d] and targets [n].
        x_test, y_test: likewise.
        scale: of the targets, in their own unit.
    """

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    scale: Tensor


def load(name: str, split: int, validate: bool) -> Split:
    """One of the splits of the literature; with ``validate`` a fifth of its training rows instead of the test rows."""
    path = (datasets.data_folder() or Path()) / "uci" / f"{FILES[name]}.npz"
    if not path.exists():
        raise SystemExit(f"There is no file {path}: set ZSP_DATA to the folder that holds uci/{path.name}.")
    with np.load(path) as file:
        data = torch.as_tensor(file["data"], dtype=torch.get_default_dtype())
        x = data[:, torch.as_tensor(file["feature_index"].astype(np.int64)).flatten()]
        y = data[:, torch.as_tensor(file["target_index"].astype(np.int64)).flatten()].flatten()
        train, test = (torch.as_tensor(file[key][split].astype(np.int64)) for key in ("train_index", "test_index"))
    if validate:
        order = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(split))]
        test, train = order[: len(order) // 5], order[len(order) // 5 :]
    return standardised(x[train], y[train], x[test], y[test])


def standardised(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor) -> Split:
    """Inputs and targets less the training rows' mean, over their standard deviation."""
    centre, scale = x.mean(0), x.std(0)
    scale = torch.where(scale > 0, scale, 1.0)
    y_centre, y_scale = y.mean(), y.std()
    x, x_test = (x - centre) / scale, (x_test - centre) / scale
    return Split(x, (y - y_centre) / y_scale, x_test, (y_test - y_centre) / y_scale, y_scale)


class Result(NamedTuple):
    """What is measured on one split: in the target's unit, in nats per row, and the part inside the 90 % interval."""

    rmse: float
    log_likelihood: float
    coverage: float


# ---------------------------------------------------------------------------------------------------------------------
# The model, its modes and its posterior.


def build_model(d: int, options: argparse.Namespace, n: int, prior: models.WeightPrior) -> zsp.MetaBayesianNet:
    """The net with a prior of its weights."""
    net = nn.Sequential(nn.Linear(d, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1), nn.Flatten(0))
    return models.bayesian(
        net,
        prior=prior,
        likelihood=models.GammaNoiseLikelihood(options.alpha, options.beta),
        total_size=n,
    )


def modes(log_density: zsp.LogDensity, data: dict[str, Tensor], options: argparse.Namespace) -> Tensor:
    """Where the chains begin, [chain, D]: a mode of the posterior each, found by Adam from a draw of the prior."""
    layout = {name: (options.chains, *shape) for name, shape in log_density.shapes.items()}
    start = {name: torch.randn(shape) * math.prod(shape[2:]) ** -0.5 for name, shape in layout.items()}
    start["noise_precision"] = torch.ones(options.chains)
    position = nn.Parameter(log_density.unconstrain(start))
    n = len(data["y"])
    steps_an_epoch = math.ceil(n / options.batch_size)

    def loss(batch: dict[str, Tensor]) -> Tensor:
        return -log_density.rebind(batch)(position).sum() / n  # a sum, so that no chain feels how many there are

    for part, learning_rate in ((0.6, 0.01), (0.4, 0.002)):
        zsp.fit(
            loss, data, optimizer=torch.optim.Adam([position], lr=learning_rate), progress=False,
            epochs=math.ceil(part * options.adam_steps / steps_an_epoch), batch_size=min(options.batch_size, n),
        )  # fmt: skip
    return position.detach()


def largest_curvature(log_density: zsp.LogDensity, position: Tensor, n_iterations: int = 30) -> float:
    """The median over the chains of the largest eigenvalue of minus the Hessian, by power iteration."""
    direction = torch.randn_like(position)
    for _ in range(n_iterations):
        direction = direction / direction.norm(dim=-1, keepdim=True)
        q = position.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(log_density(q).sum(), q, create_graph=True)
        (product,) = torch.autograd.grad((gradient * direction).sum(), q)
        eigenvalue, direction = (product * direction).sum(-1), product
    return float(eigenvalue.abs().median())


def sample(
    model: zsp.MetaBayesianNet,
    log_density: zsp.LogDensity,
    data: dict[str, Tensor],
    begin: Tensor,
    options: argparse.Namespace,
    seed: int,
) -> zsp.Draws:
    """SGHMC from the modes."""
    n = len(data["y"])
    batch_size = min(options.batch_size, n)
    c = options.step
    if batch_size < n:
        # the gradient's noise heats a direction of curvature k by about (lr k) (N / B - 1) / (2 friction), at most 1
        c = min(c, 2 * options.friction / (n / batch_size - 1))
    rows = torch.randperm(n)[:2000]
    whole = log_density.rebind({"x": data["x"][rows], "y": data["y"][rows]})
    learning_rate = c / largest_curvature(whole, begin)
    return zsp.mcmc(
        model,
        data,
        kernel=zsp.SGHMC(learning_rate, friction=options.friction, n_iter_resample_v=None),
        batch_size=batch_size if batch_size < n else None,
        n_warmup=int(0.4 * options.steps),
        n_samples=int(0.6 * options.steps) // options.thin,
        thin=options.thin,
        n_chains=options.chains,
        init=log_density.constrain(begin),
        seed=seed,
        progress=False,
    )


def judge(model: zsp.MetaBayesianNet, draws: dict[str, Tensor], split: Split) -> Result:
    """The test figures of a mixture over draws, each [draw, *shape]."""
    new = {"x": split.x_test}
    log_prob = evaluation.predictive_log_prob(model, draws, {**new, "y": split.y_test}, chunk=200)
    predicted = zsp.predict(model, draws, new, names=["output", "y"], chunk=200)
    interval = evaluation.predictive_interval(predicted["y"], 0.9)
    return Result(
        float(evaluation.rmse(predicted["output"].mean(0), split.y_test) * split.scale),
        float(log_prob.mean() - split.scale.log()),
        float(evaluation.coverage(interval, split.y_test)),
    )


def run_posterior(split: Split, options: argparse.Namespace, seed: int) -> dict[str, tuple[Result, float]]:
    """The rows "map", "ensemble" and "sghmc": method -> figures and seconds."""
    data = {"x": split.x, "y": split.y}
    began = time.perf_counter()
    d, n = split.x.shape[1], len(split.y)
    model = build_model(d, options, n, models.GaussianPrior(options.prior_std, per_fan_in=True))
    log_density = zsp.LogDensity(model, data).prepare(options.chains)
    begin = modes(log_density, data, options)
    trained = time.perf_counter() - began
    values = log_density.constrain(begin)
    found = {}
    for method, n_nets, n_copies in (
        ("map", 1, 200),
        ("ensemble", options.chains, 20),
    ):  # copies for draws of the noise
        draws = {name: value[:n_nets].repeat_interleave(n_copies, 0) for name, value in values.items()}
        found[method] = judge(model, draws, split), trained
    if "sghmc" in options.methods:
        if options.prior == "gamma":
            shape = options.prior_alpha
            prior = models.GammaPrecisionPrior(shape, shape * options.prior_std**2, per_fan_in=True)
            model = build_model(d, options, n, prior)
            log_density = zsp.LogDensity(model, data).prepare(options.chains)
            precision = values["noise_precision"].new_full((options.chains,), options.prior_std**-2)
            values |= {name: precision for name in log_density.names if name not in values}
            begin = log_density.unconstrain(values)
        with (
            warnings.catch_warnings()
        ):  # hidden units may be exchanged: the chains agree on the function, not on weights
            warnings.filterwarnings("ignore", message="R-hat is above")
            sampled = sample(model, log_density, data, begin, options, seed)
        flat = {name: sampled[name].flatten(0, 1) for name in log_density.names}
        found["sghmc"] = judge(model, flat, split), time.perf_counter() - began
    return {method: row for method, row in found.items() if method in options.methods}


# ---------------------------------------------------------------------------------------------------------------------
# MC dropout, for comparison: all rates of the grid trained at once.


class DropoutNets(nn.Module):
    """A net of one hidden layer for each rate, with dropout before both layers, also when it predicts."""

    def __init__(self, d: int, rates: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("rates", torch.tensor(rates)[:, None, None])
        self.w1 = nn.Parameter(torch.randn(len(rates), d, HIDDEN) / d**0.5)
        self.b1 = nn.Parameter(torch.zeros(len(rates), 1, HIDDEN))
        self.w2 = nn.Parameter(torch.randn(len(rates), HIDDEN, 1) / HIDDEN**0.5)
        self.b2 = nn.Parameter(torch.zeros(len(rates), 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [rate, n]."""
        hidden = torch.relu(torch.baddbmm(self.b1, self.drop(x.expand(len(self.rates), *x.shape)), self.w1))
        return torch.baddbmm(self.b2, self.drop(hidden), self.w2).squeeze(-1)

    def drop(self, h: Tensor) -> Tensor:
        """Units set to 0 at random, the others scaled up."""
        return h * (torch.rand_like(h) >= self.rates) / (1 - self.rates)


def train_dropout(x: Tensor, y: Tensor, rates: Sequence[float], options: argparse.Namespace) -> DropoutNets:
    """Nets that minimise the squared error, with a weak decay of the weights."""
    nets = DropoutNets(x.shape[1], rates)

    def loss(batch: dict[str, Tensor]) -> Tensor:
        decay = sum(p.square().sum() for p in nets.parameters())
        return (nets(batch["x"]) - batch["y"]).square().mean(1).sum() + 1e-4 / len(y) * decay

    batch_size = min(128, len(y))
    epochs = math.ceil(options.dropout_steps / math.ceil(len(y) / batch_size))
    optimizer = torch.optim.Adam(nets.parameters(), lr=2e-3)
    zsp.fit(loss, {"x": x, "y": y}, optimizer=optimizer, epochs=epochs, batch_size=batch_size, progress=False)
    return nets


@torch.no_grad()
def run_dropout(split: Split, options: argparse.Namespace) -> Result:
    """The rate and the noise's precision that are best on a fifth of the training rows; then trained on all of them."""
    n = len(split.y) // 5
    order = torch.randperm(len(split.y))
    held, kept = order[:n], order[n:]
    with torch.enable_grad():
        nets = train_dropout(split.x[kept], split.y[kept], RATES, options)
    outputs = torch.stack([nets(split.x[held]) for _ in range(200)])  # [draw, rate, n]
    stds = torch.logspace(-2, 0.5, 60)
    scores = torch.stack([mixture(outputs, split.y[held], std).mean(-1) for std in stds])  # [std, rate]
    best, rate = divmod(int(scores.argmax()), len(RATES))
    with torch.enable_grad():
        nets = train_dropout(split.x, split.y, RATES[rate : rate + 1], options)
    outputs = torch.stack([nets(split.x_test)[0] for _ in range(1000)])
    interval = evaluation.predictive_interval(outputs + stds[best] * torch.randn_like(outputs), 0.9)
    return Result(
        float(evaluation.rmse(outputs.mean(0), split.y_test) * split.scale),
        float(mixture(outputs, split.y_test, stds[best]).mean() - split.scale.log()),
        float(evaluation.coverage(interval, split.y_test)),
    )


def mixture(outputs: Tensor, y: Tensor, std: Tensor) -> Tensor:
    """Log density of a mixture over draws, the first axis, of Gaussians."""
    return evaluation.log_mean_exp(torch.distributions.Normal(outputs, std).log_prob(y))


# ---------------------------------------------------------------------------------------------------------------------
# Runs, their file and the table.


def run_split(name: str, number: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one split of one set."""
    torch.set_num_threads(1)
    torch.manual_seed(number)
    split = load(name, number, options.validate)
    found = {}
    if {"map", "ensemble", "sghmc"} & set(options.methods):
        found.update(run_posterior(split, options, seed=number))
    if "dropout" in options.methods:
        began = time.perf_counter()
        result = run_dropout(split, options)
        found["dropout"] = result, time.perf_counter() - began
    return [
        {"set": name, "split": number, "method": method, "settings": settings(options, method), "seconds": seconds}
        | result._asdict()
        for method, (result, seconds) in found.items()
    ]


def settings(options: argparse.Namespace, method: str) -> dict[str, Any]:
    """What the figures of a method depend on."""
    names = ["validate", "dropout_steps"]
    if method != "dropout":
        names = ["validate", "prior_std", "alpha", "beta", "adam_steps", "batch_size", "chains"]
    if method == "sghmc":
        names += ["prior", "prior_alpha", "step", "friction", "steps", "thin"]
    return {name: getattr(options, name) for name in names}


def read(path: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows in the file that were made with these options; a line that was cut off is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if row["method"] in options.methods and row["settings"] == settings(options, row["method"]):
            rows.append(row)
    return rows


def print_table(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Means over the splits and their standard errors, beside published ones."""
    for name in options.sets:
        print(f"\n{name:<22}{'splits':>6}  {'RMSE':>15}  {'log likelihood':>16}  {'in 90 %':>7}  {'seconds':>7}")
        figures = {}
        for method in METHODS:
            own = {row["split"]: row for row in rows if (row["set"], row["method"]) == (name, method)}
            if own:
                figures[method] = own
                columns = {
                    key: mean_and_error([row[key] for row in own.values()]) for key in own[min(own)] if key in SHOWN
                }
                rmse, log_likelihood = (f"{m:.3f} ({e:.3f})" for m, e in (columns["rmse"], columns["log_likelihood"]))
                print(
                    f"  {method:<20}{len(own):>6}  {rmse:>15}  {log_likelihood:>16}  {columns['coverage'][0]:>7.2f}  "
                    f"{columns['seconds'][0]:>7.0f}"
                )
        for anchor in ANCHORS[name]:
            print(f"  {anchor.name:<26}  {anchor.rmse:>7.2f}{'':>10}  {anchor.log_likelihood:>7.2f}")
        print_comparison(name, figures)


def print_comparison(name: str, figures: dict[str, dict[int, dict[str, Any]]]) -> None:
    """SGHMC against the other rows, split by split, and against the published figures."""
    chosen = figures.pop("sghmc", None)
    if chosen is None:
        return
    for method, own in figures.items():
        gains = [chosen[i]["log_likelihood"] - own[i]["log_likelihood"] for i in chosen if i in own]
        if gains:
            mean, error = mean_and_error(gains)
            print(f"  sghmc - {method}, paired: log likelihood {mean:+.3f} ({error:.3f})")
    mean, error = mean_and_error([row["log_likelihood"] for row in chosen.values()])
    if math.isnan(error):
        return
    is_reached = all(mean + error >= anchor.log_likelihood for anchor in ANCHORS[name])
    print(f"  sghmc no worse than the published log likelihoods within one s.e.: {'yes' if is_reached else 'no'}")


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error; that of one value is not known."""
    return float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else math.nan


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--sets", default="boston,concrete,energy,yacht,wine", help=f"of {','.join(FILES)}")
    add("--method", dest="methods", default=",".join(METHODS), help="rows of the table")
    add("--splits", type=int, default=20, help="how many, from the first")
    add("--out", type=Path, default=Path("bnn_uci.jsonl"), help="file that results are appended to")
    add("--jobs", type=int, default=1, help="splits at a time, a process each")
    add("--validate", action="store_true", help="report on a fifth of the training rows; the test rows stay unseen")
    add(
        "--prior",
        choices=("gaussian", "gamma"),
        default="gamma",
        help="SGHMC's: with precisions fixed, or of each layer",
    )
    add(
        "--prior-std",
        type=float,
        default=1.0,
        help="s; with --prior gamma the layers' precisions have the mean 1 / s^2",
    )
    add("--prior-alpha", type=float, default=1.0, help="shape of the layers' precisions, with --prior gamma")
    add("--alpha", type=float, default=1.0, help="shape of the noise precision's prior")
    add("--beta", type=float, default=0.01, help="its rate")
    add("--chains", type=int, default=20, help="chains of SGHMC, and nets of the ensemble")
    add("--adam-steps", type=int, default=1000, help="to the modes")
    add("--step", type=float, default=0.2, help="learning rate of SGHMC over that of the largest curvature")
    add("--friction", type=float, default=0.02, help="of SGHMC")
    add("--steps", type=int, default=4000, help="of SGHMC, the first 40 %% of them burn-in")
    add("--thin", type=int, default=40, help="steps of SGHMC for each draw")
    add("--batch-size", type=int, default=1000, help="rows in a step; all where there are fewer")
    add("--dropout-steps", type=int, default=4000, help="of Adam, at each training of the dropout nets")
    options = parser.parse_args(arguments)
    for name, known in (("sets", FILES), ("methods", METHODS)):
        chosen = getattr(options, name).split(",")
        if unknown := [value for value in chosen if value not in known]:
            parser.error(f"{unknown[0]!r} is none of the {name}: {', '.join(known)}.")
        setattr(options, name, chosen)
    return options


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Run what the command line asks for and is not in the file yet; returns the table's rows."""
    options = parse(arguments)
    done = {(row["set"], row["split"], row["method"]) for row in read(options.out, options)}
    tasks = [
        (name, split)
        for name in options.sets
        for split in range(options.splits)
        if any((name, split, method) not in done for method in options.methods)
    ]

    def keep(rows: list[dict[str, Any]]) -> None:
        with options.out.open("a") as file:
            for row in rows:
                if (row["set"], row["split"], row["method"]) not in done:
                    file.write(json.dumps(row) + "\n")
                    text = "  ".join(f"{key} {row[key]:.3f}" for key in SHOWN)
                    print(f"{row['set']} {row['split']:>2} {row['method']:<9} {text}", flush=True)

    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.jobs > 1 and len(tasks) > 1:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
            for future in [pool.submit(run_split, *task, options) for task in tasks]:
                keep(future.result())
    else:
        for task in tasks:
            keep(run_split(*task, options))
    rows = [row for row in read(options.out, options) if row["split"] < options.splits and row["set"] in options.sets]
    print_table(rows, options)
    return rows


if __name__ == "__main__":
    main()
