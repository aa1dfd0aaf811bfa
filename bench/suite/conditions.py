"""Conditions on a column, as `exclude` writes them: a value, a list of them, a glob or a comparison.

``dense`` · ``[dense, "sink *"]`` · ``">32768"`` · ``"<=8"`` · ``"!=cpu"`` · ``null``
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

_COMPARISON = re.compile(r"(>=|<=|!=|>|<)\s*(.*)", re.DOTALL)
_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
}


@dataclass(frozen=True)
class Condition:
    """Whether any of some values is as wanted. ``tests`` are alternatives."""

    tests: tuple[Callable[[Any], bool], ...]
    negated: bool = False

    def holds(self, values: Iterable[Any]) -> bool:
        """True if one of ``values`` (several spellings of one value) meets the condition."""
        return any(test(value) for value in values for test in self.tests) != self.negated


@dataclass
class Exclusion:
    """One item of ``exclude``: conditions by column, all of which must hold. Counts what it drops."""

    wanted: Mapping[str, Any]
    hits: int = 0
    _conditions: dict[str, Condition] = field(init=False)

    def __post_init__(self) -> None:
        self._conditions = {name: parse(wanted) for name, wanted in self.wanted.items()}

    def holds(self, *spellings: Mapping[str, Any]) -> bool:
        """Whether the rule applies; the same column may be spelt differently in each mapping."""
        return all(
            condition.holds([values[name] for values in spellings if name in values] or [None])
            for name, condition in self._conditions.items()
        )


def parse(wanted: Any) -> Condition:
    """Read a condition. Raises ValueError with a clear sentence."""
    if isinstance(wanted, dict):
        raise ValueError("a condition is a value, a list of values, a glob or a comparison, not a mapping")
    if isinstance(wanted, list):
        if not wanted:
            raise ValueError("an empty list matches nothing")
        alternatives = [parse(item) for item in wanted]
        if any(condition.negated for condition in alternatives):
            raise ValueError("'!=' cannot be one of several alternatives: write conditions side by side")
        return Condition(tuple(test for condition in alternatives for test in condition.tests))
    if not isinstance(wanted, str):
        return Condition((lambda value: same(value, wanted),))
    if not wanted.strip():
        raise ValueError('an empty condition matches nothing; a comparison must be quoted: ">32768"')
    if comparison := _COMPARISON.fullmatch(wanted.strip()):
        return _compare(comparison[1], comparison[2].strip())
    return _equal(wanted)


def same(value: Any, wanted: Any) -> bool:
    """Equality as a reader of YAML sees it: 1 is 1.0 and "1", but true is not 1."""
    if _is_number(value) and _is_number(wanted):
        return bool(value == wanted)
    return _text(value) == _text(wanted)


def _compare(sign: str, limit: str) -> Condition:
    if not limit:
        raise ValueError(f"nothing to compare with after {sign!r}")
    if sign == "!=":
        return Condition(_equal(limit).tests, negated=True)
    try:
        number = float(limit.replace("_", ""))
    except ValueError:
        raise ValueError(f"{sign!r} compares numbers, and {limit!r} is none") from None
    compare = _ORDER[sign]
    return Condition((lambda value: _is_number(value) and compare(value, number),))


def _equal(wanted: str) -> Condition:
    if "*" not in wanted:
        return Condition((lambda value: same(value, wanted),))
    parts = wanted.split("*")
    return Condition((lambda value: isinstance(value, str) and _fits(value, parts),))


def _fits(text: str, parts: list[str]) -> bool:
    """Whether ``text`` is these parts with anything between them. Never goes back: linear, as no regex is."""
    first, *middle, last = parts
    if len(text) < len(first) + len(last) or not (text.startswith(first) and text.endswith(last)):
        return False
    at, end = len(first), len(text) - len(last)
    for part in middle:
        if (found := text.find(part, at, end)) < 0:
            return False
        at = found + len(part)
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
