"""Where gates are tried out: a suite of the toy, the plug-in that names it, and sides that misbehave."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.gate.against import compare
from bench.gate.options import GateOptions
from bench.gate.pairs import PairSession, Tree
from bench.gate.scope import Asked
from bench.gate.verdict import GateReport
from bench.results.record import Record
from bench.suite.model import load_suite
from bench.suite.plan import make_plan
from bench.suite.request import Options, Request
from helpers.gatetoy import GateToy

HERE = Path(__file__).parents[1]
ROOT = HERE.parent
Settings = Mapping[str, Any]
GRID = {"kind": ["a", "b"], "tokens": [8, 16]}


def plug_in(folder: Path, name: str = "gatetoy", target: str = "helpers.gatetoy:GateToy") -> Path:
    """A folder that, on the import path, registers a workload as an installed package would."""
    info = folder / f"{name}-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[bench.workloads]\n{name} = {target}\n")
    return folder


def write_suite(folder: Path, **keys: Any) -> Path:
    data = {"suite": "toys", "workload": "gatetoy", "grid": GRID, **keys}
    path = folder / f"{data['suite']}.yaml"
    path.write_text(json.dumps(data))  # JSON is YAML
    return path


def tree(plugs: Path, name: str) -> Tree:
    """This checkout as a side; ``plugs/NAME.json`` makes its toy worse."""
    paths = ":".join(map(str, (plugs, HERE)))
    settings = str(plugs / f"{name}.json")
    env = {"PYTHONPATH": paths, "GATETOY_SETTINGS": settings}
    return Tree(name, ROOT, Path(sys.executable), env=env)


def request(suite: Path) -> Request:
    loaded = load_suite(suite)
    plan = make_plan(loaded, GateToy())
    return Request(loaded, GateToy(), plan, plan.passes)


class Place:
    """Two sides that stay ready; every gate measures them anew with other settings."""

    def __init__(self, folder: Path, **suite: Any) -> None:
        self.folder, self.console = folder, Console(file=io.StringIO(), width=200)
        self.suite = write_suite(folder, **suite)
        self.plugs = plug_in(folder / "plugs")
        sides = tree(self.plugs, "base"), tree(self.plugs, "head")
        self.session = PairSession.start(*sides, Asked(self.suite, repeats=300), folder / "gate")

    def gate(
        self, base: Mapping[str, Any] | None = None, head: Mapping[str, Any] | None = None, **options: Any
    ) -> GateReport:
        """Measure ``base`` settings against ``head`` settings, and judge."""
        self.console.file = io.StringIO()
        for name, settings in (("base", base), ("head", head)):
            made = {"FIRST": self.session.pairs, **(settings or {})}
            (self.plugs / f"{name}.json").write_text(json.dumps(made))
        wanted = replace(GateOptions(Options(self.suite), against="base", pairs=4), **options)
        return compare(self.session, request(self.suite), wanted, self.console)

    @property
    def printed(self) -> list[str]:
        """What the last gate has printed."""
        return self.console.file.getvalue().splitlines()


def record(
    values: Mapping[str, float | None] | None = None,
    *,
    kind: str = "a",
    tokens: int = 8,
    repeat: int = 0,
    status: str = "ok",
    reason: str | None = None,
    env: str = "e1",
    label: str | None = None,
    **changes: Any,
) -> Record:
    """An invented record of the toy."""
    units = {metric.name: metric.unit for metric in GateToy.metrics}
    metrics = {
        name: {"value": value, "unit": units.get(name, ""), "reason": None if value is not None else "no GPU"}
        for name, value in (values or {}).items()
    }
    made: dict[str, Any] = {
        "suite": "toys",
        "workload": "gatetoy",
        "run": "20260101-000000-abcdef",
        "cell": f"{kind}-{tokens}-{repeat}",
        "pass_id": f"{kind}-{repeat}",
        "label": label or f"{kind} {tokens}",
        "params": {"kind": kind, "tokens": tokens},
        "columns": {},
        "seed": 0,
        "repeat": repeat,
        "status": status,
        "reason": reason or (None if status == "ok" else "it broke"),
        "metrics": metrics,
        "env": env,
        "started": "2026-01-01T00:00:00.000+00:00",
        "finished": "2026-01-01T00:00:01.000+00:00",
        "duration_s": 1.0,
    }
    return Record.model_validate(made | changes)


def verdicts(report: Iterable[Any], metric: str) -> list[str]:
    """The verdicts on one metric, cell by cell."""
    return [str(found.verdict) for found in report if found.metric == metric]
