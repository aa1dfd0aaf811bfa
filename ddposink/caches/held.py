"""What a policy that chooses by content gets to see: one layer of the cache at the moment of an eviction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Observes:
    """What a stream must remember for a policy besides keys and values.

    ``queries``: the last so many queries. ``received``: how much attention every key has got from all
    queries so far. ``statistics``: mean and covariance of all queries, the first ``skip`` tokens apart.
    """

    queries: int = 0
    received: bool = False
    statistics: bool = False
    skip: int = 0


@dataclass(frozen=True)
class Held:
    """One layer of the cache: n tokens in the order of the text, for each of Hkv key-value heads.

    ``keys`` (Hkv, n, D) as attention sees them, at their places; ``values`` (Hkv, n, Dv); ``positions``
    (Hkv, n) int64, places in the text, of ``seen`` tokens. ``groups`` query heads share a key-value head, a
    score is ``scale`` times the inner product. ``received`` (Hkv, n) float32 is attention summed over all
    queries and averaged over a group's heads. ``attention(w)`` gives (H, w, n) float32: what the last w
    queries attend to, no key later than themselves. ``future_queries(m)`` gives mean (H, D) and covariance
    (H, D, D) of the queries so far, turned by the average rotation of the next m places.
    """

    layer: int
    layers: int
    seen: int
    keys: Tensor
    values: Tensor
    positions: Tensor
    groups: int
    scale: float
    received: Tensor | None
    attention: Callable[[int], Tensor]
    future_queries: Callable[[int], tuple[Tensor, Tensor]]

    def per_group(self, x: Tensor) -> Tensor:
        """(H, …) averaged over the query heads that share a key-value head: (Hkv, …)."""
        return x.unflatten(0, (-1, self.groups)).mean(1)
