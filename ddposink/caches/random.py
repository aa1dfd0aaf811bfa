"""Random: the control. A policy that does not beat it has learnt nothing from what it looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ddposink.caches.held import Held
from ddposink.caches.ranked import Ranked

if TYPE_CHECKING:
    from torch import Tensor

_MIX = (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35)  # odd 32-bit constants of well-known integer hashes
_WORD = 0xFFFFFFFF


@dataclass(frozen=True)
class Random(Ranked):
    """Score: a number drawn once for every token, layer and head, from ``seed`` and the place in the text.

    As a token keeps its number for life, what stays is a uniform sample of all tokens so far (a reservoir),
    sinks and recent ones apart, and does not depend on when evictions happen.
    """

    kind: ClassVar[str] = "random"
    seed: int = 0

    def scores(self, held: Held) -> Tensor:
        """(Hkv, n) in [0, 1)."""
        head = held.positions.new_tensor(range(len(held.keys)))[:, None]
        x = held.positions + (head * _MIX[1] + (held.layer + 1) * _MIX[2] + self.seed * _MIX[0] & _WORD)
        for mix in _MIX:
            x = (x ^ (x >> 16)) * mix & _WORD
        return (x ^ (x >> 16)).double() / 2**32
