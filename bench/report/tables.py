"""Tables as values: built from frames, written as Markdown for people and CSV for programs.

A value that is missing is shown as a dash with a footnote saying why; it is never shown as zero, and
in the CSV its reason has a column of its own. CSV values are raw, in the metric's own unit.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd

from bench.report.columns import OWN
from bench.report.frames import EDITED, RunData
from bench.report.select import common, extent, identifying, longest
from bench.results.record import Status
from bench.text import MISSING, Md, clean, duration, given, md, number, scale_for, with_unit
from bench.workload import Metric

ARROWS = {"lower": " ↓", "higher": " ↑", "none": ""}
_MOST_FOOTNOTES = 20
_NOT_REACHED = "not reached: "


class Column(NamedTuple):
    """A column of a table; ``csv_only`` columns are too many or too long for a page."""

    key: str
    header: str
    numeric: bool = True
    csv_only: bool = False


class Entry(NamedTuple):
    """One field: the raw value, how it reads (default: as a number), and a footnote."""

    value: Any
    text: str | None = None
    note: str | None = None


@dataclass
class Table:
    """Rows of entries under columns; ``name`` is its file name, ``notes`` stand below it."""

    name: str
    title: str
    columns: list[Column]
    rows: list[dict[str, Entry]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def markdown(self, most: int | None = None, whole: str | None = None) -> Md:
        """A GitHub table with footnotes: the first ``most`` rows if given, and where the ``whole`` is."""
        shown = [c for c in self.columns if not c.csv_only]
        rows = self.rows[:most]
        footnotes: list[str] = []
        lines = [
            "| " + " | ".join(md(c.header) for c in shown) + " |",
            "|" + "|".join("---:" if c.numeric else ":---" for c in shown) + "|",
        ]
        lines += ["| " + " | ".join(_field(row.get(c.key), footnotes) for c in shown) + " |" for row in rows]
        below = [f"<sup>{i}</sup> {md(text)}" for i, text in enumerate(footnotes[:_MOST_FOOTNOTES], start=1)]
        if len(footnotes) > _MOST_FOOTNOTES:
            below.append(
                f"<sup>\\*</sup> {len(footnotes) - _MOST_FOOTNOTES} more reasons are in "
                f"{whole or f'{self.name}.csv'}"
            )
        below += [md(note, limit=2000) for note in self.notes]
        if len(rows) < len(self.rows):
            said = f"The first {len(rows):,} of {len(self.rows):,} rows; all are in "
            below.append(Md(f"{said}{whole or f'{self.name}.md'}."))
        return Md("\n".join(lines) + ("\n\n" + "<br>\n".join(below) if below else "") + "\n")

    def csv(self) -> str:
        """Raw values; ``KEY.reason`` columns where values are missing."""
        reasons = [c for c in self.columns if any(_is_missing(row.get(c.key)) for row in self.rows)]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([raw(c.key) for c in self.columns] + [raw(f"{c.key}.reason") for c in reasons])
        for row in self.rows:
            values = [raw(entry.value) if (entry := row.get(c.key)) else "" for c in self.columns]
            missing = (row.get(c.key) for c in reasons)
            notes = (clean(e.note or "") if e and e.value is None else "" for e in missing)
            writer.writerow(values + [raw(note) for note in notes])
        return out.getvalue()


def _is_missing(entry: Entry | None) -> bool:
    return entry is not None and entry.value is None and bool(entry.note)


def _field(entry: Entry | None, footnotes: list[str]) -> str:
    if entry is None:
        return MISSING
    text = md(number(entry.value) if entry.text is None else entry.text)
    if not entry.note:
        return text
    if entry.note not in footnotes:
        footnotes.append(entry.note)
    mark = footnotes.index(entry.note) + 1
    return f"{text}<sup>{mark if mark <= _MOST_FOOTNOTES else '*'}</sup>"


def raw(value: Any) -> Any:
    """A CSV field; text that a spreadsheet would run as a formula is made plain text."""
    if not isinstance(value, str):
        return "" if value is None else value
    text = clean(value, 2000)
    return "'" + text if text.startswith(("=", "+", "-", "@")) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def header(metric: Metric, unit: str) -> str:
    """``perplexity ↓`` or ``cache (MiB) ↓``: label, unit, and which direction is better."""
    return with_unit(metric.label, unit, metric.unit) + ARROWS[metric.direction]


def name_columns(data: RunData, names: Iterable[str]) -> list[Column]:
    """Columns for parameters, aligned by what they hold."""
    return [Column(n, n.replace("_", " "), _is_numeric(data.frame[n])) for n in names]


def name_entries(row: Any, names: Iterable[str]) -> dict[str, Entry]:
    """A row's parameters (a pandas row) as entries."""
    return {n: _setting(row[n]) for n in names}


