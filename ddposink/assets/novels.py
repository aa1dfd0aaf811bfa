"""Ten 19th-century novels, public domain, as plain text: PG19-style books without the hub.

They travel in R packages; R's serialised data is parsed in pure Python, nothing of R is run. Each
text's sha256 is pinned: the same bytes everywhere.
"""

from __future__ import annotations

import hashlib
import struct
import warnings
import zlib
from typing import Any

from ddposink.assets.catalogue import ASSETS, cache_dir, write_atomic
from ddposink.errors import Unavailable

# In reading order of `novels`: name -> (source, key in it, sha256 of the UTF-8 text).
NOVELS: dict[str, tuple[str, str, str]] = {
    "persuasion": (
        "austen",
        "persuasion",
        "8061549557aebd2fd6e353d18d9197cb707029112bd52d4d8b174583a925848a",
    ),
    "emma": ("austen", "emma", "7c67b5985c6d0de1efaeb5d342d52cb82c38083c40e2295129e30e87ee690ebe"),
    "pride-and-prejudice": (
        "austen",
        "prideprejudice",
        "dfc684d4f857fa938268f9ab9c5567b64bd0691251eca959644adeabe6287a4d",
    ),
    "sense-and-sensibility": (
        "austen",
        "sensesensibility",
        "105e1651fe93bed7130078578efd31e0c557d68667ba672ddc876f735b30fe09",
    ),
    "mansfield-park": (
        "austen",
        "mansfieldpark",
        "98bc90519cdf4ef663ad7de2734bb529435ef24f7abbde6bb1a50898871dafe9",
    ),
    "northanger-abbey": (
        "austen",
        "northangerabbey",
        "51f91bbe0517db8e65cff009b097ce0a1836124c4e0532ac19e6c0cad982abed",
    ),
    "moby-dick": ("melville", "mobydick", "d76e8f23ab002796e6efa7f6182d9c2675496ee49296dc9d219f1faa853adda0"),
    "great-expectations": (
        "classics",
        "Great Expectations",
        "fbbb67ae8e228e6ffc7238f1d09d6d9bf82991eda9636d6946fdefba50294def",
    ),
    "twenty-thousand-leagues": (
        "classics",
        "Twenty Thousand Leagues under the Sea",
        "9f5a0b1728a768aeacd156fc3525e93cc7e7855b80bb49696f685fd39fcec5b8",
    ),
    "war-of-the-worlds": (
        "classics",
        "The War of the Worlds",
        "cea0a21fedcf33b5020258bda321d2b9c9f7c28e3604e3328782d37a4b5be4dd",
    ),
}


def novel(name: str) -> str:
    """The text of a novel; fetched, converted and cached on first use. Raises Unavailable."""
    source, key, sha256 = NOVELS[name]
    file = cache_dir() / "novels" / f"{name}.txt"
    if file.is_file():
        data = file.read_bytes()
        if hashlib.sha256(data).hexdigest() == sha256:
            return data.decode("utf-8")
    data = _extract(source, key).encode("utf-8")
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise Unavailable(f"novel '{name}' came out with sha256 {found}, expected {sha256}")
    write_atomic(file, data)
    return data.decode("utf-8")


def _extract(source: str, key: str) -> str:
    if source == "classics":
        books = _parse(ASSETS["classics"].path().read_bytes())["books"]
        return "\n".join(books.loc[books["title"] == key, "text"].fillna("").tolist()).strip() + "\n"
    lines = _parse(_block(source, key))
    if source == "melville":
        return _without_licence(str(lines[0]))
    return "\n".join(str(line) for line in lines).strip() + "\n"


def _block(source: str, key: str) -> bytes:
    """One object of an R lazy-load database: a 4-byte big-endian length, then a zlib stream."""
    index = _parse(ASSETS[f"{source}-index"].path().read_bytes())
    offset, length = (int(x) for x in index["variables"][key])
    block = ASSETS[source].path().read_bytes()[offset : offset + length]
    data = zlib.decompress(block[4:])
    assert len(data) == struct.unpack(">I", block[:4])[0]
    return data


def _parse(data: bytes) -> Any:
    import rdata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it guesses the container format and the encoding aloud
        return rdata.conversion.convert(rdata.parser.parse_data(data))


def _without_licence(text: str) -> str:
    """A Project Gutenberg file without header, footer and licence."""
    text = text.replace("\r\n", "\n")
    start = text.index("\n", text.index("*** START OF THIS PROJECT GUTENBERG")) + 1
    end = text.index("End of Project Gutenberg", start)
    return text[start:end].strip() + "\n"
