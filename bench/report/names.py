"""Names of lines, rows and panels: short, and never the same for two values.

A name that is cut or rounded may be that of another value. Lines are kept by name, so one of the two would
be lost, and a reader could not tell two panels apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from bench.report.frames import RunData
from bench.report.select import token
from bench.text import clean, number, shortened
from bench.workload import View

_LONGEST, _LONGEST_TITLE = 40, 80  # characters


def text(value: Any) -> str:
    """A value as a label."""
    return clean(number(value), _LONGEST)


def numeric(value: Any) -> bool:
    """Whether a value is a number (True is not)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def names_of(values: Iterable[Any]) -> dict[Hashable, str]:
    """A name for each distinct value, by its token: a label, or what it takes to tell it from the others."""
    distinct = {token(value): value for value in values}
    names = {key: text(value) for key, value in distinct.items()}
    count = Counter(names.values())
    alike = [key for key, name in names.items() if count[name] > 1]
    whole = [one if isinstance(one := distinct[key], str) else repr(one) for key in alike]
    return names | dict(zip(alike, shortened(whole, _LONGEST), strict=True))


def hue_label(data: RunData, view: View, value: Any) -> str:
    """The name of a line; a number alone would not say what it counts."""
    name = _known(data, view.hue, value)[token(value)]
    return f"{view.hue.replace('_', ' ')} {name}" if numeric(value) else name


def _known(data: RunData, column: str, value: Any) -> dict[Hashable, str]:
    """The names of a column's values over the whole run, so that a line is called the same everywhere."""
    names = data.named.get(column, {})
    if token(value) not in names:
        names = data.named[column] = names_of([*data.frame.get(column, ()), value])
    return names


def panel_titles(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """What tells each panel from the others, from the values that its cells share."""
    columns = dict.fromkeys(column for values in groups for column in values)
    names = {c: names_of(values[c] for values in groups if c in values) for c in columns}
    titles = [
        ", ".join(
            names[c][token(v)] if isinstance(v, str) else f"{c} {names[c][token(v)]}"
            for c, v in values.items()
        )
        for values in groups
    ]
    return shortened(titles, _LONGEST_TITLE)
