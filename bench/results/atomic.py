"""Files that are whole or not there, and what a file system refuses as a sentence."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from bench.errors import UserError


def write_atomic(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` so that a reader sees the old file or the new one, never half."""
    with replaced(path) as file:
        file.write(text.encode())


@contextmanager
def replaced(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of ``path`` when all is on the disk. Raises UserError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with clear_errors(f"cannot write {path}"):
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def clear_errors(what: str, kept: int | None = None) -> Iterator[None]:
    """Turn what the file system says into a sentence for the user."""
    try:
        yield
    except OSError as error:
        hint = "check free space and permissions, or choose another folder with --results"
        if kept is not None:
            hint = f"free some space, then run the same command again: {kept} records are kept"
        raise UserError(f"{what}: {error.strerror or error}", hint=hint) from error
