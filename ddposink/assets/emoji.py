"""Captioned pictures small enough to train on without a GPU: the Noto emoji, 64×64, by their Unicode names.

From npm package `emoji-datasource-google` (pictures by Google, Apache-2.0). Flags, symbols and skin tones
are left out: they say little about what a diffusion model draws.
"""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddposink.assets.catalogue import ASSETS, cache_dir, write_atomic
from ddposink.assets.packages import BROKEN, Progress
from ddposink.errors import Unavailable

LEFT_OUT = ("Flags", "Symbols", "Component")
WANTED = ("package/emoji.json", "package/img/google/64/")
SIZE = 64
FORMAT = 1  # of the cached arrays


@dataclass(frozen=True)
class EmojiSet:
    """``images`` (N, 64, 64, 3) uint8 on white; one caption, other wording and category per picture.

    ``others`` holds a second caption from the short name, or the caption again where that says nothing new.
    """

    images: np.ndarray
    captions: tuple[str, ...]
    others: tuple[str, ...]
    categories: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.captions)

    def index(self, caption: str) -> int:
        """The picture of ``caption``; ValueError if there is none."""
        return self.captions.index(caption)


def load_emoji(progress: Progress | None = None) -> EmojiSet:
    """All 1,412 emoji in Unicode's order, decoded once and then cached. Raises Unavailable."""
    asset = ASSETS["emoji"]
    file = cache_dir() / "emoji" / f"{asset.sha256[:12]}-{FORMAT}.npz"
    if file.is_file():
        try:
            with np.load(file, allow_pickle=False) as saved:
                return _from_arrays(saved)
        except BROKEN:
            file.unlink()
    arrays = _decode(asset.path(progress).read_bytes())
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomic(file, buffer.getvalue())
    return _from_arrays(arrays)


def tidy(name: str) -> str:
    """A Unicode name as a caption: lower case, no punctuation but hyphens and apostrophes."""
    kept = name.lower().replace("’", "'")
    return " ".join("".join(c if c.isalnum() or c in "-'" else " " for c in kept).split())


def _decode(tarball: bytes) -> dict[str, Any]:
    try:
        with tarfile.open(fileobj=io.BytesIO(tarball)) as archive:
            files = {
                member.name: _bytes(archive, member)
                for member in archive
                if member.isfile() and member.name.startswith(WANTED)
            }
        entries = [e for e in json.loads(files["package/emoji.json"]) if _wanted(e)]
        entries.sort(key=lambda e: e["sort_order"])
        images = [_picture(files[f"package/img/google/64/{e['image']}"]) for e in entries]
    except BROKEN as error:
        raise Unavailable(f"the emoji package cannot be read: {error}") from error
    captions = [tidy(e["name"]) for e in entries]
    return {
        "images": np.stack(images),
        "captions": np.array(captions),
        "others": np.array([_other(e, caption) for e, caption in zip(entries, captions, strict=True)]),
        "categories": np.array([e["category"] for e in entries]),
    }


def _bytes(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None, "plain files only"
    return file.read()


def _wanted(entry: dict[str, Any]) -> bool:
    return entry["has_img_google"] and entry["category"] not in LEFT_OUT


def _other(entry: dict[str, Any], caption: str) -> str:
    """The short name, if it has words that the caption lacks."""
    short = tidy(entry["short_name"].replace("_", " ").replace("-", " "))
    return caption if set(short.split()) <= set(caption.split()) else short


def _picture(png: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        drawn = image.convert("RGBA")
    paper = Image.new("RGBA", drawn.size, "white")
    return np.asarray(Image.alpha_composite(paper, drawn).convert("RGB").resize((SIZE, SIZE)))


def _from_arrays(arrays: Any) -> EmojiSet:
    words = (tuple(str(x) for x in arrays[name]) for name in ("captions", "others", "categories"))
    return EmojiSet(arrays["images"], *words)
