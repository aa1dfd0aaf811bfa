"""PG19's test books from the hub, streamed from parquet; no dataset script is ever run.

The original ``deepmind/pg19`` is script-based, which the `datasets` library no longer runs; this is its
parquet copy. Give the revision in the corpus (``pg19:test@COMMIT``) to pin it; otherwise the newest
one is resolved when it is read, and recorded with the result.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ddposink.assets import hub
from ddposink.errors import Unavailable

REPO = "emozilla/pg19-test"


def resolve(revision: str | None) -> str:
    """The commit to read: the one given, or the hub's newest. Raises Unavailable without network."""
    if why := hub.unreachable():
        raise Unavailable(
            f"corpus not available offline: {REPO}, {why} (use folder:DIR with the books as .txt)"
        )
    if revision is not None:
        return revision
    from huggingface_hub import HfApi

    try:
        newest = HfApi().dataset_info(REPO, timeout=10).sha
    except Exception as error:
        raise Unavailable(f"{REPO} could not be asked for its revision: {hub.one_line(error)}") from error
    if newest is None:
        raise Unavailable(f"{REPO} has no revision")
    return newest


def books(revision: str, wanted: str = "") -> Iterator[tuple[str, str]]:
    """Name and text of every test book in the order of the data set, or of the one ``wanted``."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise Unavailable("PG19 from the hub needs the 'hub' extra: pip install 'ddposink[hub]'") from error
    try:
        yield from named(load_dataset(REPO, split="test", revision=revision, streaming=True), wanted)
    except (Unavailable, ValueError):
        raise
    except Exception as error:
        raise Unavailable(f"{REPO}@{revision[:12]} could not be read: {hub.one_line(error)}") from error


def named(rows: Any, wanted: str = "") -> Iterator[tuple[str, str]]:
    """Books of a PG19 table (columns ``text``, ``url``, ``short_book_title``), named by their number.

    Raises ValueError if ``wanted`` is not among them.
    """
    known = []
    for row in rows:
        number = re.search(r"(\d+)\D*$", str(row.get("url") or ""))
        name = number[1] if number else str(row.get("short_book_title") or "book")
        known.append(name)
        if not wanted or name == wanted:
            yield name, row["text"]
            if wanted:
                return
    if wanted:
        raise ValueError(f"PG19 test has no book '{wanted}'; books are {', '.join(known[:5])}, …")
