"""LagKV: tokens unlike those that come next stay (Liang et al. 2025, arXiv 2504.04704, equations 3 to 9)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ddposink.caches.held import Held
from ddposink.caches.ranked import Ranked

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LagKV(Ranked):
    """Score: how a token deviates from the range of the next partition of ``lag`` tokens, without attention.

    What is held after the sinks is cut into partitions of ``lag`` tokens. Keys (and values) of a partition
    are scaled to the range of the following one, channel by channel; the standard deviation over the
    channels, softmaxed over the partition, summed for keys and values, is the score (equations 3 to 7). Ranks
    within the partition are compared, so that every partition keeps the same share. What has no full
    partition after it stays. The paper's sinks are 16, its lag 128; here a lag is at most a quarter of the
    budget.
    """

    kind: ClassVar[str] = "lagkv"
    lag: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lag < 2:
            raise ValueError(f"'{self.kind}': lag must be at least 2, got {self.lag}")

    @classmethod
    def defaults(cls, size: int) -> dict[str, Any]:
        """A lag, and as many recent tokens, of at most a quarter of the budget."""
        lag = max(2, min(128, size // 4))
        return {"sinks": min(16, size // 8), "window": min(lag, size // 2), "lag": lag}

    def scores(self, held: Held) -> Tensor:
        """(Hkv, n) rank in the partition, in (0, 1]; 1 for sinks, 2 for what has no partition after it."""
        n = held.keys.shape[1]
        parts = (n - self.sinks) // self.lag - 1
        scores = held.keys.new_full((len(held.keys), n), 2.0).float()
        scores[:, : self.sinks] = 1.0
        if parts < 1:
            return scores
        end = self.sinks + parts * self.lag
        keys, values = (self._deviation(x[:, self.sinks :].float(), parts) for x in (held.keys, held.values))
        ranks = (keys + values).argsort(-1).argsort(-1) + 1
        scores[:, self.sinks : end] = (ranks.float() / self.lag).flatten(1)
        return scores

    def _deviation(self, x: Tensor, parts: int) -> Tensor:
        """(Hkv, parts, lag) from (Hkv, n, D)."""
        cut = x[:, : (parts + 1) * self.lag].unflatten(1, (parts + 1, self.lag))
        own, following = cut[:, :-1], cut[:, 1:]
        low, high = following.amin(2, keepdim=True), following.amax(2, keepdim=True)
        return ((own - low) / (high - low).clamp(min=1e-12)).std(-1).softmax(-1)
