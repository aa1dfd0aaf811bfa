"""Ada-KV: heads of a layer share its budget by their scores (Feng et al. 2024, arXiv 2407.11550)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ddposink.caches.snapkv import SnapKV

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class AdaKV(SnapKV):
    """Scores of SnapKV; the highest of all heads of a layer together say how many tokens a head keeps.

    A head gets the share ``floor`` of the mean budget for certain, the rest in proportion to how many of its
    tokens are among the best of the layer (algorithm 1; 0.2 is the authors' code's). Heads that keep fewer
    have empty slots beside those that keep more: bytes held are SnapKV's, bytes allocated are not.
    """

    kind: ClassVar[str] = "adakv"
    floor: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.floor <= 1:
            raise ValueError(f"'{self.kind}': floor is a share between 0 and 1, got {self.floor}")

    def share_out(self, scores: Tensor, count: int) -> Tensor:
        """As many as the layer's best ``count`` x Hkv scores give each head, mixed with equal shares."""
        heads, length = scores.shape
        spare = (scores > float("-inf")).sum(-1)
        best = scores.flatten().argsort(dim=-1, descending=True, stable=True)[: heads * count]
        wanted = (best // length).bincount(minlength=heads).double() * (1 - self.floor) + self.floor * count
        shares = wanted.floor().long().minimum(spare)
        while int(shares.sum()) < heads * count:  # what rounding and full heads have left over
            need = (wanted - shares).masked_fill(shares >= spare, float("-inf"))
            shares[int(need.argmax())] += 1
        return shares
