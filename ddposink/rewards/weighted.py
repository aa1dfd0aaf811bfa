"""Several rewards in one: ``weighted:0.5*alignment+0.5*brisque``.

The parts are added as they are, not standardised: 1 JPEG kilobyte and 1 BRISQUE point weigh what the
factors say. A negative factor rewards the contrary.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ddposink.rewards.base import RewardFunction, RewardInfo, RewardKind

if TYPE_CHECKING:
    from torch import Tensor

    from ddposink.rewards import RewardRef

_NUMBER = r"-?\s*(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?\s*\*"
_TERM = re.compile(rf"\s*(\+?\s*{_NUMBER})\s*(.+?)\s*(?=\+\s*{_NUMBER}|{_NUMBER.replace('-?', '-')}|$)")


class Weighted(RewardKind):
    """The sum of FACTOR*REWARD."""

    info = RewardInfo(
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
        if any(name.startswith("weighted") for _, name in found):
            raise ValueError("a weighted sum cannot be part of a weighted sum; write one sum")
        refs = [(factor, parse_reward(name, allow_python=True)) for factor, name in found]
        names = [ref.name for _, ref in refs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"'{twice[0]}' stands in it twice; add the factors")
        return refs

    def parse(self, argument: str) -> str:
        """The sum in its canonical form."""
        text = "".join(f"{factor:+g}*{ref.name}" for factor, ref in self.parts(argument))
        return text.removeprefix("+")

    def runs_code(self, argument: str) -> bool:
        """Whether one of the parts does."""
        return any(ref.runs_code for _, ref in self.parts(argument))

    def identity(self, argument: str) -> dict[str, str]:
        """That of every part, under its name."""
        return {
            f"{ref.name}.{key}": value
            for _, ref in self.parts(argument)
            for key, value in ref.identity().items()
        }

    def load(self, argument: str, device: str) -> RewardFunction:
        """All parts. Raises Unavailable if one of them cannot be had."""
        from ddposink.rewards import load_reward

        loaded = [(factor, load_reward(ref, device)) for factor, ref in self.parts(argument)]

        def reward(images: Tensor, prompts: list[str]) -> Tensor:
            (first, function), *others = loaded
            total = first * function(images, prompts)
            for factor, function in others:
                total = total + factor * function(images, prompts).to(total.device)
            return total

        return reward


weighted = Weighted()
