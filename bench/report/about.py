"""What a page says about a run: how far it came, when, on what machine, and how to do it again."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from bench.report.frames import RunData
from bench.results.record import Status
from bench.suite.settings import as_setting
from bench.text import Md, clean, duration, md, number, plural, scale_for, slug

_SHOWN_VALUES = 24  # of a mapping in the description of the machine
_PRIVATE = re.compile(r"host|user|home|cwd|path|argv|executable|uuid|token|secret", re.IGNORECASE)


def status_line(data: RunData) -> str:
    """``21 of 24 cells measured; 2 oom, 1 not yet answered``."""
    whole = data.whole
    counts = dict(whole.statuses)
    measured = counts.pop(str(Status.OK), 0)
    parts = [f"{count:,} {status}" for status, count in counts.items()]
    if whole.total > whole.answered:
        parts.append(f"{whole.total - whole.answered:,} not yet answered")
    said = f"{measured:,} of {plural(whole.total, 'cell')} measured"
    return said + ("; " + ", ".join(parts) if parts else "")


def all_of_them(data: RunData) -> str:
    """Where not all cells are drawn: where the others are, as a sentence without its full stop."""
    count = plural(data.whole.answered, "cell")
    return (
        f"All {count} are counted here and have a line each in tables/full.csv; "
        "python -m bench report RUN --only LABEL draws those that LABEL names"
    )


def edited_line(data: RunData) -> str:
    """A sentence that must not be overlooked if records were edited; empty if none was."""
    edited = data.whole.edited
    if not edited:
        return ""
    were = "was" if edited == 1 else "were"
    return f"{plural(edited, 'record')} {were} edited after being measured, and cannot be relied on"


def when_line(data: RunData) -> str:
    """When the records were made and how long the passes took together."""
    whole = data.whole
    if not whole.answered:
        return ""
    passes, spent = plural(whole.passes, "pass"), duration(whole.spent)
    return f"{_minute(whole.begin)} to {_minute(whole.end)} UTC, {passes}, {spent} of measuring"


def _minute(stamp: str) -> str:
    return clean(stamp).replace("T", " ")[:16]


def machine(env: Mapping[str, Any]) -> Iterator[tuple[str, Md]]:
    """What is known of the machine, one line per topic, as Markdown."""
    for key, text in topics(env):
        yield key, md(text, limit=600)


def topics(env: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is known of the machine, one line per topic; nothing that names a person, a host or a path."""
    for key, value in env.items():
        if key == "earlier" or _PRIVATE.search(key):
            continue
        if text := _described(key, value):
            yield key, text


def _described(key: str, value: Any) -> str:
    if value is None or value in ("", [], {}):
        return ""
    if key.endswith("_bytes") and isinstance(value, (int, float)):
        scale = scale_for("bytes", [value])
        return f"{value / scale.divisor:.4g} {scale.unit}"
    if isinstance(value, Mapping):
        known = {k: _described(str(k), v) for k, v in value.items() if not _PRIVATE.search(str(k))}
        kept = [f"{topic(k)} {v}" for k, v in known.items() if v]
        more = f" and {len(kept) - _SHOWN_VALUES} more" if len(kept) > _SHOWN_VALUES else ""
        return ", ".join(kept[:_SHOWN_VALUES]) + more
    if isinstance(value, (list, tuple)):
        shown = [_described(key, item) for item in value]
        return ("; " if any(isinstance(item, Mapping) for item in value) else " ").join(filter(None, shown))
    return number(value) if isinstance(value, (bool, float)) else clean(value)


def topic(key: str) -> str:
    """A key of the fingerprint as words."""
    return key if key.isupper() else key.removesuffix("_bytes").replace("_", " ")


def command(data: RunData) -> str:
    """The command that continues this run; with ``--new`` it does it again."""
    overrides = data.plan.get("overrides")
    pairs = overrides.items() if isinstance(overrides, Mapping) else ()
    options = [f"--set {shlex.quote(clean(as_setting(str(key), value)))}" for key, value in pairs]
    file = data.plan.get("file")  # as it was from where it was run; runs of before do not know
    suite = shlex.quote(clean(file)) if isinstance(file, str) and file else f"suites/{slug(data.name)}.yaml"
    return " ".join(["python -m bench", suite, *options]).replace("`", "")
