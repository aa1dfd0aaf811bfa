"""CPU time that others took is seen, and said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.run.context import Events, WorkerContext
from bench.track import contention
from bench.track.contention import Contention, is_disturbed
from bench.workload import Cell, Cost, Pass

HALF = """
import json, time
from bench.track.contention import Contention
watch, end = Contention(), time.monotonic() + 0.6
while time.monotonic() < end:
    pass
print(json.dumps(watch.facts()))
"""


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Threads as the kernel shows them, with numbers of ours."""
    monkeypatch.setattr(contention, "_TASKS", tmp_path)
    return tmp_path


def write(tasks: Path, **threads: tuple[int, int]) -> None:
    for name, (run, wait) in threads.items():
        (tasks / name).mkdir(exist_ok=True)
        (tasks / name / "schedstat").write_text(f"{run} {wait} 1\n")


def test_the_share_is_of_what_was_asked_for_since_the_start(tasks: Path) -> None:
    write(tasks, a=(1000, 5000))
    watch = Contention()
    write(tasks, a=(1300, 5100), b=(300, 100))  # a new thread counts from its beginning
    assert watch.share() == pytest.approx(600 / 800)
    watch.restart()
    assert watch.share() is None  # nothing asked for
    write(tasks, a=(1400, 5100))
    assert watch.share() == 1.0


def test_a_kernel_that_does_not_tell_gives_null(tasks: Path) -> None:
    assert Contention().share() is None
    write(tasks, a=(1, 1))
    (tasks / "a" / "schedstat").write_text("no numbers")
    assert Contention().share() is None


def test_any_small_share_disturbs() -> None:
    assert not is_disturbed({"cpu_share": 0.95, "latency_cpu_share": None, "involuntary_switches": 10})
    assert is_disturbed({"cpu_share": 0.95, "latency_cpu_share": 0.5})


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be put on one core here")
def test_a_process_beside_another_on_one_core_gets_half() -> None:
    core = {min(os.sched_getaffinity(0))}
    pin = f"import os; os.sched_setaffinity(0, {core});"
    busy = subprocess.Popen([sys.executable, "-c", pin + "\nwhile True: pass"])
    try:
        done = subprocess.run([sys.executable, "-c", pin + HALF], capture_output=True, text=True, check=True)
    finally:
        busy.kill()
        busy.wait()
    facts = json.loads(done.stdout)
    assert facts["cpu_share"] < 0.8
    assert facts["involuntary_switches"] > 0


@pytest.mark.parametrize(("waited", "said"), [(0, None), (900, True)])
def test_every_record_carries_it(tasks: Path, tmp_path: Path, waited: int, said: bool | None) -> None:
    class Toy:
        metrics = ()

    reader, writer = os.pipe()
    cell = Cell("c", {}, "a cell")
    write(tasks, a=(1000, 0))
    context = WorkerContext(
        Pass("p", "toy", (cell,), Cost(1, "x")), Toy(), Events(writer), tmp_path, tmp_path
    )  # type: ignore[arg-type]
    write(tasks, a=(2000, waited))
    context.emit(cell, {}, conformance={"calls": 3})
    os.close(writer)
    with os.fdopen(reader) as answers:
        conformance = json.loads(answers.readline())["conformance"]
    assert conformance["cpu_share"] == pytest.approx(1000 / (1000 + waited), abs=1e-3)
    assert conformance["calls"] == 3
    assert conformance.get("disturbed") is said
