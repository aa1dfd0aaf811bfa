"""The index of a ``records.jsonl``: what is in it, without reading it line by line again.

The file stays the truth. It is cut into blocks of whole lines; for each block a segment (see
``bench.results.segment``) keeps an outline of every line, under a name that holds a digest of the block's
bytes. On opening, every byte of the file is hashed again and only segments whose bytes are the same are used;
everything else is parsed, and indexed for the next time. So an index cannot bring back a record that is gone,
nor hide one that is there, whatever happened to file or index; an index of another machine's file is of the
very same bytes or is ignored. It is never needed: it may be deleted at any time.

A file of less than a block has no index: it is read as quickly.
"""

from __future__ import annotations

import json
import os
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bench.errors import UserError, no_constant
from bench.results.build import build, cut, parse, read_range
from bench.results.digest import Integrity
from bench.results.outline import DAMAGED_LINE, Outline
from bench.results.record import Record
from bench.results.segment import INDEX, Columns, Segment, save, segments, truth_digest, unpack

BLOCK = 16 << 20  # bytes: about 4,000 records
_ALWAYS = ("offset", "length", "line", "seal", "cell")
_PLACES = ("offset", "length", "line")  # as numbers of eight bytes
_CHUNK = 1 << 20
_RECENT = 256  # records


@dataclass
class Tail:
    """The end of the file that no segment covers: less than a block, and parsed."""

    start: int
    length: int = 0
    lines: int = 0
    rows: list[Outline] = field(default_factory=list)  # offsets and lines counted from ``start``
    truth: Any = field(default_factory=truth_digest)  # over its bytes


@dataclass(frozen=True)
class _Part:
    """A block whose outline is known."""

    start: int
    end: int
    columns: Columns
    lines: int


class Index:
    """Every line of a file that is not empty, as a row; ``columns`` are those that were asked for.

    ``columns["offset"]`` and ``["line"]`` count from the beginning of the file, from 0.
    """

    def __init__(
        self, path: Path, file: int, columns: Columns, tail: Tail, parsed: dict[int, Record],
        valid: Sequence[Segment],
    ) -> None:  # fmt: skip
        self.path, self.columns, self.tail, self.valid = path, columns, tail, valid
        self._file, self._parsed, self._recent = file, parsed, dict[int, Record]()
        self.parsed = 0  # records that were read after opening
        weakref.finalize(self, os.close, file)

    def __len__(self) -> int:
        return len(self.columns["offset"])

    def line(self, row: int) -> bytes:
        """The line as it stands, without its newline."""
        offset = self.columns["offset"][row]
        return read_range(self._file, offset, offset + self.columns["length"][row])

    def at_hand(self, row: int) -> Record | None:
        """The record of a row that was parsed on opening and is kept: of the tail."""
        return self._parsed.get(row)

    def record(self, row: int) -> Record:
        """The record of a row that is no damaged line. Raises UserError if it is there no longer."""
        found = self._parsed.get(row) or self._recent.get(row)
        if found is None:
            found = self._recent[row] = self._parse(row)
            if len(self._recent) > _RECENT:
                del self._recent[next(iter(self._recent))]
        return found

    def plain(self, row: int) -> dict[str, Any]:
        """The record of a row as JSON has it, at half the price: keys with defaults may be missing.

        Only what its digest says is as it was written is taken unchecked. Raises UserError as `record` does.
        """
        if self.columns["seal"][row] != Integrity.WHOLE:
            return self.record(row).model_dump(mode="json")
        found: Any = None
        with suppress(ValueError):
            found = json.loads(self.line(row), parse_constant=no_constant)
        if found is None:  # a record has no NaN
            return self.record(row).model_dump(mode="json")
        if not isinstance(found, dict) or found.get("cell") != self.columns["cell"][row]:
            raise self._changed()
        self.parsed += 1
        return found

    def _changed(self) -> UserError:
        return UserError(f"{self.path} was changed while it was read", hint="run the same command again")

    def _parse(self, row: int) -> Record:
        record = None
        with suppress(ValueError):
            record = Record.model_validate_json(self.line(row))
        if record is None or record.cell != self.columns["cell"][row]:
            raise self._changed()
        self.parsed += 1
        return record

    def pieces(self, start: int, end: int) -> Iterator[bytes]:
        """The bytes of the file from ``start`` to ``end``, a little at a time."""
        while start < end and (piece := os.pread(self._file, min(_CHUNK, end - start), start)):
            yield piece
            start += len(piece)

    @property
    def end(self) -> int:
        """How many bytes of the file the index is of."""
        return self.tail.start + self.tail.length

    @property
    def ends_a_line(self) -> bool:
        """Whether the next line can be written right behind."""
        return not self.end or b"".join(self.pieces(self.end - 1, self.end)) == b"\n"

    def rows(self, seal: str | None = None) -> Iterator[int]:
        """Rows of lines with this seal (an `Integrity` or `DAMAGED_LINE`), or of all records."""
        seals = enumerate(self.columns["seal"])
        return (row for row, own in seals if (own != DAMAGED_LINE if seal is None else own == seal))