def _setting(value: Any) -> Entry:
    """A parameter's value, which is what was asked and not what was measured: never rounded."""
    return Entry(value, given(value)) if isinstance(value, float) else Entry(value)


def _is_numeric(values: pd.Series) -> bool:
    return all(v is None or (isinstance(v, (int, float)) and not isinstance(v, bool)) for v in values)


def metric_columns(
    data: RunData, frame: pd.DataFrame, metrics: Sequence[Metric]
) -> list[tuple[Column, float]]:
    """A column per metric with the divisor that expresses its values in the header's unit."""
    columns = []
    for metric in metrics:
        scale = scale_for(metric.unit, (v for v in frame[metric.name] if isinstance(v, (int, float))))
        columns.append((Column(metric.name, header(metric, scale.unit)), scale.divisor))
    return columns


def metric_entry(data: RunData, index: int, metric: str, divisor: float = 1.0) -> Entry:
    """A cell's value of a metric, or a dash with its reason; that of an edited record says so."""
    found = data.records[index].metrics.get(metric)
    if found is None or found.value is None:
        return Entry(None, note=data.reason(index, metric))
    text = number(found.value / divisor if divisor != 1 else found.value)
    return Entry(found.value, text, EDITED if data.records[index].cell in data.edited else None)


def reported_metrics(data: RunData, *, headline: bool = False) -> list[Metric]:
    """Metrics that some cell has reported (if only as missing), in the order of declaration."""
    seen = {name for record in data.records for name in record.metrics}
    return [m for m in data.words.metrics.values() if m.name in seen and (m.headline or not headline)]


def headline(data: RunData) -> Table:
    """One row per pass: its furthest measured cell and the headline metrics."""
    measured = longest(data, data.ok)
    lost = data.failed[~data.failed["pass_id"].isin(set(measured["pass_id"]))]
    frame = pd.concat([measured, longest(data, lost)]).sort_index() if len(measured) else measured
    names = identifying(data, frame) if len(frame) else ["label"]
    wanted = reported_metrics(data, headline=True) or reported_metrics(data)
    known = [m for m in wanted if frame[m.name].notna().any()] or wanted
    metrics = metric_columns(data, frame, known)
    table = Table("headline", "Results", [*name_columns(data, names), *(c for c, _ in metrics)])
    stops = _stops(data)
    for index in frame.index:
        row = frame.loc[index]
        entries = name_entries(row, names)
        stop = stops.get(row["pass_id"])
        if stop and row["status"] == Status.OK:
            last = data.words.prefix_axis if data.words.prefix_axis in entries else names[-1]
            entries[last] = Entry(row[last], note=stop)
        entries |= {c.key: metric_entry(data, index, c.key, divisor) for c, divisor in metrics}
        table.rows.append(entries)
    same = common(data, frame)
    if same:
        table.notes.append(
            "Common to all rows: " + ", ".join(f"{k} = {given(v)}" for k, v in same.items()) + "."
        )
    table.notes += _left_out(data, [m for m in wanted if m not in known])
    return table


def _left_out(data: RunData, metrics: Sequence[Metric]) -> list[str]:
    """Why metrics that would be columns have no value in any row: a sentence for every reason."""
    reasons: dict[str, list[str]] = {}
    for metric in metrics:
        here = [index for index in data.ok.index if metric.name in data.records[index].metrics]
        why = " or ".join(sorted({data.reason(index, metric.name) for index in here}))
        reasons.setdefault(why, []).append(metric.label)
    return [
        f"No value in any row, so no column: {', '.join(labels)}{f' ({why})' if why else ''}."
        for why, labels in reasons.items()
    ]


