"""The training loop: seeds, mini-batches, compiled steps, a progress bar, a history, and errors that name the node when
a loss is not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from zsp.inference.training.batches import batches_of
from zsp.inference.training.eager import Loss
from zsp.inference.training.history import History, Means
from zsp.inference.training.trainer import Trainer
from zsp.tensor_like import to_tensor

__all__ = ["fit"]


def fit(
    loss: Loss,
    data: Mapping[str, Tensor] | Iterable[Any],
    *,
    optimizer: torch.optim.Optimizer,
    epochs: int = 1,
    batch_size: int | None = None,
    shuffle: bool = True,
    seed: int = 0,
    validation: Callable[[], Mapping[str, Any]] | None = None,
    progress: bool = True,
    compile: bool = False,
) -> History:
    r"""Minimise a loss over mini-batches.

    ::

        def loss(batch):
            bound = zsp.elbo(model, batch, variational=q, axis=0)
            return bound.sgvb().mean(), {"elbo": bound.mean()}

        history = zsp.fit(loss, {"x": images}, optimizer=optimizer, epochs=20, batch_size=128)

    The first step of every epoch checks every node, as inside :func:`zsp.checked` (at most every 20 steps, where epochs
    are shorter). When a loss is not finite, the step
    is run again on the same batch with the same random numbers and every check on, so that the error names the node.
    A step with a loss that is not finite changes no parameter.

    With ``compile=True`` steps run in a compiled loop of loss, gradient and update, which makes small models some
    eight times faster and costs some ten seconds once, at the second step. Numbers are those of an eager run
    up to rounding, with the same random numbers in the same order. It works for ``torch.optim.SGD``, ``Adam`` and
    ``AdamW`` and for losses without branches on values; parameters, the optimizer's state and buffers are changed in
    place, and learning rates may change from epoch to epoch. The loss's Python code runs only where it is traced or
    checked: what changes from step to step must be a tensor that is changed in place. Parameters have no ``.grad`` in
    it. Whatever cannot be compiled runs eagerly, and a warning says why: other optimizers, a loss that cannot be
    traced, a smaller last batch. The first step of a run is eager too.

    Args:
        loss: from a mini-batch to a scalar to minimise, or to (scalar, mapping of named metrics).
        data: name -> tensor, all of the same length, from which mini-batches (dicts) are drawn; or an iterable of
            mini-batches, a DataLoader for example, gone through once an epoch.
        optimizer: a torch optimizer of the parameters to train.
        epochs: the number of passes over the data.
        batch_size: the size of a mini-batch of a mapping; default all data. The last one of an epoch may be smaller.
        shuffle: whether a mapping's data are put in a new random order every epoch.
        seed: of every random number drawn in the run; the caller's random state is given back at the end.
        validation: called after every epoch, without gradients; returns named metrics.
        progress: whether to show a progress bar.
        compile: whether to compile the steps.

    Returns:
        The history of the epoch means of ``"loss"`` and of the metrics.

    Raises:
        ValueError: if the loss is not a finite scalar, naming the node where one is to blame; if the data's lengths
            differ.
    """
    batches = batches_of(data, batch_size, shuffle)
    trainer = Trainer(loss, optimizer, compile)
    history = History()
    next_check = 0
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices), _progress_bar(epochs, progress) as bar:
        torch.manual_seed(seed)
        for index in range(epochs):
            means = Means()
            trainer.begin_epoch()
            epoch = batches()
            while (chunk := epoch.take(trainer.steps_per_call)) is not None:
                is_checked = means.n_steps == 0 and trainer.n_steps >= next_check
                if is_checked:
                    next_check = trainer.n_steps + 20
                means.add(trainer.run(chunk, epoch, (means.n_steps, index), is_checked), chunk.n_steps)
                history.n_steps, history.n_compiled_steps = trainer.n_steps, trainer.n_compiled_steps
            if not means.n_steps:
                raise ValueError(
                    f"epoch {index} had no mini-batch: data is empty, or an iterator that can be gone through only "
                    "once. Give a list, a DataLoader or a mapping of tensors."
                )
            measured = means.means()
            if validation is not None:
                with torch.no_grad():
                    measured.update({name: float(to_tensor(value)) for name, value in validation().items()})
            history._append(measured)
            bar.update(1)
            bar.set_postfix({name: f"{value:.4g}" for name, value in measured.items()})
    return history


def _progress_bar(epochs: int, progress: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=epochs, desc="epochs", disable=not progress)
