"""What stands between a fact and its question: whole sentences of a book, as they follow each other there.

Text is turned into tokens piece by piece (a sentence, a fact, a question): a piece is the same tokens
wherever it stands, so that what two questions share can be read once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ddposink.corpora import CorpusRef, read_books

CHARACTERS = 1 << 20  # of the book that sentences are taken from; a long novel has as many
WORDS = (6, 40)  # of a sentence that is taken: shorter ones are shouts, longer ones leave no choice
# What every piece is tokenised behind, as tokenizers treat the beginning of a text in ways of their own. A
# letter, because some join a full stop and the line break that follows.
ANCHOR = "a"
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_ODD = re.compile(r"[\"“”_*\[\]\d]")  # half a dialogue, mark-up, or a number, which is for facts alone


class Pieces:
    """Pieces of text as token ids of one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._anchor = self._ids(ANCHOR)

    def ids(self, text: str) -> list[int]:
        """Token ids (n,) of a piece, which begins with a space or a line break.

        Raises ValueError for a tokenizer that joins it to what stands before.
        """
        found, size = self._ids(ANCHOR + text), len(self._anchor)
        if found[:size] != self._anchor:
            raise ValueError(f"this tokenizer joins {text[:20]!r} to the letter before it")
        return found[size:]

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


class Filler:
    """The sentences of a book, in its order, as token ids."""

    def __init__(self, sentences: Sequence[Sequence[int]]) -> None:
        if not sentences:
            raise ValueError("this corpus has no whole sentence to stand between a fact and its question")
        self.sentences = [list(sentence) for sentence in sentences]

    @classmethod
    def of(cls, ref: CorpusRef, pieces: Pieces) -> Filler:
        """Of the first book of a corpus. Raises Unavailable if it cannot be had here."""
        book = next(iter(read_books(ref)))
        return cls([pieces.ids(" " + sentence) for sentence in sentences_of(book.first(CHARACTERS))])

    def from_anywhere(
        self, rng: np.random.Generator, tokens: int, first: Sequence[int] = ()
    ) -> Iterator[list[int]]:
        """Consecutive sentences from anywhere in the book, ``first`` before them, until there are ``tokens``.

        The last one may end beyond. At the end of the book it begins again.
        """
        at, read, before = int(rng.integers(len(self.sentences))), 0, list(first)
        while read < tokens:
            yield (sentence := before + self.sentences[at % len(self.sentences)])
            at, read, before = at + 1, read + len(sentence), []


def sentences_of(text: str) -> list[str]:
    """Sentences that can stand anywhere: begun and ended as such, on one line, without speech or numbers."""
    found = []
    for sentence in _SENTENCE.split(re.sub(r"\s+", " ", text)):
        words = len(sentence.split())
        whole = WORDS[0] <= words <= WORDS[1] and sentence[0].isupper() and sentence.endswith(".")
        if whole and not _ODD.search(sentence):
            found.append(sentence)
    return found