def open_index(path: Path, names: Iterable[str] = (), *, tell: bool = True) -> Index:
    """What ``path`` holds, with the named fields of `Outline` as columns. Writes nothing but the index.

    Raises UserError for records of a newer schema, and OSError. ``tell``: show progress on stderr where much
    has to be parsed.
    """
    wanted = [*_ALWAYS, *(name for name in names if name not in _ALWAYS)]
    file = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(file).st_size
        parts, valid = _known(file, segments(path.parent / INDEX), size, wanted)
        missing, tail = _missing(file, parts, size)
        for block in build(path, file, missing, tell=tell):
            with suppress(OSError):  # a folder that cannot be written to: the next time is as slow
                valid += [save(path.parent / INDEX, block.start, block.length, block.truth, block.data)]
            columns, lines = unpack(block.data, wanted) or ({}, 0)
            parts.append(_Part(block.start, block.start + block.length, columns, lines))
        parsed = _parse_tail(path, file, tail, size)
        parts.sort(key=lambda part: part.start)
        columns = _joined(parts, tail, wanted)
    except BaseException:
        os.close(file)
        raise
    before = len(columns["offset"]) - len(tail.rows)
    return Index(path, file, columns, tail, {before + row: one for row, one in parsed.items()}, valid)


def _known(
    file: int, found: Sequence[Segment], size: int, wanted: Sequence[str]
) -> tuple[list[_Part], list[Segment]]:
    """Blocks whose segment is whole and whose bytes are those in the file, and these segments."""
    parts: list[_Part] = []
    valid: list[Segment] = []
    candidates = [one for one in found if one.end <= size]
    if not candidates:
        return parts, valid
    with ThreadPoolExecutor(2) as pool:  # hashing lets other threads run
        same = list(pool.map(partial(_still_true, file), candidates))
    for one in (one for one, true in zip(candidates, same, strict=True) if true):
        apart = not parts or one.start >= parts[-1].end
        if apart and (read := one.read(wanted)) is not None:
            parts.append(_Part(one.start, one.end, *read))
            valid.append(one)
    return parts, valid


def _still_true(file: int, one: Segment) -> bool:
    """Whether the block is in the file, bytes and all, and begins where a line does."""
    truth, place = truth_digest(), one.start
    if place and os.pread(file, 1, place - 1) != b"\n":
        return False
    while place < one.end and (piece := os.pread(file, min(_CHUNK, one.end - place), place)):
        truth.update(piece)
        place += len(piece)
    return place == one.end and truth.hexdigest().startswith(one.truth)


def _missing(file: int, parts: Sequence[_Part], size: int) -> tuple[list[tuple[int, int]], Tail]:
    """Blocks that no segment covers, and the tail."""
    missing: list[tuple[int, int]] = []
    place = 0
    for part in parts:
        missing += cut(file, place, part.start, BLOCK)
        place = max(place, missing[-1][1] if missing else 0)
        if place < part.start:
            missing.append((place, part.start))
        place = part.end
    missing += cut(file, place, size, BLOCK)
    return missing, Tail(max(place, missing[-1][1] if missing else 0))


def _parse_tail(path: Path, file: int, tail: Tail, size: int) -> dict[int, Record]:
    """Fill in the tail; its records by row."""
    parsed: dict[int, Record] = {}
    data = read_range(file, tail.start, size)
    tail.rows, tail.lines = parse(path, data, parsed.__setitem__)
    tail.length = len(data)
    tail.truth.update(data)
    return parsed


def _joined(parts: Sequence[_Part], tail: Tail, wanted: Sequence[str]) -> Columns:
    """The columns of all parts and of the tail, counted from the beginning of the file."""
    names = {name: Outline._fields.index(name) for name in wanted}
    last: Columns = {name: [row[place] for row in tail.rows] for name, place in names.items()}
    joined: Columns = {name: array("q") if name in _PLACES else [] for name in wanted}
    lines = 0
    for part in (*parts, _Part(tail.start, tail.start + tail.length, last, tail.lines)):
        for name in wanted:
            values = part.columns.pop(name)  # not to hold everything twice
            base = {"offset": part.start, "line": lines}.get(name)
            joined[name].extend(values if base is None else [base + value for value in values])
        lines += part.lines
    return joined
