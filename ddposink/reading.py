"""The first tokens of a text, exactly as if all of it had been tokenised, reading hardly more than they need.

A tokenizer looks around: how a text begins to be cut into tokens can depend on what follows, but not on
what follows far away. So a longer beginning than needed is tokenised, and only tokens that end well before
the cut, with whole words between, are taken. Where no such place is found the beginning is doubled, in the
end to the whole text.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

CHARACTERS = 6  # of a token, at first; English has 4 to 5
MARGIN = 2048  # characters between the last token taken and the cut
EDGES = 64  # places there where a word begins or ends
BLOCK = 1 << 20  # bytes read from a file at a time
_EDGE = re.compile(r"\b")


class Book:
    """A named text whose beginning can be had without the rest."""

    def __init__(self, name: str, pieces: Iterator[str]) -> None:
        self.name = name
        self.complete = False  # whether `first` has reached the end
        self._pieces = pieces
        self._text = ""

    @classmethod
    def of(cls, name: str, text: str) -> Book:
        """A text that is there already."""
        return cls(name, iter([text]))

    @classmethod
    def file(cls, path: Path) -> Book:
        """A UTF-8 file, read block by block; `first` raises ValueError where it is not text."""
        return cls(path.name, _decoded(path))

    def first(self, characters: int) -> str:
        """At least so many characters, if the text has them."""
        parts, count = [self._text], len(self._text)
        while count < characters and not self.complete:
            piece = next(self._pieces, None)
            if piece is None:
                self.complete = True
            else:
                parts.append(piece)
                count += len(piece)
        self._text = "".join(parts)
        return self._text

    def whole(self) -> str:
        """All of it."""
        while not self.complete:
            self.first(max(BLOCK, 2 * len(self._text)))
        return self._text

    def mentions(self, words: Collection[str]) -> bool:
        """Whether one of ``words`` stands in it. For a book of which nothing was read; it is used up."""
        longest, end = max(map(len, words), default=1), ""
        for piece in self._pieces:
            end = end[-longest:] + piece
            if any(word in end for word in words):
                return True
        return False


def _decoded(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    done = 0
    with path.open("rb") as file:
        while True:
            data = file.read(BLOCK)
            if b"\0" in data:
                raise ValueError(f"'{path}' is not text: it contains NUL bytes")
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                place = done - pending + error.start
                raise ValueError(f"'{path}' is not UTF-8 text: {error.reason} at byte {place}") from error
            done += len(data)
            if text or not data:
                yield text
            if not data:
                return


@dataclass(frozen=True)
class Tokens:
    """``ids`` (n,) int64, and the UTF-8 bytes and whitespace words that each token adds, (n,) int64."""

    ids: np.ndarray
    byte_steps: np.ndarray
    word_steps: np.ndarray

    def head(self, count: int) -> Tokens:
        """The first ``count`` of them."""
        return Tokens(self.ids[:count], self.byte_steps[:count], self.word_steps[:count])


def first_tokens(book: Book, wanted: int, tokenizer: Any, after: str = "") -> Tokens:
    """The first ``wanted`` tokens of the book, all if it has fewer; ``after`` follows its text."""
    characters = CHARACTERS * wanted + MARGIN
    while True:
        text = book.first(characters)
        if book.complete and len(text) <= characters:
            return encode(text + after, tokenizer).head(wanted)
        text = text[:characters]
        found, ends = _encoded(text, tokenizer)
        if len(found.ids) >= wanted and _undisturbed(text, int(ends[wanted - 1])):
            return found.head(wanted)
        characters *= 2


def _undisturbed(text: str, end: int) -> bool:
    """Whether a cut at the end of ``text`` cannot reach back to ``end``: far enough, with words between."""
    between = text[end:]
    return len(between) >= MARGIN and len(_EDGE.findall(between[: 4 * MARGIN])) >= EDGES


def encode(text: str, tokenizer: Any) -> Tokens:
    """All tokens of a whole text."""
    return _encoded(text, tokenizer)[0]


def _encoded(text: str, tokenizer: Any) -> tuple[Tokens, np.ndarray]:
    """Tokens of ``text``, and the character (n,) at which each ends."""
    import numpy as np

    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = np.asarray(encoding["input_ids"], dtype=np.int64)
    if not len(ids):
        return Tokens(ids, ids, ids), ids
    # A character split over several tokens has the same offsets in each: the first one counts it.
    ends = np.maximum.accumulate(np.asarray(encoding["offset_mapping"], dtype=np.int64)[:, 1])
    ends[-1] = len(text)
    characters = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (characters > 0x7F) + (characters > 0x7FF) + (characters > 0xFFFF)
    spaces = np.frombuffer("".join("\1" if c.isspace() else "\0" for c in text).encode(), dtype=np.uint8) == 1
    begins = ~spaces & np.concatenate([[True], spaces[:-1]])
    byte_at = np.concatenate([[0], np.cumsum(widths)])
    word_at = np.concatenate([[0], np.cumsum(begins)])
    return Tokens(ids, np.diff(byte_at[ends], prepend=0), np.diff(word_at[ends], prepend=0)), ends
