"""What is carried along a stream: the sinks and a ring of the last R tokens, per layer.

The text is cut into sinks (positions 0 … S-1) and blocks of exactly R tokens. A token's *local*
position is its index in its block, i = (t - S) mod R; its key is rotated there once and stays so for
life. Sinks stand at -S … -1, so block 0 and the sinks together are a plain causal prefix. (The model is
given local positions plus S: distances are the same, and no model is asked for a negative position.)
Ring slot j holds the key of local position j: of the current block for j < i, of the previous block
for j >= i. Parallel evaluation and decode share this state, so either can go on where the other
stopped. No position ever exceeds 2R + S, whatever the length of the text.

A layer whose own sliding window lies inside the policy's never sees a sink or an older token again: it
holds a *tail*, the last (own window - 1) tokens, and nothing else, in a ring indexed by text position.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ddposink.caches import Policy


@dataclass
class LayerState:
    """Keys and values of one layer: each (B, Hkv, S + R + 1, D); slot S+j is ring slot j.

    Of a layer with a tail of m tokens: (B, Hkv, m + 1, D), text position t in slot t mod m. B is 1, or the
    number of streams that decode feeds in step. The last slot is scratch for decode: the newest token stands
    there while its query attends.
    """

    k: Tensor
    v: Tensor


@dataclass
class StreamState:
    """The state of one stream under one policy. ``seen`` counts the tokens fed so far.

    ``tails`` gives the length of the tail of every layer that has one.
    """

    sinks: int
    window: int
    absolute: bool = False
    seen: int = 0
    largest_position: int = 0
    layers: dict[int, LayerState] = field(default_factory=dict)
    tails: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def for_policy(cls, policy: Policy, windows: Mapping[int, int | None] | None = None) -> StreamState:
        """Empty state for a bounded policy that evicts after every token.

        ``windows``: the model's own sliding window of every layer, in tokens.
        """
        tails = {
            layer: tail
            for layer, own in (windows or {}).items()
            if (tail := tail_of(own, policy.window)) is not None
        }
        return cls(policy.sinks, policy.window, policy.positions == "absolute", tails=tails)

    @property
    def block(self) -> int:
        """Index of the block that the next token belongs to; block 0 has evicted nothing yet."""
        return max(0, self.seen - self.sinks) // self.window

    @property
    def local(self) -> int:
        """Local position of the next token (negative while sinks are still to come)."""
        return self.seen - self.sinks if self.seen < self.sinks else (self.seen - self.sinks) % self.window

    @property
    def held(self) -> int:
        """Tokens whose keys are in the cache (of layers without a tail)."""
        return min(self.seen, self.sinks + self.window)

    def held_in(self, layer: int) -> int:
        """Tokens whose keys ``layer`` holds."""
        return min(self.seen, self.tails.get(layer, self.sinks + self.window))

    def layer(self, index: int, like_k: Tensor, like_v: Tensor) -> LayerState:
        """The buffers of a layer, allocated on first use with the shape of its keys and values."""
        if index not in self.layers:
            slots = self.tails.get(index, self.sinks + self.window) + 1

            def empty(like: Tensor) -> Tensor:
                return like.new_zeros(*like.shape[:2], slots, like.shape[-1])

            self.layers[index] = LayerState(empty(like_k), empty(like_v))
        return self.layers[index]

    def nbytes(self) -> int:
        """Measured bytes of the keys and values of the tokens held (from the real tensors)."""
        return sum(
            self.held_in(index)
            * (s.k[:, :, 0].numel() * s.k.element_size() + s.v[:, :, 0].numel() * s.v.element_size())
            for index, s in self.layers.items()
        )

    def allocated_bytes(self) -> int:
        """Bytes of the buffers themselves, empty and scratch slots included."""
        return sum(
            s.k.numel() * s.k.element_size() + s.v.numel() * s.v.element_size() for s in self.layers.values()
        )

    def slots(self, text: Tensor, layer: int) -> Tensor:
        """Where ``layer`` keeps the tokens at ``text`` (n,) positions."""
        if layer in self.tails:
            return text % self.tails[layer]
        return torch.where(text < self.sinks, text, self.sinks + (text - self.sinks) % self.window)

    def mark(self, steps: int) -> Mark:
        """A copy of the slots that the next ``steps`` tokens will overwrite."""
        text = torch.arange(self.seen, self.seen + min(steps, self.sinks + self.window))
        kept = {}
        for index, layer in self.layers.items():
            at = self.slots(text, index).unique().to(layer.k.device)
            kept[index] = Kept(at, layer.k.index_select(2, at), layer.v.index_select(2, at))
        return Mark(self.seen, self.largest_position, kept)

    def rewind(self, mark: Mark) -> None:
        """Undo the tokens fed since ``mark`` was taken."""
        for index, kept in mark.layers.items():
            self.layers[index].k.index_copy_(2, kept.slots, kept.k)
            self.layers[index].v.index_copy_(2, kept.slots, kept.v)
        self.seen, self.largest_position = mark.seen, mark.largest_position

    def clone(self) -> StreamState:
        """An independent copy (to decode from here without disturbing the stream)."""
        layers = {i: LayerState(s.k.clone(), s.v.clone()) for i, s in self.layers.items()}
        return replace(self, layers=layers)

    def widen(self, count: int) -> None:
        """From one stream to ``count`` in step that hold the same; old buffers are freed layer by layer."""
        for index, one in self.layers.items():
            self.layers[index] = LayerState(one.k.repeat(count, 1, 1, 1), one.v.repeat(count, 1, 1, 1))

    def narrow(self) -> None:
        """Back to the first of the streams."""
        for index, one in self.layers.items():
            self.layers[index] = LayerState(one.k[:1].clone(), one.v[:1].clone())


def tail_of(own: int | None, window: int) -> int | None:
    """Tokens that a layer with the model's ``own`` window needs beside its query; None: all of the policy's.

    A query sees keys closer than ``own``. While these are all recent ones (own - 1 <= ``window``), sinks are
    out of sight from the first eviction on.
    """
    return own - 1 if own is not None and 1 <= own - 1 <= window else None


@dataclass(frozen=True)
class Kept:
    """What stood in ``slots`` (n,) of one layer."""

    slots: Tensor
    k: Tensor
    v: Tensor


@dataclass(frozen=True)
class Mark:
    """A point of a stream to come back to: counters and the slots about to be overwritten."""

    seen: int
    largest_position: int
    layers: dict[int, Kept]


@dataclass(frozen=True)
class Segment:
    """Tokens that go through one forward: ``tokens`` of them, in ``blocks`` whole blocks or a part of one."""

    tokens: int
    blocks: int  # 0: within one block; >= 1: that many whole blocks, starting at local position 0

    def positions(self, state: StreamState, device: torch.device) -> Tensor:
        """Rotary positions (1, tokens): local ones, counted from the first sink so that none is negative."""
        if self.blocks:
            return torch.arange(state.window, device=device).repeat(self.blocks)[None] + state.sinks
        return torch.arange(self.tokens, device=device)[None] + state.local + state.sinks


def next_segment(state: StreamState, left: int, chunk: int) -> Segment:
    """The next forward of at most about ``chunk`` tokens, of which ``left`` remain.

    Whole blocks go together when the chunk holds one; otherwise a block is cut at the chunk size. The
    first forward always includes all sinks.
    """
    sinks, window = state.sinks, state.window
    if state.seen < sinks and state.seen > 0:
        return Segment(min(left, sinks - state.seen), 0)
    if state.seen == 0:
        return Segment(min(left, sinks + min(window, max(1, chunk - sinks))), 0)
    whole = min(left, max(chunk, 1)) // window
    if state.local == 0 and state.block > 0 and whole >= 1:
        return Segment(whole * window, whole)
    return Segment(min(left, chunk, window - state.local), 0)
