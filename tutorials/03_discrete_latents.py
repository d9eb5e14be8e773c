r"""Discrete latents: a draw that is 0 or 1 has no derivative, so how does one train through it?

An image is explained by six switches, each on or off. Six are few enough to sum over all 64 settings, so that the
evidence and the exact gradient are known; every estimator that draws the switches is held against them: how noisy is
its gradient, is it biased, and what does a model trained with it come to?

Run it: ``python tutorials/03_discrete_latents.py`` (about a minute). It writes ``discrete_latents.png``.

References: Mnih and Gregor 2014, arXiv:1402.0030 (score function, baselines); Mnih and Rezende 2016, arXiv:1602.06725
(leave-one-out, VIMCO); Jang et al. 2017, arXiv:1611.01144, and Maddison et al. 2017, arXiv:1611.00712 (relaxations);
Tucker et al. 2017, arXiv:1703.07370 (REBAR); Grathwohl et al. 2018, arXiv:1711.00123 (RELAX).
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import zsp
from zsp import datasets

N_SWITCHES = 6
N_SAMPLES = 4  # draws for each image, for every estimator
TEMPERATURE = 0.5  # of what is relaxed

# ---------------------------------------------------------------------------------------------------------------------
# 1. The model in maths, for each of n images        2. The same in zsp, line for line
#
#    b ~ Bernoulli(sigmoid(l)), six of them            b = bn.bernoulli("b", l.expand(n, 6), group_ndims=1)
#    x | b ~ Bernoulli(sigmoid(f(b)))                  bn.bernoulli("x", f(b), group_ndims=1)
#
# The recognition net has a node "b" as well, with logits that it computes from the image. What differs between the
# estimators is how this node is declared:
#
#    how = "discrete"           bn.bernoulli("b", logits)                           0 or 1, no derivative
#    how = "straight-through"   bn.bernoulli("b", logits, straight_through=0.5)     0 or 1, a relaxed draw's derivative
#    how = "relaxed"            bn.bin_concrete("b", 0.5, logits)                   in (0, 1), in both nets


def switches(bn: zsp.BayesianNet, logits: Tensor, how: str, n_samples: int | None = None) -> Tensor:
    if how == "relaxed":
        return bn.bin_concrete("b", TEMPERATURE, logits, group_ndims=1, n_samples=n_samples)
    straight_through = TEMPERATURE if how == "straight-through" else None
    return bn.bernoulli("b", logits, straight_through=straight_through, group_ndims=1, n_samples=n_samples)


@zsp.meta_bayesian_net(scope="gen", reuse_variables=True)
def build_gen(n: int, how: str = "discrete", x_dim: int = 64) -> zsp.BayesianNet:
    bn = zsp.BayesianNet()
    prior = zsp.parameter("prior", torch.zeros(N_SWITCHES))
    b = switches(bn, prior.expand(n, N_SWITCHES), "relaxed" if how == "relaxed" else "discrete")
    h = torch.relu(zsp.module("hidden", nn.Linear, N_SWITCHES, 100)(2 * b - 1))
    bn.bernoulli("x", zsp.module("x_logits", nn.Linear, 100, x_dim)(h), group_ndims=1)
    return bn


@zsp.reuse_variables("q_net")
def build_q_net(x: Tensor, how: str = "discrete", n_samples: int | None = N_SAMPLES) -> zsp.BayesianNet:
    bn = zsp.BayesianNet()
    h = torch.tanh(zsp.module("hidden", nn.Linear, x.shape[-1], 100)(x))
    switches(bn, zsp.module("logits", nn.Linear, 100, N_SWITCHES)(h), how, n_samples)
    return bn


# ---------------------------------------------------------------------------------------------------------------------
# 4. The estimators, one call each. What an estimator learns on the way (a moving mean, a temperature, a network) lives
#    in a module that we own; ``cost`` takes a mini-batch to the scalar to minimise.


class Trainer:
    """A model, a recognition net and one way to estimate the gradient of the bound."""

    def __init__(self, name: str, model: zsp.MetaBayesianNet, q_net: zsp.ReusableFunction) -> None:
        self.name, self.model, self.q_net = name, model, q_net
        self.without_b = zsp.enumerate_latents(model, "b")  # the model with b summed out: its log joint is log p(x)
        self.moving_mean = zsp.MovingMean(decay=0.9)
        self.relaxation = zsp.Relaxation(TEMPERATURE)
        self.network = nn.Sequential(nn.Linear(N_SWITCHES + 64, 50), nn.Tanh(), nn.Linear(50, 1))

    def parameters(self) -> list[nn.Parameter]:
        modules = (self.model, self.q_net, self.relaxation, self.network)
        return [parameter for module in modules for parameter in module.parameters()]

    def bound(self, x: Tensor, how: str = "discrete") -> Any:
        q = self.q_net(x, how)
        return zsp.elbo(self.model, {"x": x, "n": len(x), "how": how}, variational=q, axis=0)

    @torch.no_grad()
    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x), the sum over all settings of the switches, for each image."""
        return self.without_b({"x": x, "n": len(x)})

    def cost(self, x: Tensor) -> Tensor:
        return getattr(self, self.name.replace("-", "_").replace(" ", "_"))(x)

    def exact(self, x: Tensor) -> Tensor:  # the sum over all 64 settings
        return self.bound(x).enumerate().mean()

    def score_function(self, x: Tensor) -> Tensor:
        return self.bound(x).reinforce(variance_reduction=False).mean()

    def moving_mean_baseline(self, x: Tensor) -> Tensor:
        return self.bound(x).reinforce(moving_mean=self.moving_mean).mean()

    def leave_one_out(self, x: Tensor) -> Tensor:  # the mean over the other three draws of an image is the baseline
        return self.bound(x).reinforce().mean()

    def rebar(self, x: Tensor) -> Tensor:  # the second cost trains temperature and scale, and nothing else
        cost, variance = self.bound(x).rebar(self.relaxation)
        return cost.mean() + variance

    def relax(self, x: Tensor) -> Tensor:  # a network of the continuous draw z behind b, and of the image
        def control_variate(z: dict[str, Tensor]) -> Tensor:
            return self.network(torch.cat([z["b"].tanh(), x.expand(*z["b"].shape[:-1], 64)], -1)).squeeze(-1)

        cost, variance = self.bound(x).relax(control_variate, self.relaxation)
        return cost.mean() + variance

    def straight_through(self, x: Tensor) -> Tensor:
        return self.bound(x, "straight-through").sgvb().mean()

    def gumbel_softmax(self, x: Tensor) -> Tensor:
        return self.bound(x, "relaxed").sgvb().mean()

    def vimco(self, x: Tensor) -> Tensor:  # the gradient of a tighter bound, of four draws at once
        q = self.q_net(x)
        return zsp.iw_objective(self.model, {"x": x, "n": len(x)}, variational=q, axis=0).vimco().mean()


