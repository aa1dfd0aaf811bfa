"""A comparison for people: a table for the page, Markdown for a pull request, lines for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bench import registry
from bench.errors import UserError
from bench.gate import show
from bench.gate.baseline import read_run
from bench.gate.compare import ComparedRun, Comparison, Lookup, Row, Series, compare
from bench.gate.rule import Verdict
from bench.gate.scope import parameter_defaults
from bench.gate.verdict import Judgement
from bench.report.frames import RunData
from bench.report.tables import Column, Entry, Table
from bench.report.web.compared import Compared
from bench.report.web.sections import names
from bench.results.record import Record
from bench.text import MISSING, clean, interval, md, number, plural, scale_for

_MARKDOWN_ROWS = 40  # per verdict
WORDS = {  # of each verdict
    Verdict.PASS: "equal within tolerance",
    Verdict.REGRESSED: "worse",
    Verdict.IMPROVED: "better",
    Verdict.INCONCLUSIVE: "undecided",
    Verdict.INCOMPARABLE: "incomparable",
}


def compare_runs(runs: Sequence[RunData]) -> Comparison:
    """Hold runs against the last of them. Raises UserError for what cannot be compared (another suite, …)."""
    base = runs[-1]
    known = base.records or runs[0].records
    suite, workload = (known[0].suite, known[0].workload) if known else (base.name, "")
    stored = [
        read_run(run.folder, suite, workload, name) for run, name in zip(runs, names(runs), strict=True)
    ]
    metrics = {m.name: m for run in runs for m in run.words.metrics.values()}
    tolerances = runs[0].suite.get("tolerances")
    sides = [ComparedRun(found.side, _series(run)) for found, run in zip(stored, runs, strict=True)]
    found = compare(
        sides[-1],
        sides[:-1],
        list(metrics.values()),
        tolerances if isinstance(tolerances, dict) else None,
        _defaults(workload),
    )
    notes = (*(note for one in stored for note in one.notes), *found.notes)
    return replace(found, notes=notes, replicate=runs[0].words.replicate, sample=runs[0].words.sample)


def _defaults(workload: str) -> dict[str, Any]:
    """What a run that does not know a parameter has done; empty for a workload that is not installed."""
    try:
        return parameter_defaults(registry.load(workload))
    except UserError:
        return {}


def _series(run: RunData) -> Lookup:
    """A record's series from the artifacts of its run."""
    places = {record.cell: i for i, record in enumerate(run.records)}

    def look_up(record: Record, name: str) -> Series | None:
        place = places.get(record.cell)
        return None if place is None else run.series(place, name)

    return look_up


def page_section(comparison: Comparison, title: str = "") -> Compared:
    """What the page shows of a comparison."""
    return Compared(
        title=title,
        lines=[clean(line, 600) for line in sentences(comparison)],
        counts=[(str(verdict), count, WORDS[verdict]) for verdict, count in comparison.counts.items()],
        table=table(comparison),
        machines=machines(comparison),
    )


def sentences(comparison: Comparison) -> list[str]:
    """What was compared with what, how it went, and how to read it."""
    counts = ", ".join(f"{count:,} {WORDS[verdict]}" for verdict, count in comparison.counts.items())
    lines = [f"{', '.join(comparison.runs)} against {comparison.baseline}: {counts or 'nothing in common'}."]
    if not comparison.decided:
        fields = list(dict.fromkeys(f.name for f in comparison.fields))
        why = f": these differ: {', '.join(fields[:6])}{' …' if len(fields) > 6 else ''}" if fields else ""
        lines.append(f"No two numbers may stand beside each other{why}.")
    lines.append(
        "Exact metrics must be equal, near ones within their tolerance; noisy ones come from separate "
        "sessions, which differ by themselves, so only a large difference over several processes counts "
        "(python -m bench gate --against REF decides finer). Numbers of other machines are incomparable."
    )
    if any(row.interval for row in comparison.rows):
        beside = ": the table over seeds has what holds over several" if comparison.over_seeds else ""
        lines.append(f"The interval of a row is about that one {comparison.replicate}{beside}.")
    return [*lines, *(f"{note}." for note in comparison.notes)]


def tables(comparison: Comparison) -> dict[str, Table]:
    """All tables of a comparison, by file name."""
    some = (seeds_table(comparison), machines(comparison))
    return {"comparison": table(comparison)} | {one.name: one for one in some if one.rows}


def table(comparison: Comparison) -> Table:
    """Every compared number; worst first."""
    several = len(comparison.runs) > 1
    columns = [
        *([Column("run", "run", numeric=False)] if several else []),
        Column("cell", "cell", numeric=False),
        Column("metric", "metric", numeric=False),
        Column("verdict", "verdict", numeric=False),
        Column("baseline", f"baseline {clean(comparison.baseline, 40)}"),
        Column(
            "value", "this run" if several else clean(comparison.runs[0] if comparison.runs else "run", 40)
        ),
        Column("change", "change"),
        Column("interval", "difference, 95 % interval"),
        Column("class", "compared as", numeric=False),
        *(Column(n, n, csv_only=True) for n in ("unit", "difference", "low", "high", "ratio", "reason")),
    ]
    found = Table("comparison", "Every compared number", columns)
    found.rows = [_entries(row) for row in comparison.rows]
    return found


