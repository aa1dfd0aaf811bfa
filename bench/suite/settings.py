"""``--set KEY=VALUE``: a value read as suites read it, and what of a suite it changes.

A setting changes a parameter of every cell (``defaults``) or one of the suite's own keys `OWN`. It does not
touch what the suite itself varies: a value that stands in ``grid`` or ``include`` would win, or an axis would
vanish without a word, so such a setting is refused with the line where the suite has its say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from bench.errors import CombinedError, UserError, did_you_mean, raise_any
from bench.suite.explain import brief, explain
from bench.suite.model import Suite
from bench.suite.yaml import KeyPath, parse
from bench.workload import Workload

OWN = ("seed", "repeat", "timeout")  # keys of a suite that are no parameters, and may be set all the same

_NAME = re.compile(r"[^\W\d][\w.-]*")


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """``["dtype=bfloat16", "length=1_024"]`` as values by name. Raises UserError.

    A value is what it would be in a suite: ``no`` and ``1:30`` are words, ``010`` is ten.
    """
    settings: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not _NAME.fullmatch(name := name.strip()):
            raise UserError(
                f"--set {text}: not of the form key=value", hint="for example --set dtype=float32"
            )
        if name in settings:
            raise UserError(f"--set {name} is given twice", hint="give it once; --device is one, too")
        settings[name] = _value(name, value, text)
    return settings


def as_setting(name: str, value: Any) -> str:
    """``name=value`` as `parse_settings` reads it back: as JSON where the bare text would not."""
    if isinstance(value, str):
        try:
            if parse_settings([f"{name}={value}"]) == {name: value}:
                return f"{name}={value}"
        except UserError:
            pass  # it needs quotes
    text = json.dumps(value, ensure_ascii=False)
    return f"{name}={''.join(c if c.isprintable() else _escape(c) for c in text)}"


def changes(suite: Suite, workload: Workload, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of ``suite`` that ``settings`` change, with their new values. Raises UserError."""
    parameters = {name: value for name, value in settings.items() if name not in OWN}
    raise_any(error for name in parameters for error in _refusals(suite, workload, name))
    own = {name: _own(suite, name, value) for name, value in settings.items() if name in OWN}
    return own | ({"defaults": suite.defaults | parameters} if parameters else {})


def _escape(character: str) -> str:
    """As JSON and YAML agree on it, where they do: beyond the basic plane JSON has no single escape."""
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _value(name: str, value: str, text: str) -> Any:
    start = f"{name}: "  # read in the place where a suite has it: what is refused there is refused here
    try:
        found = parse((start + value).encode(errors="surrogatepass"), "").root.plain()
    except UserError as error:
        first = error.errors[0] if isinstance(error, CombinedError) else error
        place = str(first.where).rpartition(":")[2]
        column = int(place) - len(start) if place else 0
        where = f", character {column} of the value" if column > 0 else ""
        hint = first.hint or "put the value in quotes"
        raise UserError(f"--set {text}: {first.message}{where}", hint=hint) from error
    if not isinstance(found, dict) or list(found) != [name]:
        raise UserError(f"--set {text}: more than one value", hint="give one --set for each")
    return found[name]


def _refusals(suite: Suite, workload: Workload, name: str) -> list[UserError]:
    """Why a parameter cannot be set, with the places in the suite that say so."""
    if name not in workload.Params.model_fields:
        known = [*workload.Params.model_fields, *OWN]
        message = f"--set {name}: workload {workload.name!r} has no such parameter"
        return [UserError(message, hint=did_you_mean(name, known))]
    hint = "measure a part with --only LABEL, or edit the suite there"
    places: list[tuple[KeyPath, str]] = []
    if name in suite.grid:
        places.append((("grid", name), "varies it in its grid"))
    places += [
        (("include", i, name), f"sets it to {brief(item[name])} in an included cell")
        for i, item in enumerate(suite.include)
        if name in item
    ]
    return [
        UserError(
            f"--set {name}: the suite {how} here; --set changes what holds for all cells",
            hint=hint,
            where=suite.where(path, key=True),
        )
        for path, how in places
    ]


def _own(suite: Suite, name: str, value: Any) -> Any:
    """The value of one of the suite's own keys, checked as in a suite."""
    try:
        return getattr(Suite(suite=suite.suite, workload=suite.workload, **{name: value}), name)
    except ValidationError as error:
        finding = next(iter(explain(error, Suite.model_fields, "key", levels=2)))
        raise UserError(f"--set {finding.message}", hint=finding.hint) from error
