"""Expected attention: what queries to come will attend to (Devoto et al. 2025, arXiv 2510.00636)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ddposink.caches.held import Held, Observes
from ddposink.caches.ranked import Ranked

if TYPE_CHECKING:
    from torch import Tensor


MOST_FUTURE = 1_000_000


@dataclass(frozen=True)
class ExpectedAttention(Ranked):
    """Score: expected attention times the norm of the value, queries taken as Gaussian.

    exp(μ·k/√d + k·Σk/2d), normalised over what is held (the sinks apart), with mean μ and covariance Σ of the
    queries so far turned by the average rotation of the next ``future`` places. Statistics are of all queries
    since the sinks (the authors' code: of the prompt; while decoding, of the last 128 hidden states).
    """

    kind: ClassVar[str] = "expected-attention"
    future: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.future <= MOST_FUTURE:
            raise ValueError(f"future must lie between 1 and {MOST_FUTURE:,} places, got {self.future:,}")

    @classmethod
    def defaults(cls, size: int) -> dict[str, Any]:
        """Four sinks, as in the authors' code."""
        return {"sinks": min(4, size - 1)}

    @property
    def observes(self) -> Observes:
        """Mean and covariance of the queries."""
        return Observes(statistics=True, skip=self.sinks)

    def scores(self, held: Held) -> Tensor:
        """(Hkv, n)."""
        mean, covariance = held.future_queries(self.future)
        keys = held.keys.float().repeat_interleave(held.groups, 0)  # (H, n, D)
        first = (keys @ mean[:, :, None])[..., 0] * held.scale
        second = ((keys @ covariance) * keys).sum(-1) * held.scale**2 / 2
        sink = (held.positions < self.sinks).repeat_interleave(held.groups, 0)
        expected = (first + second).masked_fill(sink, float("-inf")).softmax(-1)
        return held.per_group(expected) * held.values.float().norm(dim=-1)
