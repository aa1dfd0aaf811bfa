"""A stored run as one side of a gate: read with suspicion, refused with a reason.

A baseline may be anything: a run of another suite, of a newer version, cut short, or edited by hand.
What the file format lets one check is checked (fingerprints against their ids, records against the plan,
every record against its digest, values against their own samples, artifacts against their hashes). That
catches accidents; whoever also computes new digests is not caught.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.errors import UserError, parse_json
from bench.gate.match import Side
from bench.gate.verdict import SideInfo
from bench.results.digest import Integrity
from bench.results.environment import fingerprint_id
from bench.results.index import Index, open_index
from bench.results.record import Status, setting_of
from bench.results.store import ENV, PLAN, RECORDS, edited_at
from bench.results.stored import StoredRecord, stored
from bench.run.loop import FAILED
from bench.suite.request import find_run
from bench.text import clean, plural


@dataclass(frozen=True)
class Stored:
    """A run folder that may be compared with, and what should be known about it."""

    folder: Path
    side: Side
    info: SideInfo
    plan: dict[str, Any]
    notes: tuple[str, ...] = field(default=())


def open_run(text: str, results: Path, suite: str, workload: str) -> Stored:
    """The run named by ``text`` (a folder, or a suite for its newest run). Raises UserError if unusable."""
    folder = find_run(text, results)
    return read_run(folder, suite, workload)


# What is looked at of every record; the rest is read of those that are compared.
_COLUMNS = (
    "suite", "workload", "cell", "label", "setting", "names", "seed", "repeat", "status", "reason", "env",
    "artifacts", "outside",
)  # fmt: skip


def read_run(folder: Path, suite: str, workload: str, name: str | None = None) -> Stored:
    """Read and check a run folder; the records in the order of the file."""
    index = _open(folder / RECORDS)
    rows = [] if index is None else [*index.rows()]
    damaged = 0 if index is None else len(index) - len(rows)
    plan = _object(folder / PLAN, passes=list, version=str)
    env = _object(folder / ENV, id=str, earlier=dict, git=dict)
    if index is None or not rows:
        detail = f": none of its {plural(damaged, 'line')} is one" if damaged else ""
        raise UserError(
            f"{folder} holds no record{detail}", hint="give the folder of a run that has measured"
        )
    _check_kind(folder, index, suite, workload)
    _check_digests(index)
    environments = _environments(folder, env)
    planned = planned_by_id(plan)
    _check_untouched(folder, index, planned)
    notes = []
    if undigested := sum(1 for _ in index.rows(Integrity.NONE)):
        notes.append(
            f"{folder.name}: {plural(undigested, 'record')} of an older version, without a digest "
            "that would show later edits"
        )
    if damaged:
        notes.append(f"{folder.name}: {plural(damaged, 'line')} of {RECORDS} cannot be read")
    cells, repeats = index.columns["cell"], index.columns["repeat"]
    newest = {(cells[row], repeats[row]): row for row in rows if not planned or cells[row] in planned}
    if stale := len({cells[row] for row in rows} - planned.keys()) if planned else 0:
        notes.append(
            f"{folder.name}: {plural(stale, 'record')} left out of cells that its suite no longer has"
        )
    if left := planned.keys() - set(cells):
        notes.append(f"{folder.name} is unfinished: {len(left)} of {len(planned)} cells have no record")
    if not any(index.columns["status"][row] == Status.OK for row in newest.values()):
        notes.append(f"{folder.name}: no cell of it was measured")
    side = Side(name or folder.name, tuple(stored(index, newest.values())), environments)
    return Stored(folder, side, info(side, plan, env), plan, tuple(notes))


def info(side: Side, plan: Mapping[str, Any], env: Mapping[str, Any], prepared: str = "") -> SideInfo:
    """What the verdict file says of a side."""
    git = env.get("git") or {}
    failed = {record.question for record in side.records if record.status in FAILED}
    return SideInfo(
        name=side.name,
        commit=git.get("commit"),
        dirty=git.get("dirty"),
        version=plan.get("version"),
        environment=sorted({record.env for record in side.records}),
        prepared=prepared,
        failed_cells=len(failed),
    )


def _check_kind(folder: Path, index: Index, suite: str, workload: str) -> None:
    kinds = dict.fromkeys(zip(index.columns["suite"], index.columns["workload"], strict=True))
    for own in (kind for kind in kinds if kind != (None, None)):  # of a damaged line
        for what, found, wanted in zip(("suite", "workload"), own, (suite, workload), strict=True):
            if found != wanted:
                raise UserError(
                    f"{folder} is a run of {what} {clean(found, 80)!r}, not of {wanted!r}",
                    hint=f"give a run of the same {what}, e.g. results/{suite}/RUN",
                )


def _environments(folder: Path, env: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Fingerprints by id; one whose content does not give its id was edited."""
    earlier = env.get("earlier") or {}
    known = (data for data in (env, *earlier.values()) if isinstance(data, dict))
    found = {str(data["id"]): data for data in known if data.get("id")}
    for name, data in found.items():
        if fingerprint_id(data) != name:
            raise UserError(_edited(folder, f"{ENV} does not match its id {clean(name, 20)}"), hint=_AGAIN)
    return found


