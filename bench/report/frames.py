"""A run folder as data: one pandas row per cell, and the per-position series on demand.

Reads whatever a run has left behind, also an unfinished or damaged one; what could not be read
becomes a note that the page prints. Nothing here knows what is measured: columns, metrics and series
are whatever the records and the workload's declarations say they are.
"""

from __future__ import annotations

import zipfile
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from bench.errors import parse_json
from bench.report import remarks
from bench.report.caveats import Caveats
from bench.report.columns import parameter_columns, to_frame
from bench.report.vocabulary import Vocabulary, for_comparison, vocabulary
from bench.report.whole import Whole, whole_of
from bench.results.index import open_index
from bench.results.record import Record, Status
from bench.results.store import ENV, PLAN, RECORDS, SUITE, Edited, read
from bench.results.stored import stored
from bench.text import clean
from bench.workload import Workload

Series = NDArray[np.float64]
EDITED = "edited after it was measured: this number is not the one that was written"
SERIES_END, SERIES_START = "series_end", "series_start"  # columns that bound a cell's part of its series


@dataclass
class RunData:
    """Everything a report draws from. ``frame`` has one row per cell; its index counts ``records``."""

    folder: Path
    records: list[Record]
    frame: pd.DataFrame
    words: Vocabulary
    suite: dict[str, Any]
    env: dict[str, Any]
    plan: dict[str, Any]
    planned: dict[str, str]  # cell id → label, in plan order; empty if the plan is unknown
    notes: list[str] = field(default_factory=list)
    known: dict[Hashable, Any] = field(default_factory=dict)  # results that several tables share
    contents: dict[str, Any] = field(default_factory=dict)  # of views, see ``bench.report.contents``
    named: dict[Hashable, dict[Hashable, str]] = field(default_factory=dict)  # see ``bench.report.names``
    edited: dict[str, Edited] = field(default_factory=dict)  # cell id → its record, if no longer as measured
    out: Path | None = None  # where its report goes, if not into its own folder
    of_all: Whole | None = None  # where only some cells are here: see ``bench.report.large``

    @property
    def name(self) -> str:
        """The suite's name."""
        return str(
            self.suite.get("suite") or (self.records[0].suite if self.records else self.folder.parent.name)
        )

    @property
    def pages(self) -> Path:
        """The folder of its report."""
        return self.out or self.folder

    @property
    def whole(self) -> Whole:
        """Counts over all cells of the run."""
        return self.of_all or whole_of(self.records, self.planned, len(self.edited))

    @property
    def chosen(self) -> str:
        """Where only some cells are here, which, as a sentence without its full stop; else empty."""
        return self.of_all.chosen if self.of_all else ""

    @property
    def parameters(self) -> list[str]:
        """Columns that are parameters of a cell (not facts found while measuring), in column order."""
        known = parameter_columns(self.records, self.words.metrics)
        return [column for column in self.frame.columns if column in known]

    @property
    def ok(self) -> pd.DataFrame:
        """The rows of cells that were measured."""
        return self.frame[self.frame["status"] == Status.OK]

    @property
    def failed(self) -> pd.DataFrame:
        """The rows of cells that were not."""
        return self.frame[self.frame["status"] != Status.OK]

    def compare(self) -> tuple[str, Any] | None:
        """The suite's ``compare: {axis, reference}``, if it asks for a comparison."""
        wanted = self.suite.get("compare")
        if not isinstance(wanted, dict) or "axis" not in wanted:
            return None
        return str(wanted["axis"]), wanted.get("reference")

    def reason(self, index: int, metric: str) -> str:
        """Why a cell has no value of a metric."""
        record = self.records[index]
        if record.status is not Status.OK:
            return f"{record.status}: {record.reason}"
        value = record.metrics.get(metric)
        return (value.reason if value else None) or "not measured by this cell"

    def series(self, index: int, name: str) -> Series | None:
        """A cell's own part of a series as float64, or None (with a note if a file is damaged).

        It is the arrays of that name in the cell's artifacts, one after the other.
        """
        record, pieces = self.records[index], []
        for artifact in record.artifacts:
            if not artifact.path.endswith(".npz"):
                continue
            try:
                path = _inside(self.folder, artifact.path)
                piece = _load(path, path.stat().st_mtime_ns, name)
            except (OSError, ValueError, zipfile.BadZipFile) as error:
                self.note(f"{artifact.path} cannot be read ({error}); its series are missing below")
                return None
            if piece is not None:
                pieces.append(piece.astype(np.float64))
        if not pieces:
            return None
        whole, end = np.concatenate(pieces), record.columns.get(SERIES_END)
        end = len(whole) if not isinstance(end, int) else end
        if end > len(whole):
            last = record.artifacts[-1].path
            self.note(f"{last} holds {len(whole):,} values of {name}, the cells promise {end:,}")
        return whole[:end]

    def array(self, index: int, series: str, name: str) -> Series | None:
        """One array of the artifact ``series-….npz`` of a cell as float64, or None."""
        kept = self._artifact(index, series, ".npz")
        if kept is None:
            return None
        try:
            file = _inside(self.folder, kept)
            found = _load(file, file.stat().st_mtime_ns, name)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            self.note(f"{kept} cannot be read ({error}); its curves are missing below")
            return None
        return None if found is None else found.astype(np.float64)

    def arrays(self, index: int, series: str, beginning: str) -> dict[str, Series]:
        """The arrays of ``series-….npz`` of a cell whose names begin so, by what follows, as stored."""
        kept = self._artifact(index, series, ".npz")
        try:
            names = _names(_inside(self.folder, kept)) if kept else []
        except (OSError, ValueError, zipfile.BadZipFile):
            names = [beginning]  # asked for, so that it is said why it cannot be read
        found = {n: self.array(index, series, n) for n in names if n.startswith(beginning)}
        return {name[len(beginning) :]: one for name, one in found.items() if one is not None}

    def picture(self, index: int, series: str) -> Path | None:
        """The file of the picture artifact ``series-….webp`` (or ``.png``) of a cell, if it is there."""
        return self._file(index, series, ".webp") or self._file(index, series, ".png")

    def text(self, index: int, series: str) -> Path | None:
        """The file of the text artifact ``series-….txt`` of a cell, if it is there."""
        return self._file(index, series, ".txt")

    def _file(self, index: int, series: str, suffix: str) -> Path | None:
        """The file of an artifact, if it is there and inside the folder."""
        kept = self._artifact(index, series, suffix)
        try:
            file = _inside(self.folder, kept) if kept else None
        except ValueError:
            return None
        return file if file and file.is_file() else None

    def _artifact(self, index: int, series: str, suffix: str) -> str | None:
        """Path of a cell's artifact ``series-….suffix`` as recorded; nothing is opened."""
        for artifact in self.records[index].artifacts:
            path = Path(artifact.path)
            if path.suffix == suffix and path.stem.rsplit("-", 1)[0] == series:
                return artifact.path
        return None

    def note(self, text: str) -> None:
        """Remember something the reader must know; the same note only once."""
        if text not in self.notes:
            self.notes.append(text)


