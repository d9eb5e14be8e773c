"""The schedule of the warm-up: windows in which step sizes, and at whose end the mass matrix, are adapted.

Stan's: a first phase that finds the typical set, windows of doubling length that each estimate the mass matrix anew,
and a last phase for the step sizes (Stan reference manual, "Automatic parameter tuning").
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Window", "schedule"]

FIRST, BASE, LAST = 75, 25, 50


class Window(NamedTuple):
    """A part of the warm-up.

    Attributes:
        length: the number of transitions that every chain makes in it, at least.
        estimates_mass: whether its draws give a mass matrix at its end.
    """

    length: int
    estimates_mass: bool


def schedule(n_warmup: int, adapts_mass: bool) -> list[Window]:
    """The windows of ``n_warmup`` transitions."""
    if n_warmup == 0:
        return []
    if not adapts_mass or n_warmup < 20:
        return [Window(n_warmup, False)]
    first, base, last = FIRST, BASE, LAST
    if first + base + last > n_warmup:
        first, last = int(0.15 * n_warmup), int(0.1 * n_warmup)
        base = n_warmup - first - last
    windows = [Window(first, False)]
    remaining = n_warmup - first - last
    while remaining:
        # a window that would leave less than twice itself takes all
        length = remaining if remaining < 3 * base else base
        windows.append(Window(length, True))
        remaining -= length
        base *= 2
    return [*windows, Window(last, False)]
