"""How long ``import zsp`` takes, beside ``import torch``: each in fresh processes, in turns, the best of ten."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import Benchmark, Options, Row, Times, main, show_time

AT_MOST = 1.1

_PROGRAM = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


def check() -> None:
    """Importing zsp imports nothing that is only needed later."""
    program = "import sys, zsp; print(*sorted({'pyro', 'matplotlib', 'arviz', 'sklearn'} & set(sys.modules)))"
    loaded = _python(program).split()
    assert not loaded, f"importing zsp imports {', '.join(loaded)}"


def rows(options: Options) -> Iterator[Row]:
    times: Times = {"torch": [], "zsp": []}
    for _ in range(options.rounds(10)):
        for name, measured in times.items():
            measured.append(float(_python(_PROGRAM.format(name))))
    ours, theirs = min(times["zsp"]), min(times["torch"])
    yield Row(
        "import: zsp / torch",
        f"{ours / theirs:.3g}",
        f"at most {AT_MOST:g}",
        ours / theirs <= AT_MOST,
        f"{show_time(ours)} / {show_time(theirs)} (best of {len(times['zsp'])})",
        f"medians {show_time(statistics.median(times['zsp']))} / {show_time(statistics.median(times['torch']))}",
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
