"""Every tutorial runs, with a small budget, writes its figure, and its numbers keep the order that theory demands."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

TUTORIALS = sorted((Path(__file__).parents[1] / "tutorials").glob("[0-9]*.py"))


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tutorial_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tutorial(number: str) -> ModuleType:
    return load(next(path for path in TUTORIALS if path.name.startswith(number)))


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_runs_and_writes_one_figure(path, tmp_path, capsys):
    load(path).main(budget=0.02, output=tmp_path)
    figures = list(tmp_path.iterdir())
    assert [figure.suffix for figure in figures] == [".png"]
    assert figures[0].stat().st_size > 10_000
    assert figures[0].name in capsys.readouterr().out


def test_bayesian_nets(tmp_path, capsys):
    numbers = tutorial("01").main(budget=0.3, output=tmp_path)
    assert numbers["identity"] < 1e-10  # log p(w, y) - log p(w | y) is log p(y) at every w
    assert numbers["linear_elbo"] == pytest.approx(numbers["linear_evidence"], abs=0.02)
    assert numbers["logistic_elbo"] < numbers["logistic_evidence"]
    assert abs(numbers["logistic_is"] - numbers["logistic_evidence"]) < 5.3 * numbers["logistic_is_se"] + 1e-4
    printed = capsys.readouterr().out
    assert "group_ndims=1 on 'y'" in printed
    assert "observations were given for 'Y'" in printed


def test_vae(tmp_path, capsys):
    numbers = tutorial("02").main(budget=0.3, output=tmp_path)
    assert numbers["last_elbo"] > numbers["first_elbo"] + 5
    assert numbers["elbo"] < numbers["importance"] < numbers["exact"] + 5.3 * numbers["importance_se"]
    assert abs(numbers["missing_at_high_ess"]) < 0.1
    printed = capsys.readouterr().out
    assert "the parameters give batch shape [50, 2]" in printed
    assert "must be 0 or 1, but it is 255" in printed


def test_bayesian_neural_nets(tmp_path, capsys):
    numbers = tutorial("06").main(budget=0.05, output=tmp_path)
    for name in ("SGHMC", "HMC"):
        assert numbers[f"sd in the gap, {name}"] > 4 * numbers[f"sd at data, {name}"]
        assert numbers[f"sd in the gap, {name}"] > 1.2 * numbers["sd in the gap, mean-field VI"]
        assert numbers[f"log likelihood, {name}"] > 0.5  # that of the noise alone is 0.88
    printed = capsys.readouterr().out
    assert "y has shape [60, 1], but the module's output" in printed
    assert "drops units at random, because it is in training mode" in printed


def test_discrete_latents(tmp_path, capsys):
    numbers = tutorial("03").main(budget=0.15, output=tmp_path)
    assert numbers["bound"] < numbers["evidence"]
    assert numbers["log p(x), exact"] > numbers["log p(x), score function"]
    noise = {name.removeprefix("noise, "): value for name, value in numbers.items() if name.startswith("noise, ")}
    assert noise["leave-one-out"] < noise["moving-mean baseline"] < noise["score function"]
    assert noise["rebar"] < 0.3 * noise["score function"]
    for name in ("score function", "leave-one-out", "rebar", "relax"):
        assert numbers[f"bias, {name}"] < 2 * numbers[f"bias error, {name}"]
    for name in ("straight-through", "gumbel-softmax"):
        assert numbers[f"bias, {name}"] > 3 * numbers[f"bias error, {name}"]
    printed = capsys.readouterr().out
    assert "node 'x' depends on 'b' without a derivative" in printed
    assert "would have about 10^60 rows" in printed


def test_importance_weighting(tmp_path, capsys):
    numbers = tutorial("04").main(budget=0.15, output=tmp_path)
    for k in (1, 8):  # E[L_K] grows with K, and stays below log p(x)
        gap, next_gap = (numbers["evidence"] - numbers[f"bound, {n}"] for n in (k, 8 * k))
        error = numbers[f"bound error, {k}"] + numbers[f"bound error, {8 * k}"]
        assert gap > next_gap + 5.3 * error and next_gap > -5.3 * error
    assert -0.7 < numbers["slope, IWAE, q"] < -0.3
    assert numbers["slope, DReG, q"] > 0.2 and numbers["slope, IWAE, model"] > 0.2
    assert numbers["distance, DReG"] < 0.5 * numbers["distance, IWAE"]
    printed = capsys.readouterr().out
    assert "say which axis they are on" in printed
    assert "Use dreg()" in printed


def test_eight_schools(tmp_path, capsys):
    numbers = tutorial("05").main(budget=0.15, output=tmp_path)
    for what in ("P", "tau"):
        found, error = numbers[f"non-centred, {what}"], numbers[f"non-centred, {what} error"]
        assert abs(found - numbers[f"exact {what}"]) < 5.3 * error
    assert numbers["exact tau"] == pytest.approx(3.6, abs=0.1)  # posteriordb's reference draws say 3.60
    assert numbers["centred, problems"] >= 2 and numbers["non-centred, divergences"] < 5
    printed = capsys.readouterr().out
    assert "BFMI is below 0.3" in printed and "no problems found" not in printed.partition("non-centred:")[0]
    assert "group_ndims=1" in printed
