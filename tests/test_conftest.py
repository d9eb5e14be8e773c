"""The ground rules of the tests themselves."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.mark.parametrize("order", ["first", "second"])
def test_every_test_starts_from_the_same_random_state(order):
    expected = torch.rand(3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.rand(3), expected)
    np.testing.assert_array_equal(np.random.rand(3), np.random.RandomState(0).rand(3))


def test_float64_is_the_default():
    assert torch.zeros(()).dtype == torch.float64


SKIPPED = """
import pytest, torch

def test_of_data(data_dir): pass

@pytest.mark.gpu
def test_of_gpu(): assert torch.cuda.is_available()
"""


def test_skipped_tests_say_why(tmp_path):
    tests = Path(__file__).parent
    (tmp_path / "conftest.py").write_text((tests / "conftest.py").read_text())
    (tmp_path / "test_skipped.py").write_text(SKIPPED)
    environment = {**os.environ, "ZSP_DATA": str(tmp_path / "nowhere"), "PYTHONPATH": str(tests.parent)}
    command = [sys.executable, "-m", "pytest", "-c", tests.parent / "pyproject.toml", "--rootdir", tmp_path, tmp_path]
    result = subprocess.run([*command, "-p", "no:cacheprovider"], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"ZSP_DATA is {str(tmp_path / 'nowhere')!r}, which is no folder" in result.stdout
    assert ("no CUDA device" in result.stdout) is not torch.cuda.is_available()
