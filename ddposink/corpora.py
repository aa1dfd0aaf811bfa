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
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from ddposink import pg19
from ddposink.errors import suggest
from ddposink.novels import NOVELS, novel

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
            return {"sha256": _digest(Path(self.name).read_bytes())}
        if self.kind == "folder":
            parts = (
                f.name.encode() + b"\0" + _digest(f.read_bytes()).encode()
                for f in _txt_files(Path(self.name))
            )
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
    whitespace words begun up to and including each token; ``books`` name and first token; ``convention``
    one line.
    """

    ids: np.ndarray
    byte_end: np.ndarray
    word_end: np.ndarray
    books: list[tuple[str, int]]
    convention: str


def load_stream(
    ref: CorpusRef, tokenizer: Any, max_tokens: int, bos: bool = False, spare: int = 0
) -> TokenStream:
    """The first ``max_tokens`` tokens of a corpus, and up to ``spare`` more if it has them.

    Raises ValueError if it is empty, not text, or shorter than asked (saying how long it is), and
    Unavailable if it cannot be had here.
    """
    import numpy as np

    bos_id = tokenizer.bos_token_id
    if (bos or ref.separator == "bos") and bos_id is None:
        raise ValueError("this tokenizer has no BOS token: leave bos out and choose another separator")
    if not tokenizer.is_fast:
        raise ValueError("this tokenizer does not say which text a token covers: it has no tokenizer.json")
    if ref.kind == "pg19":
        ref = replace(ref, revision=pg19.resolve(ref.revision))
    pieces = [_special(bos_id)] if bos else []
    newline = "\n" if ref.separator == "newline" else ""
    count, text_tokens = len(pieces), 0
    books: list[tuple[str, int]] = []
    for name, text in read_books(ref):
        if books and ref.separator == "bos":
            pieces.append(_special(bos_id))
            count += 1
        books.append((name, count))
        pieces.append(_encode(text + newline, tokenizer))
        text_tokens += len(pieces[-1][0])
        count += len(pieces[-1][0])
        if count >= max_tokens + spare:
            break
    if text_tokens == 0:
        raise ValueError(f"corpus '{ref.name}' is empty")
    if count < max_tokens:
        raise ValueError(
            f"corpus '{ref.name}' has {count:,} tokens for this model, {max_tokens:,} were asked for: "
            f"choose a shorter length or a longer corpus"
        )
    ids, byte_steps, word_steps = (
        np.concatenate(column)[: max_tokens + spare] for column in zip(*pieces, strict=True)
    )
    start = "BOS first; " if bos else "no BOS; "
    return TokenStream(ids, np.cumsum(byte_steps), np.cumsum(word_steps), books, start + ref.convention)


def _special(token: int) -> tuple[Any, Any, Any]:
    import numpy as np

    return np.array([token]), np.array([0]), np.array([0])


def _encode(text: str, tokenizer: Any) -> tuple[Any, Any, Any]:
    """ids, bytes and words that each token adds, each (n,) int64."""
    import numpy as np

    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = np.asarray(encoding["input_ids"], dtype=np.int64)
    if not len(ids):
        return ids, ids, ids
    # A character split over several tokens has the same offsets in each: the first one counts it.
    ends = np.maximum.accumulate(np.asarray(encoding["offset_mapping"], dtype=np.int64)[:, 1])
    ends[-1] = len(text)
    characters = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (characters > 0x7F) + (characters > 0x7FF) + (characters > 0xFFFF)
    spaces = np.frombuffer("".join("\1" if c.isspace() else "\0" for c in text).encode(), dtype=np.uint8) == 1
    begins = ~spaces & np.concatenate([[True], spaces[:-1]])
    byte_at = np.concatenate([[0], np.cumsum(widths)])
    word_at = np.concatenate([[0], np.cumsum(begins)])
    return ids, np.diff(byte_at[ends], prepend=0), np.diff(word_at[ends], prepend=0)


def read_books(ref: CorpusRef) -> Iterator[tuple[str, str]]:
    """Name and text of each book in order, at most ``ref.books``."""
    if ref.kind == "novel":
        found: Iterator[tuple[str, str]] = iter([(ref.name, novel(ref.name))])
    elif ref.kind == "novels":
        found = ((name, novel(name)) for name in NOVELS)
    elif ref.kind == "file":
        found = iter([(Path(ref.name).name, _read(Path(ref.name)))])
    elif ref.kind == "folder":
        files = _txt_files(Path(ref.name))
        if not files:
            raise ValueError(f"folder '{ref.name}' holds no .txt file")
        found = ((file.name, _read(file)) for file in files)
    else:
        found = pg19.books(pg19.resolve(ref.revision), ref.name.partition("/")[2])
    for index, book in enumerate(found):
        if ref.books is not None and index >= ref.books:
            return
        yield book


def _txt_files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.suffix == ".txt" and f.is_file())


def _read(path: Path) -> str:
    data = path.read_bytes()
    if b"\0" in data:
        raise ValueError(f"'{path}' is not text: it contains NUL bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is not UTF-8 text: {error.reason} at byte {error.start}") from error


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
