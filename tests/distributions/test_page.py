"""The documentation's page of distributions is that of the table."""

import re
import subprocess
import sys
from pathlib import Path

from tests.distributions.table import CASES
from zsp.distributions import NodeMethods

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "distributions.md").read_text()


def test_every_node_method_has_a_section():
    names = {method.__name__ for name, method in vars(NodeMethods).items() if not name.startswith("_")}
    assert re.findall(r"^## (\w+)$", TEXT, re.M) == list(
        dict.fromkeys(method.__name__ for name, method in vars(NodeMethods).items() if not name.startswith("_"))
    )
    assert len(names) > 40


def test_every_picture_is_there_and_used():
    used = set(re.findall(r"\]\((images/[^)]*)\)", TEXT))
    there = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs/images/distributions").glob("*.svg")}
    assert used == there
    assert {Path(path).stem for path in used} <= {case.name for case in CASES}


def test_the_page_is_what_the_table_gives():
    run = subprocess.run(
        [sys.executable, "tools/distributions_page.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
