"""Errors a person can act on: what is wrong, where it is, and the nearest thing that would be right.

Everything a user can get wrong (a suite, a folder, a name) becomes a `UserError`; the command line
prints it without a traceback and exits with code 2. Anything else that escapes is a bug of ours and
keeps its traceback.
"""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

EXIT_CODE = 2
_HEAD, _TAIL = 500, 250  # characters kept of what is longer than both
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}  # control, direction marks, lone surrogates, breaks


def inert(text: str) -> str:
    """Text of anybody's for a terminal: nothing that a terminal obeys, and no more than a few lines of it."""
    if len(text) > _HEAD + _TAIL + 50:
        text = f"{text[:_HEAD]} … ({len(text) - _HEAD - _TAIL:,} characters) … {text[-_TAIL:]}"
    if text.isprintable():
        return text
    return "".join(_escaped(c) if unicodedata.category(c) in _UNSEEN else c for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def no_constant(text: str) -> Any:
    """For ``parse_constant`` of json: NaN and Infinity are no JSON. Raises ValueError."""
    raise ValueError(f"{text} is no number of JSON")


def parse_json(text: str | bytes, *, exact: bool = False) -> Any:
    """What ``text`` says. Raises ValueError, one clear line, for whatever is no JSON that can be read.

    Python says RecursionError of a text that is nested too deep, and gives advice on one with a long number.
    ``exact``: what Python writes for a float that is no number is no JSON, either.
    """
    try:
        return json.loads(text, parse_constant=no_constant if exact else None)
    except RecursionError:
        raise ValueError("nested too deep") from None
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        raise ValueError("a number of too many digits" if "digits" in str(error) else str(error)) from None


def there(path: Path | str) -> bool:
    """Whether there is something at ``path``: what no file can be called (too long a name) is not there."""
    try:
        os.stat(path)
    except (OSError, ValueError):
        return False
    return True


class UserError(Exception):
    """One clear sentence, a place (``file:line:column``) and a suggestion.

    Parts are kept separately so that the command line may colour them; ``str()`` renders them all. Each is
    made `inert`: it may quote what a suite, a file name or an exception says.
    """

    exit_code = EXIT_CODE

    def __init__(self, message: str, hint: str | None = None, where: str | None = None):
        super().__init__(message, hint, where)
        self.message = inert(message)
        self.hint = None if hint is None else inert(hint)
        self.where = None if where is None else inert(where)

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        hint = f"\n  hint: {self.hint}" if self.hint else ""
        return f"{place}{self.message}{hint}"


class CombinedError(UserError):
    """Several errors of one file, shown together; ``errors`` has them all, the text the first few."""

    SHOWN = 10

    def __init__(self, errors: Iterable[UserError]):
        self.errors = tuple(errors)
        shown = [str(error) for error in self.errors[: self.SHOWN]]
        left = len(self.errors) - len(shown)
        super().__init__("")
        self.message = "\n".join([*shown, f"… and {left} more"] if left else shown)  # inert, line by line


def raise_any(errors: Iterable[UserError]) -> None:
    """Raise what there is: nothing, the one error, or all of them as one, in the order of the file."""
    distinct = sorted({str(error): error for error in errors}.values(), key=_line_and_column)
    if len(distinct) == 1:
        raise distinct[0]
    if distinct:
        raise CombinedError(distinct)


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """Hint for an unknown word: the nearest valid one where there is one, and all of them."""
    by_folded = {name.casefold(): name for name in sorted(valid)}
    if not by_folded:
        return "there are none"
    near = get_close_matches(word.casefold(), by_folded, n=1, cutoff=0.6)
    listed = f"valid: {', '.join(by_folded.values())}"
    return f"did you mean {by_folded[near[0]]!r}? {listed}" if near else listed


def listed(names: Sequence[str], most: int = 3) -> str:
    """``a, b, c and 4 more``."""
    left = len(names) - most
    return ", ".join(names[:most]) + (f" and {left} more" if left > 0 else "")


def _line_and_column(error: UserError) -> list[int]:
    """Line and column of ``file:line:column``; errors without them come first."""
    return [int(part) for part in (error.where or "").split(":")[-2:] if part.isdecimal()]
