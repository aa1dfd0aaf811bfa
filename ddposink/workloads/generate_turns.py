"""What the user says: shipped questions, or the sentences of a corpus. After the last comes the first.

No torch, no numpy: suites are checked with it.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.resources import files

from ddposink.corpora import CorpusRef, read_books

QUESTIONS = "questions"
SHORTEST, LONGEST = 20, 240  # characters of a sentence that is put as a turn
MOST = 5_000  # sentences read of a corpus
_BREAK = re.compile(r"""(?:(?<=[.!?])|(?<=[.!?]["'”’)]))\s+""")  # behind a full stop, and a quotation mark


@dataclass(frozen=True)
class TurnSource:
    """Where the turns come from: the shipped questions (``corpus`` None) or a corpus."""

    corpus: CorpusRef | None

    @classmethod
    def parse(cls, text: str) -> TurnSource:
        """Read the text form; raises ValueError naming what would have been right."""
        if text == QUESTIONS:
            return cls(None)
        try:
            return cls(CorpusRef.parse(text))
        except ValueError as error:
            raise ValueError(f"{error}; turns may also be '{QUESTIONS}'") from error

    def identity(self) -> dict[str, str]:
        """What the name refers to; no network."""
        if self.corpus is None:
            return {"sha256": hashlib.sha256(_shipped().encode()).hexdigest()}
        return self.corpus.identity()

    def turns(self, seed: int) -> Iterator[str]:
        """The turns, for ever: questions in an order of the seed, or sentences from a place of the seed on.

        Raises ValueError if a corpus has no sentence of a fitting length, Unavailable if it cannot be had.
        """
        drawn = random.Random(seed)
        if self.corpus is None:
            found = _shipped().splitlines()
            drawn.shuffle(found)
        else:
            read = (book.whole() for book in read_books(self.corpus))
            found = list(itertools.islice(sentences(read), MOST))
            if not found:
                raise ValueError(
                    f"corpus '{self.corpus.name}' has no sentence of {SHORTEST} to {LONGEST} characters"
                )
            first = drawn.randrange(len(found))
            found = found[first:] + found[:first]
        return itertools.cycle(found)


def sentences(texts: Iterable[str]) -> Iterator[str]:
    """Sentences of `SHORTEST` to `LONGEST` characters, on one line each; paragraphs end a sentence, too."""
    for text in texts:
        for paragraph in re.split(r"\n\s*\n", text):
            for sentence in _BREAK.split(" ".join(paragraph.split())):
                if SHORTEST <= len(sentence) <= LONGEST:
                    yield sentence


def _shipped() -> str:
    return (files("ddposink") / "data" / "turns" / "questions.txt").read_text(encoding="utf-8")
