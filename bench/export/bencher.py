"""Bencher Metric Format: head's numbers with their intervals, for bencher.dev's ``json`` adapter.

Published at https://bencher.dev/docs/reference/bencher-metric-format: an object of benchmarks (at most
1,024 characters), each an object of measures (at most 64) with a value and optional limits.
"""

from __future__ import annotations

import json

from bench.gate.verdict import STATUS, GateReport, Judgement
from bench.text import clean

NAME_LENGTH, MEASURE_LENGTH = 1024, 64


def render(report: GateReport) -> str:
    """Every measured metric of head; metrics without a value are left out."""
    benchmarks: dict[str, dict[str, dict[str, float]]] = {}
    for found in report.judgements:
        if found.metric == STATUS or found.head is None:
            continue
        name = clean(f"{report.suite} / {found.cell}", NAME_LENGTH)
        measures = benchmarks.setdefault(name, {})
        measures[clean(found.metric, MEASURE_LENGTH)] = _metric(found, found.head)
    return json.dumps(benchmarks, indent=1, allow_nan=False) + "\n"


def _metric(found: Judgement, head: float) -> dict[str, float]:
    """Head's value; its limits follow from those of the ratio, with base taken as known."""
    metric = {"value": head}
    if found.base is not None and found.ratio_low is not None and found.ratio_high is not None:
        metric |= {"lower_value": found.base * found.ratio_low, "upper_value": found.base * found.ratio_high}
    return metric
