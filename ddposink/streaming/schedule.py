"""Eviction per chunk or per turn: the cache is cut only between pieces of text.

Within a piece the cache grows, so it is one ordinary forward (or several, of no consequence): full attention
over what is cached, a causal triangle over itself. ``chunk:N`` and ``after-turn`` cut the cache back to the
budget once a piece has been fed; ``turn`` makes room before a turn is fed, as StreamingLLM's chat does, so
that the budget is never exceeded. Keys are kept before rotation and rotated to their place in the
cache at every forward, as StreamingLLM does; with pieces of one token this is StreamingLLM's own
schedule and a second opinion on the block algorithm.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ddposink.caches import Policy, Schedule
from ddposink.streaming.base import CountedStream
from ddposink.streaming.examine import check_budget
from ddposink.streaming.hook import Hook
from ddposink.streaming.kernel import attend, merge
from ddposink.streaming.positions import Alibi, Layout, Rope
from ddposink.streaming.refusals import UnsupportedPolicyError, require_turns


class ScheduledStream(CountedStream):
    """A bounded policy whose ``evict`` is ``chunk:N``, ``turn`` or ``after-turn`` (or token: pieces of one).

    ``turn_ends`` (N,) bool marks the last token of each turn. ``chunk`` bounds a forward; a piece longer
    than that takes several forwards without eviction between them.
    """

    path = "scheduled"

    def __init__(
        self,
        model: nn.Module,
        policy: Policy,
        layout: Layout,
        chunk: int,
        turn_ends: Tensor | None = None,
    ) -> None:
        check_budget(model, policy.sinks + policy.window)
        super().__init__(model, layout)
        if layout.sliding:
            raise UnsupportedPolicyError(
                f"evict={policy.evict} on a model with sliding layers of its own is not supported: the cache "
                f"outgrows the budget between evictions; use evict=token"
            )
        require_turns(policy, turn_ends)
        self.policy = policy
        self.chunk = chunk
        self.schedule = Schedule(policy, None if turn_ends is None else turn_ends.cpu().numpy())
        self._tables: dict[Any, Any] = {}
        self._evicted_at: int | None = None

    @property
    def missing_from(self) -> int | None:
        """The first query after the first eviction, whatever the text made it."""
        return self._evicted_at if self._evicted_at is not None and self.seen > self._evicted_at else None

    def kept(self) -> int:
        """Tokens that the schedule keeps after those fed so far."""
        return self.schedule.held(self.seen)

    def next_size(self, left: int) -> int:
        """Up to the end of the piece, the chunk size or the end."""
        return min(left, self.chunk, self.schedule.piece_end(self.seen) - self.seen)

    def _forward(self, hook: Hook, ids: Tensor) -> Tensor:
        self._keep(self.schedule.kept_before(self.seen, self.held))
        self._tables = {}
        self._fresh = len(ids)
        hook.attend = self._attend
        hidden = hook.forward(ids[None], torch.zeros(1, len(ids), dtype=torch.long, device=ids.device))
        self.largest_position = max(self.largest_position, self._place_of_queries()[-1])
        self.seen += len(ids)
        self.held += len(ids)
        self._keep(self.schedule.kept_after(self.seen, self.held))
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
        positions, cap = self.layout[layer].positions, extra.get("softcap")
        rope = positions if isinstance(positions, Rope) else None
        slopes = positions.slopes if isinstance(positions, Alibi) else None
        origin = queries[0]
        q, k = (self._rotate("own", rope, queries, x) for x in (q, k))
        parts = [
            attend(q, k, v, scale, causal=True, slopes=slopes, key_positions=queries - origin, softcap=cap)
        ]
        if past is not None and past[0].shape[2]:
            k_past, v_past = self._rotate("past", rope, slots, past[0]), past[1]
            at = slots - origin
            parts.append(attend(q, k_past, v_past, scale, slopes=slopes, key_positions=at, softcap=cap))
        return merge(parts, extra.get("s_aux"))

    def _rotate(self, what: str, rope: Rope | None, positions: Tensor, x: Tensor) -> Tensor:
        if rope is None or not len(rope.inv_freq):
            return x
        if (what, id(rope)) not in self._tables:
            self._tables[what, id(rope)] = rope.table(positions, x.dtype)
        return rope.turn(x, self._tables[what, id(rope)])

    def _keep(self, count: int) -> None:
        """Hold only the sinks and the most recent tokens, ``count`` in all."""
        if count >= self.held:
            return
        sinks = min(self.policy.sinks, count)
        lo = self.held - (count - sinks)
        self.layers = {
            i: (torch.cat([k[:, :, :sinks], k[:, :, lo:]], 2), torch.cat([v[:, :, :sinks], v[:, :, lo:]], 2))
            for i, (k, v) in self.layers.items()
        }
        self.held = count
        self._evicted_at = self.seen if self._evicted_at is None else self._evicted_at

    def mark(self, steps: int) -> tuple[Any, ...]:
        """References suffice: tensors are replaced, never written to."""
        return self.seen, self.held, self.largest_position, dict(self.layers), self._evicted_at

    def rewind(self, mark: tuple[Any, ...]) -> None:
        """Undo the tokens fed since ``mark``."""
        self.seen, self.held, self.largest_position, self.layers, self._evicted_at = mark
