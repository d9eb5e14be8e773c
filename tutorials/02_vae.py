r"""The variational autoencoder, step by step: how good is a model of images, and how would one know?

A generator turns two latent numbers into an image; a recognition net guesses the two numbers from an image. Both are
trained by maximising the evidence lower bound (ELBO). With two latent numbers the evidence itself can be summed on a
grid, so the bound and the importance-sampled estimate are checked against the truth.

Run it: ``python tutorials/02_vae.py`` (some 20 seconds). It writes ``latent_plane.png``. ``python -m zsp demo`` trains
the same model with more latent numbers.

References: Kingma and Welling 2014, arXiv:1312.6114; Rezende, Mohamed and Wierstra 2014, arXiv:1401.4082; Burda, Grosse
and Salakhutdinov 2016, arXiv:1509.00519 (importance-sampled log likelihood).
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributions import Normal

import zsp
from zsp import datasets, plots

# ---------------------------------------------------------------------------------------------------------------------
# 1. The model in maths, for each of n images      2. The same in zsp, line for line
#
#    z ~ N(0, I)                                      z = bn.normal("z", torch.zeros(n, z_dim), std=1.0, group_ndims=1)
#    x | z ~ Bernoulli(sigmoid(f(z)))                 bn.bernoulli("x", x_logits, group_ndims=1)
#
# zsp.module makes a layer at the first execution and finds it again later (reuse_variables=True). group_ndims=1 makes
# the z_dim numbers, and the pixels, one event: each image has one log probability. n is an input of the model, so that
# it can change with the batch.


@zsp.meta_bayesian_net(scope="gen", reuse_variables=True)
def build_gen(x_dim: int, z_dim: int, n: int) -> zsp.BayesianNet:
    bn = zsp.BayesianNet()
    z = bn.normal("z", torch.zeros(n, z_dim), std=1.0, group_ndims=1)
    h = torch.relu(zsp.module("hidden_1", nn.Linear, z_dim, 200)(z))
    h = torch.relu(zsp.module("hidden_2", nn.Linear, 200, 200)(h))
    x_logits = zsp.module("x_logits", nn.Linear, 200, x_dim)(h)
    bn.deterministic("x_mean", torch.sigmoid(x_logits))
    bn.bernoulli("x", x_logits, group_ndims=1)
    return bn


# The recognition net: q(z | x) = N(mu(x), diag sigma(x)^2). n_samples adds an axis of draws in front.


@zsp.reuse_variables("q_net")
def build_q_net(x: Tensor, z_dim: int = 2, n_samples: int = 1) -> zsp.BayesianNet:
    bn = zsp.BayesianNet()
    h = torch.relu(zsp.module("hidden_1", nn.Linear, x.shape[-1], 200)(x))
    h = torch.relu(zsp.module("hidden_2", nn.Linear, 200, 200)(h))
    z_mean = zsp.module("z_mean", nn.Linear, 200, z_dim)(h)
    z_logstd = zsp.module("z_logstd", nn.Linear, 200, z_dim)(h)
    bn.normal("z", z_mean, logstd=z_logstd, group_ndims=1, n_samples=n_samples)
    return bn


def main(budget: float = 1.0, output: str | Path = "tutorial_output") -> dict[str, float]:
    """Run the tutorial.

    Args:
        budget: of training epochs; 1 is the real thing, tests use less.
        output: the folder for the figure.

    Returns:
        The numbers that are printed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)

        # -------------------------------------------------------------------------------------------------------------
        # 3. Data: 8 x 8 digits, bundled with zsp. The pixels of the model are 0 or 1, so the grey ones are cut at half.
        images = datasets.digits()
        dtype = torch.get_default_dtype()
        x_train, x_test = ((part >= 0.5).to(dtype) for part in (images.train_images, images.test_images))

        # -------------------------------------------------------------------------------------------------------------
        # 4. Inference in one call. A key of the observed values that names an input of the model ("n") rebinds it. The
        #    recognition net is given as it is: it gets those observed values whose names are its parameters ("x").
        model = build_gen(x_dim=64, z_dim=2, n=1).materialize()
        q_net = build_q_net.new()
        q_net.materialize(x_test[:1])

        def loss(batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            observed = {"x": batch["x"], "n": len(batch["x"])}
            bound = zsp.elbo(model, observed, variational=q_net, axis=0)
            return bound.sgvb().mean(), {"elbo": bound.tensor.mean()}

        optimizer = torch.optim.Adam([*model.parameters(), *q_net.parameters()], lr=1e-3)
        epochs = max(1, int(60 * budget))
        history = zsp.fit(loss, {"x": x_train}, optimizer=optimizer, epochs=epochs, batch_size=50, seed=0)
        print(f"ELBO of the training images after {epochs} epochs  {history['elbo'][-1]:8.3f} nats")

        # -------------------------------------------------------------------------------------------------------------
        # 5. A check with a known answer. Test images: ELBO <= importance-sampled log likelihood <~ log p(x).
        observed = {"x": x_test, "n": len(x_test)}
        with torch.no_grad():
            elbo = zsp.elbo(model, observed, variational=q_net(x_test, n_samples=100), axis=0).tensor
        estimate = zsp.is_loglikelihood(model, observed, proposal=q_net, n_samples=1000, chunk=100, return_stats=True)
        exact = log_evidence_on_a_grid(model, x_test)
        error = estimate.standard_error.square().sum().sqrt() / len(x_test)
        print(f"test images: ELBO                         {elbo.mean():8.3f} nats")
        print(f"             importance sampling, K=1000  {estimate.log_likelihood.mean():8.3f} (s.e. {error:.3f})")
        print(f"             log p(x), z on a grid        {exact.mean():8.3f}")
        print(f"KL(q || posterior) = log p(x) - ELBO, the price of this q: {(exact - elbo).mean():.3f} nats an image")
        # The standard error knows only of the draws that were made, not of a mode that q never visits. What warns of
        # that is the effective sample size (ESS) of the weights.
        missing = exact - estimate.log_likelihood
        is_low = estimate.ess < 50
        print("importance sampling falls short of log p(x) by")
        for what, rows in (("at least 50", ~is_low), ("lower", is_low)):
            print(f"             {missing[rows].mean():.3f} nats where the ESS is {what} ({int(rows.sum())} images)")

        what_goes_wrong(model, q_net, x_test)

        # The figure: the mean image at each place of the plane of z, at equal steps of prior probability.
        quantiles = Normal(0.0, 1.0).icdf(torch.linspace(0.02, 0.98, 15))
        plane = torch.stack(torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij"), -1).flip(-1).reshape(-1, 2)
        with torch.no_grad():
            x_mean = model.observe(z=plane, n=len(plane))["x_mean"]
    title = "The plane of z: mean images"
    figure = plots.image_grid(x_mean, images.shape, n_columns=15, title=title)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "latent_plane.png", dpi=150)
    print(f"figure: {folder / 'latent_plane.png'}")
    return {
        "first_elbo": history["elbo"][0],
        "last_elbo": history["elbo"][-1],
        "elbo": float(elbo.mean()),
        "importance": float(estimate.log_likelihood.mean()),
        "importance_se": float(error),
        "exact": float(exact.mean()),
        "missing_at_high_ess": float(missing[~is_low].mean()),
    }


@torch.no_grad()
def log_evidence_on_a_grid(model: zsp.MetaBayesianNet, x: Tensor, n: int = 150, limit: float = 5.0) -> Tensor:
    """log p(x), the sum of p(z) p(x | z) over a grid of z from -limit to limit, for each image: shape [len(x)]."""
    axis = torch.linspace(-limit, limit, n)
    z = torch.cartesian_prod(axis, axis)
    bn = model.observe(z=z, n=len(z))
    log_prior = bn.cond_log_prob("z") + 2 * math.log(2 * limit / (n - 1))
    logits = bn["x"].dist.logits
    log_likelihood = x @ logits.T - nn.functional.softplus(logits).sum(-1)  # [image, z]
    return torch.logsumexp(log_prior + log_likelihood, 1)


# ---------------------------------------------------------------------------------------------------------------------
# 6. What would go wrong, and how to see it.
#
# - Forget "n": the prior of z stays at the n that the model was made with, here 50 instead of 360. zsp names the node
#   and the shapes that do not fit.
# - Images from 0 to 255, or grey ones: torch's Bernoulli would return finite nonsense; zsp names the first bad pixel.
# - The ELBO stays at about -25 nats: q ignores x (posterior collapse) and the model is one of independent pixels. It
#   does so in the first epochs of every run; see the plateau in the demo's loss.png. Train longer.


def what_goes_wrong(model: zsp.MetaBayesianNet, q_net: zsp.ReusableFunction, x: Tensor) -> None:
    print('Without "n" among the observed values:')
    try:
        zsp.elbo(model.bind(n=50), {"x": x}, variational=q_net, axis=0)
    except ValueError as error:
        print(f"  ValueError: {error}")
    print("Pixels from 0 to 255:")
    try:
        zsp.elbo(model, {"x": 255 * x, "n": len(x)}, variational=q_net, axis=0)
    except ValueError as error:
        print(f"  ValueError: {error}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="tutorial_output", help="folder for the figure")
    parser.add_argument("--budget", type=float, default=1.0, help="share of the training epochs")
    arguments = parser.parse_args()
    main(arguments.budget, arguments.output)
