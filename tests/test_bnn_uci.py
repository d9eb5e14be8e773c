"""The script of the UCI table: on made-up data, and resumed; its parts by hand."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import zsp
from tests.monte_carlo import assert_mean

PATH = Path(__file__).parents[1] / "tutorials" / "bnn_uci.py"
QUICK = ["--adam-steps", "30", "--steps", "40", "--thin", "4", "--chains", "3", "--dropout-steps", "20"]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("bnn_uci", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A file of 60 made-up rows in the format of the real ones, y = 3 x_0 + 10 + noise, one input constant."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)) * [2.0, 1.0, 0.0] + 1.0
    rows = np.column_stack([x, 3 * x[:, 0] + 10 + 0.3 * rng.normal(size=60)])
    order = np.stack([rng.permutation(60) for _ in range(20)])
    (tmp_path / "uci").mkdir()
    np.savez(
        tmp_path / "uci" / "yacht.npz", data=rows, feature_index=np.arange(3), target_index=np.array([3]),
        train_index=order[:, 10:].astype(np.int16), test_index=order[:, :10].astype(np.int16),
    )  # fmt: skip
    monkeypatch.setenv("ZSP_DATA", str(tmp_path))
    return rows, order


def test_rows_are_standardised_by_the_training_rows_and_test_rows_stay_apart(script, data):
    rows, order = data
    split = script.load("yacht", 2, validate=False)
    train = torch.as_tensor(rows[order[2, 10:]])
    torch.testing.assert_close(split.y * split.scale + train[:, 3].mean(), train[:, 3])
    torch.testing.assert_close(split.x.mean(0), torch.zeros(3), atol=1e-12, rtol=0)
    torch.testing.assert_close(split.x.std(0), torch.tensor([1.0, 1.0, 0.0]))
    torch.testing.assert_close(split.y_test * split.scale + train[:, 3].mean(), torch.as_tensor(rows[order[2, :10], 3]))
    inner = script.load("yacht", 2, validate=True)
    assert (len(inner.y), len(inner.y_test)) == (40, 10)
    # targets are told apart by their differences: those held out are of training rows, and not of test rows
    held = (inner.y_test - inner.y_test[0]) * inner.scale
    differences = train[:, 3] - train[:, 3, None]
    assert ((differences[:, :, None] - held).abs().amin(1) < 1e-9).all(1).sum() == 1


@pytest.mark.parametrize(
    "name, n_train, n_test, d", [("boston", 455, 51, 13), ("kin8nm", 7373, 819, 8), ("power", 8611, 957, 4)]
)
def test_the_real_files(script, data_dir, monkeypatch, name, n_train, n_test, d):
    monkeypatch.setenv("ZSP_DATA", str(data_dir))
    for number in (0, 19):
        split = script.load(name, number, validate=False)
        assert split.x.shape == (n_train, d) and split.x_test.shape == (n_test, d)
        assert bool(torch.cat([split.x, split.x_test]).isfinite().all()) and split.y_test.shape == (n_test,)


def test_table_and_resuming(script, data, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    arguments = ["--sets", "yacht", "--splits", "1", "--out", str(out), *QUICK]
    rows = script.main([*arguments, "--method", "map,sghmc"])
    assert {row["method"] for row in rows} == {"map", "sghmc"}
    assert all(math.isfinite(row["log_likelihood"]) and row["rmse"] > 0 for row in rows)
    with out.open("a") as file:
        file.write('{"set": "yacht", "spl')  # a line that was cut off, as when the machine stops
    kept = out.read_text().splitlines()[:2]
    with out.open("a") as file:
        file.write("\n")
    capsys.readouterr()
    rows = script.main(arguments)
    printed = capsys.readouterr().out
    assert {row["method"] for row in rows} == set(script.METHODS)
    assert out.read_text().splitlines()[:2] == kept, "what was there is not run again"
    assert len([line for line in out.read_text().splitlines() if line.startswith("{") and line.endswith("}")]) == 4
    for text in ("PBP", "dropout, Gal 2018", "sghmc - dropout, paired"):
        assert text in printed
    capsys.readouterr()
    script.main(arguments)
    assert "yacht  0" not in capsys.readouterr().out, "nothing is left to run"
    others = script.read(out, script.parse([*arguments, "--prior-std", "3"]))
    assert [row["method"] for row in others] == ["dropout"], "other settings are other results"


def test_largest_curvature_of_a_gaussian(script):
    precision = torch.tensor([1.0, 5.0, 20.0])

    def log_density(q):
        return -0.5 * (q.square() * precision).sum(-1)

    assert script.largest_curvature(log_density, torch.randn(4, 3)) == pytest.approx(20.0, rel=1e-6)


def test_dropout_keeps_the_mean_and_has_the_variance_of_its_rate(script):
    nets = script.DropoutNets(2, [0.1, 0.5])
    draws = torch.stack([nets.drop(torch.ones(2, 1, 4)) for _ in range(5000)])
    assert_mean(draws, 1.0)
    assert_mean((draws - 1).square(), torch.tensor([0.1 / 0.9, 1.0])[:, None, None])


def test_figures_of_a_known_mixture(script):
    """Draws of one net whose outputs are known: the figures are those of the Gaussians around them."""
    split = script.Split(torch.zeros(3, 1), torch.zeros(3), torch.randn(40, 1), torch.randn(40), torch.tensor(5.0))
    options = script.parse([])
    model = script.build_model(1, options, 3, zsp.models.GaussianPrior(1.0))
    zeros = {name: torch.zeros(300, *p.shape) for name, p in model.network.module.named_parameters()}
    found = script.judge(model, {**zeros, "noise_precision": torch.full((300,), 4.0)}, split)
    assert found.rmse == pytest.approx(5 * split.y_test.square().mean().sqrt().item())
    expected = torch.distributions.Normal(0.0, 2.5).log_prob(5 * split.y_test).mean()
    assert found.log_likelihood == pytest.approx(expected.item())


def test_mistakes(script, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        script.main(["--sets", "bosten"])
    assert "'bosten' is none of the sets: boston, concrete" in capsys.readouterr().err
    monkeypatch.setenv("ZSP_DATA", str(tmp_path))
    with pytest.raises(
        SystemExit, match=r"There is no file .*yacht.npz: set ZSP_DATA to the folder that holds uci/yacht.npz"
    ):
        script.load("yacht", 0, validate=False)
