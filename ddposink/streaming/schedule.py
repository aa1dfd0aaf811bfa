"""Eviction per chunk or per turn: the cache is cut only when a piece of text has been fed.

Between evictions the cache grows, so a chunk is one ordinary forward: full attention over what is
cached, a causal triangle over itself. Keys are kept before rotation and rotated to their place in the
cache at every forward, as StreamingLLM does; with pieces of one token this is StreamingLLM's own
schedule and a second opinion on the block algorithm.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ddposink.caches import Policy
from ddposink.streaming.base import CountedStream
from ddposink.streaming.families import UnsupportedPolicyError, check_budget, own_windows
from ddposink.streaming.hook import Hook
from ddposink.streaming.kernel import attend, merge
from ddposink.streaming.positions import Alibi, Positions, Rope


class ScheduledStream(CountedStream):
    """A bounded policy whose ``evict`` is ``chunk:N`` or ``turn`` (or token: pieces of one).

    ``turn_ends`` (N,) bool marks the last token of each turn. ``chunk`` bounds a forward; a turn longer
    than that takes several forwards without eviction between them.
    """

    path = "scheduled"

    def __init__(
        self,
        model: nn.Module,
        policy: Policy,
        positions: Positions,
        chunk: int,
        turn_ends: Tensor | None = None,
    ) -> None:
        check_budget(model, policy.sinks + policy.window)
        super().__init__(model)
        if any(own is not None for own in own_windows(model)):
            raise UnsupportedPolicyError(
                f"evict={policy.evict} on a model with sliding layers of its own is not supported: the cache "
                f"outgrows the budget between evictions; use evict=token"
            )
        if policy.evict.per == "turn" and turn_ends is None:
            raise UnsupportedPolicyError(
                "evict=turn needs a corpus whose turns are known (a tokenizer's text)"
            )
        self.policy = policy
        self.positions = positions
        self.chunk = chunk
        self.turn_ends = None if turn_ends is None else turn_ends.cpu()
        self._tables: dict[str, Any] = {}
        self._evicted_at: int | None = None

    @property
    def missing_from(self) -> int | None:
        """The first query after the first eviction, whatever the text made it."""
        return self._evicted_at if self._evicted_at is not None and self.seen > self._evicted_at else None

    def next_size(self, left: int) -> int:
        """Up to the next eviction, the chunk size or the end."""
        if self.policy.evict.per == "turn":
            assert self.turn_ends is not None
            ends = torch.nonzero(self.turn_ends[self.seen : self.seen + min(left, self.chunk)])
            return int(ends[0]) + 1 if len(ends) else min(left, self.chunk)
        every = self.policy.evict.every
        return min(left, self.chunk, every - self.seen % every)

    def _forward(self, hook: Hook, ids: Tensor) -> Tensor:
        self._tables = {}
        self._fresh = len(ids)
        hook.attend = self._attend
        hidden = hook.forward(ids[None], torch.zeros(1, len(ids), dtype=torch.long, device=ids.device))
        self.largest_position = max(self.largest_position, self._place_of_queries()[-1])
        self.seen += len(ids)
        self.held += len(ids)
        self._evict()
        return hidden

    def _place_of_queries(self) -> range:
        start = self.seen if self.policy.positions == "absolute" else self.held
        return range(start, start + self._fresh)

    def _attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, extra: dict[str, Any]
    ) -> Tensor:
        """q, k at rotary position 0, i.e. not rotated yet."""
        held = self.held
        past = self.layers.get(layer)
        self.layers[layer] = (
            (k, v) if past is None else (torch.cat([past[0], k], 2), torch.cat([past[1], v], 2))
        )
        queries = torch.tensor(list(self._place_of_queries()), device=q.device)
        slots = torch.arange(held, device=q.device)
        if self.policy.positions == "absolute":
            slots = torch.where(slots < self.policy.sinks, slots, slots + (self.seen - held))
        if isinstance(self.positions, Rope):
            q, k = (self._rotate("own", queries, x) for x in (q, k))
        slopes = self.positions.slopes if isinstance(self.positions, Alibi) else None
        origin = queries[0]
        parts = [attend(q, k, v, scale, causal=True, slopes=slopes, key_positions=queries - origin)]
        if past is not None:
            k_past, v_past = past
            if isinstance(self.positions, Rope):
                k_past = self._rotate("past", slots, k_past)
            parts.append(attend(q, k_past, v_past, scale, slopes=slopes, key_positions=slots - origin))
        return merge(parts, extra.get("s_aux"))

    def _rotate(self, what: str, positions: Tensor, x: Tensor) -> Tensor:
        assert isinstance(self.positions, Rope)
        if what not in self._tables:
            self._tables[what] = self.positions.table(positions, x.dtype)
        return self.positions.turn(x, self._tables[what])

    def _evict(self) -> None:
        sinks, window = self.policy.sinks, self.policy.window
        if self.held <= sinks + window or not self._due():
            return
        lo = self.held - window
        self.layers = {
            i: (torch.cat([k[:, :, :sinks], k[:, :, lo:]], 2), torch.cat([v[:, :, :sinks], v[:, :, lo:]], 2))
            for i, (k, v) in self.layers.items()
        }
        self.held = sinks + window
        self._evicted_at = self._evicted_at or self.seen

    def _due(self) -> bool:
        if self.policy.evict.per == "turn":
            assert self.turn_ends is not None
            # Decoding past the end of the known text goes on with the last turn.
            return self.seen <= len(self.turn_ends) and bool(self.turn_ends[self.seen - 1])
        return self.seen % self.policy.evict.every == 0

    def mark(self, steps: int) -> tuple[Any, ...]:
        """References suffice: tensors are replaced, never written to."""
        return self.seen, self.held, self.largest_position, dict(self.layers), self._evicted_at

    def rewind(self, mark: tuple[Any, ...]) -> None:
        """Undo the tokens fed since ``mark``."""
        self.seen, self.held, self.largest_position, self.layers, self._evicted_at = mark
