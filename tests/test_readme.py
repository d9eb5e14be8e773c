"""The README is true: its code runs in order and prints what it says, and what it lists exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import zsp
from zsp import datasets, models

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples() -> Iterator[tuple[str, str]]:
    """Each python block with the text block that follows it, if that holds an error."""
    blocks = BLOCK.findall(README)
    for (kind, code), (next_kind, text) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if kind == "python":
            yield code, text if next_kind == "text" and text.startswith("ValueError: ") else ""


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_code_runs_and_prints_what_it_says(capsys):
    torch.set_default_dtype(torch.float32)  # as a reader's is; a fixture restores it
    namespace: dict[str, object] = {}
    n_errors = 0
    for code, error in examples():
        if error:
            n_errors += 1
            with pytest.raises(ValueError) as raised:
                exec(code, namespace)
            assert one_line(f"ValueError: {raised.value}") == one_line(error)
        else:
            exec(code, namespace)
            said = [line.rpartition("# ")[2] for line in code.splitlines() if line.startswith("print(")]
            assert capsys.readouterr().out.splitlines() == said
    assert n_errors == 1


def test_the_quick_start_has_about_twenty_lines():
    code = next(examples())[0]
    assert 15 <= len([line for line in code.splitlines() if line.strip()]) <= 26


def test_names_in_the_table_exist():
    rows = [line for line in README.splitlines() if line.startswith("| ") and "`" in line]
    methods = {"model", "graph", "stochastic", "deterministic", "observe", "bind", "materialize", "log_joint", "new", "sgvb", "n_samples", "group_ndims", "total_size", "mask"}
    for row in rows:
        for name in re.findall(r"`(?:zsp\.)?(\w+)`", row):
            nets = (zsp.BayesianNet, zsp.MetaBayesianNet, zsp.ELBO, zsp.ImportanceWeightedObjective, zsp.Draws)
            modules = (zsp, *nets, zsp.graph, zsp.evaluation, datasets, models, zsp.distributions, torch)
            found = any(hasattr(module, name) for module in modules) or (ROOT / "zsp" / f"{name}.py").is_file()
            assert found or name in methods, f"README.md names {name!r}, which does not exist"


def test_links_and_commands_exist():
    for path in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / path).is_file(), path
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for target in re.findall(r"`make (\w+)`", README) + re.findall(r"^    make (\w+)", README, re.MULTILINE):
        assert target in targets, target
