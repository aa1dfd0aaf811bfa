"""The index of a file that is being written: a segment for every block, as soon as it is full."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from bench.results import index as reading
from bench.results.index import Tail
from bench.results.line import parse_line
from bench.results.outline import outline
from bench.results.segment import INDEX, Segment, pack, save


class GrowingIndex:
    """Follows what a writer appends to ``path``, from the tail on that was there."""

    def __init__(self, path: Path, tail: Tail) -> None:
        self._path, self._tail = path, tail

    def add(self, line: bytes) -> None:
        """A line with its newline is on the disk (or the newline alone, that a line had lost)."""
        tail = self._tail
        if line.strip():
            place = tail.length, len(line) - 1, tail.lines
            tail.rows.append(outline(place, parse_line(self._path, line[:-1])))
        tail.truth.update(line)
        tail.length += len(line)
        tail.lines += 1
        if tail.length >= reading.BLOCK:
            with suppress(OSError):  # what cannot be indexed is read instead
                data, truth = pack(tail.rows, tail.lines), tail.truth.hexdigest()
                save(self._path.parent / INDEX, tail.start, tail.length, truth, data)
            self._tail = Tail(tail.start + tail.length)


def tidy_index(folder: Path, valid: Iterable[Segment]) -> None:
    """Remove whatever in an index folder is no segment of the file as it is. Only the writer may."""
    keep = {one.path.name for one in valid}
    with suppress(OSError):
        for path in folder.iterdir():
            if path.name not in keep:
                path.unlink()
        if not keep:
            folder.rmdir()
