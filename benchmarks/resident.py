"""How much memory a process holds."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

__all__ = ["largest_mib", "now_mib"]


def now_mib() -> float:
    """Resident memory now in MiB; where the system does not tell, its maximum so far."""
    return _field("VmRSS")


def largest_mib() -> float:
    """The maximum of resident memory so far in MiB."""
    return _field("VmHWM")


def _field(name: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
    # not ru_maxrss, which on Linux begins with what the process had that began this one
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 2**10
