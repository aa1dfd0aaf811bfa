"""What tells that files are the same: a stamp that costs little, and a hash over names and contents."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

Stamped = tuple[str, int, int, int]  # a file, and what changes when it does


def stamped(file: str | Path) -> Stamped:
    """``file`` with its time, size and number; zeros if it is not there. Plans ask for every cell."""
    try:
        stat = os.stat(file)
    except OSError:
        return str(file), 0, 0, 0
    return str(file), stat.st_mtime_ns, stat.st_size, stat.st_ino


def files_sha256(files: Iterable[tuple[str, Path]]) -> str:
    """sha256 over names and contents, in this order; read once for as long as the stamps stay the same.

    Raises OSError for a file that cannot be read.
    """
    return _sha256(tuple((name, stamped(path)) for name, path in files))


@lru_cache(maxsize=16)
def _sha256(files: tuple[tuple[str, Stamped], ...]) -> str:
    digest = hashlib.sha256()
    for name, (path, *_) in files:
        with Path(path).open("rb") as opened:
            digest.update(name.encode() + b"\0" + hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
