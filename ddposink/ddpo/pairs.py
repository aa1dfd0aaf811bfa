"""Pairs of pictures of which one was preferred, as `dpo` learns from without drawing any. No torch.

A file is one that ``python -m bench label`` writes (or whatever `ddposink.comparisons` reads from a file).
All that can be wrong with it is found here, before a model is loaded: the pictures are decoded once.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ddposink.comparisons import LabelledPair, decode, read_comparisons

MAX_LENGTH = 1_000  # characters of a prompt; text encoders cut off far earlier
TYPES = (".csv", ".parquet")


@dataclass(frozen=True)
class PreferencePairs:
    """P pairs. ``pictures``: the different ones, paths or encoded bytes, all of ``size`` (height, width).

    ``preferred`` and ``rejected``: (P,) places among the pictures. ``ties``: rows that prefer neither, which
    are left out. ``hashes``: of every picture's bytes. ``sha256``: of prompts and pictures, pair by pair.
    ``first``: the row of the first picture.
    """

    file: str
    prompts: tuple[str, ...]
    preferred: tuple[int, ...]
    rejected: tuple[int, ...]
    pictures: tuple[Path | bytes, ...]
    hashes: tuple[str, ...]
    size: tuple[int, int]
    ties: int
    sha256: str
    first: str

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def once(self) -> tuple[str, ...]:
        """The prompts, each once."""
        return tuple(dict.fromkeys(self.prompts))

    def __str__(self) -> str:
        """``choices.csv: 40 pairs (3 ties left out), sha256 0123456789ab``."""
        left_out = f" ({self.ties} tie{'s' * (self.ties > 1)} left out)" if self.ties else ""
        pairs = f"{len(self):,} pair{'s' * (len(self) > 1)}"
        return f"{Path(self.file).name}: {pairs}{left_out}, sha256 {self.sha256[:12]}"

    def check_size(self, drawn: tuple[int, int], pipeline: str) -> None:
        """Raise ValueError unless the pictures are of the size ``drawn`` (height, width) by ``pipeline``."""
        if self.size != drawn:
            raise ValueError(
                f"{self.first}: pictures are {_shown(self.size)} pixels, and {pipeline} draws "
                f"{_shown(drawn)}; resize them, or draw them by this pipeline"
            )


def read_pairs(file: str) -> PreferencePairs:
    """The pairs in ``file``, a .csv or .parquet. Raises ValueError naming file and row of what is wrong."""
    path = Path(file)
    if path.suffix not in TYPES or not path.is_file():
        raise ValueError(
            f"dpo_pairs '{file}' is no .csv or .parquet file that exists; `python -m bench label DIR` writes "
            f"DIR/choices.csv"
        )
    about = path.stat()
    return _read(file, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=4)
def _read(file: str, size: int, changed_ns: int) -> PreferencePairs:
    """As `read_pairs`, of a file as it is now; every cell of a plan asks for it several times."""
    pictures, ties = _Pictures(Path(file)), 0
    prompts, preferred, rejected, digest = [], [], [], hashlib.sha256()
    for row in read_comparisons(file):
        prompt = _prompt(row)
        a, b = pictures.place(row.a, row.where), pictures.place(row.b, row.where)
        if a == b:
            raise ValueError(f"{row.where}: a picture is compared with itself; leave the row out")
        if row.choice == 0.5:
            ties += 1
            continue
        prompts.append(prompt)
        preferred.append(a if row.choice else b)
        rejected.append(b if row.choice else a)
        digest.update(
            f"{prompt}\0{pictures.sha256[preferred[-1]]}\0{pictures.sha256[rejected[-1]]}\n".encode()
        )
    if not prompts:
        why = f"all {ties} of its rows are ties" if ties else "it has no rows"
        raise ValueError(f"'{file}' has no pair to learn from: {why}; judge some with `bench label`")
    return PreferencePairs(
        file, tuple(prompts), tuple(preferred), tuple(rejected),
        tuple(pictures.found), tuple(pictures.sha256), pictures.size, ties,
        digest.hexdigest(), pictures.first,
    )  # fmt: skip


class _Pictures:
    """The different pictures of a file, looked at as they come."""

    def __init__(self, file: Path) -> None:
        self.folder = file.parent.resolve()
        self.found: list[Path | bytes] = []
        self.sha256: list[str] = []
        self.size, self.first = (0, 0), ""
        self._places: dict[Path | bytes, int] = {}

    def place(self, picture: Path | bytes, where: str) -> int:
        """Its place among the pictures. Raises ValueError if it cannot be learnt from."""
        if isinstance(picture, Path):
            picture = picture.resolve()
            if not picture.is_relative_to(self.folder):
                raise ValueError(
                    f"{where}: picture '{picture}' lies outside of the file's folder '{self.folder}'; keep "
                    f"both in one folder, as `python -m bench label DIR` does"
                )
        key = picture if isinstance(picture, Path) else hashlib.sha256(picture).digest()
        if key not in self._places:
            self._places[key] = len(self.found)
            self._look(picture, where)
        return self._places[key]

    def _look(self, picture: Path | bytes, where: str) -> None:
        try:
            data = _bytes(picture)  # read once: what is hashed is what is looked at
        except OSError as error:
            raise ValueError(f"{where}: picture {_name(picture)} cannot be read: {error}") from error
        height, width, _ = decode(data, where, _name(picture)).shape
        if not self.found:
            self.size, self.first = (height, width), where
        elif self.size != (height, width):
            raise ValueError(
                f"{where}: picture {_name(picture)} is {_shown((height, width))} pixels, and those before "
                f"it are {_shown(self.size)}; all must be of the size that the pipeline draws"
            )
        self.sha256.append(hashlib.sha256(data).hexdigest())
        self.found.append(picture)


def pixels(pairs: PreferencePairs, places: list[int]) -> np.ndarray:
    """(B, 3, H, W) float32 in [-1, 1], as an autoencoder reads them. ValueError if a file has changed."""
    found = []
    for place in places:
        picture, data = pairs.pictures[place], b""
        with suppress(OSError):  # it is gone
            data = _bytes(picture)
        if hashlib.sha256(data).hexdigest() != pairs.hashes[place]:
            raise ValueError(f"{pairs.file}: picture {_name(picture)} has changed since it was read")
        found.append(decode(data, pairs.file, _name(picture)))
    return np.stack(found).transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1


def _prompt(row: LabelledPair) -> str:
    prompt = row.prompt.strip()
    if not prompt or "\0" in prompt or len(prompt) > MAX_LENGTH:
        what = "is empty" if not prompt else f"is longer than {MAX_LENGTH:,} characters"
        what = "has a NUL character" if "\0" in prompt else what
        raise ValueError(f"{row.where}: the prompt {what}; write the words the pictures were drawn for")
    return prompt


def _bytes(picture: Path | bytes) -> bytes:
    return picture if isinstance(picture, bytes) else picture.read_bytes()


def _name(picture: Path | bytes) -> str:
    return picture.name if isinstance(picture, Path) else "in the file"


def _shown(size: tuple[int, int]) -> str:
    height, width = size
    return f"{width}x{height}"
