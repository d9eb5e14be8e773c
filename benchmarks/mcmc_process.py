"""What a whole process of ``zsp.mcmc`` needs: time from its start to the draws, beside NumPyro, and memory.

Time runs from the start of a fresh process to its end: 1,000 warm-up transitions and 1,000 draws of four chains with
NUTS, importing and compiling included. zsp's compiled code is kept on disk between processes, so it is measured with an
empty cache and with one that a process before has filled; NumPyro keeps none unless told to. Memory is the largest
resident size over that after the import, for 1,024 chains x 1,000 draws x 25 parameters, of which the draws are 98 MiB;
and that of a whole process which runs SGHMC with 100 chains of a net 784-400-400-10 on 60,000 images of MNIST's size.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import Benchmark, Options, Row, main, show_time

ROOT = Path(__file__).resolve().parents[1]
N_CHAINS, N_DRAWS, N_WARMUP = 1024, 1000, 100  # of the run whose memory is measured
AT_MOST_MIB = 1024.0
N_NETWORKS, N_STEPS, NETWORKS_AT_MOST_MIB = 100, 10, 8192.0
PROBLEMS = ("eight_schools", "logistic_regression")


def check() -> None:
    """The libraries sample the same densities: see ``mcmc``. Here: a small process ends well."""
    _seconds("zsp", "eight_schools", n=20)


def rows(options: Options) -> Iterator[Row]:
    for problem in PROBLEMS:
        yield from _time_rows(problem, options)
    mib = _memory(N_CHAINS, N_DRAWS, N_WARMUP)
    yield Row(
        f"memory of {N_CHAINS:,} chains x {N_DRAWS:,} draws x 25 parameters",
        f"{mib:+,.0f} MiB",
        f"at most {AT_MOST_MIB:,.0f} MiB",
        mib <= AT_MOST_MIB,
        f"of which draws {N_CHAINS * N_DRAWS * 25 * 4 / 2**20:.0f} MiB",
        threads=options.threads,
    )
    mib = float(_run(["network_memory", str(N_NETWORKS), str(N_STEPS)], dict(os.environ)))
    yield Row(
        f"memory of SGHMC, {N_NETWORKS} chains of 784-400-400-10",
        f"{mib:,.0f} MiB",
        f"at most {NETWORKS_AT_MOST_MIB:,.0f} MiB",
        mib <= NETWORKS_AT_MOST_MIB,
        f"of which weights {N_NETWORKS * 478_410 * 4 / 2**20:.0f} MiB, data {60_000 * 784 * 4 / 2**20:.0f} MiB",
        threads=options.threads,
    )


def _time_rows(problem: str, options: Options) -> Iterator[Row]:
    name = f"process to 4 x 1,000 draws, {problem.replace('_', ' ')}"
    has_numpyro = find_spec("numpyro") is not None
    empty, filled, numpyro = [], [], []
    for _ in range(options.rounds(1)):
        with tempfile.TemporaryDirectory() as cache:
            empty.append(_seconds("zsp", problem, cache))
            if has_numpyro:
                numpyro.append(_seconds("numpyro", problem))
            filled.append(_seconds("zsp", problem, cache))
    if not numpyro:
        yield Row.missing(name, "NumPyro")
        return
    for how, times, at_most, goal in (("filled cache", filled, 1.0, ""), ("empty cache", empty, 2.0, ", goal 1")):
        ours, theirs = statistics.median(times), statistics.median(numpyro)
        yield Row(
            f"{name}: zsp, {how} / NumPyro",
            f"{ours / theirs:.3g}",
            f"at most {at_most:g}{goal}",
            ours <= at_most * theirs,
            f"{show_time(ours)} / {show_time(theirs)}",
            f"{len(times)} processes",
            options.threads,
        )


# -- other processes ------------------------------------------------------------------------------------------------


def _seconds(library: str, problem: str, cache: str | None = None, n: int = 1000) -> float:
    """From the start of a process that samples to its end."""
    environment = dict(os.environ)
    if cache is not None:
        environment["TORCHINDUCTOR_CACHE_DIR"] = cache
    start = time.perf_counter()
    _run([library, problem, str(n)], environment)
    return time.perf_counter() - start


def _memory(n_chains: int, n_draws: int, n_warmup: int) -> float:
    """MiB over the import at the most."""
    return float(_run(["memory", str(n_chains), str(n_draws), str(n_warmup)], dict(os.environ)))


def _run(arguments: list[str], environment: dict[str, str]) -> str:
    # as installed packages are: with their bytecode, which the first run writes
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.samplers.process", *arguments]
    done = subprocess.run(
        command, cwd=Path(__file__).resolve().parents[1], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


BENCHMARK = Benchmark("mcmc_process", check, rows)

if __name__ == "__main__":
    main([BENCHMARK])
