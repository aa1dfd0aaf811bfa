"""Several rewards in one: ``weighted:0.5*alignment+0.5*brisque``.

The parts are added as they are, not standardised: 1 JPEG kilobyte and 1 BRISQUE point weigh what the
factors say. A negative factor rewards the contrary. What counts in training is how much a part varies, so
every plan and record says which share of the variance each part makes (`shares`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ddposink.rewards.base import Reward, RewardFunction, RewardInfo, RewardKind

if TYPE_CHECKING:
    from torch import Tensor

    from ddposink.rewards import RewardRef

# Standard deviation of the embedded pipeline's pictures of one prompt (three denoising steps, guidance 5,
# 64 prompts, four pictures of each), for a plan to tell what a part will weigh. A run measures its own.
SPREADS = {
    "jpeg_compressibility": 0.0704,
    "jpeg_incompressibility": 0.0704,
    "brisque": 13.3,
    "alignment": 8.36,
    "preference": 0.563,
    "noise": 1.0,
}
LEAST = 1e-30  # a weight, and its inverse the largest: rewards times it are float32 numbers, and not zero
HARDLY = 0.01  # share of the variance below which a part has hardly a say
_NUMBER = r"-?\s*(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?\s*\*"
_TERM = re.compile(rf"\s*(\+?\s*{_NUMBER})\s*(.+?)\s*(?=\+\s*{_NUMBER}|{_NUMBER.replace('-?', '-')}|$)")


class Weighted(RewardKind):
    """The sum of FACTOR*REWARD."""

    info = RewardInfo(
        evaluated=False,
        range=(float("-inf"), float("inf")),
        unit="weighted sum",
        needs="what its parts need",
        licence="that of its parts",
        source="its parts",
    )

    def parts(self, argument: str) -> list[tuple[float, RewardRef]]:
        """Factors and rewards. Raises ValueError."""
        from ddposink.rewards import parse_reward

        found: list[tuple[float, str]] = []
        at = 0
        while at < len(argument):
            term = _TERM.match(argument, at)
            if term is None or (found and term[1].lstrip()[0] not in "+-"):
                raise ValueError(f"cannot read '{argument[at:]}'; write e.g. 0.5*alignment+0.5*brisque")
            found.append((float("".join(term[1].strip("+* ").split())), term[2]))
            at = term.end()
        if not found:
            raise ValueError("it has no parts; write e.g. weighted:0.5*alignment+0.5*brisque")
        if any(factor == 0 for factor, _ in found):
            raise ValueError("a part of weight zero says nothing; leave it out")
        if odd := [factor for factor, _ in found if not LEAST <= abs(factor) <= 1 / LEAST]:
            raise ValueError(f"a weight of {odd[0]:g} is beyond what float32 rewards can be multiplied by")
        if any(name.startswith("weighted") for _, name in found):
            raise ValueError("a weighted sum cannot be part of a weighted sum; write one sum")
        refs = [(factor, parse_reward(name, allow_python=True)) for factor, name in found]
        names = [ref.name for _, ref in refs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"'{twice[0]}' stands in it twice; add the factors")
        return refs

    def parse(self, argument: str) -> str:
        """The sum in its canonical form."""
        text = "".join(f"{_factor(factor)}*{ref.name}" for factor, ref in self.parts(argument))
        return text.removeprefix("+")

    def runs_code(self, argument: str) -> bool:
        """Whether one of the parts does."""
        return any(ref.runs_code for _, ref in self.parts(argument))

    def differentiable(self, argument: str) -> bool:
        """Whether all of the parts are."""
        return all(ref.differentiable for _, ref in self.parts(argument))

    def identity(self, argument: str) -> dict[str, str]:
        """That of every part, under its name."""
        return {
            f"{ref.name}.{key}": value
            for _, ref in self.parts(argument)
            for key, value in ref.identity().items()
        }

    def unanswered(self, argument: str, prompts: tuple[str, ...]) -> str | None:
        """That of the first part that has none."""
        said = (ref.unanswered(prompts) for _, ref in self.parts(argument))
        return next(filter(None, said), None)

    def load(self, argument: str, device: str) -> RewardFunction:
        """All parts. Raises Unavailable if one of them cannot be had."""
        from ddposink.rewards import load_reward

        return WeightedSum([(factor, load_reward(ref, device)) for factor, ref in self.parts(argument)])


class WeightedSum:
    """The sum of its parts."""

    def __init__(self, parts: list[tuple[float, Reward]]) -> None:
        self.parts = parts

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """(B, 3, H, W) in [0, 1] and B prompts → (B,) float32."""
        first, *others = self.each(images, prompts).values()
        return sum((other.to(first.device) for other in others), start=first)

    @property
    def weights(self) -> dict[str, float]:
        """The factor of every part."""
        return {part.name: factor for factor, part in self.parts}

    def each(self, images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        """(B,) float32 of every part, times its factor; adding them up gives the sum."""
        values = {}
        for factor, part in self.parts:
            ask = part.with_gradient if images.requires_grad else part
            values[part.name] = factor * ask(images, prompts)
        return values


def _factor(value: float) -> str:
    """With its sign, and read back as the same number."""
    short = f"{value:+g}"
    return short if float(short) == value else "+" * (value > 0) + repr(value)


def shares(variances: Mapping[str, float]) -> dict[str, float]:
    """Part of the sum's variance that each part makes, from the variances of the weighted parts.

    What parts do together (covariances) is left out. Empty if nothing varies.
    """
    total = sum(variances.values())
    return {name: value / total for name, value in variances.items()} if total > 0 else {}


def in_words(parts: Mapping[str, float]) -> str:
    """``alignment 64.3 %, brisque 35.7 %``."""
    return ", ".join(f"{name} {100 * share:.3g} %" for name, share in parts.items())


weighted = Weighted()
