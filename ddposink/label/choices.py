"""The file of choices: one line per choice, appended whole or not at all, never rewritten.

A line goes out in one write and is on the disk before the page moves on. Whatever a crash leaves of a last
line is cut off when the file is opened again. Undo takes back lines of the same session only.
"""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

COLUMNS = ["prompt", "image_a", "image_b", "choice", "judge"]


class Choices:
    """Choices in a CSV file; pictures are named relative to the file's folder."""

    def __init__(self, file: Path, folder: Path) -> None:
        self.file, self.folder = file, folder.resolve()
        self._starts: list[int] = []  # of this session's lines
        if file.exists() and not file.is_file():
            raise ValueError(f"'{file}' is no file")
        file.parent.mkdir(parents=True, exist_ok=True)
        self._cut_torn_line()
        self.rows = self._read()

    def add(self, prompt: str, a: Path, b: Path, choice: str, judge: str) -> None:
        """Append one choice: a, b or tie."""
        row = [prompt, self.name(a), self.name(b), choice, judge]
        start = self.file.stat().st_size if self.file.exists() else 0
        self._write(row if start else [COLUMNS, row])
        self._starts.append(start)
        self.rows.append(dict(zip(COLUMNS, row, strict=True)))

    def undo(self) -> dict[str, str] | None:
        """Take back this session's last choice; None if there is none."""
        if not self._starts:
            return None
        os.truncate(self.file, self._starts.pop())
        return self.rows.pop()

    @property
    def can_undo(self) -> bool:
        """Whether `undo` would do anything."""
        return bool(self._starts)

    def name(self, picture: Path) -> str:
        """How a picture is called in the file."""
        return Path(os.path.relpath(picture, self.file.resolve().parent)).as_posix()

    def _write(self, rows: list[str] | list[list[str]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows if isinstance(rows[0], list) else [rows])
        descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            before, data = os.fstat(descriptor).st_size, text.getvalue().encode()
            if os.write(descriptor, data) != len(data):  # a full disk
                os.ftruncate(descriptor, before)
                raise OSError(f"'{self.file}' could not take a whole line; is the disk full?")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _cut_torn_line(self) -> None:
        if self.file.is_file() and (data := self.file.read_bytes()) and not data.endswith(b"\n"):
            os.truncate(self.file, data.rfind(b"\n") + 1)

    def _read(self) -> list[dict[str, str]]:
        if not self.file.is_file() or not self.file.stat().st_size:
            return []
        with self.file.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if list(reader.fieldnames or ()) != COLUMNS:
                raise ValueError(
                    f"'{self.file}' is no file of choices: expected columns {', '.join(COLUMNS)}"
                )
            return list(reader)
