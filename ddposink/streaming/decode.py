"""Decode: one token per forward on a ring of slots, static shapes, nothing moved.

The mode in which memory and latency are measured. A step writes the new key into the scratch slot,
scores all slots at once with the query standing in three places (its own local position i for slots
j < i, R further for slots j >= i, cache position S+R for the sinks), picks per slot, attends, and
copies the key into slot i over the one that leaves. No concatenation, no re-rotation of the window,
the same shapes at every step: what a CUDA graph or `torch.compile` wants.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ddposink.caches import Policy
from ddposink.errors import suggest
from ddposink.streaming.cuda_graph import Advance, CannotRecordError, CapturedStep, fused
from ddposink.streaming.hook import Hook, alone
from ddposink.streaming.kernel import capped
from ddposink.streaming.positions import Alibi, Layout, Positions, Rope
from ddposink.streaming.refusals import UnsupportedPolicyError
from ddposink.streaming.ring import RingStream
from ddposink.streaming.state import StreamState
from ddposink.streaming.step import DecodeStep, Slots, StepPlan, Turns

MODES = ("auto", "eager", "graph", "compile")


class DecodeStream(RingStream):
    """Bounded policy with eviction after every token, fed one token at a time.

    Several streams may go in step, one token of each per forward: ``feed`` (B, 1), hidden states (B, d).

    ``state`` may come from an `ExactStream`: decode goes on where parallel evaluation stopped. ``mode`` is
    one of `MODES`: ``auto`` records the step as a CUDA graph where there is CUDA and the step can be
    recorded; ``compile`` also fuses its operators; ``graph`` and ``compile`` raise UnsupportedPolicyError
    where they cannot be had. ``running`` says what it came to, and why, once a token has been fed.
    """

    path = "decode"

    def __init__(
        self,
        model: nn.Module,
        policy: Policy,
        layout: Layout,
        state: StreamState | None = None,
        mode: str = "auto",
    ) -> None:
        super().__init__(model, policy, layout, state)
        if mode not in MODES:
            raise ValueError(
                f"unknown way to decode '{mode}'{suggest(mode, MODES)}; known: {', '.join(MODES)}"
            )
        weights = next(model.parameters())
        if mode == "graph" and weights.device.type != "cuda":
            raise UnsupportedPolicyError(f"decode=graph needs CUDA; the model is on {weights.device}")
        self.mode = "eager" if mode == "auto" and weights.device.type != "cuda" else mode
        self.running = self.mode
        self.plan = StepPlan(self.state, weights.device)
        self.turns = Turns(layout, weights.dtype)
        self.rotation = {index: id(layer.positions) for index, layer in layout.layers.items()}
        self.step: DecodeStep
        self.tables: dict[int, tuple[Tensor, Tensor]] = {}
        self.captured: dict[torch.Size, CapturedStep] = {}

    def next_size(self, left: int) -> int:
        """One token."""
        return 1

    def decoder(self, *, eager: bool = False) -> DecodeStream:
        """Itself, or a stream on the same ring whose every operator is started by Python."""
        if not eager or self.mode == "eager":
            return self
        return DecodeStream(self.model, self.policy, self.layout, self.state, "eager")

    @contextmanager
    def widened(self, count: int) -> Iterator[None]:
        """See `Stream.widened`. What was recorded is forgotten: the ring lies elsewhere."""
        self.captured.clear()
        self.state.widen(count)
        try:
            yield
        finally:
            self.captured.clear()
            self.state.narrow()

    def _forward(self, hook: Hook, ids: Tensor) -> Tensor:
        state, ids = self.state, torch.atleast_2d(ids)
        if self.mode != "eager" and ids.shape not in self.captured:
            self._capture(hook, ids)
        if self.mode == "eager":
            hidden = self._advance(hook, ids, torch.full((), state.seen, device=ids.device))
        else:
            hidden = self.captured[ids.shape](ids, state.seen)
            hook.replayed()
        place = state.seen if state.absolute else min(state.seen, state.sinks + state.window)
        state.largest_position = max(state.largest_position, place)
        state.seen += 1
        return hidden

    def _capture(self, hook: Hook, ids: Tensor) -> None:
        """Record the step for this many streams, leaving ring and counts as they were."""
        seen, mark, counts = self.state.seen, self.state.mark(1), hook.counts()
        undo = partial(self.state.rewind, mark)
        try:
            # Once by Python: it allocates the ring, and proves that every layer takes part.
            self._advance(hook, ids, torch.full((), seen, device=ids.device))
            undo()
            advance = self._fused() if self.mode == "compile" else partial(self._advance, hook)
            self.captured[ids.shape] = CapturedStep(advance, ids, seen, undo)
        except (CannotRecordError, torch._dynamo.exc.TorchDynamoException) as error:
            why = str(error).strip().splitlines()[0]
            if self.mode != "auto":
                raise UnsupportedPolicyError(f"decode={self.mode}: {why}") from error
            self.mode, self.running = "eager", f"eager: {why}"
        else:
            names = ["compiled"] * (self.mode == "compile") + ["CUDA graph"] * (ids.device.type == "cuda")
            self.running = ", ".join(names)
        finally:
            hook.restore(counts)

    def _fused(self) -> Advance:
        """The step compiled; a hook of its own, as counting calls would compile it anew for every token."""
        quiet = Hook(self.trunk, self._attend, self.layout.layers, counting=False)
        compiled = fused(partial(self._advance, quiet))

        def advance(ids: Tensor, seen: Tensor) -> Tensor:
            with alone(quiet):
                return compiled(ids, seen)

        return advance

    def _advance(self, hook: Hook, ids: Tensor, seen: Tensor) -> Tensor:
        """The step itself: ``ids`` (B, 1) and ``seen`` () on the device; writes the ring, returns (B, d)."""
        self.step = self.plan(seen)
        self.tables = self.turns(self.step.places)
        hook.attend = self._attend
        return hook.forward(ids, self.step.position)

    def _attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, extra: dict[str, Any]
    ) -> Tensor:
        """q (B,H,1,D), k (B,Hkv,1,D), v (B,Hkv,1,Dv) -> (B,H,1,Dv)."""
        memory, one = self.state.layer(layer, k, v), self.layout[layer]
        tail = self.state.tails.get(layer)
        slots = self.step.ring if tail is None else self.step.tails[tail]
        memory.k[:, :, -1:] = k
        memory.v[:, :, -1:] = v
        raw = self._scores(q, memory.k, slots, self.tables.get(self.rotation[layer]), one.positions)
        scores = capped(raw.float() * scale, extra.get("softcap"))  # (B, Hkv, G, slots)
        distance = slots.distance
        if tail is None and one.window is not None:
            distance = distance.masked_fill(distance >= one.window, torch.inf)
        if isinstance(one.positions, Alibi):
            scores = scores - one.positions.slopes.view(k.shape[1], -1, 1) * distance
        else:
            scores = scores.masked_fill(distance == torch.inf, -torch.inf)
        weights = _softmax(scores, extra.get("s_aux"))
        out = weights.to(v.dtype) @ memory.v
        memory.k.index_copy_(2, slots.slot, k)
        memory.v.index_copy_(2, slots.slot, v)
        return out.view(*q.shape[:3], -1)

    def _scores(
        self,
        q: Tensor,
        keys: Tensor,
        slots: Slots,
        table: tuple[Tensor, Tensor] | None,
        positions: Positions,
    ) -> Tensor:
        batch, heads, kv_heads = q.shape[0], q.shape[1], keys.shape[1]
        grouped = (batch, kv_heads, -1, q.shape[-1])
        if table is None:  # biases instead of turns, or no positions at all
            return q.reshape(grouped) @ keys.transpose(2, 3)
        assert isinstance(positions, Rope)
        three = positions.turn(q.expand(-1, -1, 3, -1), table)  # (B, H, 3, D)
        scores = three.reshape(grouped) @ keys.transpose(2, 3)
        chosen = scores.view(batch * heads, 3, -1).gather(1, slots.choose.expand(batch * heads, 1, -1))
        return chosen.view(batch, kv_heads, heads // kv_heads, -1)


def _softmax(scores: Tensor, sink_logit: Tensor | None) -> Tensor:
    """Over (B, Hkv, G, slots); a learned sink logit (H,) adds to the denominator only."""
    if sink_logit is None:
        return scores.softmax(-1)
    total = torch.logaddexp(scores.logsumexp(-1), sink_logit.float().view(scores.shape[1:3]))
    return torch.exp(scores - total[..., None])
