"""Blocks of a ``records.jsonl``, parsed and judged: the slow part of an index, on all cores if there is much.

Helpers are processes that take their work at once and answer through a pipe: if this process dies, the pipe
breaks and so do they. What a helper does not answer is done here.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import IO, NamedTuple

from bench.errors import UserError
from bench.results.line import parse_line
from bench.results.outline import Outline, outline
from bench.results.record import Record
from bench.results.segment import pack, truth_digest

HELPED = 64 << 20  # bytes from which on helpers are worth their start
_MOST_HELPERS = 8
_CHUNK = 1 << 20
_HEADER = struct.Struct("<qqq64s")  # start, length, bytes of data, digest
_QUIET_SECONDS = 3.0  # of work that nobody need be told of
_TELL_SECONDS = 15.0
Range = tuple[int, int]


class Block(NamedTuple):
    """A parsed block: where it is, the digest of its bytes, and the bytes of its segment."""

    start: int
    length: int
    truth: str
    data: bytes


def cut(file: int, start: int, end: int, size: int) -> Iterator[Range]:
    """Blocks of whole lines, of ``size`` bytes and the rest of a line; not what is left at the end."""
    while end - start >= size:
        stop = _after_newline(file, start + size - 1, end)
        if stop is None:
            return
        yield start, stop
        start = stop


def _after_newline(file: int, place: int, end: int) -> int | None:
    while place < end:
        piece = os.pread(file, min(_CHUNK, end - place), place)
        if (found := piece.find(b"\n")) >= 0:
            return place + found + 1
        if not piece:
            return None
        place += len(piece)
    return None


def parse(
    path: Path, data: bytes, keep: Callable[[int, Record], None] | None = None
) -> tuple[list[Outline], int]:
    """Outlines of all lines in ``data``, a part of ``path``, and how many newlines it has.

    ``keep`` is handed every record with the number of its row.
    """
    rows: list[Outline] = []
    offset = 0
    for number, line in enumerate(data.split(b"\n")):
        if line.strip():
            parsed = parse_line(path, line)
            if parsed and keep:
                keep(len(rows), parsed[0])
            rows.append(outline((offset, len(line), number), parsed))
        offset += len(line) + 1
    return rows, data.count(b"\n")


def build(path: Path, file: int, ranges: Sequence[Range], *, tell: bool = True) -> Iterator[Block]:
    """Parse blocks, in any order. Raises UserError for a record of a newer schema."""
    progress = _Progress(path, sum(end - start for start, end in ranges), tell)
    left = dict(ranges)
    if progress.total >= HELPED:
        for block in _helped(path, file, ranges):
            left.pop(block.start)
            progress.add(block.length)
            yield block
    for start, end in left.items():
        yield _block(path, file, start, end)
        progress.add(end - start)


def _block(path: Path, file: int, start: int, end: int) -> Block:
    data = read_range(file, start, end)
    if len(data) < end - start:
        raise UserError(f"{path} was cut while it was read", hint="run the same command again")
    truth = truth_digest()
    truth.update(data)
    return Block(start, len(data), truth.hexdigest(), pack(*parse(path, data)))


def read_range(file: int, start: int, end: int) -> bytes:
    """The bytes from ``start`` to ``end``, fewer if the file ends before."""
    pieces = []
    while start < end and (piece := os.pread(file, end - start, start)):
        pieces.append(piece)
        start += len(piece)
    return b"".join(pieces)


def _helped(path: Path, file: int, ranges: Sequence[Range]) -> Iterator[Block]:
    """Blocks from helpers, as they come; those that fail leave some out."""
    count = min(_MOST_HELPERS, len(os.sched_getaffinity(0)), len(ranges))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "bench.results.build", str(path), str(file)]
    answers: SimpleQueue[Block | None] = SimpleQueue()
    helpers = []
    try:
        for number in range(count):
            helper = subprocess.Popen(
                [*command, json.dumps(ranges[number::count])],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=(file,),
                env=environment,
            )
            helpers.append(helper)
            threading.Thread(target=_listen, args=(helper.stdout, answers), daemon=True).start()
        for _ in helpers:
            yield from iter(answers.get, None)
    finally:
        for helper in helpers:
            helper.kill()
            helper.wait()


def _listen(pipe: IO[bytes], answers: SimpleQueue[Block | None]) -> None:
    """Hand on the blocks that a helper answers, and None in the end."""
    try:
        while len(header := pipe.read(_HEADER.size)) == _HEADER.size:
            start, length, size, truth = _HEADER.unpack(header)
            data = pipe.read(size)
            if len(data) == size:
                answers.put(Block(start, length, truth.decode(), data))
    finally:
        answers.put(None)


def _help(path: Path, file: int, ranges: Iterable[Range]) -> None:
    """What a helper does."""
    for start, end in ranges:
        block = _block(path, file, start, end)
        header = _HEADER.pack(block.start, block.length, len(block.data), block.truth.encode())
        sys.stdout.buffer.write(header + block.data)
        sys.stdout.buffer.flush()


class _Progress:
    """Lines on stderr while reading takes long."""

    def __init__(self, path: Path, total: int, tell: bool):
        self.path, self.total, self.tell, self.done = path, total, tell, 0
        self.begun = time.monotonic()
        self.next = self.begun + _QUIET_SECONDS

    def add(self, done: int) -> None:
        """So many bytes more are done."""
        self.done += done
        now = time.monotonic()
        if self.tell and now >= self.next and self.done < self.total:
            self.next = now + _TELL_SECONDS
            left = (now - self.begun) / self.done * (self.total - self.done)
            share, size = self.done / self.total, self.total / 1e9
            text = f"reading {self.path}: {share:.0%} of {size:.1f} GB, {left:.0f} s left; the index keeps it"
            print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    _help(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))
