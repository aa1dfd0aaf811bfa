"""What a policy looks at besides keys and values, carried from forward to forward: queries and attention."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ddposink.caches.held import Observes
from ddposink.streaming.kernel import masked_scores


@dataclass(frozen=True)
class Observed:
    """Of one layer: the last ``queries`` (H, w, D) before rotation, attention ``received`` (Hkv, n) float32,
    and number, mean (H, D) and summed squared deviations (H, D, D) of all queries, float32.
    """

    queries: Tensor | None = None
    received: Tensor | None = None
    count: int = 0
    mean: Tensor | None = None
    spread: Tensor | None = None

    def after(self, what: Observes, q: Tensor, at: Tensor, received: Tensor | None) -> Observed:
        """With queries ``q`` (H, L, D) fed at text positions ``at`` (L,), and what they gave (Hkv, n + L)."""
        found = self
        if what.queries:
            known = q if self.queries is None else torch.cat([self.queries, q], 1)
            found = replace(found, queries=known[:, -what.queries :].clone())
        if what.received:
            assert received is not None
            total = received.clone()
            if self.received is not None:
                total[:, : self.received.shape[1]] += self.received
            found = replace(found, received=total)
        if what.statistics:
            found = found._with(q[:, at >= what.skip].float())
        return found

    def _with(self, q: Tensor) -> Observed:
        """Mean and deviations of these queries merged into those known (Chan et al. 1979), not cancelling."""
        fresh = q.shape[1]
        if not fresh:
            return self
        mean = q.mean(1)
        centred = q - mean[:, None]
        spread = centred.transpose(1, 2) @ centred
        if self.mean is None or self.spread is None:
            return replace(self, count=fresh, mean=mean, spread=spread)
        count, gap = self.count + fresh, mean - self.mean
        spread = self.spread + spread + gap[:, :, None] * gap[:, None] * (self.count * fresh / count)
        return replace(self, count=count, mean=self.mean + gap * (fresh / count), spread=spread)

    def only(self, slots: Tensor, empty: Tensor) -> Observed:
        """With what was ``received`` by ``slots`` (Hkv, b) alone; nothing by those that are ``empty``."""
        if self.received is None:
            return self
        return replace(self, received=self.received.gather(1, slots).masked_fill(empty, 0.0))

    def nbytes(self) -> int:
        """Measured bytes."""
        parts = (self.queries, self.received, self.mean, self.spread)
        return sum(x.numel() * x.element_size() for x in parts if x is not None)


def probabilities(
    q: Tensor,
    k: Tensor,
    scale: float,
    see: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    sink_logit: Tensor | None = None,
) -> Tensor:
    """(H, L, M) float32 attention of ``q`` (H, L, D) on ``k`` (Hkv, M, D) where ``see`` (Hkv, L, M) lets it.

    ``bias`` (H, M) is added to the scores, ``sink_logit`` (H,) to the denominator.
    """
    see = see.repeat_interleave(q.shape[0] // k.shape[0], 0)
    added = None if bias is None else bias[:, None]
    scores = masked_scores(q[None], k[None], scale, see, added, softcap)[0]
    if sink_logit is None:
        return scores.softmax(-1)
    logit = sink_logit.float().view(-1, 1, 1).expand(-1, scores.shape[1], -1)
    return torch.cat([scores, logit], -1).softmax(-1)[..., :-1]
