"""How long ``import zsp`` takes, beside ``import torch``, of which it is the most part.

A fresh process imports torch, then zsp, and times both: one process has one state of the disk cache and one speed of
the machine, where two processes differ by more than zsp takes. The median over the processes counts.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import Benchmark, Options, Row, main, show_time

AT_MOST = 1.1

_PROGRAM = """
import time
start = time.perf_counter()
import torch
after_torch = time.perf_counter()
import zsp
print(after_torch - start, time.perf_counter() - after_torch)
"""


def check() -> None:
    """Importing zsp imports nothing that is only needed later."""
    program = "import sys, zsp; print(*sorted({'pyro', 'matplotlib', 'arviz', 'sklearn'} & set(sys.modules)))"
    loaded = _python(program).split()
    assert not loaded, f"importing zsp imports {', '.join(loaded)}"


def rows(options: Options) -> Iterator[Row]:
    _python(_PROGRAM)  # writes the bytecode
    measured = [tuple(map(float, _python(_PROGRAM).split())) for _ in range(options.rounds(20))]
    ratios = [1 + zsp / torch for torch, zsp in measured]
    ratio = statistics.median(ratios)
    torch, zsp = (statistics.median(seconds) for seconds in zip(*measured, strict=True))
    yield Row(
        "import: torch and zsp / torch",
        f"{ratio:.3g}",
        f"at most {AT_MOST:g}",
        ratio <= AT_MOST,
        f"{show_time(torch + zsp)} / {show_time(torch)}",
        f"{len(ratios)} processes {min(ratios):.3g} to {max(ratios):.3g}",
        options.threads,
    )


def _python(program: str) -> str:
    root = Path(__file__).resolve().parents[1]
    # as installed packages are: with their bytecode, which the first run writes
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


BENCHMARK = Benchmark("import_time", check, rows)

if __name__ == "__main__":
    main([BENCHMARK])
