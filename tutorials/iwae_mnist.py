r"""The variational and the importance-weighted autoencoder on MNIST, as in Burda et al. 2016: how close to the paper?

.. math::
    z \sim \mathrm{N}(0, I_{50}), \quad x \mid z \sim \mathrm{Bernoulli}(\sigma(f_\theta(z))), \quad
    q_\phi(z \mid x) = \mathrm{N}(\mu_\phi(x), \operatorname{diag} \sigma_\phi(x)^2)

with two hidden layers of 200 tanh units on either side. The objectives are those of K samples: their mean log weight
(``vae``) or the log of their mean weight (``iwae``). The data are treated as mnist_runs.py says.

    python tutorials/iwae_mnist.py --objective iwae --k 1,5,50 --hours 2

trains one model for each K, two hours each, and prints a table with the paper's numbers, which took 3,280 passes over
the data in mini-batches of 20. Larger mini-batches, compiled steps and a faster schedule of the learning rate make up
for some of the passes that a few hours of one core do not have.

Reference: Burda, Grosse and Salakhutdinov 2016, arXiv:1509.00519, section 5 and table 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from mnist_runs import Centre, Data, Result, Run, execute, glorot, load, options_parser, print_table
from torch import Tensor

import zsp

Z_DIM = 50
HIDDEN = 200

# Test NLL and number of active units in table 1 of the paper, one stochastic layer, by objective and K.
PAPER = {
    ("vae", 1): (86.76, 19),
    ("vae", 5): (86.47, 20),
    ("vae", 50): (86.35, 20),
    ("iwae", 1): (86.76, 19),
    ("iwae", 5): (85.54, 22),
    ("iwae", 50): (84.78, 25),
}


@zsp.meta_bayesian_net(scope="gen", reuse_variables=True)
def build_gen(n: int, x_log_odds: Tensor) -> zsp.BayesianNet:
    """The generator; ``n`` images, whose pixels have the given log odds before anything is learnt."""
    bn = zsp.BayesianNet()
    first = zsp.module("hidden_1", glorot, Z_DIM, HIDDEN)
    z = bn.normal("z", first.weight.new_zeros(n, Z_DIM), std=1.0, group_ndims=1)
    h = torch.tanh(first(z))
    h = torch.tanh(zsp.module("hidden_2", glorot, HIDDEN, HIDDEN)(h))
    x_logits = zsp.module("x_logits", glorot, HIDDEN, len(x_log_odds), x_log_odds)(h)
    bn.bernoulli("x", x_logits, group_ndims=1)
    return bn


@zsp.reuse_variables("q_net")
def build_q_net(x: Tensor, k: int = 1, x_means: Tensor | None = None) -> zsp.BayesianNet:
    """The recognition net with ``k`` draws for each image; ``x_means`` are needed at the first execution only."""
    bn = zsp.BayesianNet()
    h = zsp.module("centre", Centre, x_means)(x)
    h = torch.tanh(zsp.module("hidden_1", glorot, x.shape[-1], HIDDEN)(h))
    h = torch.tanh(zsp.module("hidden_2", glorot, HIDDEN, HIDDEN)(h))
    z_mean = zsp.module("z_mean", glorot, HIDDEN, Z_DIM)(h)
    z_logstd = zsp.module("z_logstd", glorot, HIDDEN, Z_DIM)(h)
    bn.normal("z", z_mean, logstd=z_logstd, n_samples=k, group_ndims=1)
    return bn


def build(options: argparse.Namespace, data: Data, k: int) -> Run:
    """A run with new nets."""
    torch.manual_seed(options.seed)
    gen = build_gen(n=1, x_log_odds=data.log_odds()).materialize()
    q_net = build_q_net.new()
    q_net.materialize(data.test[:1], x_means=data.means)

    def cost(x: Tensor) -> Tensor:
        observed = {"x": x, "n": len(x)}
        if options.objective == "vae":
            return zsp.elbo(gen, observed, variational=q_net(x, k), axis=0).sgvb()
        bound = zsp.iw_objective(gen, observed, variational=q_net(x, k), axis=0)
        return bound.dreg() if options.estimator == "dreg" else bound.sgvb()

    estimator = "" if options.estimator == "sgvb" else f"_{options.estimator}"
    return Run(f"{options.objective}{estimator}_k{k}_seed{options.seed}", gen, q_net, cost, options)


@torch.no_grad()
def active_units(run: Run, x: Tensor) -> int:
    """How many latent units depend on the image: the variance of q's mean over the images is above 0.01.

    Reference: Burda et al. 2016, section 5.1.
    """
    means = torch.cat([run.q_net(part)["z"].dist.mean for part in x.split(1000)])
    return int((means.var(0) > 0.01).sum())


def main(arguments: Sequence[str] | None = None) -> list[Result]:
    """Run what the command line asks for; returns a result for each K."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = options_parser(__doc__.splitlines()[0], learning_rate=3e-3, out="mnist_runs/iwae")
    parser.add_argument("--objective", choices=("vae", "iwae"), default="iwae", help="what is maximised")
    parser.add_argument(
        "--estimator", choices=("sgvb", "dreg"), default="sgvb", help="of the gradient; the paper's is sgvb"
    )
    options = parser.parse_args(arguments)
    if options.objective == "vae" and options.estimator != "sgvb":
        parser.error("--estimator is for --objective iwae; that of the VAE is sgvb.")
    results = []
    with torch.random.fork_rng():
        data = load(options)
        for k in options.k:
            nll, units = PAPER.get((options.objective, k), (None, None)) if options.data == "mnist" else (None, None)

            def notes(run: Run, data: Data, units: int | None = units) -> str:
                paper = "" if units is None else f" (paper: {units})"
                return f"{active_units(run, data.test)} active units{paper}"

            results.append(execute(build(options, data, k), data, reference=nll, notes=notes))
    print_table(results, options, "iwae_mnist.py", arguments)
    return results


if __name__ == "__main__":
    main()
