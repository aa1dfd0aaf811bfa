"""The digest that every record carries: whether a line still says what was measured.

A digest is the SHA-256 of a record's canonical JSON (keys sorted, no spaces) without the digest itself. It
is computed over the data of a line, not over the line's characters, so that reformatting a file breaks
nothing and changing a number does. It guards against accidents (a value corrected by hand, a search and
replace, a merge gone wrong) and is no protection against anybody who wants to deceive: whoever changes a
number on purpose can compute a new digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from bench.results.record import Record

DIGEST = "digest"
_FIRST_SEALED = 2  # the schema version from which on records carry a digest


class Integrity(StrEnum):
    """What a record's digest says of it."""

    WHOLE = "whole"  # the record is as it was written
    BROKEN = "broken"  # it was changed since, or its digest was taken away
    NONE = "none"  # written before records had digests: nobody can tell


def digest(data: Mapping[str, Any]) -> str:
    """The digest of a record as JSON data; a digest among the data is left out of it."""
    rest = {key: value for key, value in data.items() if key != DIGEST}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def with_digest(record: Record) -> Record:
    """The record with the digest of what it says now."""
    return record.model_copy(update={DIGEST: digest(json.loads(record.model_dump_json()))})


def integrity_of(data: Mapping[str, Any]) -> Integrity:
    """Whether a line, as JSON data, is as it was written."""
    stored, version = data.get(DIGEST), data.get("schema_version", 0)
    if stored is None:
        return Integrity.BROKEN if isinstance(version, int) and version >= _FIRST_SEALED else Integrity.NONE
    return Integrity.WHOLE if stored == digest(data) else Integrity.BROKEN
