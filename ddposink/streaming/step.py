"""Where one decode step finds and puts things, as a function of how many tokens have been fed.

Everything a step needs besides the token follows from one number, and is computed from it where the
model is: on the device, without a branch, without a look back at the host. A step is therefore the same
sequence of operators for every token, which is what lets it be recorded once (see `captured`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddposink.streaming.positions import Positions, Rope
from ddposink.streaming.state import StreamState


@dataclass
class Step:
    """What one decode step needs besides the token; the same for all layers.

    ``position`` (1,1) int64 local rotary position of the token · ``slot`` (1,) int64 where the new key
    goes · ``choose`` (1,1,slots) int64 which of the query's three places scores each slot · ``distance``
    (slots,) float32 from the query, +inf for empty slots · ``table`` cos and sin (3, rotary_dim / 2) of the
    three places.
    """

    position: Tensor
    slot: Tensor
    choose: Tensor
    distance: Tensor
    table: tuple[Tensor, Tensor] | None


class StepPlan:
    """Plans steps for one policy, model and device. ``dtype`` is the model's."""

    def __init__(
        self, state: StreamState, positions: Positions, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.sinks, self.window, self.absolute = state.sinks, state.window, state.absolute
        self.positions, self.dtype = positions, dtype
        slots = self.sinks + self.window + 1
        self.slots = torch.arange(slots, device=device)
        self.is_sink = self.slots < self.sinks
        self.is_scratch = self.slots == slots - 1
        self.places = torch.tensor([0, self.window, 0], device=device)
        self.third = torch.tensor([0, 0, 1], device=device)

    def __call__(self, seen: Tensor) -> Step:
        """The step that feeds token ``seen``, a scalar int64 on the device.

        Arithmetic with truth values instead of `torch.where` with numbers: those would be copied from the
        host, which a recording does not allow.
        """
        after_sinks = seen - self.sinks
        evicting = after_sinks >= self.window
        local = torch.where(after_sinks < 0, after_sinks, after_sinks % self.window)
        sink_place = after_sinks if self.absolute else after_sinks.clamp(max=self.window)
        ring = self.slots - self.sinks
        earlier = evicting & (ring >= local) & ~self.is_scratch & ~self.is_sink  # of the previous block
        place = torch.where(self.is_sink, sink_place, local + self.window * earlier)
        empty = ~evicting & (self.slots >= seen)
        distance = (place - ring).float().masked_fill(empty, torch.inf)
        table = None
        if isinstance(self.positions, Rope):
            table = self.positions.table(self.places + self.third * (sink_place - local), self.dtype)
        return Step(
            position=local.view(1, 1),
            slot=(self.sinks + local).view(1),
            choose=(2 * self.is_sink + earlier).view(1, 1, -1),
            distance=distance.masked_fill(self.is_scratch, 0.0),  # the query's own token
            table=table,
        )
