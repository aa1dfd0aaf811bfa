"""How a cell ended: all that a child knows of records, apart so that their layout is no part of its code."""

from __future__ import annotations

from enum import StrEnum

DISK_FULL = "the disk is full"  # begins the reason of an error that says nothing of the cell


class Status(StrEnum):
    """How a cell ended. Everything but ``ok`` carries a one-line reason."""

    OK = "ok"
    OOM = "oom"
    TIMEOUT = "timeout"
    ERROR = "error"
    NAN = "nan"
    SKIPPED = "skipped"
