"""Interleaved timing, and the one table that all benchmarks print.

Candidates run in turns, A B C A B C ..., so that whatever else the machine does hits all of them alike, and only ratios
inside a table mean anything.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

__all__ = ["Benchmark", "Options", "Row", "Times", "compare", "interleave", "main", "run", "show_time"]

Times = dict[str, list[float]]
"""Candidate -> seconds a call, one number a round."""


@dataclass(frozen=True)
class Options:
    """What the command line says.

    Attributes:
        repeats: rounds of interleaved timing; None leaves the number to each benchmark.
        threads: torch's threads, and those of JAX where it has not been imported yet.
        compile: whether to time compiled steps as well, which takes minutes.
        cpu_time: whether to time steps by the processor time of all the program's threads, for a machine that is busy
            with other things.
    """

    repeats: int | None = None
    threads: int = 1
    compile: bool = False
    cpu_time: bool = False

    @property
    def clock(self) -> Callable[[], float]:
        """What training steps are timed with."""
        return time.process_time if self.cpu_time else time.perf_counter

    def rounds(self, default: int) -> int:
        """The number of rounds, ``default`` unless the command line says otherwise."""
        return default if self.repeats is None else self.repeats


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: what is compared.
        result: the figure that counts, with its unit.
        bar: what it has to satisfy; empty where it only informs.
        is_met: whether it does; None without a bar.
        times: the medians behind it.
        spread: how much the rounds differed.
        threads: the number of threads.
    """

    name: str
    result: str
    bar: str = ""
    is_met: bool | None = None
    times: str = ""
    spread: str = ""
    threads: int = 1

    @staticmethod
    def missing(name: str, peer: str) -> Row:
        """The row of a peer that is not installed."""
        return Row(f"{name}: {peer}", "not installed")


@dataclass(frozen=True)
class Benchmark:
    """A script.

    Attributes:
        name: its name on the command line.
        check: raises if what is compared does not compute the same; takes seconds and needs no peer.
        rows: measures.
    """

    name: str
    check: Callable[[], None]
    rows: Callable[[Options], Iterator[Row]]


def interleave(
    candidates: Mapping[str, Callable[[], Any]],
    rounds: int,
    *,
    block: float = 0.04,
    before: Mapping[str, Callable[[], Any]] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    """Seconds a call of every candidate, in interleaved rounds, each in an order of its own.

    In one fixed order a candidate would always find the caches and threads of the same neighbour.

    Args:
        candidates: name -> what is timed.
        rounds: how often every candidate has its turn.
        block: seconds that a turn should take at least; a fast candidate is called several times in it.
        before: name -> what is run, untimed, before every turn of that candidate.
        clock: seconds; by default those on the wall.

    Returns:
        Name -> one number a round.
    """
    before = before or {}
    calls = {}
    for name, function in candidates.items():
        before.get(name, _nothing)()
        for _ in range(3):
            function()
        start = clock()
        function()
        calls[name] = max(1, round(block / (clock() - start)))
    times: Times = {name: [] for name in candidates}
    shuffle = random.Random(0)
    for _ in range(rounds):
        for name, function in shuffle.sample(list(candidates.items()), len(candidates)):
            before.get(name, _nothing)()
            function()  # not timed: it finds the caches full of the candidate before
            n_calls = calls[name]
            start = clock()
            for _ in range(n_calls):
                function()
            times[name].append((clock() - start) / n_calls)
    return times


def _nothing() -> None:
    pass


def compare(
    name: str,
    times: Times,
    first: str,
    second: str,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    threads: int = 1,
) -> Row:
    """The row of ``first`` over ``second``: the ratio of their medians, held against a bar where there is one."""
    a, b = statistics.median(times[first]), statistics.median(times[second])
    ratio = a / b
    pairs = [x / y for x, y in zip(times[first], times[second], strict=True)]
    bar, is_met = "", None
    if at_most is not None:
        bar, is_met = f"at most {at_most:g}", ratio <= at_most
    if at_least is not None:
        bar, is_met = f"at least {at_least:g}", ratio >= at_least
    return Row(
        f"{name}: {first} / {second}",
        f"{ratio:.3g}",
        bar,
        is_met,
        f"{show_time(a)} / {show_time(b)}",
        f"pairs {statistics.median(pairs):.3g} ({min(pairs):.3g} to {max(pairs):.3g}), best "
        f"{min(times[first]) / min(times[second]):.3g}",
        threads,
    )


def show_time(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if abs(seconds) >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def run(benchmarks: Iterable[Benchmark], options: Options) -> list[Row]:
    """Check and measure; print what it was run on, then the table."""
    _set_threads(options.threads)
    rows: list[Row] = []
    for benchmark in benchmarks:
        benchmark.check()
        for row in benchmark.rows(options):
            print(f"  {row.name}: {row.result}", flush=True)
            rows.append(row)
    print(f"\n{_circumstances(options)}\n\n{_table(rows)}")
    return rows


def main(benchmarks: Sequence[Benchmark], arguments: Sequence[str] | None = None) -> None:
    """The command line of one script, or of all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    if len(benchmarks) > 1:
        names = [benchmark.name for benchmark in benchmarks]
        parser.add_argument("names", nargs="*", metavar="name", help=f"{', '.join(names)}; default all of them")
    parser.add_argument("--repeats", type=int, help="rounds of interleaved timing (default: what each needs)")
    parser.add_argument("--threads", type=int, default=1, help="default 1")
    parser.add_argument("--eager", action="store_true", help="leave out steps that are compiled, which takes minutes")
    parser.add_argument("--cpu-time", action="store_true", help="time steps by processor time, for a busy machine")
    given = parser.parse_args(arguments)
    chosen = getattr(given, "names", [])
    unknown = [name for name in chosen if name not in {benchmark.name for benchmark in benchmarks}]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(names)}")
    run(
        [benchmark for benchmark in benchmarks if not chosen or benchmark.name in chosen],
        Options(given.repeats, given.threads, not given.eager, given.cpu_time),
    )


def _set_threads(threads: int) -> None:
    torch.set_num_threads(threads)
    os.environ.setdefault("NPROC", str(threads))  # the size of XLA's thread pool, read when jax is imported
    if threads == 1:
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")


def _circumstances(options: Options) -> str:
    versions = []
    for package in ("torch", "pyro-ppl", "numpyro", "jax"):
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            versions.append(f"{package} not installed")
    repeats = "the default" if options.repeats is None else options.repeats
    return (
        f"{', '.join(versions)}; Python {platform.python_version()}; threads {options.threads}; repeats {repeats}; "
        f"steps by {'processor' if options.cpu_time else 'wall'} time; "
        f"{_processor()}, {os.cpu_count()} cores"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{platform.machine()} ({models[0]})" if models else platform.machine()


def _table(rows: Iterable[Row]) -> str:
    """A Markdown table with aligned columns."""
    cells = [("benchmark", "result", "bar", "met", "medians", "spread", "threads")]
    for row in rows:
        met = "" if row.is_met is None else "yes" if row.is_met else "NO"
        cells.append((row.name, row.result, row.bar, met, row.times, row.spread, str(row.threads)))
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
