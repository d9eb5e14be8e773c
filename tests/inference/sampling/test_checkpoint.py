"""Checkpoints: a run that is stopped and resumed is the run that was not, bit for bit."""

import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import zsp
from tests.inference.sampling.test_mcmc import DATA, interrupt_after, same, sample
from zsp.inference.sampling import base_run
from zsp.inference.sampling import checkpoint as checkpoints
from zsp.inference.sampling.checkpoint import read_checkpoint, write_checkpoint
from zsp.inference.sampling.runner import Runner

ROOT = Path(__file__).parents[3]


class Stop(Exception):
    """A crash."""


KERNELS = {
    "NUTS": zsp.NUTS(),
    "NUTS dense": zsp.NUTS(mass_matrix="dense"),
    "NUTS low rank": zsp.NUTS(mass_matrix="low_rank"),
    "HMC": zsp.HMC(jitter=0.2),
    "ChEES": zsp.ChEES(),
    "MAMS": zsp.MAMS(),
    "MCLMC": zsp.MCLMC(),
}
# n_warmup=60: windows of 9, 45 and 6; the last blocks are those of the sampling
OPTIONS = {"n_warmup": 60, "n_samples": 100, "thin": 2, "keep_warmup": True, "seed": 5, "checkpoint_every": 1}


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_a_resumed_run_is_the_uninterrupted_one(kernel, tmp_path):
    """Stopped at three places, in the warm-up and after it, each time with the last checkpoint some steps before."""
    whole = sample(kernel, **OPTIONS)
    path = tmp_path / "run.pt"
    stopped = 0
    for n_blocks in (2, 3, 3):
        with pytest.MonkeyPatch.context() as patch:
            interrupt_after(patch, n_blocks, Stop)
            try:
                sample(kernel, checkpoint=path, resume=True, **OPTIONS)
            except Stop:
                stopped += 1
    assert stopped >= 2 and path.exists(), "the run was long enough to be stopped"
    resumed = sample(kernel, checkpoint=path, resume=True, **OPTIONS)
    assert same(resumed, whole) and same(resumed.warmup, whole.warmup)


def test_a_checkpoint_changes_nothing_and_leaves_one_file(tmp_path):
    path = tmp_path / "folder" / "run.pt"
    assert same(sample(checkpoint=path, **OPTIONS), sample(**OPTIONS))
    assert [file.name for file in path.parent.iterdir()] == ["run.pt"]
    again = sample(checkpoint=path, resume=True, **OPTIONS)
    assert same(again, sample(**OPTIONS)), "also from its very end"


def test_checkpoints_are_written_as_often_as_asked(tmp_path, monkeypatch):
    made = []

    def counting(path, content):
        made.append(int(content["count"].min()))
        write_checkpoint(path, content)

    monkeypatch.setattr(base_run, "write_checkpoint", counting)
    options = {"n_warmup": 0, "n_samples": 600, "kernel": zsp.HMC(step_size=0.1), "checkpoint": tmp_path / "run.pt"}
    sample(**options, checkpoint_every=150)
    assert made == [192, 384, 576], "blocks of 64 transitions, at least 150 of them between two"
    made.clear()
    sample(**options, checkpoint_every=10_000)
    assert made == []


def test_without_resume_a_run_begins_anew(tmp_path):
    path = tmp_path / "run.pt"
    sample(checkpoint=path, **OPTIONS)
    before = path.read_bytes()
    other = sample(checkpoint=path, **{**OPTIONS, "seed": 6})
    assert same(other, sample(**{**OPTIONS, "seed": 6})) and path.read_bytes() != before


def test_resume_without_a_file_begins(tmp_path):
    assert same(sample(checkpoint=tmp_path / "none.pt", resume=True, **OPTIONS), sample(**OPTIONS))


def test_interrupted_draws_are_continued(tmp_path):
    """Ctrl-C returns draws, and the checkpoint goes on from about there."""
    path, blocks = tmp_path / "run.pt", []
    with pytest.MonkeyPatch.context() as patch:
        block = Runner.block
        patch.setattr(Runner, "block", lambda *arguments: blocks.append(1) or block(*arguments))
        whole = sample(**OPTIONS)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        interrupt_after(patch, len(blocks) - 1)
        part = sample(checkpoint=path, **OPTIONS)
    assert 0 < part.n_draws < 100 and same(part, whole.select(draws=slice(part.n_draws)))
    assert same(sample(checkpoint=path, resume=True, **OPTIONS), whole)


