"""From a suite's axes to the parameters of single cells, each value knowing where it was written.

Order is part of the contract: the first axis varies slowest, zipped axes stand where the first of
them stands, included cells come last. Nothing here knows what a parameter means.
"""

from __future__ import annotations

import math
import os.path
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

from bench.errors import UserError, did_you_mean
from bench.suite.model import Suite

MAX_CELLS = 100_000

Path = tuple[str | int, ...]

# What a shell would replace in a path: ~ or ~user at its beginning, ${NAME} anywhere, $NAME as a part.
_SHELL = re.compile(r"(?:^|(?<=:))~[\w.-]*/|\$\{\w+\}|(?:^|(?<=[:/]))\$[A-Za-z_]\w*")


class GivenValue(NamedTuple):
    """A parameter's value as written, and the path to it in the suite."""

    value: Any
    path: Path


@dataclass(frozen=True, slots=True)
class Draft:
    """The parameters of a cell before the workload has seen them; ``path`` is the part it comes from."""

    given: Mapping[str, GivenValue]
    path: Path


def check_names(suite: Suite, parameters: Iterable[str]) -> list[UserError]:
    """An error for every name in defaults, grid and include that is no parameter."""
    known = list(parameters)
    return [
        UserError(
            f"workload {suite.workload!r} has no parameter {name!r}",
            f"{name} is a key of the suite itself: it stands beside grid and defaults, not in them"
            if name in Suite.model_fields
            else did_you_mean(name, known),
            suite.where((*path, name), key=True),
        )
        for path, section in _sections(suite).items()
        for name in section
        if name not in known
    ]


def check_paths(suite: Suite) -> list[UserError]:
    """An error for every value that a shell would expand: a suite is not read by one.

    Such a value is never taken literally, so that nobody measures in a folder that is called ``~``.
    """
    return [
        UserError(
            f"{path[-1] if isinstance(path[-1], str) else path[-2]}: {found[0]} is not expanded in a suite, "
            f"which means the same on every machine; got {text!r}",
            f"write the path in full{_in_full(text)}, or as seen from where you run",
            suite.where(path),
        )
        for section, values in _sections(suite).items()
        for name, value in values.items()
        for path, text in _texts(value, (*section, name))
        if (found := _SHELL.search(text))
    ]


def _sections(suite: Suite) -> dict[Path, Mapping[str, Any]]:
    """Where parameters are given."""
    included: dict[Path, Mapping[str, Any]] = {("include", i): item for i, item in enumerate(suite.include)}
    return {("defaults",): suite.defaults, ("grid",): suite.grid} | included


def _texts(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _texts(item, (*path, i))


def _in_full(text: str) -> str:
    """What a shell here would have made of it, if it would have made anything of it."""
    kind, colon, rest = text.rpartition(":")
    full = f"{kind}{colon}{os.path.expandvars(os.path.expanduser(rest))}"
    return "" if full == text else f", here {full}"


def check_shape(suite: Suite) -> list[UserError]:
    """What keeps the suite from being expanded: bad zips, empty lists, too many cells."""
    errors = _check_zip(suite)
    errors += [
        UserError(f"{name}: an empty list has no cells", where=suite.where(("include", i, name)))
        for i, item in enumerate(suite.include)
        for name, value in item.items()
        if value == []
    ]
    if not errors and (cells := _count(suite)) > MAX_CELLS:
        message = f"the suite spans {cells:,} cells; at most {MAX_CELLS:,} are planned at once"
        errors.append(UserError(message, where=suite.where(("grid",))))
    return errors


def _check_zip(suite: Suite) -> list[UserError]:
    errors = []
    seen: set[str] = set()
    for i, group in enumerate(suite.zip):
        for j, name in enumerate(group):
            where = suite.where(("zip", i, j))
            if name not in suite.grid:
                errors.append(
                    UserError(f"zip: {name!r} is not an axis of grid", did_you_mean(name, suite.grid), where)
                )
            elif name in seen:
                errors.append(UserError(f"zip: the axis {name!r} is named twice", where=where))
            seen.add(name)
        lengths = {name: len(suite.grid[name]) for name in group if name in suite.grid}
        if len(set(lengths.values())) > 1:
            counted = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            message = f"zip needs axes of equal length: {counted}"
            errors.append(UserError(message, where=suite.where(("zip", i))))
    return errors


def _count(suite: Suite) -> int:
    """Cells before exclusion; computed, not expanded."""
    axes = [len(suite.grid[group[0]]) for group in _groups(suite)]
    cells = math.prod(axes) if axes or not suite.include else 0
    for item in suite.include:
        cells += math.prod(len(value) if isinstance(value, list) else 1 for value in item.values())
    return cells * len(suite.seed) * suite.repeat


def expand(suite: Suite) -> Iterator[Draft]:
    """All cells of a suite that `check_shape` has passed; seeds and repeats are left to the plan.

    Without a grid, the included cells are all there are; without either, defaults are the one cell.
    """
    base = {name: GivenValue(value, ("defaults", name)) for name, value in suite.defaults.items()}
    if suite.grid or not suite.include:
        axes = [_zipped(suite.grid, group, ("grid",)) for group in _groups(suite)]
        yield from _product(base, axes, ("grid",) if suite.grid else ("defaults",))
    for i, item in enumerate(suite.include):
        path = ("include", i)
        lists = {name: value if isinstance(value, list) else [value] for name, value in item.items()}
        yield from _product(base, [_zipped(lists, (name,), path) for name in lists], path)


def _product(
    base: Mapping[str, GivenValue], axes: Sequence[list[dict[str, GivenValue]]], path: Path
) -> Iterator[Draft]:
    for combination in product(*axes):
        given = dict(base)
        for part in combination:
            given.update(part)
        yield Draft(given, path)


def _zipped(axes: Mapping[str, list[Any]], group: Sequence[str], path: Path) -> list[dict[str, GivenValue]]:
    """The steps of axes that vary together."""
    return [
        {name: GivenValue(axes[name][i], (*path, name, i)) for name in group}
        for i in range(len(axes[group[0]]))
    ]


def _groups(suite: Suite) -> list[Sequence[str]]:
    """Axes in order, those that are zipped as one group at the place of the first."""
    zipped = {name: group for group in suite.zip for name in group}
    groups: list[Sequence[str]] = []
    for name in suite.grid:
        group = zipped.get(name, [name])
        if group not in groups:
            groups.append(group)
    return groups
