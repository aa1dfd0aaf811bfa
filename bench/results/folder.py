"""Which folder a run writes to: the newest one whose numbers may stand beside ours, or a new one.

``results/SUITE/YYYYMMDD-HHMMSS-xxxxxx/``, one writer at a time for all runs of a suite.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil

from bench.errors import UserError, listed, parse_json, there
from bench.results.environment import Fingerprint, comparable
from bench.results.store import ENV, PLAN, clear_errors, write_atomic

_STAMP = "%Y%m%d-%H%M%S"


@dataclass(frozen=True)
class RunFolder:
    """The run folder to work in; ``why`` says why the newest run was not resumed."""

    folder: Path
    resumed: bool
    why: str | None = None


def run_folders(results: Path, suite: str) -> list[Path]:
    """Folders of all runs of a suite that began properly, newest first."""
    if not there(results / suite):
        return []
    folders = (path.parent for path in (results / suite).glob(f"*/{ENV}"))
    return sorted((f for f in folders if _started(f) is not None), key=lambda f: f.name, reverse=True)


def choose_run(
    results: Path,
    suite: str,
    fingerprint: Fingerprint,
    overrides: Mapping[str, Any],
    version: str,
    *,
    new: bool = False,
) -> RunFolder:
    """Resume the newest run of ``suite`` made with the same ``--set``, if its numbers may stand beside ours.

    They may not if machine or packages differ, or if the workload's code (``version``) does: that run's
    page stays as it is, and a new run begins.

    Creates the folder and its fingerprint. Call it under ``locked``.
    """
    earlier = run_folders(results, suite)
    plans = {folder: _load(folder / PLAN) for folder in earlier}
    alike = [folder for folder in earlier if plans[folder].get("overrides", {}) == overrides]
    candidates = [folder for folder in alike if plans[folder].get("version", version) == version]
    why = None
    if candidates and not new and (target := leads_out(candidates[0])):
        why = f"the newest run {candidates[0].name} is a link that leads out of {results}, to {target}"
    elif candidates and not new:
        known = _load(candidates[0] / ENV)
        differing = comparable(known, fingerprint) if known else [f"environment ({ENV} cannot be read)"]
        if not differing:
            _write_fingerprint(candidates[0], fingerprint, known)
            return RunFolder(candidates[0], resumed=True)
        why = f"the newest run {candidates[0].name} was made with another {listed(differing)}"
    elif alike and not new:
        why = f"the newest run {alike[0].name} was made with another version of the workload's code"
    folder = _new_folder(results / suite, earlier)
    _write_fingerprint(folder, fingerprint, {})
    return RunFolder(folder, resumed=False, why=why)


def remove_partial(folder: Path) -> None:
    """Remove files that a process which is gone was writing (see `write_atomic`), and no others."""
    for path in folder.glob(".*.*"):
        writer = path.suffix[1:]
        if writer.isdecimal() and len(writer) < 10 and not psutil.pid_exists(int(writer)):
            path.unlink(missing_ok=True)


def leads_out(folder: Path) -> Path | None:
    """Where a run folder is, if that is not where it seems to be: nothing is written through such a link."""
    real = folder.resolve()
    return None if real.parent == folder.parent.resolve() else real


def _new_folder(parent: Path, earlier: list[Path]) -> Path:
    folder = parent / name_after(earlier[0] if earlier else None)
    with clear_errors(f"cannot create a run folder in {parent}"):
        for name in ("artifacts", "logs"):
            (folder / name).mkdir(parents=True)
    return folder


def name_after(newest: Path | None) -> str:
    """A name for what begins now, which sorts after ``newest`` even within the same second."""
    now = datetime.now(UTC).replace(microsecond=0)
    if newest is not None:
        now = max(now, (_started(newest) or now) + timedelta(seconds=1))
    return f"{now.strftime(_STAMP)}-{secrets.token_hex(3)}"


def _started(folder: Path) -> datetime | None:
    try:
        found = datetime.strptime(folder.name[:15], _STAMP).replace(tzinfo=UTC)
    except ValueError:  # not one of ours
        return None
    return found if found.year < 9999 else None  # nothing could come after it


def _write_fingerprint(folder: Path, fingerprint: Fingerprint, known: dict[str, Any]) -> None:
    """Keep every fingerprint that a record of this run may name: the newest on top, others below it."""
    earlier = known.pop("earlier", {})
    if known and known.get("id") != fingerprint["id"]:
        earlier |= {known["id"]: known}
    earlier.pop(fingerprint["id"], None)
    data = fingerprint | ({"earlier": earlier} if earlier else {})
    write_atomic(folder / ENV, json.dumps(data, indent=2) + "\n")


def keep_fingerprint(folder: Path, fingerprint: Fingerprint) -> None:
    """Keep a fingerprint that records of this run will name, below the one of the run."""
    known = _load(folder / ENV)
    if known.get("id") != fingerprint["id"]:
        known["earlier"] = known.get("earlier", {}) | {fingerprint["id"]: fingerprint}
        write_atomic(folder / ENV, json.dumps(known, indent=2) + "\n")


def _load(path: Path) -> dict[str, Any]:
    """A JSON object from a run folder; empty if it is not there or not whole."""
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


@contextmanager
def locked(
    folder: Path, *, wait: bool = False, on_wait: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold a suite's results folder for one run. A second run waits (``wait``) or is refused clearly."""
    from filelock import FileLock, Timeout

    holder = folder / ".holder"
    with clear_errors(f"cannot use {folder} for results"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            who = holder.read_text().strip() if holder.exists() else "another process"
            if not wait:
                raise UserError(
                    f"{folder} is in use by {who}",
                    hint="wait for it with --wait, or write elsewhere with --results DIR",
                ) from None
            if on_wait:
                on_wait(who)
            lock.acquire()
        try:
            holder.write_text(f"process {os.getpid()} (since {datetime.now():%H:%M:%S})\n")
        except OSError:
            lock.release()
            raise
    try:
        yield
    finally:
        with suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()
