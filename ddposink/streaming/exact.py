"""The exact parallel stream: many tokens per forward, the numbers of feeding one at a time."""

from __future__ import annotations

from torch import Tensor, nn

from ddposink.caches import Policy
from ddposink.streaming.blocks import BlockAttention
from ddposink.streaming.decode import DecodeStream
from ddposink.streaming.hook import Hook
from ddposink.streaming.positions import Layout
from ddposink.streaming.ring import RingStream
from ddposink.streaming.state import StreamState, next_segment


class ExactStream(RingStream):
    """``chunk`` tokens per forward, or one block if the window is larger.

    Memory O(sinks + window + chunk), time O(window) per token, for any length of text.
    """

    path = "exact"

    def __init__(
        self,
        model: nn.Module,
        policy: Policy,
        layout: Layout,
        chunk: int,
        state: StreamState | None = None,
        decode: str = "auto",
    ) -> None:
        super().__init__(model, policy, layout, state)
        self.chunk = chunk
        self._decoder = DecodeStream(model, policy, layout, self.state, decode)

    def next_size(self, left: int) -> int:
        """Whole blocks while a chunk holds one, else up to the end of the block."""
        return next_segment(self.state, left, self.chunk).tokens

    def _forward(self, hook: Hook, ids: Tensor) -> Tensor:
        state = self.state
        segment = next_segment(state, len(ids), self.chunk)
        assert segment.tokens == len(ids), "feed what next_size asked for"
        hook.attend = BlockAttention(state, self.layout, segment)
        positions = segment.positions(state, ids.device)
        hidden = hook.forward(ids[None], positions)
        # The largest rotary position in use: a sink or a key of the previous block seen from here.
        reach = state.window if state.block else state.local + len(ids) - 1
        state.seen += len(ids)
        state.largest_position = (
            state.seen - 1 if state.absolute else max(state.largest_position, reach + state.sinks)
        )
        return hidden

    def decoder(self, *, eager: bool = False) -> DecodeStream:
        """Decode on the same ring, always by the same stream: what it has recorded stays recorded."""
        return self._decoder.decoder(eager=eager)