def _stops(data: RunData) -> dict[str, str]:
    """For every pass that broke off, where and why; one that was measured further on has a gap there."""
    axis, failed = data.words.prefix_axis, data.failed
    if axis is None or axis not in failed or not len(failed):
        return {}
    found, reached = {}, extent(data, data.ok).groupby(data.ok["pass_id"]).max()
    ends = extent(data, failed)
    for index in ends.groupby(failed["pass_id"], sort=False).idxmin():
        record = data.records[index]
        where = f"{axis} {number(failed[axis][index])}"
        where += "" if reached.get(record.pass_id, -1) > ends[index] else " and beyond"
        found[record.pass_id] = f"{where}: {record.status}: {record.reason}"
    return found


def full(data: RunData) -> Table:
    """Every cell with every metric; the CSV also has every column and the conformance checks."""
    names = identifying(data)
    metrics = metric_columns(data, data.frame, reported_metrics(data))
    facts = [c for c in data.frame.columns if c not in OWN and c not in names and c not in data.words.metrics]
    checks = sorted({key for record in data.records for key in record.conformance})
    columns = [
        *name_columns(data, names),
        Column("status", "status", numeric=False),
        *(c for c, _ in metrics),
        *(Column(name, name, csv_only=True) for name in [*facts, *OWN] if name not in (*names, "status")),
        *(Column(f"conformance.{name}", name, csv_only=True) for name in checks),
        *([Column("edited", "edited", csv_only=True)] if data.edited else []),
    ]
    table = Table("full", "All cells", columns)
    shown = [*facts, *OWN, *names]
    for index, values in enumerate(data.frame[shown].itertuples(index=False, name=None)):
        entries = {name: _setting(value) for name, value in zip(shown, values, strict=True)}
        entries |= {c.key: metric_entry(data, index, c.key, divisor) for c, divisor in metrics}
        entries |= {f"conformance.{k}": Entry(v) for k, v in data.records[index].conformance.items()}
        entries["edited"] = Entry(data.records[index].cell in data.edited)
        table.rows.append(entries)
    return table


def failures(data: RunData, lost: Mapping[tuple[str, str], int] | None = None) -> Table:
    """What failed and why: one row per pass and cause, counting the cells lost behind the first.

    ``lost``: how many cells each pass and cause took, where not all of them are here.
    """
    frame = data.failed
    names = identifying(data)
    columns = [
        *name_columns(data, names),
        Column("status", "status", numeric=False),
        Column("reason", "reason", numeric=False),
        Column("lost", "cells behind it"),
        Column("after_s", "after"),
    ]
    table = Table("failures", "What was not measured", columns)
    causes = [cause_of(reason) for reason in frame["reason"]]
    groups: dict[tuple[str, str], list[int]] = {}
    for index, pass_id, cause in zip(frame.index, frame["pass_id"], causes, strict=True):
        groups.setdefault((pass_id, cause), []).append(int(index))
    for (pass_id, cause), cells in groups.items():
        behind = (lost[pass_id, cause] if lost else len(cells)) - 1
        row, seconds = frame.loc[cells[0]], data.records[cells[0]].duration_s
        table.rows.append(
            name_entries(row, names)
            | {"status": Entry(row["status"]), "reason": Entry(cause)}
            | {"lost": Entry(behind), "after_s": Entry(seconds, duration(seconds))}
        )
    return table


def cause_of(reason: object) -> str:
    """Why a cell failed, the same for all that were not reached because of it."""
    return str(reason).removeprefix(_NOT_REACHED)


def legend(data: RunData) -> Table:
    """What each metric means."""
    columns = [Column(n, n, numeric=False) for n in ("metric", "unit", "better", "compared as", "meaning")]
    table = Table("metrics", "What the numbers mean", columns)
    for metric in reported_metrics(data):
        values = (
            metric.label,
            metric.unit or MISSING,
            metric.direction,
            metric.klass,
            metric.help or MISSING,
        )
        entries = (Entry(v if v != "none" else MISSING) for v in values)
        table.rows.append(dict(zip((c.key for c in columns), entries, strict=True)))
    return table
