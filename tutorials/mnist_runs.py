"""What the scripts on MNIST share: the data as in the literature, training by the clock with checkpoints, the test
likelihood, and a row of a table for each run.

The data are those of Burda, Grosse and Salakhutdinov 2016, arXiv:1509.00519, section 5: the grey values of MNIST are
taken as probabilities, the pixels of a training image are drawn anew every time it is shown, and those of the test
images are drawn once.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import zsp
from zsp import datasets

N_ROUNDS = 12  # a run is so many calls of zsp.fit, with a checkpoint and a line of the learning curve after each
N_MONITORED = 1000  # test images in the learning curve, with so few draws that it lies a little above the final value
N_MONITOR_DRAWS = 100


class Data(NamedTuple):
    """Grey images to train on, binary ones to test on, and the mean of each pixel.

    Attributes:
        train: [n, pixel], probabilities.
        test: [n_test, pixel], zeros and ones.
        means: [pixel], of the training images.
    """

    train: Tensor
    test: Tensor
    means: Tensor

    def log_odds(self) -> Tensor:
        """Of the mean pixels, [pixel]; one that is never inked counts as one in 1,000."""
        return self.means.clamp(0.001, 0.999).logit()


def load(options: argparse.Namespace) -> Data:
    """The images that the options name, on their device, in torch's default dtype."""
    images = datasets.mnist() if options.data == "mnist" else datasets.digits()
    test = datasets.binarize(images.test_images, torch.Generator().manual_seed(0))  # the same in every run
    like = {"device": options.device, "dtype": torch.get_default_dtype()}
    train = images.train_images.to(**like)
    return Data(train, test.to(**like), train.mean(0))


class Linear(nn.Linear):
    """A layer whose product can be taken in another dtype than that of its weights; see :func:`products_in`."""

    product_dtype: torch.dtype | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.product_dtype is None:
            return super().forward(x)
        product = nn.functional.linear(x.to(self.product_dtype), self.weight.to(self.product_dtype))
        return product.to(x.dtype) + self.bias


@contextmanager
def products_in(dtype: torch.dtype | None, *nets: nn.Module) -> Iterator[None]:
    """Inside, all layers of the nets take their products, and the gradients of these, in the given dtype."""
    layers = [layer for net in nets for layer in net.modules() if isinstance(layer, Linear)]
    for layer in layers:
        layer.product_dtype = dtype
    try:
        yield
    finally:
        for layer in layers:
            layer.product_dtype = None


def glorot(n_in: int, n_out: int, bias: Tensor | None = None) -> Linear:
    """A layer with the uniform weights of Glorot and Bengio 2010, and the given bias or none."""
    layer = Linear(n_in, n_out)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    if bias is not None:
        with torch.no_grad():
            layer.bias.copy_(bias)
    return layer


