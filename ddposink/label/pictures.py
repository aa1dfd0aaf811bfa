"""Which pictures belong to which prompt: folders named like prompts, or a manifest.

``DIR/PROMPT/*.png``: every folder is a prompt; a file ``prompt.txt`` in it holds the words where a folder's
name cannot. ``DIR/manifest.csv`` instead has columns ``prompt`` and ``image``, the latter relative to DIR.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
MANIFEST = "manifest.csv"


@dataclass(frozen=True)
class Picture:
    """A picture of a prompt; ``file`` is absolute and lies inside the folder that was asked for."""

    prompt: str
    file: Path

    @property
    def media_type(self) -> str:
        """For the browser."""
        return TYPES[self.file.suffix.lower()]


def read_pictures(folder: Path) -> list[Picture]:
    """All pictures in a stable order. Raises ValueError unless some prompt has at least two."""
    if not folder.is_dir():
        raise ValueError(f"'{folder}' is no folder")
    found = _from_manifest(folder) if (folder / MANIFEST).is_file() else _from_folders(folder)
    counts: dict[str, int] = {}
    for picture in found:
        if {"\r", "\n"} & {*picture.prompt, *str(picture.file)}:  # a choice is a line
            raise ValueError(f"{str(picture.file)!r} has a line break in its name or prompt; rename it")
        counts[picture.prompt] = counts.get(picture.prompt, 0) + 1
    if not any(count > 1 for count in counts.values()):
        raise ValueError(
            f"'{folder}' has no two pictures of one prompt; expected {folder}/PROMPT/*.png, "
            f"or a {MANIFEST} with columns prompt and image"
        )
    return found


def _from_folders(folder: Path) -> list[Picture]:
    found: list[Picture] = []
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        words = inner / "prompt.txt"
        prompt = _one_line(words.read_text(encoding="utf-8")) if words.is_file() else inner.name
        files = sorted(path for path in inner.iterdir() if path.suffix.lower() in TYPES and path.is_file())
        found += [Picture(prompt, file.resolve()) for file in files if _inside(file, folder)]
    return found


def _from_manifest(folder: Path) -> list[Picture]:
    found: list[Picture] = []
    with (folder / MANIFEST).open(encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            number = len(found) + 2
            prompt = _one_line(row.get("prompt") or "")
            if not prompt or not row.get("image"):
                raise ValueError(f"{folder / MANIFEST}:{number}: expected columns prompt and image")
            picture = folder / row["image"]
            if picture.suffix.lower() not in TYPES:
                raise ValueError(
                    f"{folder / MANIFEST}:{number}: '{row['image']}' is none of {', '.join(TYPES)}"
                )
            if not _inside(picture, folder):
                raise ValueError(f"{folder / MANIFEST}:{number}: '{row['image']}' lies outside of the folder")
            if not picture.is_file():
                raise ValueError(f"{folder / MANIFEST}:{number}: there is no picture '{row['image']}'")
            found.append(Picture(prompt, picture.resolve()))
    return list(dict.fromkeys(found))  # named twice is one picture: it is not compared with itself


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _inside(file: Path, folder: Path) -> bool:
    """Also after following links: a page must never show what its folder does not hold."""
    return file.resolve().is_relative_to(folder.resolve())
