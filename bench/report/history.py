"""A suite over time: every metric of every cell in the order of the runs, and where it stepped.

A gate compares two commits; what creeps in by a percent a week, or came with a driver, shows only in the
long run. Steps are found by PELT (``ruptures``) on the logarithms, its penalty set from the noise between
neighbouring runs, and count only if they exceed the metric's tolerance. A step at which the machine or
its packages changed is told as such: the code is then not the first suspect.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench import registry
from bench.errors import UserError, did_you_mean, parse_json
from bench.gate.baseline import planned_by_id
from bench.report.session import warn
from bench.report.tables import raw
from bench.report.tracks import Track, follow
from bench.results.index import open_index
from bench.results.record import Record
from bench.results.store import ENV, PLAN, RECORDS, write_atomic
from bench.results.stored import stored
from bench.text import clean, number, plural, scale_for

CSV = "history.csv"


# What is looked at of every record; the values are read of cells that have a history.
_COLUMNS = (
    "cell",
    "suite",
    "workload",
    "run",
    "label",
    "setting",
    "seed",
    "repeat",
    "status",
    "started",
    "env",
)


def run_places(folder: Path) -> list[Path]:
    """Folders of runs in a folder, or one level below."""
    return sorted({path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{RECORDS}")})


def read_runs(folder: Path) -> tuple[list[tuple[list[Record], dict[str, Any]]], str]:
    """All runs in a folder (or one level below) of one suite, and the name of their workload."""
    places = run_places(folder)
    found = ((_planned_records(place), _object(place / ENV)) for place in places)
    runs = [(records, env) for records, env in found if records]
    if not runs:
        raise UserError(f"there is no run in {folder}", hint="give a folder of runs, e.g. results/SUITE")
    suites = sorted({records[0].suite for records, _ in runs})
    if len(suites) > 1:
        raise UserError(
            f"{folder} holds runs of several suites: {', '.join(clean(name, 40) for name in suites)}",
            hint=f"give the folder of one, e.g. {folder / suites[0]}",
        )
    return runs, runs[0][0][0].workload


def _planned_records(place: Path) -> list[Record]:
    """The records of cells that the run's plan still has; all of them if it has none."""
    index, planned = open_index(place / RECORDS, _COLUMNS), planned_by_id(_object(place / PLAN))
    cells = index.columns["cell"]
    return stored(index, (row for row in index.rows() if not planned or cells[row] in planned))


def write(folder: Path, out: Path, names: Sequence[str], console: Console) -> list[Path]:
    """Print the history of a folder, and write it as CSV and as a picture."""
    runs, workload = read_runs(folder)
    for place in run_places(folder):
        warn(place, console)
    metrics = registry.load(workload).metrics
    known = {metric.name: metric for metric in metrics}
    for name in names:
        if name not in known:
            raise UserError(f"workload {workload!r} has no metric {name!r}", hint=did_you_mean(name, known))
    tracks = follow(runs, [known[name] for name in names] or metrics)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / CSV, table_csv(tracks))
    show(tracks, len(runs), console)
    files = [out / CSV]
    if tracks:
        from bench.report.timeline import draw

        files += draw(tracks, out / "history", chosen=bool(names))
    console.print(
        f"written: {escape(', '.join(str(path) for path in files))}", soft_wrap=True, highlight=False
    )
    return files


def show(tracks: Sequence[Track], runs: int, console: Console) -> None:
    """Print every track that stepped, and how many did not."""
    stepped = [track for track in tracks if track.steps]
    if stepped:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("cell", "metric", "run", "commit", "before", "after", "change", ""):
            table.add_column(name, justify="right" if name in ("before", "after", "change") else "left")
        for track in stepped:
            for step in track.steps:
                point, scale = track.points[step.at], scale_for(track.metric.unit, [step.after])
                values = (
                    f"{number(v / scale.divisor)} {scale.unit}".rstrip() for v in (step.before, step.after)
                )
                change = f"{(step.after / step.before - 1) * 100:+.1f} %" if step.before > 0 else ""
                kind = {True: "[red]worse[/]", False: "[cyan]better[/]", None: "changed"}[step.worse]
                if step.environment:
                    kind += escape(f" (with {', '.join(step.environment[:3])})")
                texts = (
                    track.cell,
                    track.metric.label,
                    point.run,
                    (point.commit or "")[:10],
                    *values,
                    change,
                )
                table.add_row(*(escape(clean(text)) for text in texts), kind)
        console.print(table)
    counted = f"{plural(len(tracks), 'track')} over {plural(runs, 'run')}, {len(stepped)} with a step"
    console.print(
        counted if tracks else f"{plural(runs, 'run')}: no cell was measured twice", highlight=False
    )


def table_csv(tracks: Iterable[Track]) -> str:
    """One row per cell, metric and run; ``step`` says worse, better or changed where a level begins."""
    text = io.StringIO()
    sheet = csv.writer(text, lineterminator="\n")
    sheet.writerow(["cell", "metric", "unit", "run", "started", "commit", "value", "step"])
    for track in tracks:
        marks = {s.at: {True: "worse", False: "better", None: "changed"}[s.worse] for s in track.steps}
        for i, point in enumerate(track.points):
            own = [track.cell, track.metric.name, track.metric.unit, point.run, point.started]
            told = map(raw, (*own, str(point.commit or "")))
            sheet.writerow([*told, repr(point.value), marks.get(i, "")])
    return text.getvalue()


def _object(path: Path) -> dict[str, Any]:
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
