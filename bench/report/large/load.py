"""A large run as data: the cells chosen to be drawn, and what is needed to say and write the rest."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from bench.errors import UserError
from bench.report import frames
from bench.report.columns import to_frame
from bench.report.frames import RunData
from bench.report.large import CHOSEN_CELLS, MOST_CELLS
from bench.report.large.choice import choose
from bench.report.large.every import EveryCell
from bench.report.large.planned import walk
from bench.report.large.survey import Anchor, Survey
from bench.report.vocabulary import metrics_of, vocabulary
from bench.results.digest import Integrity
from bench.results.index import Index, open_index
from bench.results.outline import DAMAGED_LINE
from bench.results.record import Record, canonical
from bench.results.store import ENV, PLAN, RECORDS, SUITE, edited_at
from bench.text import plural
from bench.workload import Controlled, Workload

_COLUMNS = ("names", "column_names", "units", "status", "reason", "pass_id")
_CHUNK = 1 << 20


@dataclass
class LargeRun(RunData):
    """The chosen cells of a run, which behave like a run of their own, and the index of all."""

    index: Index = field(kw_only=True)
    rows: Sequence[int] = field(kw_only=True)  # of the index: every cell, in the order of the plan
    every: EveryCell = field(kw_only=True)  # the table of all cells

    def all_plain(self) -> Iterator[dict[str, Any]]:
        """Every cell's record as JSON data, read one after the other."""
        return map(self.index.plain, self.rows)


def load_run(folder: Path, workload: Workload | None = None) -> RunData:
    """Read a run folder: all of it, or a `LargeRun` if it has more than `MOST_CELLS` cells."""
    if not _more_lines(folder / RECORDS, MOST_CELLS):
        return frames.load(folder, workload)
    index = open_index(folder / RECORDS, _COLUMNS)
    cells = index.columns["cell"]
    newest = {cells[row]: row for row in index.rows()}
    if len(newest) <= MOST_CELLS:
        return frames.load(folder, workload)
    return _load(folder, workload, index, newest)


def refuse_large(runs: Iterable[RunData]) -> None:
    """Raise UserError for runs that are too large to stand side by side on a page."""
    for run in runs:
        if isinstance(run, LargeRun):
            raise UserError(
                f"{run.folder} has {plural(len(run.rows), 'cell')}: a page of several runs is drawn of "
                f"at most {MOST_CELLS:,} cells each",
                hint="`python -m bench compare` prints how they differ; without a baseline a page is drawn",
            )


def _more_lines(path: Path, most: int) -> bool:
    """Whether a file has more than so many lines; read no further than that."""
    count = 0
    if path.exists():
        with open(path, "rb") as file:
            while count <= most and (piece := file.read(_CHUNK)):
                count += piece.count(b"\n")
    return count > most


def _load(folder: Path, workload: Workload | None, index: Index, newest: Mapping[str, int]) -> LargeRun:
    notes = frames.lost_lines(folder, sum(1 for _ in index.rows(DAMAGED_LINE)))
    suite, env = frames.read_yaml(folder / SUITE, notes), frames.read_json(folder / ENV, notes)
    plan, planned = _plan(folder / PLAN, notes)
    notes += frames.planned_notes(plan)
    rows = [newest[cell] for cell in planned if cell in newest] if planned else [*newest.values()]
    notes += frames.stale(len(newest) - len(rows))
    edited_rows = _edited(index, rows)
    notes += frames.edited_notes([edited_at(index, row) for row in edited_rows[: frames.MOST_NAMED]])
    survey = Survey(_names(index, rows), _anchors(suite, workload))
    for row in rows:
        survey.add(index.plain(row))
    notes += survey.caveats()
    metrics = metrics_of(workload, _kinds(index, rows))
    notes += frames.shadowed(set(survey.measured) - set(metrics))
    given = {name: one.given for name, one in survey.parameters.items()}
    choice = choose(given, len(rows), CHOSEN_CELLS, survey.kept)
    records = [index.record(rows[place]) for place in choice.places]
    rule = f" ({choice.rule})" if choice.rule else ""
    chosen = f"{len(records):,} of {plural(len(rows), 'cell')} are drawn{rule}"
    words = replace(vocabulary(workload, records), metrics=metrics)
    edited = {index.columns["cell"][row] for row in edited_rows}
    kept = {record.cell for record in records}
    return LargeRun(
        folder,
        records,
        to_frame(records, metrics),
        words,
        suite,
        env,
        plan | _asked(folder / PLAN, records, len(rows) < len(planned)),
        dict.fromkeys((cell for cell in planned if cell in kept), ""),
        notes,
        edited={
            index.columns["cell"][r]: edited_at(index, r)
            for r in edited_rows
            if index.columns["cell"][r] in kept
        },
        of_all=survey.whole(len(planned), len(planned) - len(rows) if planned else 0, len(edited), chosen),
        index=index,
        rows=rows,
        every=EveryCell(survey, words, frozenset(edited)),
    )


def _plan(path: Path, notes: list[str]) -> tuple[dict[str, Any], dict[str, None]]:
    """The plan without its cells, and the ids of these in order."""
    rest: dict[str, Any] = {}
    try:
        return rest, {str(cell["id"]): None for cell in walk(path, rest)}
    except FileNotFoundError:
        return {}, {}
    except (OSError, ValueError) as error:
        notes.append(f"{path.name} could not be read: {error}")
        return {}, {}


def _asked(path: Path, records: Sequence[Record], missing: bool) -> dict[str, Any]:
    """Of a plan with cells that were not answered: those of the settings that are drawn."""
    if not missing:
        return {}
    settings = {canonical(record.params) for record in records}
    asked = (cell for cell in walk(path, {}) if "params" in cell)
    return {"cells": [cell for cell in asked if canonical(cell["params"]) in settings]}


def _edited(index: Index, rows: Sequence[int]) -> list[int]:
    """Rows of cells whose newest record is no longer as it was measured, in the order of the file."""
    broken = set(index.rows(Integrity.BROKEN))
    return sorted(broken.intersection(rows)) if broken else []


def _names(index: Index, rows: Sequence[int]) -> list[str]:
    """Every parameter that a cell has, in order of appearance."""
    texts = dict.fromkeys(map(index.columns["names"].__getitem__, rows))
    return [*dict.fromkeys(name for text in texts for name in json.loads(text))]


def _kinds(index: Index, rows: Sequence[int]) -> list[Record]:
    """One stand-in for all records with the same parameters, columns and units of metrics."""
    columns = (index.columns[name] for name in ("names", "column_names", "units"))
    names, column_names, units = (map(one.__getitem__, rows) for one in columns)
    found = [
        SimpleNamespace(
            parameter_names=frozenset(json.loads(name)),
            column_names=frozenset(json.loads(column)),
            units=json.loads(unit),
        )
        for name, column, unit in dict.fromkeys(zip(names, column_names, units, strict=True))
    ]
    return cast(list[Record], found)


def _anchors(suite: Mapping[str, Any], workload: Workload | None) -> Iterator[Anchor]:
    """What cells are held against: by the suite, by the workload, by its views."""
    compare = suite.get("compare")
    if isinstance(compare, dict) and "axis" in compare:
        yield str(compare["axis"]), compare.get("reference")
    if isinstance(workload, Controlled) and workload.control is not None:
        yield workload.control.column, workload.control.value
    for view in workload.views if workload else ():
        if view.control is not None:
            yield view.control