def load(folder: Path, workload: Workload | None = None) -> RunData:
    """Read a run folder. Without a workload, metrics are named as the records name them."""
    notes: list[str] = []
    file = read(folder / RECORDS)
    records, damaged = file.records, file.damaged
    notes += remarks.lost_lines(folder, len(damaged))
    suite, env, plan = (
        read_yaml(folder / SUITE, notes),
        read_json(folder / ENV, notes),
        read_json(folder / PLAN, notes),
    )
    notes += remarks.planned_notes(plan)
    planned = {str(c["id"]): str(c.get("label", c["id"])) for c in planned_cells(plan)}
    newest = {record.cell: record for record in records}
    kept = [newest[cell] for cell in planned if cell in newest] if planned else list(newest.values())
    notes += remarks.stale(len(newest) - len(kept))
    edited = {one.record.cell: one for one in file.edited if newest[one.record.cell] is one.record}
    notes += remarks.edited_notes(list(edited.values()))
    caveats = Caveats()
    for record in kept:
        caveats.add(record.label, record.conformance)
    notes += caveats.sentences()
    words = vocabulary(workload, kept)
    notes += remarks.shadowed({name for record in kept for name in record.metrics} - set(words.metrics))
    frame = to_frame(kept, words.metrics)
    return RunData(folder, kept, frame, words, suite, env, plan, planned, notes, edited=edited)


