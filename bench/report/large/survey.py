"""One pass over all cells of a large run: what they have in common, what tells them apart, how they ended.

Fed with records as JSON data, in the order of the plan. It keeps a few small integers a cell, and is asked
afterwards what `bench.report.columns.to_frame` and `bench.report.select.identifying` would say of them all.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.report.caveats import Caveats
from bench.report.columns import OWN, column_of
from bench.report.large.codes import Codes
from bench.report.select import equal
from bench.report.whole import Whole

Anchor = tuple[str, Any]  # a column (or parameter) and a value: cells that others are held against
_NAMED = 5  # labels that a note gives


class Parameter:
    """One parameter over all cells."""

    def __init__(self) -> None:
        self.given = Codes()  # its own values
        self.told = Codes()  # what the column of its name says
        self.everywhere = True  # every cell has such a column

    def add(self, value: Any, columns: Mapping[str, Any], name: str) -> None:
        """The next cell."""
        self.given.add(value)
        self.told.add(columns.get(name))
        self.everywhere &= name in columns

    @cached_property
    def needs_column(self) -> bool:
        """Whether cells differ in it and no column of its name tells that."""
        return len(self.given) > 1 and not (self.everywhere and self.told.tells(self.given))


class Survey:
    """What is to be known of all cells before any is drawn."""

    def __init__(self, parameters: Iterable[str], anchors: Iterable[Anchor] = ()) -> None:
        """``parameters``: of any cell, in order of appearance; ``anchors`` must stay among those drawn."""
        self.count = 0
        self.parameters = {name: Parameter() for name in parameters}
        self.first_columns: list[str] = []  # of the first cell
        self.columns: dict[str, None] = {}  # of any cell, in order of appearance
        self.measured: Counter[str] = Counter()  # cells with a value, by metric that some cell has
        self.checks: set[str] = set()  # of conformance
        self.seeds, self.repeats = Codes(), Codes()
        anchors = list(anchors)
        self._anchors = [(name, value) for name, value in anchors if name in self.parameters]
        self._kept: dict[str, set[int]] = {name: set() for name, _ in self._anchors}
        self._marks = [(*one, array("b")) for one in anchors if one[0] not in self.parameters]
        self._caveats = Caveats(_NAMED)
        self._statuses: Counter[str] = Counter()
        self._environments: set[str] = set()
        self._passes: dict[str, float] = {}
        self._begin = self._end = ""

    def add(self, data: Mapping[str, Any]) -> None:
        """The next cell, a record as JSON data."""
        columns, params = data["columns"], data["params"]
        for name, parameter in self.parameters.items():
            parameter.add(params.get(name), columns, name)
        for name, value in self._anchors:
            if equal(columns.get(name), value) or equal(params.get(name), value):
                self._kept[name].add(self.parameters[name].given.rows[-1])
        for name, value, marked in self._marks:
            marked.append(equal(columns.get(name), value))
        if not self.count:
            self.first_columns = list(columns)
        self.columns.update(dict.fromkeys(columns))
        for name, found in data.get("metrics", {}).items():
            self.measured[name] += found["value"] is not None
        self.seeds.add(data["seed"])
        self.repeats.add(data["repeat"])
        self._count(data)
        self.count += 1

    def _count(self, data: Mapping[str, Any]) -> None:
        conformance = data.get("conformance", {})
        self.checks.update(conformance)
        self._caveats.add(data["label"], conformance)
        self._statuses[data["status"]] += 1
        self._environments.add(data["env"])
        self._begin = min(self._begin or data["started"], data["started"])
        self._end = max(self._end, data["finished"])
        passed = data["pass_id"]
        self._passes[passed] = max(self._passes.get(passed, 0.0), data["duration_s"])

    @property
    def kept(self) -> dict[str, set[int]]:
        """Codes of values that stay, by parameter: those of anchors.

        Of an anchor that is a column and no parameter, the values of the parameters that tell it; where only
        several together do, those that its cells have of each.
        """
        found = {name: set(codes) for name, codes in self._kept.items()}
        for _, _, marked in self._marks:
            rows = np.frombuffer(marked, np.bool_)
            if rows.all() or not rows.any():
                continue
            codes = {name: one.given.array for name, one in self.parameters.items()}
            inside = {name: set(np.unique(own[rows]).tolist()) for name, own in codes.items()}
            telling = [name for name, own in codes.items() if not np.isin(own[~rows], [*inside[name]]).any()]
            several = [name for name, own in inside.items() if len(own) < len(self.parameters[name].given)]
            for name in telling or several:
                found.setdefault(name, set()).update(inside[name])
        return found

    def caveats(self) -> list[str]:
        """What must be read with the numbers of any cell."""
        return self._caveats.sentences()

    def whole(self, planned: int, unanswered: int, edited: int, chosen: str) -> Whole:
        """The counts; see `Whole`."""
        return Whole(
            self._statuses, planned, unanswered, len(self._passes), sum(self._passes.values()),
            self._begin, self._end, len(self._environments), edited, chosen,
        )  # fmt: skip

    def added(self, metrics: Collection[str]) -> dict[str, str]:
        """Columns that parameters get because none tells them, with the parameter of each."""
        named = {name: column_of(name, metrics) for name in self.parameters}
        differing = {name: one for name, one in self.parameters.items() if len(one.given) > 1}
        return {named[n]: n for n, one in differing.items() if one.needs_column or named[n] != n}

    def frame_columns(self, metrics: Collection[str]) -> list[str]:
        """The columns of a table of all cells but a record's own fields and metrics, in order."""
        keys = dict.fromkeys([*self.first_columns, *self.added(metrics), *self.columns])
        return [key for key in keys if key not in OWN and key not in metrics]

    def identifying(self, metrics: Collection[str]) -> list[str]:
        """Columns that tell all cells apart, as `bench.report.select.identifying` finds them."""
        added = self.added(metrics)
        parameters = {column_of(name, metrics): one for name, one in self.parameters.items()}
        found: dict[str, NDArray[np.int64]] = {}
        for column in self.frame_columns(metrics):
            if column in parameters:
                one = parameters[column]
                found[column] = (one.given if column in added else one.told).alike()
        found |= {"seed": self.seeds.alike(), "repeat": self.repeats.alike()}
        names = [name for name, codes in found.items() if codes.any()]  # another code than that of the first
        if not names:
            return ["label"]
        twice = pd.DataFrame({name: found[name] for name in names}).duplicated().any()
        return ["label", *names] if twice else names
