"""Planning 10,000 cells: validation, exclusion, content hashes and passes. The target is under a second.

Run with ``python -m pytest benchmarks/test_planning.py -o addopts= --benchmark-only``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.suite.model import Suite
from bench.suite.plan import Plan, make_plan
from ddposink.models.assembled import assembled
from helpers.streamlike import Streamlike, raw_suite

GRID = {
    "model": [f"model-{i}" for i in range(10)],
    "policy": [f"sink 4+{window}" for window in range(8, 58)],
    "length": [2**i for i in range(20)],
}


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({}, id="grid"),
        pytest.param({"exclude": [{"policy": "sink 4+1*", "length": ">262144"}]}, id="exclude"),
        pytest.param(
            {"grid": {**GRID, "length": [2**i for i in range(4)]}, "seed": list(range(5))}, id="seeds"
        ),
    ],
)
def test_plan_10_000_cells(benchmark: Any, more: dict[str, Any]):
    suite = Suite.model_validate({**raw_suite(grid=GRID), **more})
    planned: Plan = benchmark(make_plan, suite, Streamlike())
    assert len(planned.cells) == 10_000 - 100 * bool(more.get("exclude"))
    assert benchmark.stats is None or benchmark.stats["median"] < 1.0


ALONE = """
import resource, sys, time
from bench import registry
from bench.suite.model import load_suite
from bench.suite.plan import make_plan
suite = load_suite(sys.argv[1])
workload, begun = registry.load(suite.workload), time.process_time()
plan = make_plan(suite, workload)
taken = time.process_time() - begun
print(len(plan.cells), taken, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.parametrize("kind", ["random", "path"])
def test_plan_100_000_cells_of_streams(benchmark: Any, tmp_path: Path, kind: str) -> None:
    """The real workload, in a process of its own; wanted: under 10 seconds of CPU and 400 MB."""
    model = "random:tiny" if kind == "random" else f"path:{assembled('sink-llama/vanilla')}"
    suite = tmp_path / "large.yaml"
    grid = {"policy": [f"window {n}" for n in range(64, 1064)], "length": list(range(2000, 2100))}
    defaults = {"model": model, "corpus": f"file:{__file__}", "measure": ["quality"]}
    suite.write_text(json.dumps({"suite": "large", "workload": "stream", "defaults": defaults, "grid": grid}))

    def plan() -> tuple[int, float, int]:
        done = subprocess.run(
            [sys.executable, "-c", ALONE, suite], capture_output=True, text=True, check=True
        )
        cells, seconds, peak = done.stdout.split()
        return int(cells), float(seconds), int(peak)

    cells, seconds, peak = benchmark.pedantic(plan, rounds=1)
    benchmark.extra_info |= {"cpu_seconds": seconds, "peak_bytes": peak}
    print(f"\n{kind}: {cells:,} cells, {seconds:.1f} s of CPU, {peak / 1e6:.0f} MB")
    assert cells == 100_000
