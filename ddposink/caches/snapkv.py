"""SnapKV: what the last queries look at, smoothed (Li et al. 2024, arXiv 2404.14469, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ddposink.caches.held import Held, Observes
from ddposink.caches.ranked import Ranked

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SnapKV(Ranked):
    """Score: attention of an observation window of the last ``recent`` queries on what stands before it,
    averaged over the window and pooled over ``kernel`` neighbours; the window itself stays.

    Window 64, kernel 5 and average pooling are the authors' code's (the paper's text has max pooling in some
    experiments); heads that share keys are averaged, as in kvpress. With a budget below 128 the window is
    half of it. Where evictions come more often than once a window, its queries are asked as if they stood at
    the end of what is held now.
    """

    kind: ClassVar[str] = "snapkv"
    kernel: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1:
            raise ValueError(f"'{self.kind}' observes the last queries: recent must be at least 1")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"'{self.kind}': kernel must be odd and positive, got {self.kernel}")

    @classmethod
    def defaults(cls, size: int) -> dict[str, Any]:
        """An observation window of 64 tokens, or half a small budget."""
        return {"window": max(1, min(64, size // 2))}

    @property
    def observes(self) -> Observes:
        """The queries of the observation window."""
        return Observes(queries=self.window)

    def scores(self, held: Held) -> Tensor:
        """(Hkv, n) pooled attention; zero for the window, which is protected anyway."""
        seen = held.attention(self.window).mean(1)  # (H, n)
        seen = seen.masked_fill(
            (held.positions >= held.seen - self.window).repeat_interleave(held.groups, 0), 0.0
        )
        return held.per_group(pooled(seen, self.kernel))


def pooled(x: Tensor, kernel: int) -> Tensor:
    """Average over ``kernel`` neighbours of (…, n), zeros beyond the ends: (…, n)."""
    half, n = kernel // 2, x.shape[-1]
    padded = x.new_zeros(*x.shape[:-1], n + 2 * half)
    padded[..., half : half + n] = x
    return padded.unfold(-1, kernel, 1).mean(-1)
