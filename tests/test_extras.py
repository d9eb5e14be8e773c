import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

from zsp.extras import require

ROOT = Path(__file__).parents[1]


def test_an_installed_module_is_returned():
    assert require("os.path", extra="plot", purpose="Joining paths") is sys.modules["os.path"]


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    message = 'drawing pictures needs matplotlib, which is not installed: pip install "zsp[plot]"'
    with pytest.raises(ImportError, match=f"^{re.escape(message)}$") as error:
        require("matplotlib.figure", extra="plot", purpose="drawing pictures")
    assert error.value.name == "matplotlib"


def test_an_error_inside_an_installed_package_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "zsp_broken_package.py").write_text("import zsp_missing_part\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="zsp_missing_part"):
        require("zsp_broken_package", extra="plot", purpose="Nothing")


def test_every_extra_that_an_error_names_exists():
    """require(..., extra="plot") in the package: pip install "zsp[plot]" must install that package."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    calls = [
        (str(path.relative_to(ROOT)), node)
        for path in sorted((ROOT / "zsp").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", None)) == "require"
    ]
    assert calls
    for path, call in calls:
        package = ast.literal_eval(call.args[0]).partition(".")[0]
        extra = next(ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg == "extra")
        requirements = [re.split(r"[<>=~! ]", requirement)[0] for requirement in extras.get(extra, ())]
        assert package in requirements, f"{path}:{call.lineno}: zsp[{extra}] does not install {package}"
