"""KeyDiff: keys unlike the average key stay (Park et al. 2025, arXiv 2504.15364, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ddposink.caches.held import Held
from ddposink.caches.ranked import Ranked

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class KeyDiff(Ranked):
    """Score: minus the cosine between a key, as attention sees it, and the mean of the normalised keys."""

    kind: ClassVar[str] = "keydiff"

    def scores(self, held: Held) -> Tensor:
        """-cos(k, mean of k/‖k‖)."""
        keys = held.keys.float()
        unit = keys / keys.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        anchor = unit.mean(1, keepdim=True)
        return -(unit * (anchor / anchor.norm(dim=-1, keepdim=True).clamp(min=1e-12))).sum(-1)
