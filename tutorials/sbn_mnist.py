r"""A sigmoid belief net of three layers of 200 on MNIST, trained with VIMCO or reweighted wake-sleep.

.. math::
    b_3 \sim \mathrm{Bernoulli}(\sigma(c)), \quad b_2 \mid b_3, \quad b_1 \mid b_2, \quad x \mid b_1
    \sim \mathrm{Bernoulli}(\sigma(W b + c)), \qquad q: \ b_1 \mid x, \quad b_2 \mid b_1, \quad b_3 \mid b_2

Draws of zeros and ones have no derivative. VIMCO (``vimco``) follows the gradient of the importance-weighted bound by
scores, each centred by the other samples; reweighted wake-sleep (``rws``) improves the model by the same weights and
draws the recognition net towards the posterior, KL(p || q). The data are treated as mnist_runs.py says.

    python tutorials/sbn_mnist.py --objective vimco --k 2,5,10,50 --hours 1

trains one model for each K and prints a table with ZhuSuan's numbers, which took 3,000 passes over the data.

References: Mnih and Rezende 2016, arXiv:1602.06725; Bornschein and Bengio 2015, arXiv:1406.2751; Shi et al. 2017,
arXiv:1709.05870, section 5 (the published numbers).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from mnist_runs import Centre, Data, Result, Run, execute, glorot, load, options_parser, print_table
from torch import Tensor

import zsp

HIDDEN = 200

# Test NLL of ZhuSuan by objective and K.
ZHUSUAN = {
    ("vimco", 2): 94.5,
    ("vimco", 5): 92.9,
    ("vimco", 10): 92.9,
    ("vimco", 50): 91.9,
    ("rws", 2): 96.4,
    ("rws", 5): 93.4,
    ("rws", 10): 93.9,
    ("rws", 50): 92.5,
}


@zsp.meta_bayesian_net(scope="gen", reuse_variables=True)
def build_gen(n: int, x_log_odds: Tensor) -> zsp.BayesianNet:
    """The generator of ``n`` images, whose pixels have the given log odds before anything is learnt."""
    bn = zsp.BayesianNet()
    prior = zsp.parameter("prior", torch.zeros(HIDDEN))
    b = bn.bernoulli("b_3", prior.expand(n, HIDDEN), group_ndims=1)
    b = bn.bernoulli("b_2", zsp.module("layer_3", glorot, HIDDEN, HIDDEN)(b), group_ndims=1)
    b = bn.bernoulli("b_1", zsp.module("layer_2", glorot, HIDDEN, HIDDEN)(b), group_ndims=1)
    x_logits = zsp.module("layer_1", glorot, HIDDEN, len(x_log_odds), x_log_odds)(b)
    bn.bernoulli("x", x_logits, group_ndims=1)
    return bn


@zsp.reuse_variables("q_net")
def build_q_net(x: Tensor, k: int = 2, x_means: Tensor | None = None) -> zsp.BayesianNet:
    """The recognition net with ``k`` draws for each image; ``x_means`` are needed at the first execution only."""
    bn = zsp.BayesianNet()
    h = zsp.module("centre", Centre, x_means)(x)
    b = bn.bernoulli("b_1", zsp.module("layer_1", glorot, x.shape[-1], HIDDEN)(h), n_samples=k, group_ndims=1)
    b = bn.bernoulli("b_2", zsp.module("layer_2", glorot, HIDDEN, HIDDEN)(b), group_ndims=1)
    bn.bernoulli("b_3", zsp.module("layer_3", glorot, HIDDEN, HIDDEN)(b), group_ndims=1)
    return bn


def build(options: argparse.Namespace, data: Data, k: int) -> Run:
    """A run with new nets."""
    torch.manual_seed(options.seed)
    gen = build_gen(n=1, x_log_odds=data.log_odds()).materialize()
    q_net = build_q_net.new()
    q_net.materialize(data.test[:1], x_means=data.means)

    def cost(x: Tensor) -> Tensor:
        bound = zsp.iw_objective(gen, {"x": x, "n": len(x)}, variational=q_net(x, k), axis=0)
        if options.objective == "vimco":
            return bound.vimco()
        return bound.wake_theta() + bound.klpq().importance()

    return Run(f"{options.objective}_k{k}_seed{options.seed}", gen, q_net, cost, options)


def main(arguments: Sequence[str] | None = None) -> list[Result]:
    """Run what the command line asks for; returns a result for each K."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = options_parser(
        __doc__.splitlines()[0],
        k="10",
        hours=1.0,
        batch_size=24,
        final_learning_rate=3e-4,
        n_draws=1000,
        out="mnist_runs/sbn",
    )
    parser.add_argument("--objective", choices=("vimco", "rws"), default="vimco", help="how the nets are trained")
    options = parser.parse_args(arguments)
    results = []
    with torch.random.fork_rng():
        data = load(options)
        for k in options.k:
            reference = ZHUSUAN.get((options.objective, k)) if options.data == "mnist" else None
            results.append(execute(build(options, data, k), data, reference=reference, notes=lambda run, data: ""))
    print_table(results, options, "sbn_mnist.py", arguments)
    return results


if __name__ == "__main__":
    main()