# What a comparison looks at of every record; the rest is read of those that stand side by side.
_COMPARED = ("suite", "workload", "names", "units", "column_names")


def load_to_compare(folder: Path, workload: Workload | None = None) -> RunData:
    """What `compare` needs of a run folder: no frame, and of the records only what its index knows."""
    notes: list[str] = []
    suite, env, plan = (
        read_yaml(folder / SUITE, notes),
        read_json(folder / ENV, notes),
        read_json(folder / PLAN, notes),
    )
    planned = {str(c["id"]): str(c.get("label", c["id"])) for c in planned_cells(plan)}
    kept: list[Record] = []
    if (folder / RECORDS).exists():
        index = open_index(folder / RECORDS, _COMPARED)
        rows = {index.columns["cell"][row]: row for row in index.rows()}
        kept = stored(index, (rows[cell] for cell in planned if cell in rows) if planned else rows.values())
    words = for_comparison(workload, kept)
    return RunData(folder, kept, pd.DataFrame(), words, suite, env, plan, planned, notes)


def workload_name(folder: Path) -> str | None:
    """The workload that a run folder's suite names, or else its first record."""
    name = read_yaml(folder / SUITE, []).get("workload")
    if name is None:
        index = open_index(folder / RECORDS, ("workload",)) if (folder / RECORDS).exists() else None
        row = next(index.rows(), None) if index else None
        name = index.columns["workload"][row] if index and row is not None else None
    return None if name is None else str(name)


_MOST_BYTES = 2**31  # of one array, unpacked: a stream of half a billion tokens


@lru_cache(maxsize=64)
def _load(path: Path, changed: int, name: str) -> NDArray[Any] | None:
    """One numeric 1-D array of an archive, as stored; ``changed`` makes a rewritten file a new one."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if name not in archive.files:
                return None
            if archive.zip.getinfo(f"{name}.npy").file_size > _MOST_BYTES:
                raise ValueError(f"{name} has more than {_MOST_BYTES:,} bytes")
            array = archive[name]
    except OSError:
        raise
    except Exception as error:  # a damaged archive fails anywhere between zip, zlib and a header's Python
        raise ValueError(f"damaged: {clean(error, 100) or type(error).__name__}") from error
    return array if array.ndim == 1 and array.dtype.kind in "fiu" else None


def _inside(folder: Path, relative: str) -> Path:
    path = (folder / relative).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError("the path leads out of the run folder")
    return path


def read_json(path: Path, notes: list[str]) -> dict[str, Any]:
    """A JSON object; empty without the file, and with a note if it cannot be read."""
    try:
        data = parse_json(path.read_text(encoding="utf-8"), exact=True)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        notes.append(f"{path.name} could not be read: {error}")
        return {}
    return data if isinstance(data, dict) else {}


def read_yaml(path: Path, notes: list[str]) -> dict[str, Any]:
    """A YAML mapping; empty without the file, and with a note if it cannot be read."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        notes.append(f"{path.name} could not be read: {error}")
        return {}
    return data if isinstance(data, dict) else {}


def _names(path: Path) -> list[str]:
    """The names of an archive's arrays, as stored."""
    with zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def planned_cells(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The cells of a plan.json, flat or grouped into passes."""
    groups = plan.get("passes")
    cells = (
        [c for p in groups if isinstance(p, dict) for c in p.get("cells") or []]
        if isinstance(groups, list)
        else plan.get("cells")
    )
    return [c for c in cells if isinstance(c, dict) and "id" in c] if isinstance(cells, list) else []
