"""Prompts by name: small built-in sets, or a text file with one prompt per line.

Training and evaluation use different sets, so that a gain is one on prompts that were not trained on.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ddposink.errors import suggest

MAX_BYTES = 8 * 2**20
MAX_PROMPTS = 100_000
MAX_LENGTH = 1_000  # characters; text encoders cut off far earlier

# What the embedded pipeline draws best (with "emoji-train" its training saw these most), and 48 more.
_HELD_OUT = (
    "pear", "tangerine", "dog face", "tiger face", "panda face", "frog face", "tropical fish", "octopus",
    "tulip", "cactus", "bus", "sailboat", "doughnut", "slice of pizza", "sun with face", "soccer ball",
)  # fmt: skip
_HELD_OUT_MORE = (
    "watermelon", "lemon", "banana", "pineapple", "strawberry", "peach", "cherries", "tomato",
    "carrot", "avocado", "mushroom", "broccoli", "hot dog", "cookie", "cupcake", "lollipop",
    "fox face", "lion face", "monkey face", "mouse face", "rabbit face", "bear face", "koala", "cow face",
    "pig face", "owl", "parrot", "baby chick", "turtle", "crab", "spouting whale", "lady beetle",
    "rose", "cherry blossom", "four leaf clover", "maple leaf", "evergreen tree", "palm tree", "snowman",
    "fire", "taxi", "tractor", "bicycle", "helicopter", "balloon", "basketball and hoop", "jack-o-lantern",
    "pouting face",
)  # fmt: skip

SETS: dict[str, tuple[str, ...]] = {
    # Captions of the embedded pipeline; training and held-out sets share no caption.
    "emoji-train": (
        "red apple", "cat face", "sunflower", "automobile",
        "grinning face", "rocket", "hamburger", "penguin",
    ),
    "emoji-heldout": _HELD_OUT,
    "emoji-heldout-64": _HELD_OUT + _HELD_OUT_MORE,  # for narrower intervals
    # The common animals of the compressibility and aesthetic experiments of Black et al. 2023, section 6.
    "animals-45": (
        "cat", "dog", "horse", "monkey", "rabbit", "zebra", "spider", "bird", "sheep", "deer", "cow",
        "goat", "lion", "tiger", "bear", "raccoon", "fox", "wolf", "lizard", "beetle", "ant", "butterfly",
        "fish", "shark", "whale", "dolphin", "squirrel", "mouse", "rat", "snake", "turtle", "frog",
        "chicken", "duck", "goose", "bee", "pig", "turkey", "fly", "llama", "camel", "bat", "gorilla",
        "hedgehog", "kangaroo",
    ),
    "animals-heldout": (
        "elephant", "giraffe", "penguin", "owl", "otter", "koala", "crocodile", "octopus",
        "parrot", "cheetah", "panda", "hippopotamus", "crab", "swan", "seal", "peacock",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class PromptSet:
    """Prompts and what identifies them."""

    name: str
    prompts: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Hash of the prompts in their order."""
        return hashlib.sha256("\n".join(self.prompts).encode()).hexdigest()


def load_prompts(text: str) -> PromptSet:
    """``NAME`` of a built-in set or ``file:PATH``.

    Raises ValueError for an unknown name and for a file that is missing, empty, too large, not UTF-8
    or no list of prompts.
    """
    kind, _, path = text.partition(":")
    if kind == "file" and path:
        return PromptSet(f"file:{Path(path).name}", _read(Path(path)))
    if text not in SETS:
        known = ", ".join(SETS)
        raise ValueError(
            f"unknown prompts {text!r}{suggest(text, SETS)}; built in: {known}; or file:PATH, one per line"
        )
    return PromptSet(text, SETS[text])


def evaluation_prompts(text: str) -> PromptSet:
    """As `load_prompts`, each prompt once.

    In training a prompt that stands there twice is drawn twice as often. In evaluation it would be the
    same pictures again (the noise hangs on prompt and seed), counted as independent ones.
    """
    found = load_prompts(text)
    return PromptSet(found.name, tuple(dict.fromkeys(found.prompts)))


def _read(path: Path) -> tuple[str, ...]:
    try:
        about = path.stat()
        if about.st_size > MAX_BYTES:
            raise ValueError(f"prompt file {path} is larger than {MAX_BYTES // 2**20} MiB")
        return _parsed(path, about.st_size, about.st_mtime_ns)
    except OSError as error:
        raise ValueError(f"prompt file {path} cannot be read: {error.strerror or error}") from error


@lru_cache(maxsize=8)
def _parsed(path: Path, size: int, changed_ns: int) -> tuple[str, ...]:
    """The prompts of a file as it is now; every cell of a plan asks for them several times."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(
            f"prompt file {path}:{line}: not UTF-8 (byte 0x{data[error.start]:02x}); save it as UTF-8"
        ) from error
    prompts = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not prompts:
        raise ValueError(f"prompt file {path} has no prompts; write one per line")
    if len(prompts) > MAX_PROMPTS:
        raise ValueError(f"prompt file {path} has {len(prompts):,} prompts; at most {MAX_PROMPTS:,}")
    for number, prompt in enumerate(prompts, start=1):
        if len(prompt) > MAX_LENGTH:
            raise ValueError(f"prompt file {path}: prompt {number} is longer than {MAX_LENGTH:,} characters")
        if "\0" in prompt:
            raise ValueError(f"prompt file {path}: prompt {number} has a NUL character; is it a text file?")
    return prompts
