"""The exact parallel stream: many tokens per forward, the numbers of feeding one at a time."""

from __future__ import annotations

from torch import Tensor, nn

from ddposink.caches import Policy
from ddposink.streaming.base import Stream
from ddposink.streaming.blocks import BlockAttention
from ddposink.streaming.decode import DecodeStream
from ddposink.streaming.families import check_budget, own_windows
from ddposink.streaming.hook import Hook
from ddposink.streaming.positions import Positions
from ddposink.streaming.state import Mark, StreamState, next_segment


class ExactStream(Stream):
    """Bounded policy, eviction after every token, ``chunk`` tokens per forward or one block if larger.

    Memory O(sinks + window + chunk), time O(window) per token, for any length of text.
    """

    path = "exact"

    def __init__(
        self,
        model: nn.Module,
        policy: Policy,
        positions: Positions,
        chunk: int,
        state: StreamState | None = None,
    ) -> None:
        check_budget(model, policy.sinks + policy.window)
        super().__init__(model)
        self.policy = policy
        self.positions = positions
        self.chunk = chunk
        self.state = state or StreamState.for_policy(policy)
        self.own_windows = own_windows(model)

    @property
    def seen(self) -> int:
        """Tokens fed so far."""
        return self.state.seen

    @property
    def held(self) -> int:
        """Tokens whose keys are in the cache now."""
        return self.state.held

    def next_size(self, left: int) -> int:
        """Whole blocks while a chunk holds one, else up to the end of the block."""
        return next_segment(self.state, left, self.chunk).tokens

    def _forward(self, hook: Hook, ids: Tensor) -> Tensor:
        state = self.state
        segment = next_segment(state, len(ids), self.chunk)
        assert segment.tokens == len(ids), "feed what next_size asked for"
        hook.attend = BlockAttention(state, self.positions, self.own_windows, segment)
        positions = segment.positions(state, ids.device)
        hidden = hook.forward(ids[None], positions)
        # The largest rotary position in use: a sink or a key of the previous block seen from here.
        reach = 0 if state.absolute and state.block else state.window if state.block else int(positions.max())
        state.seen += len(ids)
        state.largest_position = max(state.largest_position, reach + state.sinks)
        if state.absolute:
            state.largest_position = state.seen - 1
        return hidden

    @property
    def largest_position(self) -> int:
        """Largest cache position any query has stood at (text position for absolute sinks)."""
        return self.state.largest_position

    def decoder(self) -> DecodeStream:
        """Decode on the same ring."""
        return DecodeStream(self.model, self.policy, self.positions, state=self.state)

    def mark(self, steps: int) -> Mark:
        """A point to come back to; see `StreamState.mark`."""
        return self.state.mark(steps)

    def rewind(self, mark: Mark) -> None:
        """Undo the tokens fed since ``mark``."""
        self.state.rewind(mark)

    def nbytes(self) -> int:
        """Measured bytes of keys and values held."""
        return self.state.nbytes()

    def allocated_bytes(self) -> int:
        """Measured bytes of all cache buffers."""
        return self.state.allocated_bytes()
