"""Layers whose own sliding window lies inside the policy's: they see a tail of the text and nothing else.

Such a layer is what the model made it, whatever the policy: query t sees the keys closer than its own
window. All that differs from the library's sliding layer is the frame: keys are rotated at local positions
of their block, so keys of the previous block are turned one block further away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ddposink.streaming.kernel import attend_masked, merge
from ddposink.streaming.positions import Alibi, Positions
from ddposink.streaming.state import LayerState, Segment, StreamState

ROWS = 128  # queries at a time: each sees a tail and themselves, so little is computed in vain


class TailAttention:
    """Attention of one segment in a layer with a tail of ``tail`` tokens; see `StreamState`."""

    def __init__(
        self,
        state: StreamState,
        segment: Segment,
        tail: int,
        positions: Positions,
        turn_back: Callable[[Tensor], Tensor],
    ) -> None:
        self.state, self.segment, self.tail = state, segment, tail
        self.positions, self.turn_back = positions, turn_back

    def __call__(
        self, memory: LayerState, q: Tensor, k: Tensor, v: Tensor, scale: float, extra: dict[str, Any]
    ) -> Tensor:
        """q (1,H,n,D), k and v (1,Hkv,n,D) rotated at local positions -> (1,H,n,Dv); stores the new tail."""
        size = self.state.window if self.segment.blocks else self.segment.tokens
        keys, values = self._held(memory)
        outs = []
        for done in range(0, q.shape[2], size):
            if done:  # the block just finished becomes the previous one
                keys = self.turn_back(keys)
            piece = slice(done, done + size)
            keys, values = torch.cat([keys, k[:, :, piece]], 2), torch.cat([values, v[:, :, piece]], 2)
            outs += self._banded(q[:, :, piece], keys, values, scale, extra)
            keys, values = keys[:, :, -self.tail :], values[:, :, -self.tail :]
        self._store(memory, k, v)
        return torch.cat(outs, 2)

    def _held(self, memory: LayerState) -> tuple[Tensor, Tensor]:
        """The tail in text order, (1,Hkv,h,D), in the frame of the block that the segment starts in."""
        state = self.state
        held = min(self.tail, state.seen)
        text = torch.arange(state.seen - held, state.seen, device=memory.k.device)
        keys, values = memory.k[:, :, text % self.tail], memory.v[:, :, text % self.tail]
        older = held - state.local if state.block > 0 else 0  # tokens of the previous block
        if older > 0:
            keys = torch.cat([self.turn_back(keys[:, :, :older]), keys[:, :, older:]], 2)
        return keys, values

    def _banded(
        self, q: Tensor, keys: Tensor, values: Tensor, scale: float, extra: dict[str, Any]
    ) -> list[Tensor]:
        """Queries (1,H,n,D) are the last n of ``keys``; each sees itself and ``tail`` keys before it."""
        count, before = q.shape[2], keys.shape[2] - q.shape[2]
        outs = []
        for start in range(0, count, ROWS):
            stop = min(start + ROWS, count)
            first = max(0, before + start - self.tail)
            rows = torch.arange(before + start, before + stop, device=q.device)
            distance = rows[:, None] - torch.arange(first, before + stop, device=q.device)
            bias = None
            if isinstance(self.positions, Alibi):
                bias = -self.positions.slopes.view(-1, 1, 1) * distance
            part = attend_masked(
                q[:, :, start:stop],
                keys[:, :, first : before + stop],
                values[:, :, first : before + stop],
                scale,
                (distance >= 0) & (distance <= self.tail),
                bias,
                extra.get("softcap"),
            )
            outs.append(merge([part], extra.get("s_aux")))
        return outs

    def _store(self, memory: LayerState, k: Tensor, v: Tensor) -> None:
        last = min(self.tail, k.shape[2])
        text = torch.arange(self.state.seen, self.state.seen + k.shape[2], device=k.device)[-last:]
        memory.k[:, :, text % self.tail] = k[:, :, -last:]
        memory.v[:, :, text % self.tail] = v[:, :, -last:]
