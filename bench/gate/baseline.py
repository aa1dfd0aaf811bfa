"""A stored run as one side of a gate: read with suspicion, refused with a reason.

A baseline may be anything: a run of another suite, of a newer version, cut short, or edited by hand.
What the file format lets one check is checked (fingerprints against their ids, records against the plan,
every record against its digest, values against their own samples, artifacts against their hashes). That
catches accidents; whoever also computes new digests is not caught.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.errors import UserError, parse_json
from bench.gate.match import Side
from bench.gate.verdict import SideInfo
from bench.results.environment import fingerprint_id
from bench.results.record import Record, Status, canonical
from bench.results.store import ENV, PLAN, RECORDS, Found, read
from bench.run.loop import FAILED
from bench.suite.request import find_run
from bench.text import clean, plural

_SLACK = 1e-6  # relative; samples are stored as measured, summaries computed from them


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


def read_run(folder: Path, suite: str, workload: str, name: str | None = None) -> Stored:
    """Read and check a run folder; the records in the order of the file."""
    found = _read(folder / RECORDS)
    records, damaged = found.records, found.damaged
    plan = _object(folder / PLAN, passes=list, version=str)
    env = _object(folder / ENV, id=str, earlier=dict, git=dict)
    if not records:
        detail = f": none of its {plural(len(damaged), 'line')} is one" if damaged else ""
        raise UserError(
            f"{folder} holds no record{detail}", hint="give the folder of a run that has measured"
        )
    _check_kind(folder, records, suite, workload)
    _check_digests(found)
    environments = _environments(folder, env)
    _check_untouched(folder, records, plan)
    notes = []
    if found.undigested:
        notes.append(
            f"{folder.name}: {plural(found.undigested, 'record')} of an older version, without a digest "
            "that would show later edits"
        )
    if damaged:
        notes.append(f"{folder.name}: {plural(len(damaged), 'line')} of {RECORDS} cannot be read")
    newest = {(record.cell, record.repeat): record for record in records}
    left = _planned(plan).keys() - {record.cell for record in records}
    if left:
        notes.append(
            f"{folder.name} is unfinished: {len(left)} of {len(_planned(plan))} cells have no record"
        )
    if not any(record.status is Status.OK for record in newest.values()):
        notes.append(f"{folder.name}: no cell of it was measured")
    side = Side(name or folder.name, tuple(newest.values()), environments)
    return Stored(folder, side, info(side, plan, env), plan, tuple(notes))


def info(side: Side, plan: Mapping[str, Any], env: Mapping[str, Any], prepared: str = "") -> SideInfo:
    """What the verdict file says of a side."""
    git = env.get("git") or {}
    failed = {canonical([r.params, r.seed]) for r in side.records if r.status in FAILED}
    return SideInfo(
        name=side.name,
        commit=git.get("commit"),
        dirty=git.get("dirty"),
        version=plan.get("version"),
        environment=sorted({record.env for record in side.records}),
        prepared=prepared,
        failed_cells=len(failed),
    )


def _check_kind(folder: Path, records: Iterable[Record], suite: str, workload: str) -> None:
    for record in records:
        for what, found, wanted in (
            ("suite", record.suite, suite),
            ("workload", record.workload, workload),
        ):
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


def _check_digests(found: Found) -> None:
    if found.edited:
        first, more = found.edited[0], len(found.edited) - 1
        others = f", and {plural(more, 'more record')} of this file" if more else ""
        raise UserError(f"{clean(first)}{others}", hint=_AGAIN, where=first.where)


def _check_untouched(folder: Path, records: Iterable[Record], plan: dict[str, Any]) -> None:
    planned = _planned(plan)
    for record in records:
        name = clean(record.label, 60)
        cell = planned.get(record.cell)
        if cell and any(
            cell.get(key, value) != value
            for key, value in (("params", record.params), ("seed", record.seed), ("repeat", record.repeat))
        ):
            raise UserError(_edited(folder, f"{name} is not the cell that {PLAN} names"), hint=_AGAIN)
        for metric, value in record.metrics.items():
            if value.value is None or not value.samples:
                continue
            slack = _SLACK * max(map(abs, value.samples))
            if not min(value.samples) - slack <= value.value <= max(value.samples) + slack:
                how = f"{clean(metric, 40)} of {name} lies outside its own samples"
                raise UserError(_edited(folder, how), hint=_AGAIN)
        for artifact in record.artifacts:
            path = (folder / artifact.path).resolve()
            inside = path.is_relative_to(folder.resolve())
            if inside and path.is_file() and _sha256(path) != artifact.sha256:
                raise UserError(_edited(folder, f"{clean(artifact.path, 100)} has another hash"), hint=_AGAIN)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _planned(plan: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    lists = [work.get("cells") for work in plan.get("passes") or () if isinstance(work, dict)]
    cells = [cell for found in lists if isinstance(found, list) for cell in found]
    return {str(cell["id"]): cell for cell in cells if isinstance(cell, dict) and "id" in cell}


def _read(path: Path) -> Found:
    """The records of the run. Raises UserError if they cannot be read."""
    try:
        return read(path)
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
