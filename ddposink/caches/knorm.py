"""K-norm: keys with a small norm stay (Devoto et al. 2024, arXiv 2406.11430)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ddposink.caches.held import Held
from ddposink.caches.ranked import Ranked

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class KNorm(Ranked):
    """Score: minus the Euclidean norm of the key, which a rotation does not change.

    The authors leave the first two layers whole in some experiments; here every layer is cut.
    """

    kind: ClassVar[str] = "knorm"

    def scores(self, held: Held) -> Tensor:
        """-‖k‖."""
        return -held.keys.float().norm(dim=-1)
