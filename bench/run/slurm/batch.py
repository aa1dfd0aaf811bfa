"""What a Slurm job does: one pass, in a child of its node, told line by line in a file that the driver reads.

A job is not asked and cannot be reached. So it looks whether the driver still is there: whoever started it
counts up in a file, and when that rests for long, or is gone, the pass is ended.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.results import environment
from bench.run.cluster.agent import Variables, be_a_plain_parent, take_over, visible
from bench.run.launch import LocalLauncher, Running
from bench.run.meaning import Meaning, check_meaning
from bench.run.worker import Job, load_target, outcome

LINES, ALIVE = "events.jsonl", "alive"  # in the folder of a job
PATIENCE_SECONDS = 120.0  # without a sign of the driver; a shared file system is slow to show one
POLL_SECONDS = 0.5

Tell = Callable[..., None]


@dataclass(frozen=True)
class Order:
    """All that a job needs. ``folder`` is its own; ``cwd`` is where the run was started."""

    job: Job
    meaning: Meaning
    variables: Variables
    folder: Path
    cwd: str


def measure(order: Order) -> None:
    """Measure the pass of ``order``. Its lines: ``hello``, what the child says, and ``end`` at last."""
    take_over(order.variables)
    with suppress(OSError):
        os.chdir(order.cwd)
    be_a_plain_parent()
    with open(order.folder / LINES, "ab", buffering=0) as file:

        def tell(**line: Any) -> None:
            left = memoryview(json.dumps(line, allow_nan=False).encode() + b"\n")
            while left:  # a disk that runs full takes a part of it
                left = left[file.write(left) :]

        try:
            workload = load_target(order.job.target)
            tell(event="hello", version=workload.version(), **_here())
            check_meaning(workload, order.job.work.cells[0], order.meaning)
            launcher = LocalLauncher(order.job.preload, order.folder / "server.log")
            _watch(launcher.launch(order.job), order.folder / ALIVE, tell)
        except Exception as error:
            status, reason = outcome(error)
            tell(event="end", status=status, reason=reason)


def _here() -> dict[str, Any]:
    found, _ = environment.gpus()
    devices = visible([str(gpu["uuid"]) for gpu in found], os.environ.get("CUDA_VISIBLE_DEVICES"))
    return {"fingerprint": environment.fingerprint(), "node": platform.node(), "devices": devices}


def _watch(running: Running, alive: Path, tell: Tell) -> None:
    """Tell what a pass says until its end, or until nobody is there to hear it."""
    seen, since = "", time.monotonic()
    try:
        while running.end is None:
            for event in running.poll(POLL_SECONDS):
                tell(**event)
            if usage := running.usage():
                tell(event="usage", usage=usage)
            try:
                sign = alive.read_text()
            except FileNotFoundError:
                return
            except OSError:
                sign = seen
            if sign != seen:
                seen, since = sign, time.monotonic()
            elif time.monotonic() - since > PATIENCE_SECONDS:
                return
        tell(event="end", status=running.end.status, reason=running.end.reason)
    finally:
        running.stop()
