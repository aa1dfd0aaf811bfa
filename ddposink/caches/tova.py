"""TOVA: what the last query attends to least goes (Oren et al. 2024, arXiv 2401.06104, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ddposink.caches.held import Held, Observes
from ddposink.caches.ranked import Ranked

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Tova(Ranked):
    """Score: attention of the last query, averaged over *all* heads of a layer: they keep the same tokens.

    Nothing is protected but the token read last, whose own query it is.
    """

    kind: ClassVar[str] = "tova"

    @classmethod
    def defaults(cls, size: int) -> dict[str, Any]:
        """The last token stays."""
        return {"window": 1}

    @property
    def observes(self) -> Observes:
        """The last query."""
        return Observes(queries=1)

    def scores(self, held: Held) -> Tensor:
        """(Hkv, n), the same in every head."""
        return held.attention(1)[:, 0].mean(0).expand(len(held.keys), -1)
