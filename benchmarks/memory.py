"""Memory of a long run: the small VAE of ``vae_step``, 11,000 steps, in a plain loop and through ``zsp.fit``.

Between steps 1,000 and 11,000 the resident memory grows by less than 5 MiB and the number of live tensors not at all.
Each runs in a process of its own. The collector of reference cycles runs as it always does, and is not called.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import zsp
from benchmarks.resident import now_mib
from benchmarks.timing import Benchmark, Options, Row, main
from benchmarks.vae_step import LEARNING_RATE, SMALL, ZspVAE, training_step

AT_MOST_MIB = 5.0
FIRST, LAST = 1_000, 11_000


def measure(how: str, first: int = FIRST, last: int = LAST) -> dict[str, list[float]]:
    """Resident MiB, live tensors and tracked objects at two steps of a run.

    Args:
        how: ``"plain"`` or ``"fit"``.
        first: a step by which everything that is kept has been made.
        last: the last step.

    Returns:
        Name -> its value at ``first`` and at ``last``.
    """
    x = SMALL.data()
    vae = ZspVAE(SMALL, x)
    seen: list[tuple[float, int]] = []

    def look() -> None:
        seen.append((now_mib(), _live_tensors()))

    if how == "plain":
        step = training_step(lambda: vae.loss(x), vae.parameters())
        for i in range(1, last + 1):
            step()
            if i in (first, last):
                look()
    else:
        n_steps = 0

        def loss(batch: dict[str, Tensor]) -> Tensor:
            nonlocal n_steps
            n_steps += 1
            if n_steps in (first, last):
                look()
            return vae.loss(batch["x"])

        optimizer = torch.optim.Adam(vae.parameters(), lr=LEARNING_RATE)
        epochs = -(-last // 100)
        zsp.fit(loss, [{"x": x}] * 100, optimizer=optimizer, epochs=epochs, progress=False)
    return {"resident_mib": [m for m, _ in seen], "live_tensors": [n for _, n in seen]}


def check() -> None:
    """The loss is that of the hand-written step: see ``vae_step``. Here: both ways run."""
    for how in ("plain", "fit"):
        measure(how, 2, 4)


def rows(options: Options) -> Iterator[Row]:
    for how, name in (("plain", "a plain loop"), ("fit", "zsp.fit")):
        command = [sys.executable, __file__, "--measure", how, str(options.threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        measured: dict[str, Any] = json.loads(done.stdout)
        (mib_before, mib_after), (before, after) = measured["resident_mib"], measured["live_tensors"]
        steps = f"steps {FIRST:,} to {LAST:,}"
        yield Row(
            f"memory in {name}, {steps}",
            f"{mib_after - mib_before:+.2f} MiB",
            f"at most {AT_MOST_MIB:g} MiB",
            mib_after - mib_before <= AT_MOST_MIB,
            f"{mib_before:.0f} and {mib_after:.0f} MiB",
            threads=options.threads,
        )
        yield Row(
            f"live tensors in {name}, {steps}",
            f"{after - before:+d}",
            "at most 0",
            after <= before,
            f"{before} and {after}",
            threads=options.threads,
        )


def _live_tensors() -> int:
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


BENCHMARK = Benchmark("memory", check, rows)

if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        torch.set_num_threads(int(sys.argv[3]))
        print(json.dumps(measure(sys.argv[2])))
    else:
        main([BENCHMARK])
