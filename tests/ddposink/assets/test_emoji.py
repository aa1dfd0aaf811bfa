"""Emoji: which are kept, what they are called, how they look, and that the package is read once."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddposink.assets import catalogue, emoji, packages
from ddposink.assets.catalogue import Asset
from ddposink.assets.emoji import load_emoji, tidy
from ddposink.assets.packages import PackageSource, download, read
from ddposink.errors import Unavailable


def entry(
    name: str, short: str, order: int, category: str = "Food & Drink", drawn: bool = True
) -> dict[str, Any]:
    return {
        "name": name, "short_name": short, "category": category, "image": f"{short}.png",
        "has_img_google": drawn, "sort_order": order,
    }  # fmt: skip


ENTRIES = [
    entry("HOT DOG", "hotdog", 3),
    entry("RED APPLE", "apple", 1),
    entry("Egypt Flag", "flag-eg", 2, "Flags"),
    entry("KEYCAP", "keycap", 4, "Symbols"),
    entry("SKIN", "skin", 5, "Component"),
    entry("NOT DRAWN", "not_drawn", 6, drawn=False),
    entry("RESCUE WORKER’S HELMET", "helmet_with_white_cross", 7, "Objects"),
]


def tarball() -> bytes:
    """The package with one dot, half transparent, on nothing, as every picture."""
    drawing = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    drawing.putpixel((5, 9), (255, 0, 0, 128))
    png = io.BytesIO()
    drawing.save(png, "PNG")
    files = {"package/emoji.json": json.dumps(ENTRIES).encode()}
    files |= {f"package/img/google/64/{e['image']}": png.getvalue() for e in ENTRIES}
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as archive:
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return raw.getvalue()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A registry with the small package; the list tells what was downloaded."""
    content, calls = tarball(), []
    monkeypatch.setenv("DDPOSINK_CACHE", str(tmp_path / "cache"))
    asset = Asset("emoji", "npm", "toys", "1.0", "", hashlib.sha256(content).hexdigest(), "MIT", len(content))
    monkeypatch.setattr(catalogue, "ASSETS", {"emoji": asset})
    monkeypatch.setattr(emoji, "ASSETS", {"emoji": asset})

    def deliver(registry: str, source: PackageSource, folder: Path) -> Path:
        calls.append(f"{registry} {source.package}@{source.version}")
        (folder / "toys-1.0.tgz").write_bytes(content)
        return folder / "toys-1.0.tgz"

    monkeypatch.setattr(packages, "download", deliver)
    return calls


def test_flags_symbols_and_undrawn_ones_are_left_out_and_the_order_is_unicodes(served: list[str]) -> None:
    loaded = load_emoji()
    assert loaded.captions == ("red apple", "hot dog", "rescue worker's helmet")
    assert loaded.categories == ("Food & Drink", "Food & Drink", "Objects")
    assert len(loaded) == 3
    assert loaded.index("hot dog") == 1


def test_another_wording_is_given_where_the_short_name_has_other_words(served: list[str]) -> None:
    assert load_emoji().others == ("red apple", "hotdog", "helmet with white cross")


def test_pictures_lie_on_white(served: list[str]) -> None:
    images = load_emoji().images
    assert images.shape == (3, 64, 64, 3)
    assert images.dtype == np.uint8
    assert images[0, 9, 5].tolist() == [255, 127, 127]  # half red on white
    assert (np.delete(images[0].reshape(-1, 3), 9 * 64 + 5, 0) == 255).all()


def test_the_package_is_read_once_and_a_damaged_cache_is_made_again(
    served: list[str], tmp_path: Path
) -> None:
    first = load_emoji()
    (arrays,) = (tmp_path / "cache" / "emoji").glob("*.npz")
    again = load_emoji()
    assert (again.images == first.images).all()
    assert again.captions == first.captions
    arrays.write_bytes(arrays.read_bytes()[:-40])
    assert load_emoji().captions == first.captions
    assert served == ["npm toys@1.0"]


def test_a_package_that_is_none_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="the emoji package cannot be read"):
        emoji._decode(b"no archive")


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("FAMILY: MAN, WOMAN, BOY", "family man woman boy"),
        ("T-REX", "t-rex"),
        ("  Jack-O-Lantern ", "jack-o-lantern"),
        ("RESCUE WORKER’S HELMET", "rescue worker's helmet"),
    ],
)
def test_names_are_tidied(name: str, caption: str) -> None:
    assert tidy(name) == caption


def test_npm_fetches_the_package_as_it_is_and_its_last_line_explains_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools, into = tmp_path / "bin", tmp_path / "into"
    tools.mkdir()
    into.mkdir()
    npm, log = tools / "npm", tmp_path / "calls"
    npm.write_text(f'#!/bin/sh\necho "$@" > {log}\nprintf body > toys-1.0.tgz\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    file = download("npm", PackageSource("toys", "1.0", 4), into)
    assert read(file, "") == b"body"
    assert log.read_text().split()[0] == "pack"
    assert log.read_text().split()[-1] == "toys@1.0"
    npm.write_text("#!/bin/sh\necho 'npm error 404 Not Found' >&2\nexit 1\n")
    with pytest.raises(Unavailable, match=r"could not download toys 1.0: npm error 404"):
        download("npm", PackageSource("toys", "1.0", 4), into)


def test_a_machine_without_npm_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match=r"npm package toys.*install Node\.js"):
        download("npm", PackageSource("toys", "1.0", 4), tmp_path)


@pytest.mark.assets
def test_the_real_package_has_the_projects_prompts() -> None:
    from ddposink.prompts import SETS

    loaded = load_emoji()
    assert len(loaded) == 1_412
    assert {*SETS["emoji-train"], *SETS["emoji-train-128"], *SETS["emoji-heldout-64"]} <= set(loaded.captions)
