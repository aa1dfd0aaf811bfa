"""Decode: one token per forward on a ring of slots, static shapes, nothing moved.

The mode in which memory and latency are measured. A step writes the new key into the scratch slot,
scores all slots at once with the query standing in three places (its own local position i for slots
j < i, R further for slots j >= i, cache position S+R for the sinks), picks per slot, attends, and
copies the key into slot i over the one that leaves. No concatenation, no re-rotation of the window,
the same shapes at every step: what a CUDA graph or `torch.compile` wants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ddposink.caches import Policy
from ddposink.streaming.hook import Hook
from ddposink.streaming.positions import Alibi, Positions, Rope
from ddposink.streaming.ring import RingStream
from ddposink.streaming.state import StreamState


@dataclass
class Step:
    """What one decode step needs besides the token; the same for all layers.

    ``slot`` (1,) int64 where the new key goes · ``choose`` (1,1,slots) int64 which of the query's three
    places scores each slot · ``distance`` (slots,) float32 from the query, +inf for empty slots ·
    ``table`` cos and sin (3, rotary_dim / 2) of the three places.
    """

    slot: Tensor
    choose: Tensor
    distance: Tensor
    table: tuple[Tensor, Tensor] | None


def plan_step(state: StreamState, positions: Positions, device: torch.device, dtype: torch.dtype) -> Step:
    """The step that feeds token ``state.seen``."""
    s, r, local = state.sinks, state.window, state.local
    slots = torch.arange(s + r + 1)
    ring = slots - s
    is_sink = slots < s
    evicting = state.block > 0
    sink_place = state.seen - s if state.absolute or not evicting else r
    place = torch.where(
        is_sink, sink_place, torch.where((ring < local) | ~torch.tensor(evicting), local, local + r)
    )
    distance = (place - ring).float()
    if not evicting:
        distance[slots >= state.seen] = torch.inf
    distance[-1] = 0.0  # the scratch slot is the query's own token
    choose = torch.where(is_sink, 2, torch.where((ring < local) | ~torch.tensor(evicting), 0, 1))
    choose[-1] = 0
    table = None
    if isinstance(positions, Rope):
        turns = torch.tensor([0, r, sink_place - local], device=positions.inv_freq.device)
        table = positions.table(turns, dtype)
        table = (table[0].to(device), table[1].to(device))
    slot = torch.tensor([s + local if state.seen >= s else state.seen], device=device)
    return Step(slot, choose.view(1, 1, -1).to(device), distance.to(device), table)


class DecodeStream(RingStream):
    """Bounded policy with eviction after every token, fed one token at a time.

    Several streams may go in step, one token of each per forward: ``feed`` (B, 1), hidden states (B, d).

    ``state`` may come from an `ExactStream`: decode goes on where parallel evaluation stopped.
    """

    path = "decode"

    def __init__(
        self, model: nn.Module, policy: Policy, positions: Positions, state: StreamState | None = None
    ) -> None:
        super().__init__(model, policy, positions, state)
        self.dtype = next(model.parameters()).dtype
        self.step: Step | None = None

    def next_size(self, left: int) -> int:
        """One token."""
        return 1

    def _forward(self, hook: Hook, ids: Tensor) -> Tensor:
        state = self.state
        self.step = plan_step(state, self.positions, ids.device, self.dtype)
        hook.attend = self._attend
        hidden = hook.forward(torch.atleast_2d(ids), torch.tensor([[state.local]], device=ids.device))
        place = state.seen if state.absolute else min(state.seen, state.sinks + state.window)
        state.largest_position = max(state.largest_position, place)
        state.seen += 1
        return hidden

    def _attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, extra: dict[str, Any]
    ) -> Tensor:
        """q (B,H,1,D), k and v (B,Hkv,1,D) -> (B,H,1,D)."""
        step, memory = self.step, self.state.layer(layer, k, v)
        assert step is not None
        memory.k[:, :, -1:] = k
        memory.v[:, :, -1:] = v
        scores = self._scores(q, memory.k, step).float() * scale  # (B, Hkv, G, slots)
        own = self.own_windows[layer]
        distance = (
            step.distance if own is None else step.distance.masked_fill(step.distance >= own, torch.inf)
        )
        if isinstance(self.positions, Alibi):
            scores = scores - self.positions.slopes.view(k.shape[1], -1, 1) * distance
        else:
            scores = scores.masked_fill(distance == torch.inf, -torch.inf)
        weights = _softmax(scores, extra.get("s_aux"))
        out = weights.to(v.dtype) @ memory.v
        memory.k.index_copy_(2, step.slot, k)
        memory.v.index_copy_(2, step.slot, v)
        return out.view(*q.shape[:3], -1)

    def _scores(self, q: Tensor, keys: Tensor, step: Step) -> Tensor:
        batch, heads, kv_heads = q.shape[0], q.shape[1], keys.shape[1]
        grouped = (batch, kv_heads, -1, q.shape[-1])
        if step.table is None:
            return q.reshape(grouped) @ keys.transpose(2, 3)
        assert isinstance(self.positions, Rope)
        three = self.positions.turn(q.expand(-1, -1, 3, -1), step.table)  # (B, H, 3, D)
        scores = three.reshape(grouped) @ keys.transpose(2, 3)
        chosen = scores.view(batch * heads, 3, -1).gather(1, step.choose.expand(batch * heads, 1, -1))
        return chosen.view(batch, kv_heads, heads // kv_heads, -1)


def _softmax(scores: Tensor, sink_logit: Tensor | None) -> Tensor:
    """Over (B, Hkv, G, slots); a learned sink logit (H,) adds to the denominator only."""
    if sink_logit is None:
        return scores.softmax(-1)
    total = torch.logaddexp(scores.logsumexp(-1), sink_logit.float().view(scores.shape[1:3]))
    return torch.exp(scores - total[..., None])