class Centre(nn.Module):
    """Images less their mean."""

    def __init__(self, means: Tensor) -> None:
        super().__init__()
        self.register_buffer("means", means.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return x - self.means


# ---------------------------------------------------------------------------------------------------------------------
# Options.


def options_parser(description: str, **defaults: Any) -> argparse.ArgumentParser:
    """The options that all runs have; a script adds its own and its defaults."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--k", type=_numbers, default="1", help="numbers of samples, one run for each: 1,5,50")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--hours", type=float, default=2.0, help="how long to train each run")
    length.add_argument("--epochs", type=int, default=None, help="passes over the data, instead of --hours")
    add("--batch-size", type=int, default=100, help="training images in a step")
    add("--learning-rate", type=float, default=1e-3, help="of Adam, at the beginning")
    add("--final-learning-rate", type=float, default=1e-4, help="at the end; it falls exponentially")
    add("--seed", type=int, default=0, help="of all random numbers of a run")
    add("--out", type=Path, default=Path("mnist_runs"), help="folder for the checkpoints")
    add("--resume", action="store_true", help="go on from the checkpoints in --out")
    add("--evaluate-only", action="store_true", help="evaluate the checkpoints in --out, finished or not")
    add("--data", choices=("mnist", "digits"), default="mnist", help="MNIST, or the bundled digits of 8 x 8 pixels")
    add("--n-draws", type=int, default=5000, help="importance samples of the test likelihood, for each image")
    add("--n-test", type=int, default=10_000, help="how many test images to evaluate")
    add("--device", default="cpu", help="where to train")
    add("--eager", action="store_true", help="do not compile the training steps")
    add("--bfloat16", action="store_true", help="train with matrix products in bfloat16; the test likelihood is not")
    parser.set_defaults(**defaults)
    return parser


def _numbers(text: str) -> list[int]:
    numbers = [int(number) for number in text.split(",")]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"numbers of samples are at least 1, got {text}.")
    return numbers


# ---------------------------------------------------------------------------------------------------------------------
# A run: nets, an optimizer, and how far it has come.


@dataclass
class Progress:
    """How far a run has come: what a checkpoint holds beside the nets and the optimizer.

    Attributes:
        n_rounds: rounds finished, of N_ROUNDS.
        epochs: passes over the data in them.
        seconds: of training in them, compiling included, measuring not.
        curve: a row for each round: epochs, seconds, training cost, test NLL (of fewer images and draws).
    """

    n_rounds: int = 0
    epochs: int = 0
    seconds: float = 0.0
    curve: list[list[float]] = field(default_factory=list)


class Run:
    """A model and a recognition net that are trained together.

    Args:
        name: of the run, and of its file.
        gen: the model, with the input ``n``, the number of images, and the node ``x``.
        q_net: the recognition net, a function of ``x``.
        cost: from binary images to a cost of each, to be minimised.
        options: see :func:`options_parser`.
    """

    def __init__(
        self,
        name: str,
        gen: zsp.MetaBayesianNet,
        q_net: zsp.ReusableFunction,
        cost: Callable[[Tensor], Tensor],
        options: argparse.Namespace,
    ) -> None:
        self.name, self.gen, self.q_net, self.cost, self.options = name, gen, q_net, cost, options
        for net in (gen, q_net):
            net.to(options.device)
        parameters = [*gen.parameters(), *q_net.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=options.learning_rate)
        self.progress = Progress()
        self.path = options.out / f"{name}.pt"

    # -- training -----------------------------------------------------------------------------------------------------

    def train(self, data: Data) -> None:
        """Train for the rounds that are left; with --epochs, a resumed run equals one that was never stopped."""
        monitored = data.test[:N_MONITORED]
        seconds_per_epoch = None
        while self.progress.n_rounds < N_ROUNDS:
            start = time.perf_counter()
            if self.options.epochs is not None:
                epochs = _share(self.options.epochs, self.progress.n_rounds)
            elif seconds_per_epoch is None:  # to see how long one takes
                epochs = 1
            else:
                left = self.options.hours * 3600 - self.progress.seconds
                epochs = max(1, round(left / (N_ROUNDS - self.progress.n_rounds) / seconds_per_epoch))
            times, cost = self._round(data.train, epochs)
            # the first epoch may include compiling
            intervals = [after - before for before, after in itertools.pairwise(times)]
            seconds_per_epoch = min(intervals) if intervals else min(times[0] - start, seconds_per_epoch or torch.inf)
            self.progress.n_rounds += 1
            self.progress.epochs += epochs
            self.progress.seconds += time.perf_counter() - start
            nll = -float(self.log_likelihood(monitored, N_MONITOR_DRAWS).log_likelihood.mean())
            self.progress.curve.append([self.progress.epochs, self.progress.seconds, cost, nll])
            self.save()
            print(
                f"{self.name}: {self.progress.epochs:5d} epochs {self.progress.seconds / 60:7.1f} min  training cost "
                f"{cost:8.3f}  test NLL {nll:8.3f} ({len(monitored)} images, {N_MONITOR_DRAWS} draws)  "
                f"{seconds_per_epoch:.2f} s an epoch",
                flush=True,
            )

    def _round(self, train: Tensor, epochs: int) -> tuple[list[float], float]:
        """One call of zsp.fit: when each epoch ended, and the mean cost in the last."""
        times: list[float] = []

        def after_an_epoch() -> dict[str, float]:
            times.append(time.perf_counter())
            self._set_learning_rate(self.progress.n_rounds + len(times) / epochs)
            return {}

        self._set_learning_rate(self.progress.n_rounds)
        if not epochs:
            return [time.perf_counter()], float("nan")
        with products_in(torch.bfloat16 if self.options.bfloat16 else None, self.gen, self.q_net):
            history = zsp.fit(
                lambda batch: self.cost(torch.bernoulli(batch["x"])).mean(),
                {"x": train},
                optimizer=self.optimizer,
                epochs=epochs,
                batch_size=self.options.batch_size,
                seed=1000 * self.options.seed + self.progress.n_rounds,
                validation=after_an_epoch,
                progress=False,
                compile=not self.options.eager,
            )
        return times, history["loss"][-1]

    def _set_learning_rate(self, n_rounds: float) -> None:
        first, last = self.options.learning_rate, self.options.final_learning_rate
        for group in self.optimizer.param_groups:
            group["lr"] = first * (last / first) ** (n_rounds / N_ROUNDS)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the checkpoint; a run that is killed leaves the last one whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        torch.save(
            {
                "gen": self.gen.state_dict(),
                "q_net": self.q_net.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "progress": asdict(self.progress),
            },
            part,
        )
        os.replace(part, self.path)

    def load(self) -> bool:
        """Read the checkpoint; False if there is none."""
        if not self.path.is_file():
            return False
        saved = torch.load(self.path, map_location=self.options.device, weights_only=True)
        for name in ("gen", "q_net", "optimizer"):
            getattr(self, name).load_state_dict(saved[name])
        self.progress = Progress(**saved["progress"])
        return True

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def log_likelihood(self, x: Tensor, n_draws: int) -> zsp.inference.ImportanceEstimate:
        """The importance-sampled log likelihood of binary images, each with its standard error, in double precision."""
        with torch.random.fork_rng():
            torch.manual_seed(self.options.seed)
            estimates = [
                zsp.is_loglikelihood(
                    self.gen,
                    {"x": part, "n": len(part)},
                    proposal=self.q_net,
                    n_samples=n_draws,
                    chunk=20,  # larger ones leave the cache
                    return_stats=True,
                )
                for part in x.split(100)
            ]
        return type(estimates[0])(*(torch.cat(parts).double() for parts in zip(*estimates, strict=True)))


def _share(total: int, index: int) -> int:
    """The part of ``total`` that falls to one of N_ROUNDS rounds."""
    return total * (index + 1) // N_ROUNDS - total * index // N_ROUNDS


# ---------------------------------------------------------------------------------------------------------------------
# The table.


class Result(NamedTuple):
    """What a run came to.

    Attributes:
        run: the run's name.
        nll: of the test images, in nats.
        standard_error: of the importance sampling; another binarisation of the test images would change more.
        reference: the published value, where there is one.
        notes: what else there is to say, for example the number of active units.
        progress: of the training.
    """

    run: str
    nll: float
    standard_error: float
    reference: float | None
    notes: str
    progress: Progress


def execute(run: Run, data: Data, *, reference: float | None, notes: Callable[[Run, Data], str]) -> Result:
    """Train a run, or what is left of it, and evaluate it.

    Args:
        run: the run.
        data: the images.
        reference: the published NLL.
        notes: called after the training.
    """
    options = run.options
    is_there = (options.resume or options.evaluate_only) and run.load()
    if options.evaluate_only and not is_there:
        raise SystemExit(f"there is no checkpoint {run.path} to evaluate: train first, without --evaluate-only.")
    if not options.evaluate_only:
        run.train(data)
    start = time.perf_counter()
    x = data.test[: options.n_test]
    estimate = run.log_likelihood(x, options.n_draws)
    error = float(estimate.standard_error.square().sum().sqrt() / len(x))
    print(f"{run.name}: evaluated {len(x)} images with {options.n_draws} draws in {time.perf_counter() - start:.0f} s")
    nll = -float(estimate.log_likelihood.mean())
    return Result(run.name, nll, error, reference, notes(run, data), run.progress)


def print_table(results: Iterable[Result], options: argparse.Namespace, script: str, arguments: Sequence[str]) -> None:
    """The table of the runs, in Markdown."""
    n_test = min(options.n_test, 10_000 if options.data == "mnist" else 360)
    print(f"Test NLL of {options.data} in nats: {n_test} images, {options.n_draws} importance samples each.")
    print("| run | test NLL (s.e. of the sampling) | published | notes | epochs | training | seed | processor |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for result in results:
        reference = "" if result.reference is None else f"{result.reference:.2f}"
        duration = f"{result.progress.seconds / 3600:.2f} h"
        print(
            f"| {result.run} | {result.nll:.3f} ({result.standard_error:.3f}) | {reference} | {result.notes} | "
            f"{result.progress.epochs} | {duration} | {options.seed} | {processor(options.device)} |"
        )
    print(f"Command: python tutorials/{script} {shlex.join(arguments)}")


def processor(device: str) -> str:
    """What it ran on."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = lines[0] if lines else name
    n_threads = torch.get_num_threads()
    return f"{name}, {n_threads} thread{'s' if n_threads > 1 else ''}"
