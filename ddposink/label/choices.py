"""The file of choices: one line per choice, appended whole or not at all, never rewritten.

A line goes out in one write and is on the disk before the page moves on. Whatever a crash leaves of a last
line is cut off when the file is opened again, once it is clear that it is a file of choices. Undo takes back
lines of the same session only, and none that somebody else's follow.
"""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

COLUMNS = ["prompt", "image_a", "image_b", "choice", "judge"]
ANSWERS = ("a", "b", "tie")


class Choices:
    """Choices in a CSV file; pictures are named relative to the file's folder."""

    def __init__(self, file: Path, folder: Path) -> None:
        self.file, self.folder = file, folder.resolve()
        self._written: list[tuple[int, bytes]] = []  # this session's lines, and where they start
        if file.exists() and not file.is_file():
            raise ValueError(f"'{file}' is no file")
        file.parent.mkdir(parents=True, exist_ok=True)
        self.rows = self._opened(file.read_bytes() if file.exists() else b"")

    def add(self, prompt: str, a: Path, b: Path, choice: str, judge: str) -> None:
        """Append one choice: a, b or tie."""
        row = [prompt, self.name(a), self.name(b), choice, judge]
        start = self.file.stat().st_size if self.file.exists() else 0
        self._written.append((start, self._write([row] if start else [COLUMNS, row])))
        self.rows.append(dict(zip(COLUMNS, row, strict=True)))

    def undo(self) -> dict[str, str] | None:
        """Take back this session's last choice; None if there is none, or somebody has written since."""
        if not self.can_undo:
            return None
        os.truncate(self.file, self._written.pop()[0])
        return self.rows.pop()

    @property
    def can_undo(self) -> bool:
        """Whether `undo` would do anything."""
        if not self._written or not self.file.is_file():
            return False
        start, line = self._written[-1]
        with self.file.open("rb") as file:
            file.seek(start)
            return file.read(len(line) + 1) == line

    def name(self, picture: Path) -> str:
        """How a picture is called in the file."""
        return Path(os.path.relpath(picture, self.file.resolve().parent)).as_posix()

    def _write(self, rows: list[list[str]]) -> bytes:
        """Append ``rows``, all or none; as they stand in the file."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        data = text.getvalue().encode()
        self._append(data)
        return data

    def _append(self, data: bytes) -> None:
        descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            before = os.fstat(descriptor).st_size
            if os.write(descriptor, data) != len(data):  # a full disk
                os.ftruncate(descriptor, before)
                raise OSError(f"'{self.file}' could not take a whole line; is the disk full?")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _opened(self, data: bytes) -> list[dict[str, str]]:
        """The rows in ``data``, the whole file, which ends with a whole line from now on.

        Raises ValueError, before anything is changed, for a file of something else.
        """
        whole = data[: data.rfind(b"\n") + 1]
        torn = data[len(whole) :]
        if not whole and not ",".join(COLUMNS).encode().startswith(torn):
            raise self._foreign()
        rows = self._read(whole) if whole else []
        if torn and (last := self._last(torn)):
            self._append(b"\n")
            rows.append(last)
        elif torn:
            os.truncate(self.file, len(whole))
        return rows

    def _read(self, data: bytes) -> list[dict[str, str]]:
        try:
            reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
            if list(reader.fieldnames or ()) != COLUMNS:
                raise self._foreign()
            return list(reader)
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"'{self.file}' is no CSV file in UTF-8: {error}") from error

    def _last(self, torn: bytes) -> dict[str, str] | None:
        """A last line that lacks nothing but its end, as an editor may leave it."""
        values = next(csv.reader([torn.decode("utf-8", "replace")]), [])
        found = dict(zip(COLUMNS, values, strict=False))
        return found if len(values) == len(COLUMNS) and found["choice"] in ANSWERS else None

    def _foreign(self) -> ValueError:
        return ValueError(f"'{self.file}' is no file of choices: expected columns {', '.join(COLUMNS)}")
