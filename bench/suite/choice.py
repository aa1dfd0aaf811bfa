"""``--only``: which cells of a plan are meant by a label, a cell id or a pattern.

Labels come from workloads and parameters and may hold any character, so whatever the tool has printed
counts word for word before it counts as a pattern. In a pattern ``*`` and ``?`` are special, and brackets
only if nothing matches where they stand for themselves (``[*]`` is a star).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from os.path import commonprefix
from typing import Protocol

from bench.errors import UserError, did_you_mean, listed
from bench.text import clean
from bench.workload import Pass

_MANY = 40  # cells; with more, a list of all labels helps nobody


def choose(passes: Sequence[Pass], wanted: Sequence[str]) -> tuple[Pass, ...]:
    """The passes with those cells that any of ``wanted`` names (none: all). UserError if one names none."""
    if not wanted:
        return tuple(passes)
    cells = [cell for work in passes for cell in work.cells]
    chosen = set[str]().union(*(named(text, cells) for text in wanted))
    kept = (replace(work, cells=tuple(c for c in work.cells if c.id in chosen)) for work in passes)
    return tuple(work for work in kept if work.cells)


class Named(Protocol):
    """A cell as far as it can be asked for: of a plan, or of a record."""

    @property
    def id(self) -> str:
        """Its content hash."""

    @property
    def label(self) -> str:
        """Its name for people."""

    @property
    def seed(self) -> int:
        """Its seed."""


def named(wanted: str, cells: Sequence[Named]) -> set[str]:
    """Ids of the cells that ``wanted`` names. Raises UserError if there are none."""
    chosen = _meant(clean(wanted, len(wanted) + 1).casefold(), cells)
    if not chosen:
        labels = list(dict.fromkeys(cell.label for cell in cells))
        near = did_you_mean(wanted, labels) if len(labels) <= _MANY else f"cells: {listed(labels, 5)}"
        hint = f"{near}; give a label, the id of a cell, or a pattern in which * stands for anything"
        raise UserError(f"--only {wanted!r} matches no cell", hint=hint)
    return chosen


def _meant(text: str, cells: Sequence[Named]) -> set[str]:
    """Ids of the cells that a text names: the first way of reading it that names any."""
    names = {cell.id: _names(cell) for cell in cells}
    if found := {name for name, spellings in names.items() if text in spellings}:
        return found
    # Tables leave out what all labels begin with, so what is seen there is a pattern's beginning, too.
    shared = commonprefix([one[0] for one in names.values()]).rpartition(" ")[0]  # noqa: RUF071 (no paths)
    seen = {name: [s.removeprefix(f"{shared} ") for s in spellings] for name, spellings in names.items()}
    for known in (names, seen):
        for pattern in (text.replace("[", "[[]"), text):
            if found := {n for n, spelt in known.items() if any(fnmatchcase(s, pattern) for s in spelt)}:
                return found
    ends = {cell.id: cell.label for cell in cells if names[cell.id][0].endswith(f" {text}")}
    return set(ends) if len(set(ends.values())) == 1 else set()


def _names(cell: Named) -> tuple[str, ...]:
    """What a cell is called where it is printed, folded for comparison."""
    label = clean(cell.label, len(cell.label) + 1).casefold()
    return label, f"{label}, seed {cell.seed}", cell.id
