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
