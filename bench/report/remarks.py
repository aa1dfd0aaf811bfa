"""What a report must say of the files that it was drawn from: sentences without their full stops."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.results.store import DAMAGED, RECORDS, Edited
from bench.text import clean, plural

MOST_NAMED = 20  # edited records


def lost_lines(folder: Path, damaged: int) -> list[str]:
    """Notes on lines that are no records, in the file and set aside."""
    notes = []
    if damaged:
        notes.append(f"{plural(damaged, 'line')} of {RECORDS} could not be read and was left out")
    if (folder / DAMAGED).exists():
        with open(folder / DAMAGED, "rb") as file:
            lines = plural(sum(bool(line.strip()) for line in file), "damaged or edited line")
        notes.append(f"{lines} set aside in {DAMAGED}; the cells were measured again")
    return notes


def planned_notes(plan: Mapping[str, Any]) -> list[str]:
    """What the plan itself has to say."""
    said = plan.get("notes")
    return [clean(note, 400) for note in said if isinstance(note, str)] if isinstance(said, list) else []


def stale(count: int) -> list[str]:
    """A note on so many records of cells that the plan no longer has."""
    if not count:
        return []
    return [f"{plural(count, 'record')} left out: the suite, or its code, no longer has these cells"]


def edited_notes(edited: Sequence[Edited]) -> list[str]:
    """Notes on the first edited records."""
    return [f"{RECORDS} line {one.line}: {clean(one, 400)}" for one in edited[:MOST_NAMED]]


def shadowed(names: Iterable[str]) -> list[str]:
    """A note on metrics that are shown nowhere."""
    if not (left_out := sorted(names)):
        return []
    said = ", ".join(clean(name) for name in left_out)
    return [f"left out: {said}, measured under the name of a column and declared no longer"]
