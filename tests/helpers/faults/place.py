"""Where a fault happens: a suite of the toy, real processes, and what must hold once it is over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from bench.results.record import Record
from helpers.toyruns import eventually, whole_records

TESTS = Path(__file__).parents[2]
ROOT = TESTS.parent
INJECT = Path(__file__).with_name("inject")
SECONDS = 60.0  # nothing takes that long: then it hangs
GONE_SECONDS = 10.0  # after which no process may be left
START = """
from bench import registry
import bench.report
registry.register("toy", "helpers.toy:Toy")
def render(folder, workload):
    (folder / "README.md").write_text("drawn")
    return folder / "README.md"
bench.report.render = render
from bench.cli import main
main()
"""
PASSES, LENGTHS = 3, (2, 20, 40)
SUITE = {
    "suite": "faults",
    "workload": "toy",
    "defaults": {"speed": 0.003},
    "grid": {
        "at": [*range(PASSES)],
        "length": [*LENGTHS],
    },  # a pass for each `at`, which changes nothing
}


class Place:
    """A folder of one fault. Whatever is started there is known by a mark in its environment."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.mark = folder, uuid.uuid4().hex
        self.temporary = Path(tempfile.mkdtemp(prefix="faults-", dir="/tmp"))  # a short one, for sockets
        self.results = folder / "results"
        self.kills = 0
        self.measured = True  # whether there are records to look at in the end
        self.words: tuple[str, ...] = ()  # of every run here
        self.seconds = SECONDS
        self.more: dict[str, str] = {}  # of the environment
        self.write_suite()

    def write_suite(self, **more: Any) -> None:
        (self.folder / "faults.yaml").write_text(json.dumps(SUITE | more))

    def environment(self, **more: str) -> dict[str, str]:
        paths = [*([str(INJECT)] if more else []), str(TESTS), str(ROOT)]
        own = {"TMPDIR": str(self.temporary), "FAULT_PLACE": self.mark, "PYTHONPATH": os.pathsep.join(paths)}
        return os.environ | own | {"COLUMNS": "200", "PYTHONDONTWRITEBYTECODE": "1"} | self.more | more

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        """A run of the suite, on its way. Faults are injected by the environment."""
        return subprocess.Popen(
            [sys.executable, "-c", START, "faults.yaml", "--results", str(self.results), *self.words, *words],
            cwd=self.folder,
            env=self.environment(**environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def end(self, process: subprocess.Popen[str], *codes: int) -> str:
        """Wait for a run; what it said. One of ``codes`` (default: any), and never a traceback."""
        out, err = process.communicate(timeout=self.seconds)
        assert "Traceback" not in err, err
        assert not codes or process.returncode in codes, (process.returncode, out, err)
        return out + err

    def run(self, *words: str, **environment: str) -> str:
        """A whole run that must end well."""
        return self.end(self.start(*words, **environment), 0)

    def family(self) -> Iterator[psutil.Process]:
        """Everything that was started here and is alive."""
        for process in psutil.process_iter():
            try:
                marked = process.environ().get("FAULT_PLACE") == self.mark
                if marked and process.status() != psutil.STATUS_ZOMBIE:
                    yield process
            except psutil.Error:
                continue

    def records(self) -> list[Record]:
        """All records of all runs here."""
        return whole_records(self.results)

    def kill(self, process: psutil.Process) -> None:
        """Kill -9, counted."""
        try:
            process.kill()
        except psutil.NoSuchProcess:
            return
        self.kills += 1

    def check(self) -> None:
        """What holds after any fault, once the run has been resumed; see the module's table in the docs."""
        if self.measured:
            self.check_records()
        self.check_nothing_left()

    def check_records(self) -> None:
        """Every cell is answered, rightly and once."""
        newest = {record.cell: record for record in self.records()}
        assert len(newest) == PASSES * len(LENGTHS)
        for record in newest.values():
            length = record.params["length"]
            assert str(record.status) == "ok", record.reason
            assert record.metrics["total"].value == length * (length - 1) // 2  # exact
            assert record.metrics["nll"].value == 0.5  # near
            assert 0 <= record.duration_s < self.seconds
            assert record.conformance["preloaded"] is True
        answered = Counter((r.run, r.cell) for r in self.records() if str(r.status) == "ok")
        assert set(answered.values()) == {1}  # nothing twice

    def check_nothing_left(self) -> None:
        """No process after ten seconds, no temporary file or folder, no lock that is held."""
        assert eventually(lambda: not list(self.family()), GONE_SECONDS), [p.cmdline() for p in self.family()]
        left = {path.name for path in self.temporary.iterdir()}
        assert {name for name in left if not name.startswith("torchinductor_")} == set()  # torch's cache
        odd = [p for p in self.folder.rglob(".*") if p.is_file() and p.name != ".lock"]
        assert odd == []
        for lock in self.results.glob("*/.lock"):
            with FileLock(lock, timeout=0):
                pass


def is_server(process: psutil.Process) -> bool:
    """Whether this is the fork server itself: its children have its command line."""
    return "multiprocessing.forkserver" in " ".join(process.cmdline()) and not _parent_is_server(process)


def is_child(process: psutil.Process) -> bool:
    """Whether this is the child of a pass."""
    return "multiprocessing.forkserver" in " ".join(process.cmdline()) and _parent_is_server(process)


def _parent_is_server(process: psutil.Process) -> bool:
    parent = process.parent()
    return parent is not None and "multiprocessing.forkserver" in " ".join(parent.cmdline())
