"""The command line: ``python -m zsp demo`` and ``python -m zsp download mnist``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the command and its options; default those of the process.

    Returns:
        The exit status: 0, or 1 where something that the command needs is missing.
    """
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "download":
            return _download(arguments.name)
        return _demo(arguments)
    except (ImportError, OSError) as error:  # what a user can mend: the message says how
        print(f"zsp {arguments.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"zsp {arguments.command}: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    from zsp.demo import SETTINGS

    defaults = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(
        prog="zsp", description="Bayesian nets in plain PyTorch, and inference for them.", formatter_class=defaults
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    times = "; ".join(f"{name}: {s.epochs} epochs, {s.duration} on two cores" for name, s in SETTINGS.items())
    demo = commands.add_parser(
        "demo",
        help="train a variational autoencoder and draw what it has learnt",
        description="Train a variational autoencoder on pictures of digits, print the ELBO and the importance-sampled "
        "log likelihood of the test images, and write pictures: samples, reconstructions, the latent space and the "
        f"course of the training ({times}).",
        formatter_class=defaults,
    )
    where = "the bundled 8 x 8 digits, or MNIST from ZSP_DATA or the cache"
    demo.add_argument("--data", choices=list(SETTINGS), default="digits", help=where)
    epochs = " and ".join(f"{s.epochs} for {name}" for name, s in SETTINGS.items())
    passes = f"passes over the training images (default: {epochs})"
    demo.add_argument("--epochs", type=_positive, default=argparse.SUPPRESS, metavar="N", help=passes)
    demo.add_argument("--output", default="demo_output", metavar="DIR", help="folder for the pictures")
    demo.add_argument("--seed", type=int, default=0, metavar="S", help="the same seed gives the same numbers")
    demo.add_argument("--device", default="cpu", help="where to train, for example cuda")
    demo.add_argument("--no-progress", action="store_true", default=argparse.SUPPRESS, help="show no progress bar")

    download = commands.add_parser(
        "download", help="fetch a data set into the cache", description="Fetch a data set into the cache, once."
    )
    download.add_argument("name", choices=["mnist"], help="the data set")
    return parser


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return number


def _demo(arguments: argparse.Namespace) -> int:
    from zsp import demo

    demo.run(
        arguments.data,
        epochs=getattr(arguments, "epochs", None),
        output=arguments.output,
        seed=arguments.seed,
        device=arguments.device,
        progress=not getattr(arguments, "no_progress", False),
    )
    return 0


def _download(name: str) -> int:
    from zsp import datasets

    print(f"{name} is in {datasets.download(name)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
