"""Corpora by name: one long token stream, and how many bytes and words of text it stands for.

``novel:NAME`` one embedded novel · ``novels`` all ten · ``file:PATH`` · ``folder:DIR`` (its .txt files,
sorted) · ``pg19:test``, ``pg19:test/BOOK``, ``pg19:test@COMMIT`` (from the hub; without a commit the newest
one is read, and named in the convention). Options follow a question mark:
``novels?separator=newline&books=3``.

Books are concatenated as PG19 evaluations do: never reset, with the separator named in the
record. Bytes and words per token make figures comparable between models with different tokenizers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from ddposink.assets import pg19
from ddposink.assets.novels import NOVELS, novel
from ddposink.errors import suggest
from ddposink.reading import Book, Tokens, first_tokens

if TYPE_CHECKING:
    import numpy as np

SEPARATORS = ("none", "newline", "bos")
KINDS = ("novel:NAME", "novels", "file:PATH", "folder:DIR", "pg19:test[/BOOK][@COMMIT]")


@dataclass(frozen=True)
class CorpusRef:
    """``kind``: novel | novels | file | folder | pg19. ``books`` limits how many books are read."""

    kind: str
    name: str
    separator: str = "none"
    books: int | None = None
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> CorpusRef:
        """Read a corpus's text form; raises ValueError naming what would have been right."""
        place, _, query = text.partition("?")
        options = _options(query)
        kind, _, name = place.partition(":")
        if kind == "novels" and not name:
            return cls("novels", "novels", **options)
        if kind == "novel":
            if name not in NOVELS:
                raise ValueError(f"unknown novel '{name}'{suggest(name, NOVELS)}; known: {', '.join(NOVELS)}")
            return cls(kind, name, **options)
        if kind in ("file", "folder"):
            path = Path(name)
            if not (path.is_file() if kind == "file" else path.is_dir()):
                raise ValueError(
                    f"corpus {kind} '{name}' does not exist (relative paths start where you run)"
                )
            return cls(kind, name, **options)
        if kind == "pg19" and (match := re.fullmatch(r"(test(?:/[\w.-]+)?)(?:@([0-9a-f]{40}))?", name)):
            return cls(kind, match[1], revision=match[2], **options)
        near = suggest(kind, ["novel", "novels", "file", "folder", "pg19"])
        raise ValueError(f"unknown corpus '{text}'{near}; corpora are written {', '.join(KINDS)}")

    def identity(self) -> dict[str, str]:
        """What the name refers to: sha256 of text, or repository and revision. No network."""
        if self.kind == "novel":
            return {"sha256": NOVELS[self.name][2]}
        if self.kind == "novels":
            return {"sha256": _digest("".join(sha for _, _, sha in NOVELS.values()).encode())}
        if self.kind == "file":
            return {"sha256": _file_digest(Path(self.name))}
        if self.kind == "folder":
            parts = (f.name.encode() + b"\0" + _file_digest(f).encode() for f in _txt_files(Path(self.name)))
            return {"sha256": _digest(b"".join(parts))}
        return {"repository": pg19.REPO, "revision": self.revision or "newest; recorded when read"}

    @property
    def convention(self) -> str:
        """One line for the record."""
        joint = {
            "none": "no separator",
            "newline": "a newline between books",
            "bos": "a BOS token between books",
        }
        source = f"; {pg19.REPO}@{self.revision}" if self.kind == "pg19" and self.revision else ""
        return f"concatenated, {joint[self.separator]}, never reset{source}"


@dataclass(frozen=True)
class TokenStream:
    """``ids`` (N,) int64; ``byte_end`` and ``word_end`` (N,) int64: UTF-8 bytes of text covered and
    whitespace words begun up to and including each token; ``target`` (N,) bool: whether predicting the token
    says something of the text (a BOS that was put there does not); ``books`` name and first token;
    ``convention`` one line.
    """

    ids: np.ndarray
    byte_end: np.ndarray
    word_end: np.ndarray
    target: np.ndarray
    books: list[tuple[str, int]]
    convention: str