OF_THE_BOUND = (
    "score function",
    "moving-mean baseline",
    "leave-one-out",
    "rebar",
    "relax",
    "straight-through",
    "gumbel-softmax",
)
TRAINED = ("exact", "score function", "leave-one-out", "vimco", "rebar", "straight-through", "gumbel-softmax")


def main(budget: float = 1.0, output: str | Path = "tutorial_output") -> dict[str, float]:
    """Run the tutorial.

    Args:
        budget: of training epochs and repeats; 1 is the real thing, tests use less.
        output: the folder for the figure.

    Returns:
        The numbers that are printed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)

        # -------------------------------------------------------------------------------------------------------------
        # 3. Data: 8 x 8 digits, bundled with zsp; grey pixels are cut at half.
        images = datasets.digits()
        dtype = torch.get_default_dtype()
        x_train, x_test = ((part >= 0.5).to(dtype) for part in (images.train_images, images.test_images))
        model = build_gen(n=1).materialize()
        q_net = build_q_net.new()
        q_net.materialize(x_test[:1])

        # -------------------------------------------------------------------------------------------------------------
        # 5. Checks with known answers: log p(x) itself, with b summed out (enumerate_latents). The bound is below it by
        #    KL(q || posterior), and the posterior of each switch is known too.
        trained: dict[str, Trainer] = {}
        curves: dict[str, list[float]] = {}
        reached: dict[str, float] = {}
        epochs = max(2, int(20 * budget))
        for name in TRAINED:
            start = time.perf_counter()
            trainer = Trainer(name, copy.deepcopy(model), copy.deepcopy(q_net))
            curves[name] = train(trainer, x_train, x_test[:120], epochs)
            trained[name] = trainer
            seconds = time.perf_counter() - start
            reached[name] = float(trainer.log_evidence(x_test).mean())
            print(f"trained with {name:<22} test log p(x) {reached[name]:8.3f} nats  ({seconds:.0f} s)")
        best = trained["exact"]
        with torch.no_grad():
            evidence = best.log_evidence(x_test)
            exact_bound = -best.bound(x_test).enumerate()
            q_means = best.q_net(x_test)["b"].dist.probs
        posterior = best.without_b.posterior({"x": x_test, "n": len(x_test)})["b"][..., 1]
        print(f"exact training: log p(x) {evidence.mean():.3f}, bound {exact_bound.mean():.3f} nats an image;")
        print(f"  switches of q against their posterior: mean difference {(q_means - posterior).abs().mean():.3f}")

        # The variance and the bias of each estimator, on one mini-batch, half-way through training.
        midway = Trainer("exact", copy.deepcopy(model), copy.deepcopy(q_net))
        train(midway, x_train, x_test[:120], max(1, epochs // 4))
        print("on one mini-batch, in units of the size of the exact gradient of the recognition net:")
        noise, bias, bias_error = measure(midway, x_train[:50], n_steps=int(150 * budget), n_repeats=int(400 * budget))
        for name in OF_THE_BOUND:
            shown = f"standard deviation {noise[name]:8.2f}   bias {bias[name]:6.2f} +- {bias_error[name]:.2f}"
            print(f"  {name:<22} {shown}")

        what_goes_wrong(best, x_test)
    figure = draw(noise, bias, bias_error, curves)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "discrete_latents.png", dpi=150)
    print(f"figure: {folder / 'discrete_latents.png'}")
    return {
        "evidence": float(evidence.mean()),
        "bound": float(exact_bound.mean()),
        **{f"log p(x), {name}": value for name, value in reached.items()},
        **{f"noise, {name}": value for name, value in noise.items()},
        **{f"bias, {name}": value for name, value in bias.items()},
        **{f"bias error, {name}": value for name, value in bias_error.items()},
    }


def train(trainer: Trainer, x_train: Tensor, x_test: Tensor, epochs: int) -> list[float]:
    """Minimise the trainer's cost; returns log p(x) of the test images after each epoch."""
    optimizer = torch.optim.Adam(trainer.parameters(), lr=3e-3)
    history = zsp.fit(
        lambda batch: trainer.cost(batch["x"]),
        {"x": x_train},
        optimizer=optimizer,
        epochs=epochs,
        batch_size=100,
        validation=lambda: {"evidence": trainer.log_evidence(x_test).mean()},
        progress=False,
    )
    return history["evidence"]