def _entries(row: Row) -> dict[str, Entry]:
    one = row.judgement
    entries = {
        "run": Entry(row.run),
        "cell": Entry(one.cell),
        "metric": Entry(one.label),
        "verdict": Entry(str(one.verdict), note=clean(one.reason) or None),
        "baseline": Entry(one.base, show.value(one, one.base)),
        "value": Entry(one.head, show.value(one, one.head)),
        "change": Entry(None if one.verdict is Verdict.INCOMPARABLE else one.difference, _change(one)),
        "class": Entry(one.klass),
        "reason": Entry(clean(one.reason)),
        "unit": Entry(one.unit),
    }
    if one.verdict is not Verdict.INCOMPARABLE:
        entries |= {"difference": Entry(one.difference), "ratio": Entry(one.ratio)}
    if row.interval:
        limits = row.interval
        entries["interval"] = Entry(limits.estimate, _limits(row), note=f"from {row.basis}")
        entries |= {"low": Entry(limits.low), "high": Entry(limits.high)}
    return entries


def _change(one: Judgement) -> str:
    """The gate's words; a number of another machine is shown, but never divided by ours."""
    return MISSING if one.verdict is Verdict.INCOMPARABLE else show.change(one)


def _limits(row: Row) -> str:
    limits = row.interval
    assert limits is not None
    if limits.low == limits.high:
        return number(limits.estimate)
    scale = scale_for(row.judgement.unit, [limits.estimate])
    return interval(*(v / scale.divisor for v in (limits.estimate, limits.low, limits.high)))


def seeds_table(comparison: Comparison) -> Table:
    """The difference of every metric over all seeds of a setting, where there are several."""
    several, replicate = len(comparison.runs) > 1, comparison.replicate
    columns = [
        *([Column("run", "run", numeric=False)] if several else []),
        Column("cell", "cell", numeric=False),
        Column("metric", "metric", numeric=False),
        Column("difference", "difference, 95 % interval"),
        Column("seeds", f"{replicate}s (seeds)"),
        *(Column(n, n, csv_only=True) for n in ("unit", "low", "high", "covers")),
    ]
    found = Table("comparison-seeds", "Over seeds", columns)
    for one in comparison.over_seeds:
        limits, scale = one.interval, scale_for(one.unit, [one.interval.estimate])
        text = interval(*(v / scale.divisor for v in (limits.estimate, limits.low, limits.high)))
        covers = f"{replicate}s" + (f" and their {comparison.sample}s" if one.shared else "")
        found.rows.append(
            {
                "run": Entry(one.run),
                "cell": Entry(one.cell),
                "metric": Entry(one.label),
                "difference": Entry(limits.estimate, f"{text} {scale.unit}".rstrip(), f"over {covers}"),
                "seeds": Entry(one.seeds, f"{one.seeds} of {one.planned}"),
                "unit": Entry(one.unit),
                "low": Entry(limits.low),
                "high": Entry(limits.high),
                "covers": Entry(covers),
            }
        )
    return found


def machines(comparison: Comparison) -> Table:
    """The fields of the fingerprints that differ."""
    several = len(comparison.runs) > 1
    columns = [
        *([Column("run", "run", numeric=False)] if several else []),
        Column("field", "field", numeric=False),
        Column("baseline", f"baseline {clean(comparison.baseline, 40)}", numeric=False),
        Column("value", "this run", numeric=False),
    ]
    found = Table("machines", "What differs between the machines", columns)
    found.rows = [
        {"run": Entry(f.run), "field": Entry(f.name), "baseline": Entry(f.baseline), "value": Entry(f.value)}
        for f in comparison.fields
    ]
    return found


def markdown(comparison: Comparison, *, files: bool) -> str:
    """The comparison for a pull request: verdicts, what differs, and every number that is not equal.

    ``files``: whether `tables` lie beside it, as CSV; else who misses a row is told what draws them.
    """

    def cut(one: Table) -> str:
        whole = f"tables/{one.name}.csv" if files else "what `python -m bench report` draws of these runs"
        return one.markdown(_MARKDOWN_ROWS, whole)

    parts = [f"# {md(', '.join(comparison.runs))} against {md(comparison.baseline)}", ""]
    parts += [f"{md(line, 800)}\n" for line in sentences(comparison)]
    if comparison.fields:
        parts += ["## What differs between the machines", "", cut(machines(comparison))]
    if comparison.over_seeds:
        parts += ["## Over seeds", "", cut(seeds_table(comparison))]
    everything = table(comparison)
    for verdict, count in comparison.counts.items():
        rows = [row for row in everything.rows if row["verdict"].value == verdict]
        kept = [c for c in everything.columns if c.key not in ("verdict", "class")]
        part = replace(everything, columns=kept, rows=rows, notes=[])
        folded = verdict not in (Verdict.REGRESSED, Verdict.IMPROVED)
        title = f"{show.MARKS[verdict]} {WORDS[verdict]}: {plural(count, 'number')}"
        text = cut(part)
        parts += (
            [f"<details><summary>{title}</summary>\n\n{text}\n</details>\n"]
            if folded
            else [f"## {title}\n", text]
        )
    return "\n".join(parts).rstrip() + "\n"
