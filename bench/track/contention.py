"""How much of the CPU this process got of what its threads asked for.

The kernel counts, for every thread, the time it ran and the time it was ready to run but had to wait for a
core (``/proc/PID/task/*/schedstat``). Time waited was taken by others, or by more threads of our own than
there are cores; either way what was measured meanwhile is not what the machine can do.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bench.workload import Scalar

DISTURBED = 0.9  # of the CPU asked for: below that share a record says that it was disturbed
SHARE = "cpu_share"  # facts with this ending are such shares
_TASKS = Path("/proc/self/task")


class Contention:
    """What this process got since construction or the last `restart`."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin anew."""
        self._threads = _threads()
        self._switches = _involuntary()

    def share(self) -> float | None:
        """CPU time got, divided by CPU time got or waited for; None where the kernel does not tell."""
        if not (now := _threads()):
            return None
        ran = waited = 0
        for thread, (run, wait) in now.items():
            before = self._threads.get(thread, (0, 0))
            ran, waited = ran + run - before[0], waited + wait - before[1]
        return ran / (ran + waited) if ran + waited > 0 else None

    def switches(self) -> int | None:
        """How often a thread was taken off its core against its will; None where that is not counted."""
        now = _involuntary()
        return None if now is None or self._switches is None else now - self._switches

    def facts(self) -> dict[str, Scalar]:
        """For the conformance of a record."""
        return {SHARE: _rounded(self.share()), "involuntary_switches": self.switches()}


def is_disturbed(facts: Mapping[str, Scalar]) -> bool:
    """Whether any share among the facts of a record is too small for its times to be the machine's."""
    shares = [value for name, value in facts.items() if name.endswith(SHARE)]
    return any(isinstance(value, int | float) and value < DISTURBED for value in shares)


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)


def _threads() -> dict[str, tuple[int, int]]:
    """Nanoseconds run and waited by every living thread."""
    found = {}
    try:
        for task in _TASKS.iterdir():
            try:
                run, wait, *_ = (task / "schedstat").read_text().split()
            except FileNotFoundError:  # a thread that has just ended
                continue
            found[task.name] = (int(run), int(wait))
    except (OSError, ValueError):
        return {}
    return found


def _involuntary() -> int | None:
    try:
        import resource
    except ImportError:  # not a Unix
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
