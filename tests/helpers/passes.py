"""Passes of the toy workload, jobs of them, and records as they may come of them."""

import time

from bench.results.record import Record, Status
from bench.run.worker import Job
from bench.workload import Cell, Cost, Pass
from helpers.toy import ToyParams


def make_pass(mode="ok", lengths=(4, 8, 16), number=0, **params):
    cells = tuple(
        Cell(f"{number}-{mode}-{n}", ToyParams(mode=mode, length=n, **params).model_dump(), f"{mode} {n}")
        for n in lengths
    )
    return Pass(f"{number}-{mode}", "toy", cells, Cost(max(lengths), "numbers"))


def make_job(tmp_path, work, **changes):
    defaults = {"target": "helpers.toy:Toy", "out": tmp_path / "artifacts" / work.id, "root": tmp_path}
    return Job(work=work, **({"log": tmp_path / "logs" / "pass.log", "timeout": 60.0} | defaults | changes))


def finish(running):
    events, waited = [], time.monotonic() + 60
    while running.end is None and time.monotonic() < waited:
        events += running.poll(1.0)
    assert running.end is not None
    return events


def make_record(cell="c1", **changes):
    data = {
        "suite": "s",
        "workload": "toy",
        "run": "r",
        "cell": cell,
        "pass_id": "p",
        "label": f"label {cell}",
        "params": {"length": 8},
        "columns": {"length": 8},
        "seed": 0,
        "repeat": 0,
        "status": Status.OK,
        "metrics": {"total": {"value": 28, "unit": "units"}},
        "env": "e",
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:00:01+00:00",
        "duration_s": 1.0,
    }
    return Record.model_validate(data | changes)
