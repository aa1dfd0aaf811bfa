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

# Captions at random from animals, food, places, objects and activities, but for those above.
_TRAIN_MANY = (
    "school", "red gift envelope", "guitar", "pinata", "police cars revolving light", "cheese wedge",
    "spiral shell", "notebook with decorative cover", "mountain railway", "falafel",
    "teacup without handle", "blue book", "motorcycle", "candle", "bow and arrow", "hotel", "hair pick",
    "brick", "broken chain", "one-piece swimsuit", "banknote with yen sign", "oncoming automobile",
    "probing cane", "spaghetti", "love hotel", "carousel horse", "magic wand", "lotus", "musical score",
    "roller skate", "takeout box", "bridge at night", "airplane departure",
    "high-speed train with bullet nose", "wrapped present", "green salad", "pretzel", "page facing up",
    "school satchel", "glass of milk", "drop of blood", "purse", "fountain", "lime", "page with curl",
    "beach with umbrella", "ear of rice", "tram car", "hook", "dragon face", "screwdriver", "banjo",
    "department store", "guide dog", "honey pot", "green book", "ballet shoes", "dress", "kangaroo",
    "t-rex", "timer clock", "mobile phone", "camping", "deer", "butter", "safety pin", "bar of soap",
    "sparkles", "spider", "womans sandal", "long drum", "pistol", "first place medal", "skunk", "butterfly",
    "scooter", "droplet", "canned food", "mirror ball", "umbrella with rain drops", "alembic",
    "fried shrimp", "optical disc", "womans clothes", "pager", "european castle", "carpentry saw",
    "card file box", "glowing star", "postbox", "tornado", "balance scale",
    "closed mailbox with raised flag", "desert island", "window", "custard", "stadium", "umbrella", "broom",
    "flag in hole", "fog", "reminder ribbon", "clock face four oclock", "martial arts uniform", "onion",
    "pea pod", "field hockey stick and ball", "leaf fluttering in wind", "waning crescent moon symbol",
    "envelope", "bank", "hatching chick", "donkey", "monkey", "wastebasket", "wing",
    "clock face five oclock", "roller coaster", "flower playing cards", "printer", "cocktail glass",
    "snow-capped mountain", "fly", "snake", "passenger ship", "beans", "bomb", "elephant",
)  # fmt: skip

SETS: dict[str, tuple[str, ...]] = {
    # Captions of the embedded pipeline; training and held-out sets share no caption.
    "emoji-train": (
        "red apple", "cat face", "sunflower", "automobile",
        "grinning face", "rocket", "hamburger", "penguin",
    ),
    "emoji-train-128": _TRAIN_MANY,
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