KILLED = """
import os, signal, sys
import torch
torch.set_default_dtype(torch.float64)
torch.set_num_threads({n_threads})
from zsp.inference.sampling import checkpoint
from tests.inference.sampling.test_checkpoint import OPTIONS
from tests.inference.sampling.test_mcmc import sample

replace, n = os.replace, 0

def replacing(source, target):
    global n
    n += 1
    if n == 3 and {early}:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
    if n == 3:
        os.kill(os.getpid(), signal.SIGKILL)

checkpoint.os.replace = replacing
sample(checkpoint=sys.argv[1], **OPTIONS)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
@pytest.mark.parametrize("early", [True, False], ids=["while a checkpoint is written", "after one"])
def test_a_killed_process_leaves_a_checkpoint_to_go_on_from(early, tmp_path):
    path = tmp_path / "run.pt"
    code = KILLED.format(early=early, n_threads=torch.get_num_threads())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.run([sys.executable, "-c", code, str(path)], env=environment, cwd=ROOT, capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()[-2000:]
    assert len(list(tmp_path.iterdir())) == (2 if early else 1), "the half of one is beside it"
    read = torch.load(path, weights_only=True)
    assert read["window"] < 3 and read["run"]["seed"] == 5
    assert same(sample(checkpoint=path, resume=True, **OPTIONS), sample(**OPTIONS))


# -- files that do not fit --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "run.pt"
    with torch.random.fork_rng():
        torch.set_default_dtype(torch.float64)
        sample(checkpoint=path, **OPTIONS)
        torch.set_default_dtype(torch.float32)
    return path


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"seed": 6}, "its seed is 5, that of this run is 6. Resume with the same arguments, or choose another file"),
        ({"n_samples": 99}, "its n_samples is 100, that of this run is 99"),
        ({"n_warmup": 61}, "its n_warmup is 60, that of this run is 61"),
        ({"n_chains": 3}, "its n_chains is 4, that of this run is 3"),
        ({"thin": 1}, "its thin is 2, that of this run is 1"),
        ({"keep_warmup": False}, "its keep_warmup is True, that of this run is False"),
        ({"compile": True}, "its is_compiled is False, that of this run is True"),
        ({"kernel": zsp.NUTS(max_tree_depth=9)}, "its kernel is .NUTS.*max_tree_depth=10.*max_tree_depth=9"),
        ({"latents": ["mu"], "observed": {**DATA, "scale": DATA["y"][0]}}, r"its latents is .*'scale': \[\].*'mu': \[\]"),
        (
            {"observed": {"y": DATA["y"] + 1.0}},
            "where its chains began, the log density was .*; now it is .*, .... The observed values, the model, its "
            "parameters or init differ",
        ),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(changed, message, finished):
    with pytest.raises(ValueError, match=f"was written by another run.*{message}"):
        sample(checkpoint=finished, resume=True, **{**OPTIONS, **changed})


@pytest.mark.parametrize("content", [b"", b"no checkpoint", "damaged", "other"])
def test_files_that_are_no_checkpoints_are_refused(content, finished, tmp_path):
    path = tmp_path / "run.pt"
    if content == "damaged":
        path.write_bytes(finished.read_bytes()[:-500])
    elif content == "other":
        torch.save({"weights": torch.zeros(3)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"run.pt' is no checkpoint of zsp.mcmc, or is damaged.*resume=False"):
        sample(checkpoint=path, resume=True, **OPTIONS)


def test_a_checkpoint_needs_no_pickle_and_a_failed_one_leaves_the_last(tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    first = torch.tensor([1.0, 2.0])
    write_checkpoint(path, {"run": {"seed": 0}, "first_log_density": first, "window": 1})
    assert read_checkpoint(path, {"seed": 0}, first)["window"] == 1

    def full(*arguments, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoints.torch, "save", full)
    with pytest.raises(OSError, match="no space"):
        write_checkpoint(path, {"run": {"seed": 0}, "first_log_density": first, "window": 2})
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]
    assert read_checkpoint(path, {"seed": 0}, first)["window"] == 1


