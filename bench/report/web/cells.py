"""Every cell in full, packed for a page: names once, values in their order, repeated words by number.

Ten thousand cells with thirty metrics must stay a few megabytes. A field of a metric is a number, null
(the cell does not have it), ``[null, reason]`` or ``[value, samples, least, most]``.
"""

from __future__ import annotations

import glob
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bench.report.about import command
from bench.report.frames import RunData
from bench.report.select import identifying
from bench.report.tables import reported_metrics
from bench.results.record import Record, Value
from bench.text import clean, scale_for
from bench.workload import Metric

_LONGEST = 12_000  # characters of any one word on the page


class TextTable:
    """Texts by number: each is written once, however many cells repeat it."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def __call__(self, text: object) -> int:
        """The number of a text."""
        return self.known.setdefault(clean(text, _LONGEST), len(self.known))


def pack(runs: Sequence[RunData]) -> dict[str, Any]:
    """All cells of all runs. ``parameters`` are the names that identify a cell, ``metrics`` their meaning."""
    words = TextTable()
    metrics = list({m.name: m for run in runs for m in reported_metrics(run)}.values())
    identity = list(dict.fromkeys(name for run in runs if len(run.frame) for name in identifying(run)))
    params = list(dict.fromkeys(k for run in runs for record in run.records for k in record.params))
    facts = [
        k for k in dict.fromkeys(k for run in runs for r in run.records for k in r.columns) if k not in params
    ]
    checks = list(dict.fromkeys(k for run in runs for record in run.records for k in record.conformance))
    leads = [command(run) for run in runs]
    cells = [
        [
            place,
            record.cell,
            words(record.label),
            str(record.status),
            None if record.reason is None else words(record.reason),
            record.seed,
            record.repeat,
            record.env,
            record.started,
            round(record.duration_s, 3),
            record.pass_id,
            words(f"{leads[place]} --only {shlex.quote(_named(record.label))} --new"),
            [_known(_shown(record, name), words) for name in params],
            [_known(record.columns.get(name), words) for name in facts],
            [_known(record.conformance.get(name), words) for name in checks],
            [_metric(record.metrics.get(m.name), words) for m in metrics],
            [[words(a.path), a.bytes, a.sha256] for a in record.artifacts],
            record.cell in run.edited,
        ]
        for place, run in enumerate(runs)
        for record in run.records
    ]
    return {
        "identity": [name for name in identity if name not in ("label", "seed", "repeat")],
        "params": params,
        "facts": facts,
        "checks": checks,
        "metrics": [_declared(metric, runs) for metric in metrics],
        "words": list(words.known),
        "cells": cells,
    }


def within(runs: Sequence[RunData], budget: int) -> dict[str, Any]:
    """As `pack`, of the first cells of the first run: as many as so many characters hold.

    ``left_out`` counts the others.
    """
    run, count = runs[0], len(runs[0].records)
    while True:
        packed = pack([replace(run, records=run.records[:count], frame=run.frame[:count])])
        size = len(json.dumps(packed, ensure_ascii=False, separators=(",", ":")))
        if size <= budget or count < 2:
            return packed | {"left_out": len(run.records) - count}
        count = max(1, min(count * budget // size, count - 1))


def _shown(record: Record, name: str) -> Any:
    """A parameter as the tables show it: its column where there is one (threads 2 rather than unset)."""
    value = record.columns.get(name)
    return record.params.get(name) if value is None else value


def _known(value: Any, words: TextTable) -> Any:
    """A scalar as JSON; text by number (in a list of one, to tell it from a number)."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return [words(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]


def _metric(value: Value | None, words: TextTable) -> Any:
    if value is None:
        return None
    if value.value is None:
        return [None, words(value.reason)]
    number = value.value if isinstance(value.value, int) else float(f"{value.value:.8g}")
    if not value.samples:
        return number
    ends = (float(f"{end:.6g}") for end in (min(value.samples), max(value.samples)))
    return [number, len(value.samples), *ends]


def _declared(metric: Metric, runs: Sequence[RunData]) -> dict[str, Any]:
    found = (v.value for run in runs for r in run.records if (v := r.metrics.get(metric.name)))
    scale = scale_for(metric.unit, (v for v in found if v is not None))
    return {
        "name": metric.name,
        "label": metric.label,
        "unit": scale.unit,
        "divisor": scale.divisor,
        "direction": metric.direction,
        "class": metric.klass,
        "tolerance": metric.tolerance,
        "help": metric.help,
        "headline": metric.headline,
    }


def _named(label: str) -> str:
    """The label, or a pattern that matches it: what a shell or a terminal would mangle becomes a wildcard."""
    literal = re.sub(r"[^\x20-\x7e\u00a0-\u024f\u2010-\u2027]", "?", glob.escape(label[:100]))
    if len(label) > 100:
        return literal + "*"
    return label if literal == glob.escape(label) else literal