def load_stream(
    ref: CorpusRef, tokenizer: Any, max_tokens: int, bos: bool = False, spare: int = 0
) -> TokenStream:
    """The first ``max_tokens`` tokens of a corpus, and up to ``spare`` more if it has them.

    No more of it is read and tokenised than these need. Raises ValueError if it is empty, not text (as far as
    it is read), or shorter than asked (saying how long it is), and Unavailable if it cannot be had here.
    """
    import numpy as np

    bos_id = tokenizer.bos_token_id
    if (bos or ref.separator == "bos") and bos_id is None:
        raise ValueError("this tokenizer has no BOS token: leave bos out and choose another separator")
    if not tokenizer.is_fast:
        raise ValueError("this tokenizer does not say which text a token covers: it has no tokenizer.json")
    if ref.kind == "pg19":
        ref = replace(ref, revision=pg19.resolve(ref.revision))
    zero, wanted = np.zeros(1, dtype=np.int64), max_tokens + spare
    special = Tokens(zero + (bos_id or 0), zero, zero)
    pieces, targets = ([special], [zero > 0]) if bos else ([], [])
    newline = "\n" if ref.separator == "newline" else ""
    count, text_tokens = len(pieces), 0
    books: list[tuple[str, int]] = []
    for book in read_books(ref):
        if books and ref.separator == "bos":
            pieces.append(special)
            targets.append(zero > 0)
            count += 1
        books.append((book.name, count))
        pieces.append(first_tokens(book, max(1, wanted - count), tokenizer, newline))
        targets.append(np.ones(len(pieces[-1].ids), dtype=bool))
        text_tokens += len(pieces[-1].ids)
        count += len(pieces[-1].ids)
        if count >= wanted:
            break
    if text_tokens == 0:
        raise ValueError(f"corpus '{ref.name}' is empty")
    if count < max_tokens:
        raise ValueError(
            f"corpus '{ref.name}' has {count:,} tokens for this model, {max_tokens:,} were asked for: "
            f"choose a shorter length or a longer corpus"
        )
    ids, byte_steps, word_steps = (
        np.concatenate([getattr(piece, column) for piece in pieces])[:wanted]
        for column in ("ids", "byte_steps", "word_steps")
    )
    return TokenStream(
        ids,
        np.cumsum(byte_steps),
        np.cumsum(word_steps),
        np.concatenate(targets)[:wanted],
        books,
        ("BOS first; " if bos else "no BOS; ") + ref.convention,
    )


def read_books(ref: CorpusRef) -> Iterator[Book]:
    """The books in order, at most ``ref.books``; a book is read when its text is asked for."""
    if ref.kind == "novel":
        found: Iterator[Book] = iter([Book.of(ref.name, novel(ref.name))])
    elif ref.kind == "novels":
        found = (Book.of(name, novel(name)) for name in NOVELS)
    elif ref.kind == "file":
        found = iter([Book.file(Path(ref.name))])
    elif ref.kind == "folder":
        files = _txt_files(Path(ref.name))
        if not files:
            raise ValueError(f"folder '{ref.name}' holds no .txt file")
        found = (Book.file(file) for file in files)
    else:
        texts = pg19.books(pg19.resolve(ref.revision), ref.name.partition("/")[2])
        found = (Book.of(name, text) for name, text in texts)
    for index, book in enumerate(found):
        if ref.books is not None and index >= ref.books:
            return
        yield book


def mentions(ref: CorpusRef, words: Collection[str]) -> bool:
    """Whether one of ``words`` stands anywhere in a corpus, however little of it is read afterwards.

    Asked of files, which may be transcripts of chats. Books of before 1919 hold no marks of a chat's turns.
    """
    asked = bool(words) and ref.kind in ("file", "folder")
    return asked and any(book.mentions(words) for book in read_books(ref))


def _txt_files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.suffix == ".txt" and f.is_file())


def _options(query: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name == "separator":
            if value not in SEPARATORS:
                raise ValueError(
                    f"unknown separator '{value}'{suggest(value, SEPARATORS)}: {', '.join(SEPARATORS)}"
                )
            options[name] = value
        elif name == "books":
            if not value.isdigit() or int(value) < 1:
                raise ValueError(f"books must be a number of at least 1, got '{value}'")
            options[name] = int(value)
        else:
            raise ValueError(f"unknown corpus option '{name}'{suggest(name, ['separator', 'books'])}")
    return options


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _file_digest(path: Path) -> str:
    """sha256 of a file that may be larger than memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
