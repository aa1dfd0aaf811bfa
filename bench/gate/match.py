"""Which cell of head is which cell of base, and whether their numbers may stand side by side.

A cell's id covers the version of the code, which is just what differs between the sides; so cells are
matched by what was asked: parameters, seed, and within them the repetition. A parameter that only one
side knows (an older version has not got it) is left out. Where cells could then not be told apart, a cell
without it is the one that has the default.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from bench.results.environment import comparable
from bench.results.record import Record, canonical
from bench.text import is_bytes
from bench.workload import Metric

UNKNOWN = "environment (not recorded)"


@dataclass(frozen=True)
class Side:
    """All records of one side with the fingerprints that they name."""

    name: str
    records: tuple[Record, ...]
    environments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    lacking: str = ""  # why it has not all cells of the other side, if it is known to have none of them


@dataclass(slots=True)
class Match:
    """One cell on both sides, its records by repetition; either may be empty."""

    name: str
    asked: Record  # the first record of the cell, which says what was asked
    base: dict[int, Record] = field(default_factory=dict)
    head: dict[int, Record] = field(default_factory=dict)
    fields: list[str] = field(default_factory=list)  # of the fingerprints, that differ

    @property
    def params(self) -> dict[str, Any]:
        """The cell's parameters."""
        return dict(self.asked.params)

    @property
    def seed(self) -> int:
        """The cell's seed."""
        return self.asked.seed

    @property
    def pairs(self) -> list[tuple[Record, Record]]:
        """Records of the same repetition, both sides present."""
        return [(self.base[i], self.head[i]) for i in sorted(self.base.keys() & self.head.keys())]


def holds_own_imports(record: Record, metric: Metric) -> bool:
    """Whether a value is of memory, and of a child that holds what it imported itself.

    Others share that with the fork server that imported it for them: the two do not compare.
    """
    return metric.klass != "exact" and is_bytes(metric.unit) and record.conformance.get("preloaded") is False


def match(
    base: Side, head: Side, accept: Sequence[str] = (), defaults: Mapping[str, Any] | None = None
) -> list[Match]:
    """Cells of both sides, head's first. ``accept`` names fingerprint fields (globs) that may differ.

    ``defaults`` are what parameters are if a side does not know them.
    """
    of_base, of_head = _record_keys(base.records, head.records, defaults or {})
    found: dict[Hashable, Match] = {}
    for side, records, names in (("head", head.records, of_head), ("base", base.records, of_base)):
        for record, key in zip(records, names, strict=True):
            cell = found.get(key) or found.setdefault(key, Match(record.label, record))
            getattr(cell, side)[record.repeat] = record  # the newest one counts
    matches = list(found.values())
    _name_apart(matches)
    _compare_environments(matches, base, head, accept)
    return matches


def _record_keys(
    base: Sequence[Record], head: Sequence[Record], defaults: Mapping[str, Any]
) -> tuple[Sequence[Hashable], Sequence[Hashable]]:
    """`keys` of records; where both sides know the same parameters, what was asked is the key."""
    known = [set[str]().union(*{record.parameter_names for record in side}) for side in (base, head)]
    if known[0] == known[1] or not all(known):
        return [record.question for record in base], [record.question for record in head]
    cells = [[(record.params, record.seed) for record in side] for side in (base, head)]
    return keys(cells[0], cells[1], defaults)


Question = tuple[Mapping[str, Any], int]  # parameters and seed of a cell


def keys(
    base: Sequence[Question], head: Sequence[Question], defaults: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """A key for every cell of both sides, equal where the same was asked."""
    known = [{name for params, _ in side for name in params} for side in (base, head)]
    shared = known[0] & known[1] if all(known) else known[0] | known[1]
    shared |= (known[0] | known[1]) & defaults.keys()  # what one side lacks is what it is by default
    if _distinct(head, shared) and _distinct(base, shared):
        return _keys(base, shared, defaults), _keys(head, shared, defaults)
    every = known[0] | known[1]
    return _keys(base, every, defaults), _keys(head, every, defaults)


def _keys(cells: Sequence[Question], names: set[str], defaults: Mapping[str, Any]) -> list[str]:
    supposed = {name: value for name, value in defaults.items() if name in names}
    return [
        canonical([supposed | {key: value for key, value in params.items() if key in names}, seed])
        for params, seed in cells
    ]


def _distinct(cells: Sequence[Question], names: set[str]) -> bool:
    """Whether these parameters tell all cells of a side apart that all their parameters tell apart."""
    whole = {canonical([params, seed]) for params, seed in cells}
    return len(whole) == len(set(_keys(cells, names, {})))


Block = tuple[Sequence[int], Sequence[int]]  # numbers of passes of base and of head


def blocks(base: Sequence[Sequence[str]], head: Sequence[Sequence[str]]) -> list[Block] | None:
    """Passes that answer the same cells, by the keys of their cells; None if they are cut otherwise."""
    place = {key: i for i, work in enumerate(base) for key in work}
    found: list[Block] = []
    used: set[int] = set()
    for i, work in enumerate(head):
        mine = {place[key] for key in work if key in place}
        if len(mine) > 1 or mine & used:
            return None
        used |= mine
        found.append((sorted(mine), [i]))
    return found + [([i], []) for i in range(len(base)) if i not in used]


def _name_apart(cells: Sequence[Match]) -> None:
    """Add seed and differing parameters to labels that several cells share."""
    named = Counter(cell.name for cell in cells)
    groups: dict[str, list[Match]] = defaultdict(list)
    for cell in (cell for cell in cells if named[cell.name] > 1):
        groups[cell.name].append(cell)
    for alike in groups.values():
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
