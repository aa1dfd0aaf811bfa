"""A million records in one run folder: what resume, gate, history, comparison and report take of it.

Wanted on two cores: resume under 15 seconds and 1 GB; gate, history and comparison under 60 seconds and 2 GB
each; report and publication under 2 GB, and a page that opens in under 3 seconds. Run with
``python -m pytest benchmarks/test_large.py -o addopts= -o timeout=0 --benchmark-only -s --basetemp DIR``,
where DIR has room for 12 GB; with ``LARGE_AT=DIR`` the runs stay there for the next time, and
``LARGE=100000`` takes fewer records. The small forms, which count parses, are in
tests/bench/results/test_index.py and tests/bench/report/large/.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench.results.index import open_index
from bench.results.store import RECORDS
from helpers.large import large_run

COUNT = int(os.environ.get("LARGE", "1000000"))
FEW = 1000  # cells of the runs beside it
ROOT = Path(__file__).parents[1]

RESUME = """
import sys
from pathlib import Path
from bench.results.store import Store
from bench.run.loop import remaining
from bench.workload import Cell, Cost, Pass
cells = [Cell(f"{n:016x}", {}, "") for n in range(100, int(sys.argv[2]) + 100)]
passes = [Pass(str(i), "stream", tuple(cells[i : i + 4]), Cost(1, "tokens")) for i in range(0, len(cells), 4)]
store = Store(Path(sys.argv[1]))
left = remaining(passes, store)
assert sum(len(work.cells) for work in left) == 100, len(left)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A large run and three small ones, and the index of the large one, whose making is told."""
    kept = os.environ.get("LARGE_AT")
    folder = (Path(kept) if kept else tmp_path_factory.mktemp("large")) / "sinks"
    large = folder / "20260101-000000-aaaaaa"
    if not (large / RECORDS).exists():
        large_run(large, COUNT)
        for day, drift in ((2, 0.0), (3, 0.1), (4, 0.1)):
            large_run(folder / f"2026010{day}-000000-bbbbbb", FEW, drift=drift)
    before, cpu = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    open_index(large / RECORDS)
    wall = time.perf_counter() - before
    cpu = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - cpu
    print(f"\nfirst reading of {COUNT:,} records: {wall:.0f} s, {cpu:.0f} s of CPU in helpers")
    return folder


def alone(benchmark: Any, name: str, *command: str, codes: tuple[int, ...] = (0,)) -> str:
    """Run a command in a process of its own, and tell its time, its CPU time and its memory."""

    def once() -> tuple[str, float, float, int]:
        begun = time.perf_counter()
        child = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, cwd=ROOT, text=True)
        assert child.stdout is not None
        said = child.stdout.read()
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        assert child.returncode in codes, said[-2000:]
        return said, time.perf_counter() - begun, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024

    said, wall, cpu, peak = benchmark.pedantic(once, rounds=1)
    benchmark.extra_info |= {"records": COUNT, "cpu_seconds": cpu, "peak_bytes": peak}
    print(f"\n{name}, {COUNT:,} records: {wall:.1f} s, {cpu:.1f} s of CPU, {peak / 1e6:,.0f} MB")
    return str(said)


def test_resume(benchmark: Any, place: Path) -> None:
    alone(benchmark, "resume", "-c", RESUME, str(place / "20260101-000000-aaaaaa"), str(COUNT))


def test_report(benchmark: Any, place: Path) -> None:
    large = place / "20260101-000000-aaaaaa"
    alone(benchmark, "report", "-m", "bench", "report", str(large), "--results", str(place.parent))
    with open(large / "tables" / "full.csv", "rb") as file:
        assert sum(1 for _ in file) == COUNT + 1
    sizes = {path.name: path.stat().st_size for path in [large / "README.md", *large.glob("[ipt]*/*")]}
    print({name: f"{size:,}" for name, size in sizes.items()})


def test_page_opens(benchmark: Any, place: Path) -> None:
    """From the address to a page that has drawn its tables and charts; the file is warm, the browser too."""
    sync_api = pytest.importorskip("playwright.sync_api")
    path = place / "20260101-000000-aaaaaa" / "index.html"
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))

        def load() -> None:
            page.goto(path.as_uri())
            page.wait_for_selector("html[data-ready=yes]")

        benchmark.pedantic(load, rounds=5)
        assert not errors
        assert page.locator("[data-chart] svg[role=img]").count() > 0
        browser.close()
    slowest, size = benchmark.stats.stats.max, path.stat().st_size
    print(f"\npage of {size:,} bytes, {COUNT:,} records: opens in {slowest:.2f} s at most, of 5 times")


def test_publish(benchmark: Any, place: Path) -> None:
    large, site = place / "20260101-000000-aaaaaa", place.parent / "site"
    alone(benchmark, "publish", "-m", "bench", "publish", str(large), str(site))
    assert (site / "sinks" / "20260101-000000-aaaaaa" / "records.parquet").stat().st_size > COUNT
    shutil.rmtree(site)


def test_history(benchmark: Any, place: Path) -> None:
    said = alone(
        benchmark, "history", "-m", "bench", "history", str(place), "--out", str(place.parent / "history")
    )
    assert "over 4 runs, 1000 with a step" in said


def test_compare(benchmark: Any, place: Path) -> None:
    runs = [str(run) for run in sorted(place.glob("2*"))[:3:2]]
    said = alone(benchmark, "compare", "-m", "bench", "compare", *runs)
    assert "1,000 worse" in said


def test_gate(benchmark: Any, place: Path) -> None:
    large, _, head, _ = (str(run) for run in sorted(place.glob("2*")))
    command = ["-m", "bench", "gate", "suites/sinks.yaml", "--results", str(place.parent / "gates")]
    said = alone(benchmark, "gate", *command, "--baseline", large, "--head", head, codes=(4,))
    assert "regressed: 1,000 metrics in 1,000 cells" in said