def measure(
    at: Trainer, x: Tensor, n_steps: int, n_repeats: int
) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Standard deviation and bias of the recognition net's gradient, over its size, and the standard error of the bias.

    What an estimator learns is learnt for ``n_steps`` before, at fixed nets.
    """
    parameters = list(at.q_net.parameters())

    def gradient(cost: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(cost, parameters)])

    exact = gradient(at.exact(x))
    noise, bias, error = {}, {}, {}
    for name in OF_THE_BOUND:
        trainer = Trainer(name, at.model, at.q_net)
        optimizer = torch.optim.Adam([*trainer.relaxation.parameters(), *trainer.network.parameters()], lr=0.02)
        for _ in range(n_steps):
            cost = trainer.cost(x)
            optimizer.zero_grad()
            cost.backward()
            optimizer.step()
        draws = torch.stack([gradient(trainer.cost(x)) for _ in range(max(n_repeats, 10))])
        variance = draws.var(0).sum()
        noise[name] = float(variance.sqrt() / exact.norm())
        error[name] = float((variance / len(draws)).sqrt() / exact.norm())
        # the mean of the draws is off by its own noise too, whose square is known
        square = (draws.mean(0) - exact).square().sum() - variance / len(draws)
        bias[name] = float(square.clamp_min(0).sqrt() / exact.norm())
    return noise, bias, error


# ---------------------------------------------------------------------------------------------------------------------
# Which one, then?
#
# - Few enough settings: enumerate. No noise, no bias, nothing to tune; and with the latents summed out of the model
#   (zsp.enumerate_latents) everything else works on what is left, MCMC too.
# - Too many: leave-one-out. It needs nothing but a second draw and works for any model and any distribution. VIMCO is
#   its counterpart for the tighter bound of several draws, and comes out ahead here.
# - A model that can be evaluated between 0 and 1: REBAR, less noisy for one more evaluation and its second derivative;
#   RELAX if a network of one's own may help, also where the model indexes or compares.
# - Straight-through and Gumbel-softmax need one draw and no baseline, and are wrong: the bias stays however long one
#   trains. The lower the temperature, the smaller the bias and the larger the noise.
# - The score function without a baseline: never.
#
# 6. What would go wrong, and how to see it.


def what_goes_wrong(trainer: Trainer, x: Tensor) -> None:
    print("rebar on a model that compares, where its gradient would be biased:")

    @zsp.meta_bayesian_net(scope="thresholds")
    def thresholds(n: int) -> zsp.BayesianNet:
        bn = zsp.BayesianNet()
        b = bn.bernoulli("b", torch.zeros(n, N_SWITCHES), group_ndims=1)
        x_logits = torch.where(b.sum(-1, keepdim=True) > 3, 1.0, -1.0)
        bn.bernoulli("x", x_logits.expand(*b.shape[:-1], 64), group_ndims=1)
        return bn

    _show(lambda: zsp.elbo(thresholds(len(x)), {"x": x}, variational=trainer.q_net(x), axis=0).rebar(zsp.Relaxation()))
    print("a table that would be too large:")

    @zsp.meta_bayesian_net(scope="many")
    def many(n: int) -> zsp.BayesianNet:
        bn = zsp.BayesianNet()
        b = bn.bernoulli("b", torch.zeros(n, 200), group_ndims=1)
        bn.bernoulli("x", b[..., :64], group_ndims=1)
        return bn

    _show(lambda: zsp.enumerate_latents(many(len(x)), "b")({"x": x}))
    print("sgvb through draws that have no derivative:")
    _show(lambda: trainer.bound(x).sgvb())


def _show(call: Callable[[], Any]) -> None:
    try:
        call()
    except ValueError as error:
        print(f"  ValueError: {error}")


def draw(
    noise: dict[str, float],
    bias: dict[str, float],
    bias_error: dict[str, float],
    curves: dict[str, list[float]],
) -> Any:
    """The picture: noise and bias on the left, log p(x) along the training on the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(noise)
    places = range(len(names))
    left.barh(places, [noise[name] for name in names], color="#b5cde3", label="standard deviation")
    # a bias below twice its error is not told from none
    shown = [(i, bias[name]) for i, name in enumerate(names) if bias[name] > 2 * bias_error[name]]
    left.plot([b for _, b in shown], [i for i, _ in shown], "D", color="#c0392b", label="bias, where there is one")
    left.set_xscale("log")
    left.set_xlim(left=0.5)
    left.set_yticks(places, names)
    left.invert_yaxis()
    left.set_xlabel(f"over the size of the exact gradient ({N_SAMPLES} draws an image)")
    left.set_title("The gradient of the recognition net")
    left.legend(loc="center right", fontsize=9)
    for name, curve in curves.items():
        style = {"lw": 3, "color": "black"} if name == "exact" else {"lw": 1.5}
        right.plot(range(1, len(curve) + 1), curve, label=name, **style)
    right.set_xlabel("epoch")
    right.xaxis.get_major_locator().set_params(integer=True)
    right.set_ylabel("log p(x) of 120 test images, exact (nats)")
    right.set_title("What the training comes to")
    right.legend(loc="lower right", fontsize=9)
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="tutorial_output", help="folder for the figure")
    parser.add_argument("--budget", type=float, default=1.0, help="share of the training epochs")
    arguments = parser.parse_args()
    main(arguments.budget, arguments.output)
