"""Errors of `ddposink` that a caller may want to tell apart."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class Unavailable(RuntimeError):  # noqa: N818 - a state of the world, not a mistake
    """Something needed cannot be had here (offline weights, no apt, …); the message is one line."""


def suggest(word: str, words: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` or an empty string."""
    near = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f" (did you mean '{near[0]}'?)" if near else ""
