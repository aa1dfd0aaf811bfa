"""Pydantic's findings in the words of a suite: one sentence each, with the nearest valid word.

Used for the suite's own keys and, unchanged, for the parameters of whatever workload it names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from bench.errors import did_you_mean

_PLAIN_WORDS = {
    "a valid dictionary or instance of Compare": "a mapping",
    "a valid dictionary or instance of Resources": "a mapping",
    "a valid dictionary": "a mapping",
    "a valid list": "a list",
    "a valid tuple": "a list",
    "a valid string": "text",
    "a valid boolean": "true or false",
}


@dataclass(frozen=True)
class Violation:
    """One thing wrong. ``path`` leads to it from the validated mapping; empty: the whole is wrong."""

    path: tuple[str | int, ...]
    message: str
    hint: str | None = None
    kind: str = "value"  # "unknown" (the key is wrong), "missing" or "value"


def explain(error: ValidationError, valid: Iterable[str], noun: str, levels: int = 1) -> Iterator[Violation]:
    """What ``error`` says; ``valid`` are the known keys and ``noun`` what a key is called.

    Messages name a value by the first ``levels`` keys that lead to it.
    """
    names = list(valid)
    for detail in error.errors(include_url=False):
        path, kind, context = detail["loc"], detail["type"], detail.get("ctx", {})
        name = ".".join([step for step in path if isinstance(step, str)][:levels])
        if kind == "extra_forbidden":
            word = str(path[-1])
            hint = did_you_mean(word, names) if len(path) == 1 else None
            yield Violation(path, f"unknown {noun} {word!r}", hint, "unknown")
        elif kind == "missing":
            yield Violation(path, f"{noun} {'.'.join(map(str, path))!r} is missing", kind="missing")
        else:
            yield Violation(path, *_value(name, detail["input"], detail["msg"], kind, context))


def _value(name: str, given: Any, message: str, kind: str, context: dict[str, Any]) -> tuple[str, str | None]:
    prefix = f"{name}: " if name else ""
    if kind in ("literal_error", "enum"):
        words = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        if words and isinstance(given, str):
            return f"{prefix}{given!r} is not one of its values", did_you_mean(given, words)
    if kind in ("value_error", "assertion_error"):
        return prefix + (str(context.get("error", "")) or message), None
    if kind == "too_short" and not given:
        return f"{prefix}an empty list; at least one value is needed", None
    if kind == "int_parsing_size":
        message = "Input should be a number of fewer digits"
    if kind == "string_pattern_mismatch":
        message = f"Input should match {context['pattern']}"
    if not message.startswith("Input should "):
        return prefix + message, None
    message = message.partition(", unable to ")[0]
    for technical, plain in _PLAIN_WORDS.items():
        message = message.replace(technical, plain)
    return f"{prefix}{message.replace('Input should', 'should', 1)}, got {brief(given)}", None


def brief(value: Any) -> str:
    """A value as a person would write it, cut to one short line."""
    words = {True: "true", False: "false", None: "nothing"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
