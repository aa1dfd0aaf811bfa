"""A large run as data: the cells chosen to be drawn, and what is needed to say and write the rest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

from bench.errors import UserError
from bench.report import frames, remarks
from bench.report.columns import to_frame
from bench.report.frames import RunData
from bench.report.large import CHOSEN_CELLS, MOST_CELLS
from bench.report.large.choice import choose
from bench.report.large.every import EveryCell
from bench.report.large.planned import walk
from bench.report.large.run import LargeRun
from bench.report.large.survey import Anchor, Survey
from bench.report.vocabulary import metrics_of, vocabulary
from bench.results.digest import Integrity
from bench.results.index import Index, open_index
from bench.results.outline import DAMAGED_LINE
from bench.results.record import Record, canonical
from bench.results.store import ENV, PLAN, RECORDS, SUITE, edited_at
from bench.suite.choice import named
from bench.text import clean, plural, slug
from bench.workload import Controlled, Workload

_COLUMNS = ("names", "column_names", "units", "status", "reason", "pass_id")
_CHUNK = 1 << 20


class _Cell(NamedTuple):
    """A record as far as ``--only`` can ask for it."""

    id: str
    label: str
    seed: int


def load_only(folder: Path, wanted: str, workload: Workload | None = None) -> RunData:
    """Of a run folder the cells that ``wanted`` names (as `run --only` does), to be drawn in ``only/``.

    Raises UserError if it names none that belongs to the run's plan.
    """
    if not (folder / RECORDS).exists():
        raise UserError(f"{folder} holds no record", hint="give the folder of a run that has measured")
    index = open_index(folder / RECORDS, (*_COLUMNS, "label", "seed"))
    columns = [index.columns[name] for name in ("cell", "label", "seed")]
    newest = {columns[0][row]: row for row in index.rows()}
    plan = _plan(folder / PLAN)
    rows = [row for cell, row in newest.items() if not plan.cells or cell in plan.cells]
    ids = named(wanted, [_Cell(*(column[row] for column in columns)) for row in rows])
    del columns[1:], index.columns["label"], index.columns["seed"]
    return _load(folder, workload, index, newest, plan, Asked(wanted, ids))


class Asked(NamedTuple):
    """What was asked for, and the ids of these cells."""

    wanted: str
    ids: set[str]

    @property
    def place(self) -> str:
        """The folder of the report: no two requests have the same."""
        exact = hashlib.sha256(self.wanted.encode(errors="surrogatepass")).hexdigest()
        return f"{slug(self.wanted)[:60]}-{exact[:6]}"


class Planned(NamedTuple):
    """A plan without its cells, the ids of these in order, and what must be said of it."""

    rest: dict[str, Any]
    cells: dict[str, None]
    notes: list[str]


def load_run(folder: Path, workload: Workload | None = None) -> RunData:
    """Read a run folder: all of it, or a `LargeRun` if it has more than `MOST_CELLS` cells."""
    found = _large(folder)
    if found is None:
        return frames.load(folder, workload)
    return _load(folder, workload, *found, _plan(folder / PLAN))


def refuse_large(folders: Iterable[Path]) -> None:
    """Raise UserError for a run that is too large to stand beside others on a page; reads no record."""
    for folder in folders:
        if found := _large(folder):
            raise UserError(
                f"{folder} has {plural(len(found[1]), 'cell')}: a page of several runs is drawn of "
                f"at most {MOST_CELLS:,} cells each",
                hint="`python -m bench compare` prints how they differ; without a baseline a page is drawn",
            )


def _large(folder: Path) -> tuple[Index, dict[str, int]] | None:
    """The index of a run of more than `MOST_CELLS` cells and the newest row of each; None for others."""
    if not _more_lines(folder / RECORDS, MOST_CELLS):
        return None
    index = open_index(folder / RECORDS, _COLUMNS)
    cells = index.columns["cell"]
    newest = {cells[row]: row for row in index.rows()}
    return (index, newest) if len(newest) > MOST_CELLS else None


def _more_lines(path: Path, most: int) -> bool:
    """Whether a file has more than so many lines; read no further than that."""
    count = 0
    if path.exists():
        with open(path, "rb") as file:
            while count <= most and (piece := file.read(_CHUNK)):
                count += piece.count(b"\n")
    return count > most


def _load(
    folder: Path,
    workload: Workload | None,
    index: Index,
    newest: Mapping[str, int],
    read: Planned,
    asked: Asked | None = None,
) -> LargeRun:
    notes = remarks.lost_lines(folder, sum(1 for _ in index.rows(DAMAGED_LINE)))
    suite, env = frames.read_yaml(folder / SUITE, notes), frames.read_json(folder / ENV, notes)
    plan, planned = read.rest, read.cells
    notes += read.notes + remarks.planned_notes(plan)
    rows = [newest[cell] for cell in planned if cell in newest] if planned else [*newest.values()]
    notes += remarks.stale(len(newest) - len(rows))
    of, missing = len(rows), len(rows) < len(planned)
    if asked:  # no telling which of the cells without an answer it means
        rows, planned = [row for row in rows if index.columns["cell"][row] in asked.ids], {}
    edited = {index.columns["cell"][row]: row for row in _edited(index, rows)}
    first = [edited_at(index, row) for row in [*edited.values()][: remarks.MOST_NAMED]]
    notes += remarks.edited_notes(first)
    survey = Survey(_names(index, rows), _anchors(suite, workload))
    for row in rows:
        survey.add(index.plain(row))
    notes += survey.caveats()
    metrics = metrics_of(workload, _kinds(index, rows))
    notes += remarks.shadowed(set(survey.measured) - set(metrics))
    records, chosen = _chosen(index, rows, survey, asked, of)
    words = replace(vocabulary(workload, records), metrics=metrics)
    drawn = {record.cell for record in records}
    return LargeRun(
        folder,
        records,
        to_frame(records, metrics),
        words,
        suite,
        env,
        plan | (_requested(folder / PLAN, records) if missing else {}),
        {cell: "" for cell in planned if cell in drawn},
        notes,
        edited={cell: edited_at(index, row) for cell, row in edited.items() if cell in drawn},
        of_all=survey.whole(len(planned), len(planned) - len(rows) if planned else 0, len(edited), chosen),
        out=folder / "only" / asked.place if asked else None,
        index=index,
        rows=rows,
        every=EveryCell(survey, words, frozenset(edited)),
    )


def _chosen(
    index: Index, rows: Sequence[int], survey: Survey, asked: Asked | None, of: int
) -> tuple[list[Record], str]:
    """The records to be drawn, and which these are, as a sentence."""
    most = MOST_CELLS if asked and len(rows) <= MOST_CELLS else CHOSEN_CELLS
    given = {name: one.given for name, one in survey.parameters.items()}
    choice = choose(given, len(rows), most, survey.kept)
    records = [index.record(rows[place]) for place in choice.places]
    rule = f" ({choice.rule})" if choice.rule else ""
    said = f"{len(records):,} of {plural(len(rows), 'cell')} are drawn{rule}"
    if asked:
        beginning = f"{len(rows):,} of {plural(of, 'cell')} are looked at, those called {asked.wanted!r}"
        said = f"{beginning}; {said}" if rule else beginning
    return records, clean(said, 2000)


def _plan(path: Path) -> Planned:
    rest: dict[str, Any] = {}
    try:
        return Planned(rest, {str(cell["id"]): None for cell in walk(path, rest)}, [])
    except FileNotFoundError:
        return Planned({}, {}, [])
    except (OSError, ValueError) as error:
        return Planned({}, {}, [f"{path.name} could not be read: {error}"])


def _requested(path: Path, records: Sequence[Record]) -> dict[str, Any]:
    """Of a plan whose cells are not all here: those of the settings that are drawn."""
    settings = {canonical(record.params) for record in records}
    cells = (cell for cell in walk(path, {}) if "params" in cell)
    return {"cells": [cell for cell in cells if canonical(cell["params"]) in settings]}


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
