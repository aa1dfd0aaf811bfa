"""Peak resident memory of this process *since a chosen moment*.

The kernel keeps a high-water mark, so a peak inside one library call is seen without sampling. On
Linux the mark can be set back (``/proc/self/clear_refs``) and each measured region has its own. Where
it cannot, the mark covers the whole life of the process: a rise is still exactly the region's peak,
but no rise only says that the region stayed below an earlier one, which is `Missing`, not a number.
Everything resident counts, mapped weight files included.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bench.workload import Missing

_RESET_SLACK = 32 << 20  # bytes; resident counts are approximate (per-CPU counters) and move on


class RssPeak:
    """Peak resident bytes since construction or the last `restart`."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin a new region."""
        self._earlier = 0 if _reset_mark() else _mark()

    def read(self) -> int | Missing:
        """Highest resident size since `restart`, in bytes."""
        peak = _mark()
        if peak is None or self._earlier is None:
            return Missing("this system keeps no high-water mark of resident memory")
        if peak > self._earlier:
            return peak
        return Missing(
            f"stayed below an earlier peak of {self._earlier} bytes, and this system "
            "does not let a process reset its high-water mark"
        )


def _reset_mark() -> bool:
    """Set the kernel's mark to the present size; False where that is impossible or has no effect."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    mark, resident = _status_bytes("VmHWM"), _status_bytes("VmRSS")
    return mark is not None and resident is not None and mark <= resident + _RESET_SLACK


def _mark() -> int | None:
    """The high-water mark in bytes: from /proc, getrusage (other Unix) or psutil (Windows)."""
    mark = _status_bytes("VmHWM")
    if mark is not None:
        return mark
    try:
        import resource
    except ImportError:
        import psutil

        return getattr(psutil.Process().memory_info(), "peak_wset", None)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status_bytes(key: str) -> int | None:
    """A ``kB`` field of /proc/self/status in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)
