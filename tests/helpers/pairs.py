"""A folder of pictures with a file of choices between them, as ``bench label`` writes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ddposink.label import Choices

PROMPTS = ("cat", "dog")


def write_choices(folder: Path, pairs: int = 3, side: int = 16, last: str = "tie") -> Path:
    """For each of `PROMPTS` so many pairs of which the brighter was preferred, and then one ``last``."""
    generator = np.random.default_rng(0)
    choices = Choices(folder / "choices.csv", folder)
    for prompt in PROMPTS:
        (folder / prompt).mkdir(parents=True, exist_ok=True)
        for number in range(pairs + 1):
            files = []
            for name, low in (("dark", 0), ("bright", 128)):
                pixels = generator.integers(low, low + 128, (side, side, 3), dtype=np.uint8)
                files.append(folder / prompt / f"{number}-{name}.png")
                Image.fromarray(pixels).save(files[-1])
            a, b = files if number % 2 else files[::-1]
            bright = "b" if number % 2 else "a"
            choices.add(prompt, a, b, bright if number < pairs else last, "me")
    return choices.file
