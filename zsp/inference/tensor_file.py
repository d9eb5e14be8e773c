"""Named groups of tensors in one file, exact in every dtype and without pickle.

The file is numpy's ``npz``: one array a tensor, and ``header``, a JSON text that names them. A dtype that numpy lacks
(bfloat16, for one) is kept as whole numbers of the same size, bit for bit.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["read_tensors", "write_tensors"]

VERSION = 1
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def write_tensors(
    path: str | os.PathLike[str], kind: str, groups: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]
) -> None:
    """Write a file, complete or not at all: it takes its name when all of it is on the disk.

    Args:
        path: where; a file of this name is replaced.
        kind: what the file holds, checked when it is read.
        groups: group -> name -> tensor, on any device.
        facts: anything else that JSON can hold.
    """
    entries: list[dict[str, str]] = []
    arrays: dict[str, np.ndarray] = {}
    for group, tensors in groups.items():
        for name, tensor in tensors.items():
            entries.append({"group": group, "name": name, "dtype": str(tensor.dtype).removeprefix("torch.")})
            arrays[f"tensor{len(arrays)}"] = _to_array(tensor)
    header = json.dumps({"format": kind, "version": VERSION, "groups": list(groups), "tensors": entries, **facts})
    arrays["header"] = np.array(header)
    path = Path(path)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's own file is for its user alone
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def read_tensors(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote.

    Args:
        path: the file.
        kind: what it must hold.

    Returns:
        The groups, on the CPU, and the other facts of the header.

    Raises:
        ValueError: if it is another file, is damaged, or was written by a later version.
    """
    path = Path(path)
    try:
        if not zipfile.is_zipfile(path) and path.exists():
            raise ValueError("it is no npz archive")
        with np.load(path, allow_pickle=False) as arrays:
            header = json.loads(str(arrays["header"]))
            if header.get("format") != kind or header["version"] > VERSION:
                raise ValueError(f"its header says {header.get('format')!r}, version {header.get('version')!r}")
            groups: dict[str, dict[str, Tensor]] = {group: {} for group in header.pop("groups")}
            for i, entry in enumerate(header.pop("tensors")):
                groups[entry["group"]][entry["name"]] = _to_tensor(arrays[f"tensor{i}"], entry["dtype"])
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{str(path)!r} is no file of {kind} (version at most {VERSION}), or is damaged: {error}"
        ) from error
    return groups, {key: value for key, value in header.items() if key not in ("format", "version")}


def _to_array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu().contiguous()
    try:
        return tensor.numpy()
    except TypeError:  # numpy has no such dtype
        return tensor.view(BITS[tensor.element_size()]).numpy()


def _to_tensor(array: np.ndarray, dtype: str) -> Tensor:
    tensor = torch.from_numpy(array)
    wanted = getattr(torch, dtype, None)
    if not isinstance(wanted, torch.dtype):
        raise ValueError(f"torch has no dtype {dtype!r}")
    return tensor if tensor.dtype == wanted else tensor.view(wanted)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
