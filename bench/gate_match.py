"""Which cell of head is which cell of base, and whether their numbers may stand side by side.

A cell's id covers the version of the code, which is just what differs between the sides; so cells are
matched by what was asked: parameters, seed, and within them the repetition. A parameter that only one
side knows (an older version has not got it) is left out, unless cells could then not be told apart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from bench.env import comparable
from bench.points import canonical
from bench.record import Record

UNKNOWN = "environment (not recorded)"


@dataclass(frozen=True)
class Side:
    """All records of one side with the fingerprints that they name."""

    name: str
    records: tuple[Record, ...]
    environments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass
class Match:
    """One cell on both sides, its records by repetition; either may be empty."""

    name: str
    params: dict[str, Any]
    seed: int
    base: dict[int, Record] = field(default_factory=dict)
    head: dict[int, Record] = field(default_factory=dict)
    fields: list[str] = field(default_factory=list)  # of the fingerprints, that differ

    @property
    def pairs(self) -> list[tuple[Record, Record]]:
        """Records of the same repetition, both sides present."""
        return [(self.base[i], self.head[i]) for i in sorted(self.base.keys() & self.head.keys())]


def match(base: Side, head: Side, accept: Sequence[str] = ()) -> list[Match]:
    """Cells of both sides, head's first. ``accept`` names fingerprint fields (globs) that may differ."""
    known = [{key for record in side.records for key in record.params} for side in (base, head)]
    shared = known[0] & known[1] if all(known) else known[0] | known[1]
    if not _distinct(head.records, shared) or not _distinct(base.records, shared):
        shared = known[0] | known[1]
    found: dict[str, Match] = {}
    for side, records in (("head", head.records), ("base", base.records)):
        for record in records:
            params = {key: value for key, value in record.params.items() if key in shared}
            key = canonical([params, record.seed])
            cell = found.setdefault(key, Match(record.label, dict(record.params), record.seed))
            getattr(cell, side)[record.repeat] = record  # the newest one counts
    cells = list(found.values())
    _name_apart(cells)
    _compare_environments(cells, base, head, accept)
    return cells


def _distinct(records: Iterable[Record], names: set[str]) -> bool:
    """Whether these parameters tell all cells of a side apart that all their parameters tell apart."""
    whole, part = set(), set()
    for record in records:
        whole.add(canonical([record.params, record.seed]))
        part.add(canonical([{k: v for k, v in record.params.items() if k in names}, record.seed]))
    return len(whole) == len(part)


def _name_apart(cells: Sequence[Match]) -> None:
    """Add seed and differing parameters to labels that several cells share."""
    groups: dict[str, list[Match]] = defaultdict(list)
    for cell in cells:
        groups[cell.name].append(cell)
    for alike in (group for group in groups.values() if len(group) > 1):
        differing = [
            name
            for name in dict.fromkeys(key for cell in alike for key in cell.params)
            if len({canonical(cell.params.get(name)) for cell in alike}) > 1
        ]
        seeds = len({cell.seed for cell in alike}) > 1
        for cell in alike:
            parts = [f"{name} {cell.params.get(name)}" for name in differing]
            cell.name = ", ".join([cell.name, *parts, *([f"seed {cell.seed}"] if seeds else [])])


def _compare_environments(cells: Iterable[Match], base: Side, head: Side, accept: Sequence[str]) -> None:
    known: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        for a, b in {(left.env, right.env) for left, right in _couples(cell)}:
            if (a, b) not in known:
                known[a, b] = _differing(base.environments.get(a), head.environments.get(b))
            cell.fields += [name for name in known[a, b] if name not in cell.fields]
        cell.fields = [name for name in cell.fields if not any(fnmatchcase(name, glob) for glob in accept)]


def _couples(cell: Match) -> Iterable[tuple[Record, Record]]:
    return ((a, b) for a in cell.base.values() for b in cell.head.values())


def _differing(a: Mapping[str, Any] | None, b: Mapping[str, Any] | None) -> list[str]:
    return [UNKNOWN] if a is None or b is None else comparable(a, b)
