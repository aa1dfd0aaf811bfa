"""H2O: heavy hitters beside recent tokens (Zhang et al. 2023, arXiv 2306.14048, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ddposink.caches.held import Held, Observes
from ddposink.caches.ranked import Ranked

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class H2O(Ranked):
    """Score: attention that a key has received, summed over all queries so far; half the budget is recent.

    Algorithm 1 of the paper adds up the normalised attention of every query, head by head; heads that share
    keys (which the paper's models do not have) are averaged. ``average=true`` divides by the number of
    queries that could see the key, as kvpress's "observed attention" does: the sum alone favours old tokens.
    """

    kind: ClassVar[str] = "h2o"
    average: bool = False

    @classmethod
    def defaults(cls, size: int) -> dict[str, Any]:
        """Half heavy hitters, half recent tokens (section 5 of the paper)."""
        return {"window": size // 2}

    @property
    def observes(self) -> Observes:
        """Attention received."""
        return Observes(received=True)

    def scores(self, held: Held) -> Tensor:
        """Attention received, summed or averaged."""
        assert held.received is not None
        return held.received / (held.seen - held.positions) if self.average else held.received
