"""What holds for every test: float64 by default, one seed, and a named reason where a test is skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

from zsp import datasets

SEED = 0

# The same examples in every run and no time limit an example: a failure is one of the code, not of the machine.
hypothesis.settings.register_profile("zsp", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("zsp")


@pytest.fixture(autouse=True)
def default_dtype() -> Iterator[None]:
    """Tensors are float64 unless a test asks for another dtype, in so many words; torch's default is restored."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(autouse=True)
def random_state() -> Iterator[None]:
    """Every test draws from the same seed, alone or among others, and leaves torch's and numpy's state as it was."""
    numpy_state = np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(SEED)
        np.random.seed(SEED)
        yield
    np.random.set_state(numpy_state)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of data sets; tests that use it have the marker ``data`` and are skipped where there is none."""
    folder = datasets.data_folder()
    assert folder is not None
    return folder


@pytest.hookimpl(tryfirst=True)  # -m, applied in this hook too, shall see the markers that are added here
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    without_gpu = None if torch.cuda.is_available() else pytest.mark.skip(reason="no CUDA device")
    without_data = _reason_without_data()
    for item in items:
        if "data_dir" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.data)
        if without_gpu and item.get_closest_marker("gpu"):
            item.add_marker(without_gpu)
        if without_data and item.get_closest_marker("data"):
            item.add_marker(pytest.mark.skip(reason=without_data))


def _reason_without_data() -> str | None:
    folder = datasets.data_folder()
    if folder is None:
        return "ZSP_DATA is not set and ../shared/data does not exist"
    if not folder.is_dir():
        return f"ZSP_DATA is {os.environ.get('ZSP_DATA')!r}, which is no folder"
    return None
