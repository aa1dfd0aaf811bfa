"""Temporary folders that do not outlive their owner for long, however that ended.

A process that is killed removes nothing. So each folder has a lock file beside it that its owner holds: the
kernel lets go of it when the owner is gone, even after ``kill -9``, and whoever finds a lock that nobody
holds may remove the folder, and only then. A process id would not do: they are used again, and containers
that share a temporary folder do not see each other's.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PREFIX = "bench-"
_LOCK = ".lock"
_SHORT = 60  # characters that leave room for a socket below: its path may have about a hundred
_FLAGS = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)

Undo = Callable[[Path, Mapping[str, Any]], None]


@dataclass(frozen=True)
class OwnedFolder:
    """A folder of this process. ``remove`` it when it is done with."""

    path: Path
    lock: int  # file descriptor

    def remove(self) -> None:
        """Remove the folder and let go of it. Does nothing the second time."""
        shutil.rmtree(self.path, ignore_errors=True)
        with suppress(OSError):
            _lock_of(self.path).unlink()
        with suppress(OSError):
            os.close(self.lock)


def own(kind: str, note: Mapping[str, Any] | None = None) -> OwnedFolder:
    """A new folder ``bench-KIND-…`` of this process. ``note`` is for whoever tidies up after it (JSON).

    Raises OSError if there is no room for it.
    """
    while True:
        handle, made = tempfile.mkstemp(prefix=f"{PREFIX}{kind}-", suffix=_LOCK, dir=_root())
        os.close(handle)
        name = Path(made)
        lock = _held(name)
        if lock is None:
            continue  # somebody who tidies up was quicker
        try:
            os.write(lock, json.dumps(note or {}).encode())
            path = name.with_name(name.name.removesuffix(_LOCK))
            path.mkdir(mode=0o700)
        except OSError:
            name.unlink(missing_ok=True)
            os.close(lock)
            raise
        return OwnedFolder(path, lock)


def tidy(kind: str, undo: Undo | None = None) -> int:
    """Remove folders of this kind whose owners are gone; how many there were. Never raises OSError.

    ``undo`` is asked to take back what else the owner had made, as its note says, before the folder goes.
    """
    removed = 0
    for name in _root().glob(f"{PREFIX}{kind}-*{_LOCK}"):
        with suppress(OSError):
            if name.lstat().st_uid != os.getuid() or (lock := _held(name)) is None:
                continue
            folder = OwnedFolder(name.with_name(name.name.removesuffix(_LOCK)), lock)
            note = _note(lock)
            if undo is not None and note:
                undo(folder.path, note)
            folder.remove()
            removed += 1
    return removed


def _root() -> Path:
    """The system's temporary folder, or /tmp where that is too deep for a socket."""
    found, usual = Path(tempfile.gettempdir()), Path("/tmp")
    return usual if len(str(found)) > _SHORT and os.access(usual, os.W_OK) else found


def _lock_of(path: Path) -> Path:
    return path.with_name(path.name + _LOCK)


def _held(name: Path) -> int | None:
    """The lock file, held by this process now; None if somebody else holds it or it is gone."""
    import fcntl  # not on every system

    try:
        lock = os.open(name, _FLAGS)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), os.lstat(name)):
            return lock
    except OSError:
        pass  # held elsewhere, or removed meanwhile
    os.close(lock)
    return None


def _note(lock: int) -> dict[str, Any]:
    with suppress(ValueError):
        found = json.loads(os.pread(lock, 1 << 16, 0) or b"{}")
        return found if isinstance(found, dict) else {}
    return {}  # killed while writing it: there was nothing else yet
