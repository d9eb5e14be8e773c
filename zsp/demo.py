r"""The demo: train a variational autoencoder, measure it on test images, and draw what it has learnt.

.. math:: \log p(x) \ge \mathbb{E}_{q(z \mid x)}[\log p(x, z) - \log q(z \mid x)]

The model is one of binary pixels, so the grey images are made binary first:

- MNIST as in the literature, so that the nats printed can be compared with it (Burda et al. 2016, arXiv:1509.00519,
  section 5): training images are drawn anew in every step, a pixel being 1 with the probability that is its grey value;
  test images are drawn once.
- The 8 x 8 digits at one half, once: a pixel is 1 where at least half of the 4 x 4 block of the scanned image that it
  stands for is ink. Drawn at random they would be hard to recognise, as their grey values are seldom near 0 or 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

import zsp
from zsp import datasets, plots
from zsp.extras import require
from zsp.models.vae import VAE, build_vae

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SETTINGS", "Estimate", "Result", "Settings", "run"]


@dataclass(frozen=True)
class Settings:
    """What the demo does with one data set.

    Attributes:
        load: gives the images.
        is_dynamic: whether pixels are drawn from the grey values, anew in every step; else they are cut at one half.
        z_dim: size of the latent representation.
        hidden: width of the hidden layers.
        epochs: default number of passes over the training images.
        batch_size: of training.
        n_evaluated: how many test images are evaluated by importance sampling.
        chunk: how many draws for each of 100 images are held in memory at a time.
        n_threads: torch's threads; None leaves them. Small layers run faster with one.
        duration: how long it takes, for ``--help``.
    """

    load: Callable[[], datasets.Images]
    is_dynamic: bool
    z_dim: int
    hidden: int
    epochs: int
    batch_size: int
    n_evaluated: int
    chunk: int
    n_threads: int | None
    duration: str


SETTINGS = {
    "digits": Settings(datasets.digits, False, 8, 200, 150, 50, 360, 100, 1, "half a minute"),
    "mnist": Settings(datasets.mnist, True, 40, 500, 20, 128, 1000, 50, None, "ten to twenty minutes"),
}


class Estimate(NamedTuple):
    """A Monte Carlo estimate, the mean over test images, in nats.

    Attributes:
        value: the estimate.
        standard_error: of the Monte Carlo draws alone: another run on the same images would differ by about as much.
    """

    value: float
    standard_error: float

    def __str__(self) -> str:
        return f"{self.value:.3f} nats (Monte Carlo s.e. {self.standard_error:.3f})"


class Result(NamedTuple):
    """What the demo found.

    Attributes:
        elbo: on the test images.
        log_likelihood: of the test images, importance-sampled.
        ess: effective sample size of the importance weights, for each image evaluated.
        history: of the training: ``"elbo"`` on training images and ``"test elbo"``, for each epoch.
        pictures: the files written.
        nets: the trained pair.
    """

    elbo: Estimate
    log_likelihood: Estimate
    ess: Tensor
    history: zsp.History
    pictures: tuple[Path, ...]
    nets: VAE


def run(
    data: str = "digits",
    *,
    epochs: int | None = None,
    output: str | Path = "demo_output",
    seed: int = 0,
    progress: bool = True,
    n_importance: int = 1000,
    device: str | torch.device = "cpu",
) -> Result:
    """Train, evaluate and draw; prints what it does. The caller's random state and number of threads stay as they were.

    Args:
        data: ``"digits"`` (bundled, 8 x 8 pixels) or ``"mnist"``.
        epochs: passes over the training images; default what ``SETTINGS`` says.
        output: the folder for the pictures, made if it is missing.
        seed: of all random numbers; the same seed gives the same result.
        progress: whether to show a progress bar.
        n_importance: draws for each test image in the importance-sampled log likelihood.
        device: where to train and evaluate.

    Returns:
        The numbers printed, the history and the files written.

    Raises:
        ImportError: if matplotlib, which draws the pictures, is missing.
        FileNotFoundError: if MNIST is not on this machine.
        ValueError: for an unknown data set.
    """
    if data not in SETTINGS:
        raise ValueError(f"there is no demo for data={data!r}; there is {', '.join(map(repr, SETTINGS))}.")
    settings = SETTINGS[data]
    epochs = settings.epochs if epochs is None else epochs
    require("matplotlib.figure", extra="plot", purpose="the demo, which draws pictures,")
    images = settings.load()
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)

    started = time.perf_counter()
    with _seeded(seed), _threads(settings.n_threads):
        if settings.is_dynamic:
            x_train, binarize = images.train_images, torch.bernoulli
            x_test = datasets.binarize(images.test_images)
        else:
            x_train, binarize = _cut_at_half(images.train_images), None
            x_test = _cut_at_half(images.test_images)
        x_train, x_test = x_train.to(device), x_test.to(device)
        x_dim = x_test.shape[1]
        nets = build_vae(x_dim, settings.z_dim, settings.hidden)
        for net in nets:
            net.to(device=device, dtype=x_test.dtype)
        print(
            f"Variational autoencoder {x_dim}-{settings.hidden}-{settings.hidden}-{settings.z_dim} on {data}: "
            f"{len(images.train_images)} training images, {epochs} epochs, seed {seed}"
        )
        history = train(
            nets, x_train, x_test[:1000], binarize=binarize, epochs=epochs, batch_size=settings.batch_size, seed=seed,
            progress=progress,
        )  # fmt: skip
        trained = time.perf_counter()
        print(f"trained in {trained - started:.0f} s")
        elbo = evaluate_elbo(nets, x_test)
        x_evaluated = x_test[: settings.n_evaluated]
        log_likelihood, ess = evaluate_log_likelihood(nets, x_evaluated, n_importance, settings.chunk)
        print(f"test ELBO            {elbo}, {len(x_test)} images")
        print(f"test log likelihood  {log_likelihood}, {len(x_evaluated)} images")
        print(
            f"                     by importance sampling, {n_importance} draws an image, effective sample size "
            f"{ess.median():.0f} (median), {ess.min():.1f} (lowest)"
        )
        pictures = (*_save(draw(nets, images, x_test, history), folder), _draw_model(nets, x_test, folder))
    names = ", ".join(path.name for path in pictures)
    print(f"pictures: {names} in {folder} ({time.perf_counter() - started:.0f} s in all)")
    return Result(elbo, log_likelihood, ess, history, pictures, nets)


def train(
    nets: VAE,
    images: Tensor,
    x_test: Tensor,
    *,
    binarize: Callable[[Tensor], Tensor] | None,
    epochs: int,
    batch_size: int,
    seed: int,
    progress: bool,
) -> zsp.History:
    """Maximise the ELBO of ``images``, made binary in every step by ``binarize`` where they are not binary already.

    The ELBO of ``x_test`` is measured after every epoch.
    """
    generator, q_net = nets
    optimizer = torch.optim.Adam([*generator.parameters(), *q_net.parameters()], lr=1e-3)

    def loss(batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
        x = batch["x"] if binarize is None else binarize(batch["x"])
        bound = zsp.elbo(generator, {"x": x, "n": len(x)}, variational=q_net, axis=0)
        return bound.sgvb().mean(), {"elbo": bound.mean()}

    def validation() -> dict[str, Any]:
        bound = zsp.elbo(generator, {"x": x_test, "n": len(x_test)}, variational=q_net, axis=0)
        return {"test elbo": bound.mean()}

    return zsp.fit(
        loss, {"x": images}, optimizer=optimizer, epochs=epochs, batch_size=batch_size, seed=seed,
        validation=validation, progress=progress,
    )  # fmt: skip


@torch.no_grad()
def evaluate_elbo(nets: VAE, x_test: Tensor, n_samples: int = 20) -> Estimate:
    """The mean ELBO of the test images, with ``n_samples`` draws for each."""
    generator, q_net = nets
    bounds = []
    for x in x_test.split(500):
        bounds.append(zsp.elbo(generator, {"x": x, "n": len(x)}, variational=q_net(x, n_samples)).tensor)
    bound = torch.cat(bounds, 1).double()  # [n_samples, image]
    variances = bound.var(0) / n_samples
    return Estimate(bound.mean().item(), variances.sum().sqrt().item() / len(x_test))


def evaluate_log_likelihood(nets: VAE, x_test: Tensor, n_samples: int, chunk: int) -> tuple[Estimate, Tensor]:
    """The mean importance-sampled log likelihood of the test images, and the effective sample size for each.

    The estimate is too low, more than its standard error tells, for images whose effective sample size is near 1: their
    posterior has mass where q has next to none.
    """
    generator, q_net = nets
    values, errors, ess = [], [], []
    for x in x_test.split(100):
        estimate = zsp.is_loglikelihood(
            generator, {"x": x, "n": len(x)}, proposal=q_net, n_samples=n_samples, chunk=chunk, return_stats=True
        )
        values.append(estimate.log_likelihood.double())
        errors.append(estimate.standard_error.double())
        ess.append(estimate.ess)
    standard_error = torch.cat(errors).square().sum().sqrt().item() / len(x_test)
    return Estimate(torch.cat(values).mean().item(), standard_error), torch.cat(ess)


@torch.no_grad()
def draw(nets: VAE, images: datasets.Images, x_test: Tensor, history: zsp.History) -> dict[str, Figure]:
    """The pictures: file name -> figure."""
    generator, q_net = nets
    samples = generator.observe(n=100)["x_mean"].cpu()
    n_shown = min(16, len(x_test))
    z = q_net(x_test[:n_shown], None)["z"].dist.mean
    x_mean = generator.observe(z=z, n=n_shown)["x_mean"].cpu()
    n_points = min(2000, len(x_test))
    points = q_net(x_test[:n_points], None)["z"].dist.mean.cpu()
    curves = {"training": history["elbo"], "test": history["test elbo"]}
    loss = plots.curve(curves, "epoch", "ELBO (nats)", title="Training")
    return {
        "samples.png": plots.image_grid(samples, images.shape, title="Drawn from the model"),
        "reconstructions.png": plots.reconstructions(
            x_test[:n_shown].cpu(), x_mean, images.shape, title="Test images and their reconstructions"
        ),
        "latent_space.png": plots.latent_space(
            points, images.test_labels[:n_points], title="Posterior means of z, test images"
        ),
        "loss.png": loss,
    }


def _cut_at_half(images: Tensor) -> Tensor:
    return (images >= 0.5).to(images.dtype)


def _draw_model(nets: VAE, x_test: Tensor, folder: Path) -> Path:
    path = folder / "model.png"
    zsp.graph.draw(nets.generator.graph(x=x_test, n=len(x_test)), path)
    return path


def _save(figures: dict[str, Figure], folder: Path) -> Iterator[Path]:
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=150)
        yield folder / name


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


@contextmanager
def _threads(n_threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if n_threads is not None:
        torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
