"""Planning 10,000 cells: validation, exclusion, content hashes and passes. The target is under a second.

Run with ``python -m pytest benchmarks/test_planning.py -o addopts= --benchmark-only``.
"""

from __future__ import annotations

from typing import Any

import pytest

from bench.suite.model import Suite
from bench.suite.plan import Plan, make_plan
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
