"""The scripts on MNIST, with a small budget on the bundled digits: what they train, measure, print and keep."""

from __future__ import annotations

import argparse
import importlib
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import zsp

TUTORIALS = Path(__file__).parents[1] / "tutorials"


@pytest.fixture(autouse=True)
def few_rounds_in_float32(monkeypatch):
    monkeypatch.syspath_prepend(str(TUTORIALS))
    monkeypatch.setattr(script("mnist_runs"), "N_ROUNDS", 3)
    torch.set_default_dtype(torch.float32)


def script(name):
    return importlib.import_module(name)


def run(name, out, *arguments):
    common = ["--data", "digits", "--eager", "--n-draws", "100", "--out", str(out)]
    return script(name).main([*common, *arguments])


@pytest.fixture(scope="module")
def nll_of_independent_pixels():
    images = zsp.datasets.digits()
    means = images.train_images.mean(0).clamp(0.001, 0.999)
    return -float((images.test_images * means.log() + (1 - images.test_images) * (1 - means).log()).sum(1).mean())


@pytest.mark.parametrize(
    ("name", "objective", "notes"),
    [
        ("iwae_mnist", ["--objective", "vae"], "active units"),
        ("iwae_mnist", ["--objective", "iwae"], "active units"),
        ("iwae_mnist", ["--objective", "iwae", "--estimator", "dreg"], "active units"),
        ("iwae_mnist", ["--objective", "iwae", "--bfloat16"], "active units"),
        ("sbn_mnist", ["--objective", "vimco", "--learning-rate", "1e-2"], ""),
        ("sbn_mnist", ["--objective", "rws", "--learning-rate", "1e-2"], ""),
    ],
)
def test_training_lowers_the_nll(name, objective, notes, tmp_path, capsys, nll_of_independent_pixels):
    (result,) = run(name, tmp_path, *objective, "--batch-size", "60", "--k", "5", "--epochs", "12", "--seed", "3")
    nlls = [row[3] for row in result.progress.curve]
    assert len(nlls) == 3 and result.progress.epochs == 12
    assert result.nll < nlls[0] - 0.2
    assert result.nll < nll_of_independent_pixels
    assert 0 < result.standard_error < 0.1
    assert notes in result.notes
    printed = capsys.readouterr().out
    assert f"| {result.run} | {result.nll:.3f} ({result.standard_error:.3f}) |" in printed
    assert "--k 5 --epochs 12 --seed 3" in printed


def test_one_run_for_each_k_and_the_papers_numbers_for_mnist_only(tmp_path):
    results = run("iwae_mnist", tmp_path, "--k", "1,2", "--epochs", "2", "--n-test", "50", "--batch-size", "479")
    assert [result.run for result in results] == ["iwae_k1_seed0", "iwae_k2_seed0"]
    assert all(result.reference is None for result in results)
    assert script("iwae_mnist").PAPER["iwae", 50] == (84.78, 25)


def test_a_run_that_is_stopped_and_resumed_equals_one_that_was_not(tmp_path, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    # three whole mini-batches: a shape that is new to a net is checked, which rounds otherwise
    arguments = ["--k", "2", "--epochs", "12", "--n-test", "50", "--batch-size", "479"]
    run("iwae_mnist", whole, *arguments)
    runs = script("mnist_runs")
    save = runs.Run.save

    def save_and_stop(self):
        save(self)
        if self.progress.n_rounds == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(runs.Run, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        run("iwae_mnist", stopped, *arguments)
    monkeypatch.setattr(runs.Run, "save", save)
    (evaluated,) = run("iwae_mnist", stopped, *arguments, "--evaluate-only")
    assert evaluated.progress.epochs == 8
    (resumed,) = run("iwae_mnist", stopped, *arguments, "--resume")
    assert resumed.progress.epochs == 12
    first, second = (torch.load(folder / "iwae_k2_seed0.pt") for folder in (whole, stopped))
    for part in ("gen", "q_net"):
        for name, tensor in first[part].items():
            assert torch.equal(tensor, second[part][name]), name


def test_hours_are_kept(tmp_path):
    (result,) = run("iwae_mnist", tmp_path, "--hours", "0.0005", "--n-test", "50")
    assert result.progress.n_rounds == 3
    assert 3 <= result.progress.epochs < 2000


def test_the_learning_rate_falls_exponentially(tmp_path):
    runs = script("mnist_runs")
    options = runs.options_parser("").parse_args(["--learning-rate", "1e-2", "--final-learning-rate", "1e-4"])
    run = runs.Run.__new__(runs.Run)
    run.options, run.optimizer = options, torch.optim.Adam([nn.Parameter(torch.zeros(1))])
    rates = []
    for n_rounds in (0, 1.5, 3):
        run._set_learning_rate(n_rounds)
        rates.append(run.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-2, 1e-3, 1e-4])


def test_active_units_are_those_whose_mean_moves():
    iwae = script("iwae_mnist")

    class Net(nn.Module):
        def forward(self, x):
            bn = zsp.BayesianNet()
            scale = torch.tensor([1.0, 0.2, 0.05, 0.0])  # variances 1, 0.04, 0.0025, 0
            bn.normal("z", x * scale, std=1.0, n_samples=1, group_ndims=1)
            return bn

    found = iwae.active_units(argparse.Namespace(q_net=Net()), torch.randn(4000, 4))
    assert found == 2


def test_the_test_images_are_the_same_in_every_run_and_binary():
    runs = script("mnist_runs")
    options = runs.options_parser("").parse_args(["--data", "digits"])
    first = runs.load(options)
    torch.rand(10)
    second = runs.load(options)
    assert torch.equal(first.test, second.test)
    assert set(first.test.unique().tolist()) == {0.0, 1.0}
    assert first.log_odds().abs().max() == pytest.approx(math.log(999), rel=1e-4)


def test_mistakes(tmp_path, capsys):
    with pytest.raises(SystemExit, match="there is no checkpoint .*iwae_k1_seed0.pt to evaluate"):
        run("iwae_mnist", tmp_path, "--evaluate-only")
    with pytest.raises(SystemExit):
        run("iwae_mnist", tmp_path, "--objective", "vae", "--estimator", "dreg")
    assert "--estimator is for --objective iwae" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("sbn_mnist", tmp_path, "--k", "0")
    assert "at least 1, got 0" in capsys.readouterr().err


def test_products_are_in_the_other_dtype_inside_alone():
    """Rounded as bfloat16 is, with gradients in the dtype of the weights; also an error ends it."""
    runs = script("mnist_runs")
    layer, x = runs.glorot(64, 8), torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    exact = layer(x)
    with pytest.raises(KeyError), runs.products_in(torch.bfloat16, nn.ModuleDict({"layer": layer})):
        rounded = layer(x)
        rounded.sum().backward()
        raise KeyError
    assert rounded.dtype == layer.weight.grad.dtype == torch.float32
    error = (rounded - exact).abs()
    assert 1e-4 < error.max() < 64 * 2**-8 * x.abs().max() * layer.weight.abs().max()
    assert torch.equal(layer(x), exact)
