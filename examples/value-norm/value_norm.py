"""Value-norm: tokens whose values are large stay, beside four sinks and the most recent tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ddposink.caches import Held, Ranked

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ValueNorm(Ranked):
    """``value-norm 512``: score = Euclidean norm of the value, whatever the key."""

    kind: ClassVar[str] = "value-norm"

    @classmethod
    def defaults(cls, size: int) -> dict[str, Any]:
        """Four sinks, and a quarter of the budget recent."""
        return {"sinks": min(4, size // 4), "window": size // 4}

    def scores(self, held: Held) -> Tensor:
        """(Hkv, n)."""
        return held.values.float().norm(dim=-1)
