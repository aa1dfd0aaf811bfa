"""Suite → Plan: which cells there are, what they are called, and which of them share one pass.

Pure: no torch, no clock, no disk. A cell is named by its content (workload, version of its code,
parameters, identity of model and data, seed, repeat), so that a record answers exactly the question
it was measured for: reordering a suite renames nothing, and an edit renames what it changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.errors import UserError, did_you_mean, raise_any
from bench.results.record import canonical
from bench.suite import grid
from bench.suite.cells import GridPoint, accept, blame
from bench.suite.conditions import Exclusion, same
from bench.suite.explain import brief
from bench.suite.labels import tell_apart
from bench.suite.model import Suite
from bench.workload import Advising, Cell, Cost, Pass, Seeded, Skip, Workload

Identity = Callable[[Any], Mapping[str, str]]

PLAN_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """What a suite comes to. Cells in the order of the suite; passes in the order of running.

    Passes of a first repetition all run before those of a second, so that slow drifts of a machine
    do not fall on one cell. ``notes`` are sentences about what is legal but probably not meant.
    """

    suite: str
    workload: str
    version: str
    cells: tuple[Cell, ...]
    passes: tuple[Pass, ...]
    cost: Cost  # of the passes: each costs as much as its dearest cell
    naive_cost: Cost  # of the cells, if each were measured on its own
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``plan.json``."""
        return {
            "plan_version": PLAN_VERSION,
            "suite": self.suite,
            "workload": self.workload,
            "version": self.version,
            "cost": dict(vars(self.cost)),
            "naive_cost": dict(vars(self.naive_cost)),
            "notes": list(self.notes),
            "passes": [
                {
                    "id": work.id,
                    "cost": dict(vars(work.cost)),
                    "cells": [{**vars(cell), "params": dict(cell.params)} for cell in work.cells],
                }
                for work in self.passes
            ],
        }


def make_plan(suite: Suite, workload: Workload, identity: Identity | None = None) -> Plan:
    """Plan a suite. ``identity`` (default: the workload's) says what names in parameters refer to.

    It is asked once for all cells that differ in nothing but the prefix axis, hence must not depend
    on that axis. `Skip` raised by it is no error: the pass is planned, and skipped when it runs.
    Raises UserError or CombinedError with the place of everything wrong with the parameters.
    """
    rules = [Exclusion(item) for item in suite.exclude]
    errors = grid.check_names(suite, workload.Params.model_fields) + _check_tolerances(suite, workload)
    raise_any(grid.check_paths(suite))  # alone: that such a path does not exist is no news
    unshaped = grid.check_shape(suite)
    points, refused = ([], unshaped) if unshaped else accept(suite, workload, rules)
    raise_any([*errors, *refused, *_check_rules(suite, points)])
    kept = list(_kept(suite, points, rules, workload))
    raise_any(_check_kept(suite, kept))
    said = [*_advice(workload, kept), *_unseeded(suite, workload, kept)]
    builder, asked = _PlanBuilder(suite, workload, identity or workload.identity), len(kept)
    del points
    kept.reverse()
    while kept:  # a point is let go of as soon as its cell is there: plans may be large
        builder.add(*kept.pop())
    raise_any(builder.errors.values())
    return builder.plan([*said, *_notes(suite, rules, asked - len(builder.cells))])


def _seeds(workload: Workload) -> Callable[[GridPoint], bool]:
    """Whether a seed changes what is measured at a point; every point is asked, the protocol checked once."""
    if not isinstance(workload, Seeded):
        return lambda _: True
    return lambda point: workload.seeded(point.params)


def _unseeded(suite: Suite, workload: Workload, kept: Sequence[tuple[GridPoint, int, int]]) -> Iterator[str]:
    """A sentence on seeds that would have measured the same number again."""
    if len(suite.seed) == 1:
        return
    seeded = _seeds(workload)
    if alike := {point.text for point, _, _ in kept if not seeded(point)}:
        yield (
            f"{suite.where(('seed',))}: a seed changes nothing in {len(alike)} of the cells, which are "
            "measured once, with the first seed; to measure a number again, write repeat"
        )


