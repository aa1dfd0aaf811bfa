"""JSON for benchmark-action/github-action-benchmark: its tools take metrics of one direction each.

``customSmallerIsBetter`` and ``customBiggerIsBetter`` read a list of objects with name, unit and value,
and optionally range and extra, both text.
"""

from __future__ import annotations

import json

from bench.declarations import Direction
from bench.gate.show import change, evidence
from bench.gate.verdict import STATUS, GateReport
from bench.text import clean


def render_smaller(report: GateReport) -> str:
    """Metrics of which less is better (tool ``customSmallerIsBetter``)."""
    return _render(report, "lower")


def render_bigger(report: GateReport) -> str:
    """Metrics of which more is better (tool ``customBiggerIsBetter``)."""
    return _render(report, "higher")


def _render(report: GateReport, direction: Direction) -> str:
    entries = []
    for found in report.judgements:
        if found.metric == STATUS or found.direction != direction or found.head is None:
            continue
        entry: dict[str, str | float] = {
            "name": clean(f"{found.cell} / {found.label}", 400),
            "unit": clean(found.unit) or "1",
            "value": found.head,
            "extra": clean(f"{found.verdict}: {change(found)} {evidence(found)}", 400),
        }
        if found.ratio_low is not None and found.ratio_high is not None:
            entry["range"] = f"± {(found.ratio_high - found.ratio_low) / 2:.1%}"
        entries.append(entry)
    return json.dumps(entries, indent=1, allow_nan=False) + "\n"
