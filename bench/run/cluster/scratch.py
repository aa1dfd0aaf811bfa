"""What a pass keeps for its next attempt, on its way: from its node to the run folder, and to the next node.

On one machine a pass that is cut off finds its folder again. On a cluster the driver has a copy of it, for
the node may be gone. The copy is of one moment, is replaced as a whole or not at all, and is never older than
an answer that has been recorded.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench.run.cluster.files import CHUNK, ChangedError, Read, copy
from bench.run.context import SCRATCH
from bench.run.kept import OLD, PART, restore

QUIET_SECONDS = 1.0  # without a change, before a folder is looked at: it may be in the middle of writing
BUSY_SECONDS = 30.0  # after which one that is never quiet is looked at all the same
LOOKS = 5  # in a row, at a folder that changes while it is looked at

Listing = dict[str, tuple[int, int, int]]  # of files by relative path: inode, bytes, time in ns


@dataclass(frozen=True)
class Kept:
    """A file of a snapshot."""

    path: str  # relative to the pass's folder
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Snapshot:
    """A folder as it was at one moment. Its files can be read below ``place`` until the next one is made."""

    number: int  # from 1, for this attempt
    place: str  # relative to the run folder on the node
    files: tuple[Kept, ...]


class Watch:
    """On the node: makes snapshots of the folder of pass ``name`` below ``root``."""

    def __init__(self, root: Path, name: str) -> None:
        self._root, self._folder = root, root / SCRATCH / name
        self._seen = self._known = listing(self._folder)
        self._changed = self._made = time.monotonic()
        self._last: Snapshot | None = None
        self._closed = False
        self._hashes: dict[tuple[str, tuple[int, int, int]], str] = {}

    def look(self, taken: int, *, now: bool = False, over: bool = False) -> Snapshot | None:
        """A snapshot that the driver does not have; None if there is none (yet).

        ``taken``: number of the last one that it has dealt with. ``now``: do not wait until it is quiet.
        ``over``: the pass has ended, so one more is made at most, whoever still writes there.
        """
        if self._last is not None and taken < self._last.number:
            return self._last
        if self._closed:
            return None
        found, clock = listing(self._folder), time.monotonic()
        if found != self._seen:
            self._seen, self._changed = found, clock
        quiet = clock - self._changed >= QUIET_SECONDS or clock - self._made >= BUSY_SECONDS
        if found == self._known or not (now or quiet):
            return None
        made = self._snapshot(taken + 1)
        self._closed = over and made is not None
        return made

    def is_known(self) -> bool:
        """Whether the last snapshot, or what was there at the start, is what there is."""
        return listing(self._folder) == self._known

    def _snapshot(self, number: int) -> Snapshot | None:
        place = self._root / ".kept" / str(number)
        for _ in range(LOOKS):
            shutil.rmtree(place.parent, ignore_errors=True)
            before = listing(self._folder)
            try:
                for path in before:
                    _link(self._folder / path, place / path)
                if listing(self._folder) != before:
                    continue
                files = tuple(self._kept(place, path, what) for path, what in before.items())
            except OSError:  # it has changed meanwhile
                continue
            self._known, self._made = before, time.monotonic()
            self._last = Snapshot(number, place.relative_to(self._root).as_posix(), files)
            return self._last
        return None

    def _kept(self, place: Path, path: str, what: tuple[int, int, int]) -> Kept:
        if (path, what) not in self._hashes:  # what has not changed is not read again
            with open(place / path, "rb") as file:
                self._hashes[path, what] = hashlib.file_digest(file, "sha256").hexdigest()
        return Kept(path, what[1], self._hashes[path, what])


class Copy:
    """In the run folder ``root``, of the driver: the copy of what pass ``name`` keeps."""

    def __init__(self, root: Path, name: str) -> None:
        self._here = root / SCRATCH / name
        self._part, self._old = (self._here.with_name(name + suffix) for suffix in (PART, OLD))
        restore(self._here)
        self._known: dict[str, str] = {}  # hashes of what we have put there

    def take(self, snapshot: Snapshot, read: Read) -> None:
        """Have what the node has. The copy is as it was if anything goes wrong.

        Raises ChangedError if a file is not what was announced or lies elsewhere, OSError if it cannot be
        written, and whatever ``read`` raises.
        """
        shutil.rmtree(self._part, ignore_errors=True)
        try:
            self._part.mkdir(parents=True)
            for kept in snapshot.files:
                self._receive(kept, f"{snapshot.place}/{kept.path}", read)
            self._swap()
            self._known = {kept.path: kept.sha256 for kept in snapshot.files}
        finally:
            shutil.rmtree(self._part, ignore_errors=True)

    def pieces(self) -> Iterator[tuple[str, int, bytes]]:
        """All there is: path below the run folder, where the piece begins, and its bytes."""
        for path in listing(self._here):
            start, below = 0, f"{SCRATCH}/{self._here.name}/{path}"
            with open(self._here / path, "rb") as file:
                yield below, start, (piece := file.read(CHUNK))  # of an empty file too
                while len(piece) == CHUNK:
                    start += CHUNK
                    yield below, start, (piece := file.read(CHUNK))

    def _receive(self, kept: Kept, source: str, read: Read) -> None:
        target = self._part / kept.path
        if not target.resolve().is_relative_to(self._part.resolve()):
            raise ChangedError(f"{kept.path} does not lie in the folder of its pass")
        if self._known.get(kept.path) == kept.sha256:
            _link(self._here / kept.path, target)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "wb") as file:
            digest = copy({"path": source, "bytes": kept.bytes}, read, file)
        if digest != kept.sha256:
            raise ChangedError(f"{kept.path} changed on its way from the node")

    def _swap(self) -> None:
        shutil.rmtree(self._old, ignore_errors=True)
        if self._here.exists():
            self._here.rename(self._old)
        self._part.rename(self._here)
        shutil.rmtree(self._old, ignore_errors=True)


def listing(folder: Path) -> Listing:
    """The plain files below ``folder``, in the order of their paths; links are not followed."""
    found: Listing = {}
    for above, _, names in os.walk(folder):
        for name in names:
            path = Path(above, name)
            with suppress(OSError):  # it has gone meanwhile
                if path.is_file() and not path.is_symlink():
                    about = path.stat()
                    found[path.relative_to(folder).as_posix()] = (
                        about.st_ino,
                        about.st_size,
                        about.st_mtime_ns,
                    )
    return dict(sorted(found.items()))


def write_piece(root: Path, path: str, start: int, piece: bytes) -> None:
    """On the node: put a piece of what the driver has where the next attempt finds it."""
    place = (root / path).resolve()
    if not place.is_relative_to((root / SCRATCH).resolve()):
        raise ValueError(f"{path} leads out of the folder of what passes keep")
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(place, "r+b" if start else "wb") as file:
        file.seek(start)
        file.write(piece)


def _link(source: Path, target: Path) -> None:
    """One more name for a file, or a copy where that is not possible."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