def _kept(
    suite: Suite, points: Iterable[GridPoint], rules: Sequence[Exclusion], workload: Workload
) -> Iterator[tuple[GridPoint, int, int]]:
    """Points with seed and repeat that no rule drops; one seed, the first left, where it changes nothing."""
    ask = _seeds(workload)
    for point in points:
        seeded, first = ask(point), dict[int, int]()  # repeat → the seed that measures it
        for seed in suite.seed:
            for repeat in range(suite.repeat):
                own = {"seed": seed, "repeat": repeat}
                applying = [rule for rule in rules if rule.holds(*point.spellings, own)]
                for rule in applying:
                    rule.hits += 1
                if not applying and (seeded or first.setdefault(repeat, seed) == seed):
                    yield point, seed, repeat


@dataclass
class _PlanBuilder:
    """Names cells, gathers them into passes and adds up what they cost."""

    suite: Suite
    workload: Workload
    identity: Identity
    cells: dict[str, Cell] = field(default_factory=dict)
    errors: dict[tuple[str | None, str], UserError] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._version = self.workload.version()
        self._code = f'"version":{canonical(self._version)},"workload":{canonical(self.workload.name)}'
        self._identities: dict[str, str] = {}
        self._meanings: dict[str, Mapping[str, str] | None] = {}  # by their text
        self._passes: dict[str, list[tuple[Cell, Cost]]] = {}
        self._identified: dict[str, str] = {}  # pass → identity

    def add(self, point: GridPoint, seed: int, repeat: int) -> None:
        """Add a cell, unless it is there already."""
        axis = self.workload.prefix_axis
        shared = (
            canonical({name: v for name, v in point.data.items() if name != axis}) if axis else point.text
        )
        if shared not in self._identities:
            self._identities[shared] = self._identify(point)
        identity = self._identities[shared]
        # Canonical JSON with sorted keys, put together from parts that were encoded once.
        end = f'"repeat":{repeat},"seed":{seed},{self._code}}}'
        name = _digest(f'{{"identity":{identity},"params":{point.text},{end}')
        if name in self.cells:
            return
        cell = Cell(name, point.data, self.workload.label(point.params), seed, repeat)
        self.cells[name] = cell
        group = _digest(f'{{"identity":{identity},"params":{shared},"prefix_axis":{canonical(axis)},{end}')
        self._passes.setdefault(group, []).append((cell, self.workload.cost(point.params)))
        self._identified[group] = identity

    def plan(self, notes: Iterable[str]) -> Plan:
        """The finished plan."""
        cells = tell_apart(self.cells.values())
        passes = [
            self._pass(name, [(cells[cell.id], cost) for cell, cost in members])
            for name, members in self._passes.items()
        ]
        passes.sort(key=lambda work: work.cells[0].repeat)
        return Plan(
            suite=self.suite.suite,
            workload=self.workload.name,
            version=self._version,
            cells=tuple(cells.values()),
            passes=tuple(passes),
            cost=_total(work.cost for work in passes),
            naive_cost=_total(cost for members in self._passes.values() for _, cost in members),
            notes=tuple(notes),
        )

    def _identify(self, point: GridPoint) -> str:
        try:
            found = dict(self.identity(point.params))
            text = canonical(found)
            self._meanings[text] = found
            return text
        except Skip as missing:
            return canonical({"unavailable": str(missing)})
        except (UserError, ValueError, OSError) as error:
            message, hint = (
                (error.message, error.hint) if isinstance(error, UserError) else (str(error), None)
            )
            wrong = blame(self.suite, point.draft, message)
            self.errors.setdefault((wrong.where, message), UserError(wrong.message, hint, wrong.where))
        return "null"

    def _pass(self, name: str, members: list[tuple[Cell, Cost]]) -> Pass:
        if axis := self.workload.prefix_axis:
            members = sorted(members, key=lambda member: member[0].params[axis])
        dearest = max((cost for _, cost in members), key=lambda cost: cost.amount)
        stops = tuple(dict.fromkeys(cell.params[axis] for cell, _ in members)) if axis else ()
        identity = self._meanings.get(self._identified[name])
        cells = tuple(cell for cell, _ in members)
        return Pass(name, self.workload.name, cells, dearest, stops, identity)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _total(costs: Iterable[Cost]) -> Cost:
    parts = list(costs)
    units = {cost.unit for cost in parts}
    if len(units) != 1:
        raise ValueError(f"a workload must count all its costs in one unit, not {sorted(units)}")
    return Cost(sum(cost.amount for cost in parts), units.pop())


