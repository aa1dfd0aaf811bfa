"""What parallel evaluation and decode share: the state they carry, seen from outside."""

from __future__ import annotations

from torch import nn

from ddposink.caches import Policy
from ddposink.streaming.base import Stream
from ddposink.streaming.examine import check_budget
from ddposink.streaming.positions import Layout
from ddposink.streaming.state import Mark, StreamState


class RingStream(Stream):
    """A bounded policy that evicts after every token, on a `StreamState` (new, or going on from another)."""

    def __init__(
        self, model: nn.Module, policy: Policy, layout: Layout, state: StreamState | None = None
    ) -> None:
        check_budget(model, policy.sinks + policy.window)
        super().__init__(model, layout)
        self.policy = policy
        self.state = state or StreamState.for_policy(policy, layout.windows)

    @property
    def seen(self) -> int:
        """Tokens fed so far."""
        return self.state.seen

    @property
    def held(self) -> int:
        """Tokens whose keys are in the cache now."""
        return self.state.held

    @property
    def largest_position(self) -> int:
        """Largest cache position any query has stood at (text position for absolute sinks)."""
        return self.state.largest_position

    def mark(self, steps: int) -> Mark:
        """A point to come back to; see `StreamState.mark`."""
        return self.state.mark(steps)

    def rewind(self, mark: Mark) -> None:
        """Undo the tokens fed since ``mark``."""
        self.state.rewind(mark)

    def predicted_bytes(self) -> int:
        """Bytes of one token, times the budget, or in layers with a tail its length."""
        budget, tails = self.state.sinks + self.state.window, self.state.tails
        return sum(
            layer.token_bytes * min(self.seen, tails.get(index, budget))
            for index, layer in self.layout.layers.items()
        )

    def nbytes(self) -> int:
        """Measured bytes of keys and values held."""
        return self.state.nbytes()

    def allocated_bytes(self) -> int:
        """Measured bytes of all cache buffers."""
        return self.state.allocated_bytes()
