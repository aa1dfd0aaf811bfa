"""Whether a picture has the colour that its prompt names: a rule, and no model.

A stand-in for the colour questions of GenEval (Ghosh et al. 2023, arXiv 2310.11513), which needs a detector:
here nobody asks whether there is an apple. A picture counts 1 if more of its coloured pixels have the named
colour than any other, and 0 else; so the mean is a share of pictures. A pixel is coloured if its saturation
and its value (HSV) are at least `COLOURED`, and a picture with fewer than `LEAST` of them has no colour.

Prompts that do not name exactly one of `COLOURS` have no answer, and none is invented: they cannot be
trained on with it, and a cell whose held-out prompts name none says so in place of a number. Black, white
and grey are not judged: a background would be taken for them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ddposink.rewards.base import RewardFunction, RewardInfo, RewardKind

if TYPE_CHECKING:
    from torch import Tensor

# Hue in degrees at which a colour begins; it ends where the next one begins. Red goes round.
HUES = {
    "red": 345.0, "orange": 18.0, "yellow": 45.0, "green": 70.0, "blue": 175.0, "purple": 255.0,
    "pink": 300.0,
}  # fmt: skip
COLOURS = (*HUES, "brown")
BROWN = 0.65  # value below which orange, and yellow, are brown
PALE = 0.55  # saturation below which a bright red is pink
COLOURED, LEAST = 0.25, 0.02
_WORDS = re.compile(rf"\b({'|'.join(COLOURS)})\b", re.IGNORECASE)


def named(prompt: str) -> str | None:
    """The one colour that ``prompt`` names; None if it names none, or several."""
    found = {word.lower() for word in _WORDS.findall(prompt)}
    return found.pop() if len(found) == 1 else None


def colours(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] → (B, 8) share of all pixels that have each of `COLOURS`."""
    import torch

    x = images.detach().float().clamp(0, 1)
    value, low = x.amax(1), x.amin(1)
    spread = value - low
    saturation = spread / value.clamp(min=1e-6)
    red, green, blue = x.unbind(1)
    safe = spread.clamp(min=1e-6)
    hue = torch.where(
        value == red,
        (green - blue) / safe % 6,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    starts = torch.tensor([HUES[name] for name in COLOURS[1:-1]], device=x.device)
    kind = torch.bucketize(60 * hue, starts, right=True)  # 0: red, below the first of the others
    kind[60 * hue >= HUES["red"]] = 0
    at = COLOURS.index
    kind[((kind == at("orange")) | (kind == at("yellow"))) & (value < BROWN)] = at("brown")
    kind[(kind == at("red")) & (saturation < PALE) & (value >= BROWN)] = at("pink")
    kind[(saturation < COLOURED) | (value < COLOURED)] = len(COLOURS)
    counts = torch.nn.functional.one_hot(kind.flatten(1), len(COLOURS) + 1).float().mean(1)
    return counts[:, :-1]


def named_colour_of(images: Tensor, prompts: list[str]) -> Tensor:
    """(B, 3, H, W) in [0, 1] → (B,) float32, 1 or 0. Raises ValueError for a prompt without an answer."""
    import torch

    wanted = [named(prompt) for prompt in prompts]
    if None in wanted:
        raise ValueError(f"the prompt {prompts[wanted.index(None)]!r} does not name exactly one colour")
    shares = colours(images)
    index = torch.tensor([COLOURS.index(str(name)) for name in wanted], device=shares.device)
    right = (shares.argmax(1) == index) & (shares.sum(1) >= LEAST)
    return right.float()


class NamedColour(RewardKind):
    """See the module docstring."""

    info = RewardInfo(
        range=(0.0, 1.0),
        unit="share",
        needs="prompts that name a colour",
        licence="none needed",
        source="a rule; in place of GenEval's colours (Ghosh et al. 2023)",
        label="named colour (rule)",
    )

    def identity(self, argument: str) -> dict[str, str]:
        """The definition; the source is part of the cell's version."""
        return {"definition": "most coloured pixels have the one colour that the prompt names"}

    def unanswered(self, argument: str, prompts: tuple[str, ...]) -> str | None:
        """See `RewardKind.unanswered`."""
        odd = [prompt for prompt in prompts if named(prompt) is None]
        if not odd:
            return None
        known = ", ".join(COLOURS)
        return (
            f"{len(odd)} of {len(prompts)} prompts do not name exactly one colour of {known}: for example "
            f"{odd[0]!r}"
        )

    def load(self, argument: str, device: str) -> RewardFunction:
        """Nothing to load."""
        return named_colour_of


named_colour = NamedColour()