def _check_tolerances(suite: Suite, workload: Workload) -> list[UserError]:
    metrics = [metric.name for metric in workload.metrics]
    return [
        UserError(
            f"workload {workload.name!r} has no metric {name!r}",
            did_you_mean(name, metrics),
            suite.where(("tolerances", name), key=True),
        )
        for name in suite.tolerances
        if name not in metrics
    ]


def _check_rules(suite: Suite, points: Sequence[GridPoint]) -> list[UserError]:
    """Exclude and compare may only name columns that some cell has; unknown where there are no cells."""
    if not points or not (suite.exclude or suite.compare):
        return []
    shown = {name for point in points for name in point.columns} | {"seed", "repeat"}
    known = shown | set(points[0].data)
    errors = [
        UserError(
            f"exclude: no cell has a column {name!r}",
            did_you_mean(name, known),
            suite.where(("exclude", i, name), key=True),
        )
        for i, item in enumerate(suite.exclude)
        for name in item
        if name not in known
    ]
    if suite.compare and suite.compare.axis in ("seed", "repeat"):
        message = f"compare: cells are compared within one {suite.compare.axis}, not along it"
        errors.append(UserError(message, "name a column of the cells", suite.where(("compare", "axis"))))
    elif suite.compare and suite.compare.axis not in shown:
        message = f"compare: no cell has a column {suite.compare.axis!r}"
        where = suite.where(("compare", "axis"))
        errors.append(UserError(message, did_you_mean(suite.compare.axis, shown), where))
    elif suite.compare and suite.compare.axis not in points[0].data:
        axis, named = suite.compare.axis, ", ".join(name for name in points[0].data if name in shown)
        message = f"compare: the column {axis!r} follows from parameters, so no two cells differ in it alone"
        errors.append(
            UserError(message, f"compare along a parameter: {named}", suite.where(("compare", "axis")))
        )
    return errors


def _check_kept(suite: Suite, kept: Sequence[tuple[GridPoint, int, int]]) -> Iterator[UserError]:
    if not kept:
        where = suite.where(("exclude",))
        yield UserError("the suite has no cells: exclude drops them all", where=where)
    elif suite.compare:
        axis, reference = suite.compare.axis, suite.compare.reference
        own = ({**point.columns, "seed": seed, "repeat": repeat}.get(axis) for point, seed, repeat in kept)
        values = list(dict.fromkeys(own))
        if not any(same(value, reference) for value in values):
            hint = did_you_mean(str(reference), [str(value) for value in values])
            message = f"compare: no cell has {axis} = {brief(reference)}"
            yield UserError(message, hint, suite.where(("compare", "reference")))


def _advice(workload: Workload, kept: Sequence[tuple[GridPoint, int, int]]) -> list[str]:
    """What the workload finds worth saying about the cells, each sentence once."""
    if not isinstance(workload, Advising):
        return []
    points = {point.text: point for point, _, _ in kept}
    return list(dict.fromkeys(note for point in points.values() for note in workload.notes(point.params)))


def _notes(suite: Suite, rules: Sequence[Exclusion], merged: int) -> Iterator[str]:
    for i, rule in enumerate(rules):
        if not rule.hits:
            yield f"{suite.where(('exclude', i))}: this exclude drops no cell"
    if merged:
        yield f"cells given more than once are measured once: {merged} left out"
