"""Pairwise choices from wherever they are: a CSV file, a Parquet file or a set of the model hub.

Columns: ``prompt``, ``image_a``, ``image_b``, ``choice`` (a, b or tie) and optionally ``judge``. A picture is
a path relative to the file, or the bytes of an encoded picture. The columns of Pick-a-Pic (``caption``,
``jpg_0``, ``jpg_1``, ``label_0``) are understood as well.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddposink.errors import Unavailable, suggest

CHOICES = {"a": 1.0, "b": 0.0, "tie": 0.5}
COLUMNS = ("prompt", "image_a", "image_b", "choice")
DEEP = ("I", "F")  # how modes of Pillow begin that have more than 8 bits a channel: I, I;16, I;16B, F
PICK_A_PIC = {"prompt": "caption", "image_a": "jpg_0", "image_b": "jpg_1", "choice": "label_0"}


@dataclass(frozen=True)
class LabelledPair:
    """One choice: 1 if a was preferred, 0 if b, 0.5 for a tie. Pictures are paths or encoded bytes."""

    prompt: str
    a: Path | bytes
    b: Path | bytes
    choice: float
    judge: str = ""
    where: str = ""


def read_comparisons(source: str, split: str = "train", limit: int | None = None) -> Iterator[LabelledPair]:
    """The choices in a .csv or .parquet file or in ``ORG/NAME@COMMIT``, at most ``limit``.

    Raises ValueError naming file and line of what is wrong, Unavailable for a hub that cannot be reached.
    """
    for count, comparison in enumerate(_rows(source, split)):
        if limit is not None and count >= limit:
            return
        yield comparison


def decode(picture: Path | bytes, where: str = "", name: str = "bytes") -> np.ndarray:
    """(H, W, 3) uint8, transparency on white, turned as it is shown. ``name``: what bytes are called.

    Raises ValueError for what is no picture.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    shown = picture.name if isinstance(picture, Path) else name
    try:
        with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as image:
            # A camera says how to turn it, which the page that it was judged on does.
            drawn = None if image.mode.startswith(DEEP) else ImageOps.exif_transpose(image).convert("RGBA")
    except UnidentifiedImageError as error:  # which names an object in memory
        raise ValueError(f"{where}: picture {shown} cannot be read: it is no picture") from error
    # What Pillow raises for a damaged file depends on where it is damaged.
    except (
        OSError, SyntaxError, ValueError, OverflowError, MemoryError, Image.DecompressionBombError
    ) as error:  # fmt: skip
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{where}: picture {shown} cannot be read: {said}") from error
    if drawn is None:  # Pillow would cut its values off: all white, or black
        raise ValueError(f"{where}: picture {shown} has more than 8 bits a channel; save it with 8")
    paper = Image.new("RGBA", drawn.size, "white")
    return np.asarray(Image.alpha_composite(paper, drawn).convert("RGB"))


def _rows(source: str, split: str) -> Iterator[LabelledPair]:
    if match := re.fullmatch(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})", source):
        return _converted(_hub(match[1], match[2], split), source, Path())
    path = Path(source)
    if not path.is_file():
        raise ValueError(
            f"'{source}' is neither a file nor a hub set; those are written ORG/NAME@COMMIT, all 40 digits"
        )
    if path.suffix == ".parquet":
        return _converted(_parquet(path), source, path.parent)
    if path.suffix == ".csv":
        return _converted(_csv(path), source, path.parent)
    raise ValueError(f"'{source}': expected a .csv or .parquet file")


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from csv.DictReader(file)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"'{path}' is no CSV file in UTF-8: {error}") from error


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        raise ValueError(f"'{path}' is no readable Parquet file: {error}") from error


def _hub(name: str, revision: str, split: str) -> Iterator[dict[str, Any]]:
    """Streamed: Pick-a-Pic's pictures are hundreds of gigabytes."""
    from ddposink.assets import hub

    try:
        import datasets
    except ImportError as error:
        raise Unavailable("sets of the hub need the package `datasets`: pip install ddposink[hub]") from error
    if why := hub.unreachable():
        raise Unavailable(f"'{name}' is not available offline: {why}")
    try:
        yield from datasets.load_dataset(name, revision=revision, split=split, streaming=True)
    except Exception as error:
        raise Unavailable(f"'{name}' could not be read: {hub.one_line(error)}") from error


def _converted(rows: Iterable[Mapping[str, Any]], source: str, folder: Path) -> Iterator[LabelledPair]:
    for number, row in enumerate(rows, start=1):
        where = f"{source}, row {number}"
        columns = PICK_A_PIC if "jpg_0" in row else dict(zip(COLUMNS, COLUMNS, strict=True))
        for column in columns.values():
            if column not in row:
                names = [str(name) for name in row if name]
                raise ValueError(
                    f"{where}: no column '{column}'{suggest(column, names)}; it has {', '.join(names)}"
                )
            if row[column] is None:
                raise ValueError(f"{where}: nothing in column '{column}'; is the row damaged?")
        if None in row:  # how `csv` keeps what has no column
            raise ValueError(f"{where}: more values than columns; is a comma not in quotes?")
        prompt, a, b, choice = (row[columns[name]] for name in COLUMNS)
        yield LabelledPair(
            str(prompt), _picture(a, where, folder), _picture(b, where, folder), _choice(choice, where),
            str(row.get("judge") or ""), where,
        )  # fmt: skip


def _choice(value: Any, where: str) -> float:
    if isinstance(value, int | float) and value in (0, 0.5, 1):
        return float(value)
    found = CHOICES.get(str(value).strip().lower())
    if found is None:
        raise ValueError(f"{where}: choice '{value}' is none of a, b, tie")
    return found


def _picture(value: Any, where: str, folder: Path) -> Path | bytes:
    if isinstance(value, Mapping):  # how `datasets` stores a picture
        value = value.get("bytes") or value.get("path") or ""
    if isinstance(value, bytes) and value:
        return value
    if isinstance(value, str) and value:
        path = folder / value
        try:
            found = path.is_file()
        except (OSError, ValueError) as error:  # too long for a name, as pictures written as text are
            raise ValueError(
                f"{where}: '{value[:40]}…' ({len(value):,} characters) is no path of a picture; write a "
                "path, or keep the pictures' bytes in a .parquet file"
            ) from error
        if not found:
            raise ValueError(f"{where}: there is no picture '{path}'")
        return path
    if hasattr(value, "save"):  # a decoded picture of `datasets`
        buffer = io.BytesIO()
        value.save(buffer, format="PNG")
        return buffer.getvalue()
    raise ValueError(f"{where}: a picture must be a path or bytes, not {type(value).__name__}")
