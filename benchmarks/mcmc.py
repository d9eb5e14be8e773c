"""HMC and NUTS: zsp, compiled and eager, beside NumPyro, BlackJAX, Pyro and nutpie.

HMC is measured in gradients a second, all chains together, with nothing adapted; NUTS in effective draws a second: the
smallest bulk effective sample size of a latent over what sampling took after the warm-up, each library with a warm-up
of its own, and all of them with diagonal mass matrices. What compiling takes is not in these figures: see
``mcmc_process``. "The two matrix products alone" are those of a gradient, by torch's library, and nothing else.
``check`` makes sure that the libraries sample the same densities.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.samplers.problems import (
    Problem,
    correlated_gaussian,
    eight_schools,
    logistic_regression,
)
from benchmarks.samplers.sampled import reference
from benchmarks.timing import Benchmark, Options, Row, main

STEP_SIZE, N_LEAPFROGS = 0.05, 20  # of HMC; nearly all of its proposals are accepted
LIBRARIES = ("zsp", "NumPyro", "BlackJAX", "Pyro", "nutpie")

Figures = dict[str, list[float]]
"""Candidate -> gradients or effective draws a second, one number a round."""


class Candidate(NamedTuple):
    """A way to sample.

    Attributes:
        library: of which it is.
        n_samples: draws a chain that are timed.
        n_warmup: transitions a chain before them.
        how: further options of its ``nuts`` or ``hmc``.
        name: in the table; default the library's.
    """

    library: str
    n_samples: int
    n_warmup: int = 0
    how: dict[str, Any] = {}  # noqa: RUF012
    label: str = ""

    @property
    def name(self) -> str:
        return self.label or self.library


class Bar(NamedTuple):
    """What the figure of one candidate has to be, as a multiple of the best one of some others; then what it should."""

    first: str
    others: tuple[str, ...]
    at_least: float
    goal: float | None = None


class Case(NamedTuple):
    """A group of rows: a sampler on a problem, with so many chains.

    Attributes:
        name: on the command line.
        method: ``"hmc"`` or ``"nuts"``.
        problem: makes it.
        n_chains: their number.
        candidates: what is compared.
        bars: what is asked.
        rounds: in each of which every candidate has a turn.
    """

    name: str
    method: str
    problem: Callable[[], Problem]
    n_chains: int
    candidates: tuple[Candidate, ...]
    bars: tuple[Bar, ...]
    rounds: int = 3


def _compiled(n_samples: int, n_warmup: int = 0) -> Candidate:
    return Candidate("zsp", n_samples, n_warmup, {"compile": True})


def _eager(n_samples: int, n_warmup: int = 0) -> Candidate:
    return Candidate("zsp", n_samples, n_warmup, {"compile": False}, "zsp, eager")


def _peers(names: str, n_samples: int, n_warmup: int = 0) -> tuple[Candidate, ...]:
    return tuple(Candidate(name, n_samples, n_warmup) for name in names.split())


JAX = ("NumPyro", "BlackJAX")
CASES = (
    Case(
        "hmc_64", "hmc", logistic_regression, 64,
        (
            _compiled(192), _eager(64), *_peers("NumPyro BlackJAX", 50),
            Candidate("products", 192, label="the two matrix products alone"),
        ),
        (Bar("zsp", JAX, 3.0, 3.5), Bar("zsp, eager", JAX, 0.6)),
    ),
    Case(
        "hmc_1", "hmc", logistic_regression, 1,
        (
            _compiled(3200), _eager(128), *_peers("NumPyro BlackJAX", 2000), *_peers("Pyro", 40),
            Candidate("Pyro", 40, how={"jit": True}, label="Pyro, jit"),
        ),
        (Bar("zsp", ("NumPyro",), 0.65, 1.0), Bar("zsp, eager", ("Pyro",), 3.5)),
    ),
    Case(
        "logistic", "nuts", logistic_regression, 4,
        (
            _compiled(1000, 1000), _eager(300, 300), *_peers("NumPyro BlackJAX nutpie", 1000, 1000),
            *_peers("Pyro", 300, 300),
        ),
        (Bar("zsp", JAX, 1.0, 1.3), Bar("zsp, eager", ("Pyro",), 10.0)),
    ),
    Case(
        "logistic_64", "nuts", logistic_regression, 64,
        (_compiled(500, 500), *_peers("NumPyro BlackJAX", 500, 500)),
        (Bar("zsp", JAX, 1.8, 3.0),),
    ),
    Case(
        "gaussian", "nuts", correlated_gaussian, 4,
        (_compiled(1000, 1000), *_peers("NumPyro BlackJAX nutpie", 1000, 1000)),
        (Bar("zsp", JAX, 1.0),),
    ),
    Case(
        "large", "nuts", lambda: logistic_regression(10_000, 100, 0.2), 4,
        (_compiled(300, 300), *_peers("NumPyro BlackJAX", 300, 300)),
        (Bar("zsp", JAX, 1.2, 1.5),),
    ),
    Case(
        "schools", "nuts", eight_schools, 4,
        (
            _compiled(1000, 1000), _eager(100, 100), *_peers("NumPyro BlackJAX nutpie", 1000, 1000),
            *_peers("Pyro", 100, 100),
        ),
        (Bar("zsp", ("Pyro",), 25.0), Bar("zsp, eager", ("Pyro",), 1.5)),
    ),
    Case(
        "schools_16", "nuts", eight_schools, 16,
        (_eager(100, 100), *_peers("Pyro", 100, 100)),
        (Bar("zsp, eager", ("Pyro",), 10.0),),
        rounds=1,
    ),
)  # fmt: skip
ON_TWO_CORES = ("hmc_64", "logistic", "logistic_64")


# -- what is run ----------------------------------------------------------------------------------------------------


def check() -> None:
    """Every library that is installed has the log densities that are written by hand, but for a constant."""
    for problem in (logistic_regression(), correlated_gaussian(), eight_schools()):
        check_densities(problem)


def check_densities(problem: Problem) -> None:
    """The same for one problem."""
    position = torch.randn(4, problem.n_dims, generator=torch.Generator().manual_seed(0))
    expected = reference(problem, position.double())
    for library in LIBRARIES:
        if library == "Pyro" and problem.kind == "gaussian":
            continue
        try:
            module = _module(library)
        except ModuleNotFoundError:
            continue
        found = torch.from_numpy(module.log_density(problem, position.numpy())).double()
        differences = (found - found[0]) - (expected - expected[0])
        assert differences.abs().max() < 1e-5 * expected.abs().max(), (library, problem.name, differences)


def measure(case: Case, options: Options) -> tuple[Figures, list[str]]:
    """The figures of all rounds, each in an order of its own, and the candidates whose library is not installed."""
    problem = case.problem()
    made: dict[str, Callable[[int], float]] = {}
    missing = []
    for candidate in case.candidates:
        try:
            made[candidate.name] = _make(candidate, case, problem, options)
        except ModuleNotFoundError:
            missing.append(candidate.name)
    figures: Figures = {name: [] for name in made}
    shuffle = random.Random(0)
    for seed in range(1, options.rounds(case.rounds) + 1):
        for name, run in shuffle.sample(list(made.items()), len(made)):
            figures[name].append(run(seed))
    return figures, missing


def _module(library: str) -> Any:
    return importlib.import_module(f"benchmarks.samplers.{library.lower()}_chains")


def _make(candidate: Candidate, case: Case, problem: Problem, options: Options) -> Callable[[int], float]:
    """A function from a seed to the figure of one run."""
    module = _module(candidate.library)
    how = {"clock": options.clock, **candidate.how}
    if candidate.library == "nutpie":
        how["n_cores"] = options.threads
    if case.method == "hmc":
        transition = module.hmc(problem, case.n_chains, candidate.n_samples, STEP_SIZE, N_LEAPFROGS, **how)
        return lambda _seed: case.n_chains * N_LEAPFROGS / transition()
    sample = module.nuts(problem, case.n_chains, candidate.n_warmup, candidate.n_samples, **how)
    return lambda seed: sample(seed).ess_per_second


def rows(options: Options) -> Iterator[Row]:
    for case in CASES:
        yield from case_rows(case, options)
    yield from _gpu_rows(options)


def case_rows(case: Case, options: Options) -> Iterator[Row]:
    """The rows of one case."""
    figures, missing = measure(case, options)
    yield from _compare(case, figures, options.threads)
    for name in missing:
        yield Row.missing(_title(case), name)
    if case.name in ON_TWO_CORES and options.threads == 1 and (os.cpu_count() or 1) > 1:
        yield from _best_threads_rows(case, figures, options)


def _title(case: Case) -> str:
    chains = "1 chain" if case.n_chains == 1 else f"{case.n_chains} chains"
    return f"{case.method.upper()}, {case.problem().name}, {chains}"


def _compare(case: Case, figures: Figures, threads: int, note: str = "") -> Iterator[Row]:
    """First what has a bar, then zsp beside everything else."""
    median = {name: statistics.median(values) for name, values in figures.items()}
    unit = "gradients" if case.method == "hmc" else "ESS"

    def row(first: str, second: str, bar: Bar | None) -> Row:
        ratio = median[first] / median[second]
        asked = ""
        if bar is not None:
            asked = f"at least {bar.at_least:g}" + (f", goal {bar.goal:g}" if bar.goal else "")
        return Row(
            f"{_title(case)}{note}: {first} / {second}",
            f"{ratio:.3g}",
            asked,
            None if bar is None else ratio >= bar.at_least,
            f"{median[first]:,.0f} / {median[second]:,.0f} {unit}/s",
            f"{_span(figures[first])} / {_span(figures[second])}",
            threads,
        )

    shown = set()
    for bar in case.bars:
        others = [name for name in bar.others if name in median]
        if others and bar.first in median:
            best = max(others, key=median.__getitem__)
            shown.add((bar.first, best))
            yield row(bar.first, best, bar)
    for name in median:
        if "zsp" in median and name != "zsp" and ("zsp", name) not in shown:
            yield row("zsp", name, None)


def _span(values: list[float]) -> str:
    return f"{min(values):,.0f} to {max(values):,.0f}"


# -- threads and GPUs -------------------------------------------------------------------------------------------------


def _best_threads_rows(case: Case, with_one: Figures, options: Options) -> Iterator[Row]:
    """The case once more, with every library at the number of threads, one or two, at which it is faster."""
    # JAX makes its threads when it is imported; with two devices each of them runs half of the chains
    environment = {**os.environ, "NPROC": "2", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, __file__, "--measure", case.name, str(options.rounds(2))]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    with_two: Figures = json.loads(done.stdout.splitlines()[-1])
    best, threads = {}, {}
    for name, values in with_one.items():
        is_two = statistics.median(with_two[name]) > statistics.median(values)
        best[name], threads[name] = (with_two[name], 2) if is_two else (values, 1)
    for row in _compare(case, best, 2, ", best threads"):
        first, second = (name for name in row.name.split(": ")[1].split(" / "))
        yield replace(row, spread=f"threads {threads[first]} / {threads[second]}; {row.spread}")


def _measure_with_two_threads(case_name: str, rounds: int) -> None:
    """What the other process does: print the figures."""
    torch.set_num_threads(2)
    (case,) = (case for case in CASES if case.name == case_name)
    print(json.dumps(measure(case, Options(repeats=rounds, threads=2))[0]))


def _gpu_rows(options: Options) -> Iterator[Row]:
    """1,024 chains on the GPU, if there is one, beside the processor."""
    if not torch.cuda.is_available():
        return
    on_gpu = Candidate("zsp", 500, 500, {"compile": True, "device": "cuda"}, "zsp on the GPU")
    case = Case("gpu", "nuts", logistic_regression, 1024, (_compiled(500, 500), on_gpu), (), rounds=1)
    figures, _ = measure(case, options)
    yield from _compare(case, {"zsp": figures[on_gpu.name], "zsp on the CPU": figures["zsp"]}, options.threads)


BENCHMARK = Benchmark("mcmc", check, rows)
EACH = [
    Benchmark(case.name, lambda case=case: check_densities(case.problem()), partial(case_rows, case)) for case in CASES
]

if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        _measure_with_two_threads(sys.argv[2], int(sys.argv[3]))
    else:
        main(EACH)
