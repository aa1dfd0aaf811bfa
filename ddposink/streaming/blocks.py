"""Exact streaming attention for many tokens at once: two triangles and a sink.

StreamingLLM feeds one token, attends over [S sinks, R recent, self], then evicts. With local
positions (see `state`) a query at local position i of a block sees

1. its own block up to i: a causal triangle;
2. the previous block from i on: the complementary triangle, which is causal once queries and keys
   are flipped end to end; those keys are turned by -R, which puts them at their true distance;
3. S sinks at the clamped cache distance: the query is turned to cache position S + R.

Part of a block (a chunk smaller than R, or the end of the text) adds two plain rectangles: the
current block's earlier tokens and the previous block's later ones. All parts go through an ordinary
attention kernel that returns its log-sum-exp and are merged; no mask is built, no score is computed
in vain: the work is exactly R + 1 + S keys per token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ddposink.streaming.kernel import Part, attend, attend_masked, merge
from ddposink.streaming.positions import Alibi, Layout, Positions, Rope
from ddposink.streaming.sliding import TailAttention
from ddposink.streaming.state import LayerState, Segment, StreamState
from ddposink.streaming.tiles import attend_tiles


class BlockAttention:
    """Attention over one segment for all layers; tables shared by the layers are built once."""

    def __init__(self, state: StreamState, layout: Layout, segment: Segment) -> None:
        self.state = state
        self.segment = segment
        self.layout = layout
        self.start = state.local
        self.length = state.window if segment.blocks else segment.tokens  # queries per block
        self.tables: dict[tuple[str, int], Any] = {}
        self.positions: Positions
        self.softcap: float | None = None

    def __call__(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, extra: dict[str, Any]
    ) -> Tensor:
        """q (1,H,n,D), k (1,Hkv,n,D) rotated at local positions, v (1,Hkv,n,Dv) -> (1,H,n,Dv)."""
        memory = self.state.layer(layer, k, v)
        self.positions, own = self.layout[layer].positions, self.layout[layer].window
        self.softcap = extra.get("softcap")
        if (tail := self.state.tails.get(layer)) is not None:
            attention = TailAttention(self.state, self.segment, tail, self.positions, self._turn_back)
            return attention(memory, q, k, v, scale, extra)
        # In cache positions no key is further than S + R; a wider window of the model's own never cuts.
        reach = None if self.state.absolute else self.state.sinks + self.state.window
        if own is not None and (reach is None or own <= reach):
            out = self._banded(memory, q, k, v, scale, own, extra.get("s_aux"))
        else:
            out = self._triangles(memory, q, k, v, scale, extra.get("s_aux"))
        self._store(memory, k, v)
        return out

    # -- the two triangles and a sink -----------------------------------------------------------

    def _triangles(
        self, memory: LayerState, q: Tensor, k: Tensor, v: Tensor, scale: float, sink_logit: Tensor | None
    ) -> Tensor:
        state, blocks = self.state, max(1, self.segment.blocks)
        fused = q.device.type == "cpu" and isinstance(self.positions, Rope) and self.softcap is None
        if fused and state.block > 0:
            parts = [attend_tiles(state, memory, q, k, v, scale, self._turn_back)]
            return merge(parts + self._sinks(memory, q, scale, blocks=1), sink_logit)
        qb, kb, vb = (_to_blocks(x, blocks) for x in (q, k, v))
        local = torch.arange(self.start, self.start + self.length, device=q.device)
        parts = [self._attend(qb, kb, vb, scale, local, causal=True)]
        if state.seen >= state.sinks:
            parts += self._previous_triangle(memory, qb, kb, vb, scale, local)
            parts += self._rectangles(memory, qb, scale)
        parts += self._sinks(memory, q, scale, blocks)
        return _from_blocks(merge(parts, sink_logit))

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, at: Tensor, causal: bool = False
    ) -> Part:
        """Keys in the queries' own frame; ``at`` (M,) are the keys' positions there."""
        if isinstance(self.positions, Alibi):
            return attend(q, k, v, scale, causal=causal, slopes=self.positions.slopes, key_positions=at)
        return attend(q, k, v, scale, causal=causal, softcap=self.softcap)

    def _previous_triangle(
        self, memory: LayerState, q: Tensor, k: Tensor, v: Tensor, scale: float, local: Tensor
    ) -> list[Part]:
        state = self.state
        if state.block == 0:
            return []
        lo = state.sinks + self.start
        k_before, v_before = memory.k[:, :, lo : lo + self.length], memory.v[:, :, lo : lo + self.length]
        if self.segment.blocks > 1:
            k_before, v_before = torch.cat([k_before, k[:-1]]), torch.cat([v_before, v[:-1]])
        k_before = self._turn_back(k_before.flip(2))
        flipped_at = local.flip(0) - state.window
        part = self._attend(q.flip(2), k_before, v_before.flip(2), scale, flipped_at, causal=True)
        return [Part(part.out.flip(2), part.lse.flip(2))]

    def _rectangles(self, memory: LayerState, q: Tensor, scale: float) -> list[Part]:
        """Keys that every query of a partial block sees: earlier in this block, later in the previous."""
        state, s = self.state, self.state.sinks
        slots = torch.arange(state.window, device=q.device)
        keys, values, at = [], [], []
        if self.start > 0:
            keys.append(memory.k[:, :, s : s + self.start])
            values.append(memory.v[:, :, s : s + self.start])
            at.append(slots[: self.start])
        end = self.start + self.length
        if state.block > 0 and end < state.window:
            keys.append(self._turn_back(memory.k[:, :, s + end : s + state.window]))
            values.append(memory.v[:, :, s + end : s + state.window])
            at.append(slots[end:] - state.window)
        if not keys:
            return []
        return [self._attend(q, torch.cat(keys, 2), torch.cat(values, 2), scale, torch.cat(at))]

    def _sinks(
        self, memory: LayerState, q: Tensor, scale: float, blocks: int, own: int | None = None
    ) -> list[Part]:
        """All queries against the S sinks, each query standing where the cache says it stands."""
        if self.state.seen == 0 or not self.state.sinks:
            return []  # the first forward holds the sinks among its own keys
        s = min(self.state.sinks, self.state.seen)
        at = torch.arange(-self.state.sinks, s - self.state.sinks, device=q.device)
        distance = self._sink_frame(q)[:, None] - at[None, :]
        bias = None
        if isinstance(self.positions, Alibi):
            # The other parts are biased by key position alone, so that the score of a query at local
            # position i carries an extra +slope*i; the sinks get the same offset.
            bias = self.positions.slopes.view(-1, 1, 1) * (self._local(q)[:, None] - distance)[None]
        else:
            q = self._turn_to_sinks(q)
        visible = None if own is None else distance < own
        part = attend_masked(q, memory.k[:, :, :s], memory.v[:, :, :s], scale, visible, bias, self.softcap)
        return [Part(_to_blocks(part.out, blocks), _to_blocks(part.lse[..., None], blocks)[..., 0])]

    # -- turns -----------------------------------------------------------------------------------

    def _local(self, q: Tensor) -> Tensor:
        return torch.arange(q.shape[2], device=q.device) % self.length + self.start

    def _sink_frame(self, q: Tensor) -> Tensor:
        """Where each query stands in the sinks' frame: natural in block 0, else clamped at R."""
        state, local = self.state, self._local(q)
        if state.block == 0:
            return local
        if state.absolute:
            return torch.arange(q.shape[2], device=q.device) + (state.seen - state.sinks)
        return torch.full_like(local, state.window)

    def _turn_to_sinks(self, q: Tensor) -> Tensor:
        if self.state.block == 0:
            return q
        return self._turned("sinks", q, lambda: self._sink_frame(q) - self._local(q))

    def _turn_back(self, k: Tensor) -> Tensor:
        """Keys of the previous block seen from the current one: R further away."""
        return self._turned("back", k, lambda: torch.tensor([-self.state.window], device=k.device))

    def _turned(self, name: str, x: Tensor, by: Callable[[], Tensor]) -> Tensor:
        """``x`` turned by the layer's rotation; layers that share it share the table."""
        rope = self.positions
        if isinstance(rope, Alibi) or not len(rope.inv_freq):
            return x
        if (name, id(rope)) not in self.tables:
            self.tables[name, id(rope)] = rope.table(by(), x.dtype)
        return rope.turn(x, self.tables[name, id(rope)])

    # -- layers whose own window cuts some sinks only --------------------------------------------------------

    def _banded(
        self,
        memory: LayerState,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        own: int,
        sink_logit: Tensor | None,
    ) -> Tensor:
        """The policy's keys that are also closer than ``own``: one masked attention per block."""
        state, s, r = self.state, self.state.sinks, self.state.window
        blocks = max(1, self.segment.blocks)
        qb, kb, vb = (_to_blocks(x, blocks) for x in (q, k, v))
        ring_k, ring_v = memory.k[:, :, s : s + r], memory.v[:, :, s : s + r]
        if blocks > 1:
            ring_k, ring_v = torch.cat([ring_k, kb[:-1]]), torch.cat([ring_v, vb[:-1]])
        slots = torch.arange(r, device=q.device)
        before = slots >= self.start  # ring slots that still hold the previous block
        turned = torch.where(before[:, None], self._turn_back(ring_k), ring_k)
        at = torch.cat([torch.where(before, slots - r, slots), self._local(qb)])
        distance = self._local(qb)[:, None] - at[None, :]
        filled = torch.cat([~before | (state.block > 0), torch.ones_like(at[r:], dtype=torch.bool)])
        visible = (distance >= 0) & (distance <= r) & (distance < own) & filled[None, :]
        keys, values = torch.cat([turned, kb], 2), torch.cat([ring_v, vb], 2)
        if state.seen == 0:  # the first forward holds the sinks among its own keys
            visible = (distance >= 0) & (distance < own) & filled[None, :]
        bias = None
        if isinstance(self.positions, Alibi):
            bias = self.positions.slopes.view(-1, 1, 1) * at
        parts = [attend_masked(qb, keys, values, scale, visible, bias, self.softcap)]
        parts += self._sinks(memory, q, scale, blocks, own)
        return _from_blocks(merge(parts, sink_logit))

    # -- storing ------------------------------------------------------------------------------------

    def _store(self, memory: LayerState, k: Tensor, v: Tensor) -> None:
        if self.segment.blocks:
            lo, tail = self.state.sinks, self.state.window
        else:
            lo, tail = self.state.sinks + self.start, self.length
        memory.k[:, :, lo : lo + tail] = k[:, :, -tail:]
        memory.v[:, :, lo : lo + tail] = v[:, :, -tail:]


def _to_blocks(x: Tensor, blocks: int) -> Tensor:
    """(1, H, m*L, D) -> (m, H, L, D), without a copy."""
    return x if blocks == 1 else x[0].unflatten(1, (blocks, -1)).transpose(0, 1)


def _from_blocks(x: Tensor) -> Tensor:
    """(m, H, L, D) -> (1, H, m*L, D)."""
    return x if x.shape[0] == 1 else x.transpose(0, 1).flatten(1, 2)[None]
