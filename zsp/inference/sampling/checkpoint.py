"""Checkpoints of a run: tensors and numbers in one file that is replaced as a whole and read without pickle."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["read_checkpoint", "write_checkpoint"]


def write_checkpoint(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    """Write the file beside ``path`` and move it there: a process that is killed leaves the file before it, or it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_checkpoint(
    path: str | os.PathLike[str], run: dict[str, Any], first_log_density: Tensor
) -> dict[str, Any]:
    """The content of a checkpoint of the same run.

    Args:
        path: of the file.
        run: what identifies the run; its entries must equal the checkpoint's.
        first_log_density: where the chains begin, [chain]; it tells models and data apart that have the same shapes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no checkpoint, or was written by a run with other options, data or another model.
    """
    try:
        content: dict[str, Any] = torch.load(path, weights_only=True)
        written, first = content["run"], content["first_log_density"]
    except (RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"the file {os.fspath(path)!r} is no checkpoint of zsp.mcmc, or is damaged. Choose another file, or begin "
            "anew with resume=False."
        ) from error
    for name, value in run.items():
        if written.get(name) != value:
            raise ValueError(
                f"the checkpoint {os.fspath(path)!r} was written by another run: its {name} is "
                f"{written.get(name)!r}, that of this run is {value!r}. Resume with the same arguments, or choose "
                "another file."
            )
    # other numbers of threads sum in another order
    if not torch.allclose(first.double(), first_log_density.double(), rtol=1e-4, atol=1e-4):
        raise ValueError(
            f"the checkpoint {os.fspath(path)!r} was written by another run: where its chains began, the log density "
            f"was {_few(first)}; now it is {_few(first_log_density)}. The observed values, the model, its parameters "
            "or init differ. Resume with the same, or choose another file."
        )
    return content


def _few(values: Tensor) -> str:
    return ", ".join(f"{value:.6g}" for value in values[:3].tolist()) + (", ..." if len(values) > 3 else "")
