"""Artifacts on their way from a node: a file arrives whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.results.store import clear_errors

CHUNK = 8 * 2**20  # bytes asked for at a time

Read = Callable[[str, int, int], bytes]  # path, start, size


class ChangedError(Exception):
    """What arrived is not what the pass had announced."""


def receive(root: Path, artifact: Mapping[str, Any], read: Read) -> None:
    """Put an artifact of a record (path, sha256, bytes) where it belongs below the run folder ``root``.

    Raises ChangedError if its hash or place is not as announced, UserError if it cannot be written, and
    whatever ``read`` raises; the file is not there then.
    """
    target = root / artifact["path"]
    if not target.resolve().is_relative_to((root / "artifacts").resolve()):
        raise ChangedError(f"{artifact['path']} does not lie in the folder of artifacts")
    if _has(target, artifact["sha256"]):
        return
    partial = root / f".{target.name}.{os.getpid()}"  # a name that the next run removes if we are killed
    try:
        with clear_errors(f"cannot write {target}"):
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as file:
                digest = copy(artifact, read, file)
                os.fsync(file.fileno())
            if digest != artifact["sha256"]:
                raise ChangedError(f"{artifact['path']} changed on its way from the node")
            os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def copy(artifact: Mapping[str, Any], read: Read, file: Any) -> str:
    """Copy as many bytes as were announced (a file may have grown since); their hash."""
    digest, start = hashlib.sha256(), 0
    while start < artifact["bytes"]:
        piece = read(artifact["path"], start, min(CHUNK, artifact["bytes"] - start))
        if not piece:
            break
        digest.update(piece)
        file.write(piece)
        start += len(piece)
    return digest.hexdigest()


def _has(path: Path, sha256: str) -> bool:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:
        return False
