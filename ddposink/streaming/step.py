"""Where one decode step finds and puts things, as a function of how many tokens have been fed.

Everything a step needs besides the token follows from one number, and is computed from it where the
model is: on the device, without a branch, without a look back at the host. A step is therefore the same
sequence of operators for every token, which is what lets it be recorded once (see `captured`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ddposink.streaming.positions import Layout, Rope
from ddposink.streaming.state import StreamState


@dataclass
class Slots:
    """How one step uses the slots of a layer's ring.

    ``slot`` (1,) int64 where the new key goes · ``choose`` (1,1,slots) int64 which of the query's three
    places scores each slot · ``distance`` (slots,) float32 from the query, +inf for empty slots.
    """

    slot: Tensor
    choose: Tensor
    distance: Tensor


@dataclass
class DecodeStep:
    """What one decode step needs besides the token.

    ``position`` (1,1) int64 rotary position of the token · ``places`` (3,) int64 turns of the query to its
    three places: its own, one block further, where the sinks see it · ``ring`` the slots of layers that hold
    the policy's tokens · ``tails`` those of layers that hold a tail, by its length.
    """

    position: Tensor
    places: Tensor
    ring: Slots
    tails: Mapping[int, Slots] = field(default_factory=dict)


class StepPlan:
    """Plans steps for one stream on one device."""

    def __init__(self, state: StreamState, device: torch.device) -> None:
        self.sinks, self.window, self.absolute = state.sinks, state.window, state.absolute
        slots = self.sinks + self.window + 1
        self.slots = torch.arange(slots, device=device)
        self.is_sink = self.slots < self.sinks
        self.is_scratch = self.slots == slots - 1
        self.places = torch.tensor([0, self.window, 0], device=device)
        self.third = torch.tensor([0, 0, 1], device=device)
        self.tails = {m: torch.arange(m + 1, device=device) for m in sorted(set(state.tails.values()))}

    def __call__(self, seen: Tensor) -> DecodeStep:
        """The step that feeds token ``seen``, a scalar int64 on the device.

        Arithmetic with truth values instead of `torch.where` with numbers: those would be copied from the
        host, which a recording does not allow.
        """
        after_sinks = seen - self.sinks
        evicting = after_sinks >= self.window
        local = torch.where(after_sinks < 0, after_sinks, after_sinks % self.window)
        sink_place = after_sinks if self.absolute else after_sinks.clamp(max=self.window)
        return DecodeStep(
            position=(local + self.sinks).view(1, 1),
            places=self.places + self.third * (sink_place - local),
            ring=self._ring(seen, local, evicting, sink_place),
            tails={m: self._tail(slots, m, seen, local, evicting) for m, slots in self.tails.items()},
        )

    def _ring(self, seen: Tensor, local: Tensor, evicting: Tensor, sink_place: Tensor) -> Slots:
        ring = self.slots - self.sinks
        earlier = evicting & (ring >= local) & ~self.is_scratch & ~self.is_sink  # of the previous block
        place = torch.where(self.is_sink, sink_place, local + self.window * earlier)
        empty = ~evicting & (self.slots >= seen)
        distance = (place - ring).float().masked_fill(empty, torch.inf)
        return Slots(
            slot=(self.sinks + local).view(1),
            choose=(2 * self.is_sink + earlier).view(1, 1, -1),
            distance=distance.masked_fill(self.is_scratch, 0.0),  # the query's own token
        )

    def _tail(self, slots: Tensor, tail: int, seen: Tensor, local: Tensor, evicting: Tensor) -> Slots:
        """Slot j holds the last text position that is j modulo ``tail``."""
        distance = (seen - 1 - slots) % tail + 1
        is_scratch = slots == tail
        earlier = evicting & (distance > local) & ~is_scratch
        far = distance.float().masked_fill(distance > seen, torch.inf)
        return Slots(
            slot=(seen % tail).view(1),
            choose=earlier.long().view(1, 1, -1),
            distance=far.masked_fill(is_scratch, 0.0),
        )


class Turns:
    """cos and sin of a step's places for every rotation of a layout, computed once a step."""

    def __init__(self, layout: Layout, dtype: torch.dtype) -> None:
        self.dtype = dtype
        positions = [layer.positions for layer in layout.layers.values()]
        self.ropes = {id(rope): rope for rope in positions if isinstance(rope, Rope) and len(rope.inv_freq)}

    def __call__(self, places: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """Tables (3, n) by the identity of their rotation."""
        return {key: rope.table(places, self.dtype) for key, rope in self.ropes.items()}