_AGAIN = "measure the baseline again; records must stay as they were written"


def _edited(folder: Path, how: str) -> str:
    return f"{folder} was changed after it was measured: {how}"


def _check_digests(index: Index) -> None:
    edited = [*index.rows(Integrity.BROKEN)]
    if edited:
        first, more = edited_at(index, edited[0]), len(edited) - 1
        others = f", and {plural(more, 'more record')} of this file" if more else ""
        raise UserError(f"{clean(first)}{others}", hint=_AGAIN, where=first.where)


def _check_untouched(folder: Path, index: Index, planned: Mapping[str, dict[str, Any]]) -> None:
    cells, outside, kept = (index.columns[name] for name in ("cell", "outside", "artifacts"))
    for row in index.rows():
        if cells[row] not in planned and outside[row] is None and kept[row] is None:
            continue
        record, cell = StoredRecord(index, row), planned.get(cells[row])
        name = clean(record.label, 60)
        if cell and not _is_planned(record, cell):
            raise UserError(_edited(folder, f"{name} is not the cell that {PLAN} names"), hint=_AGAIN)
        if outside[row] is not None:
            how = f"{clean(outside[row], 40)} of {name} lies outside its own samples"
            raise UserError(_edited(folder, how), hint=_AGAIN)
        for place, sha256 in json.loads(kept[row] or "[]"):
            try:
                path = (folder / place).resolve()
                differs = path.is_relative_to(folder.resolve()) and path.is_file() and _sha256(path) != sha256
            except (OSError, ValueError, RuntimeError):  # a name too long, a NUL in it, a loop of links
                differs = True
            if differs:
                raise UserError(_edited(folder, f"{clean(place, 100)} has another hash"), hint=_AGAIN)


def _is_planned(record: StoredRecord, cell: Mapping[str, Any]) -> bool:
    """Whether a record is of the cell that the plan gives its id to, as far as the plan says."""
    if any(cell.get(key, getattr(record, key)) != getattr(record, key) for key in ("seed", "repeat")):
        return False
    with suppress(ValueError, TypeError):
        if "params" not in cell or setting_of(cell["params"]) == record.setting:
            return True
    return bool(cell["params"] == record.params)  # 1.0 is 1 here


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def planned_by_id(plan: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The cells of a plan.json that lists passes."""
    lists = [work.get("cells") for work in plan.get("passes") or () if isinstance(work, dict)]
    cells = [cell for found in lists if isinstance(found, list) for cell in found]
    return {str(cell["id"]): cell for cell in cells if isinstance(cell, dict) and "id" in cell}


def _open(path: Path) -> Index | None:
    """What the run has recorded; None if there is no file. Raises UserError if it cannot be read."""
    try:
        return open_index(path, _COLUMNS)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror or error}", hint="give the folder of another run"
        ) from error
    except UserError as error:  # of a newer schema
        raise UserError(
            error.message, hint="update ddposink, or measure that run again with this version"
        ) from error


def _object(path: Path, **kinds: type) -> dict[str, Any]:
    """A JSON object of the run; empty if there is none. Raises UserError if it is not whole.

    ``kinds`` are the types of those of its fields that are looked at.
    """
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}", hint=_AGAIN) from error
    if not isinstance(data, dict):
        raise UserError(_edited(path.parent, f"{path.name} is not an object"), hint=_AGAIN)
    for name, kind in kinds.items():
        if not isinstance(data.get(name), kind | None):
            raise UserError(_edited(path.parent, f"{name} of {path.name} is no {kind.__name__}"), hint=_AGAIN)
    return data
