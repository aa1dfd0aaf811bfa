"""Beside the control: what a cell has to beat is subtracted sample by sample; what does not is named."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd

from bench.report.beyond import beyond_control
from bench.results.record import Value
from bench.workload import Control, Metric

CONTROL = Control("kind", "random", ("budget",), ("kl",))


def run(cells: list[tuple[str, int | None, list[float] | None]]) -> Any:
    """A run of cells (kind, budget, samples of a metric that should be low)."""
    records = []
    for kind, budget, samples in cells:
        mean = sum(samples) / len(samples) if samples else None
        value = Value(value=mean, unit="nats", samples=samples, reason=None if samples else "dense itself")
        records.append(SimpleNamespace(label=f"{kind} {budget}", metrics={"kl": value}))
    frame = pd.DataFrame({"kind": [c[0] for c in cells], "budget": [c[1] for c in cells], "kl": 0.0})
    metric = Metric("kl", "KL", "nats", "lower")
    words = SimpleNamespace(control=CONTROL, metric=lambda name: metric)
    return SimpleNamespace(records=records, ok=frame, words=words)


def test_better_worse_and_undecided() -> None:
    noise = [1.0, 1.2, 0.9, 1.1]
    data = run(
        [
            ("random", 8, noise),
            ("good", 8, [x - 0.5 for x in noise]),
            ("bad", 8, [x + 0.5 for x in noise]),
            ("alike", 8, [1.1, 1.0, 1.0, 1.1]),
            ("good", 16, noise),  # no control at this budget
            ("dense", None, None),
        ]
    )
    table = beyond_control(data)
    assert table is not None
    assert [row["cell"].value for row in table.rows] == ["good 8", "bad 8", "alike 8"]
    assert [round(row["kl"].value, 6) for row in table.rows] == [-0.5, 0.5, 0.0]
    assert table.notes[1] == "Does not beat the control in KL: bad 8; alike 8."


def test_without_a_control_there_is_no_table() -> None:
    assert beyond_control(run([("good", 8, [1.0, 2.0, 3.0])])) is None
    data = run([("random", 8, [1.0, 2.0])])
    data.words.control = None
    assert beyond_control(data) is None


def test_what_cannot_be_paired_says_why() -> None:
    table = beyond_control(run([("random", 8, [1.0, 2.0, 3.0]), ("odd", 8, [1.0, 2.0]), ("none", 8, None)]))
    assert table is not None
    assert [row["kl"].note for row in table.rows] == [
        "cell and control have no samples to pair",
        "dense itself",
    ]
