"""The conversation for readers: plain text, turns marked, and the place where it collapses.

Lines that begin with `HEADING` or `ALARM` are ours; everything that was asked or written is indented, so
that nothing a model writes can be taken for one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ddposink.workloads.generate_rule import SPAN
from ddposink.workloads.generate_writing import Turn

HEADING, ALARM = "───", "━━━"
Decode = Callable[[Sequence[int]], str]


def conversation(turns: Sequence[Turn], decode: Decode, collapsed: tuple[int, str] | None) -> str:
    """All turns as text. ``collapsed``: the written token at which it collapses, and what is wrong there."""
    last = turns[-1]
    return "\n".join(x for turn in turns for x in _lines(turn, turn is last, decode, collapsed)) + "\n"


def answers(turns: Sequence[Turn], decode: Decode) -> str:
    """What the model wrote, an answer a paragraph, without the tokens that end an answer."""
    return "\n\n".join(decode(_words(turn)) for turn in turns)


def _lines(turn: Turn, last: bool, decode: Decode, collapsed: tuple[int, str] | None) -> Iterator[str]:
    yield f"{HEADING} token {turn.at:,}: asked"
    yield from _indented(turn.asked)
    cut = "" if turn.ended is not None else " so far" if last else ", cut off"
    yield f"{HEADING} answered ({len(turn.answer):,} tokens{cut})"
    words = _words(turn)
    if collapsed is None or not turn.at <= collapsed[0] < turn.at + len(turn.answer):
        yield from _indented(decode(words))
        return
    place = collapsed[0] - turn.at
    if place:
        yield from _indented(decode(words[:place]))
    yield f"{ALARM} collapse, among the {SPAN} tokens from token {collapsed[0]:,} on: {collapsed[1]}"
    yield from _indented(decode(words[place:]))


def _words(turn: Turn) -> list[int]:
    return turn.answer if turn.ended is None else turn.answer[:-1]


def _indented(text: str) -> Iterator[str]:
    for line in text.splitlines() or [""]:
        yield f"    {line}".rstrip()
