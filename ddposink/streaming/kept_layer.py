"""What one layer of a kept-set stream holds. Values, never written to: a mark is a reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from ddposink.streaming.observed import Observed
from ddposink.streaming.quantize import Packed, pack

Stored: TypeAlias = Tensor | Packed


@dataclass(frozen=True)
class Layer:
    """n slots of Hkv heads in the order of the text.

    ``keys`` (1, Hkv, n, D) before rotation, or rotated to their text positions if positions are absolute;
    ``values`` (1, Hkv, n, Dv); both may be packed. ``positions`` (Hkv, n) int32 in the text. Heads that hold
    fewer tokens than others have empty slots in front, of position -1: distances to what is fed stay.
    """

    keys: Stored
    values: Stored
    positions: Tensor
    observed: Observed

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, at: Tensor, bits: str | None) -> Layer:
        """The tokens fed at text positions ``at`` (L,), stored with ``bits``."""
        stored = [x if bits is None else pack(x, bits) for x in (keys, values)]
        return cls(stored[0], stored[1], at.expand(keys.shape[1], -1), Observed())

    @property
    def width(self) -> int:
        """Slots of every head, empty ones included."""
        return self.positions.shape[1]

    @property
    def ragged(self) -> bool:
        """Whether some head has empty slots."""
        return self.width > 0 and bool(self.positions[:, 0].min() < 0)

    @property
    def held(self) -> int:
        """Tokens held, on average over the heads."""
        return int((self.positions >= 0).sum()) // len(self.positions) if self.ragged else self.width

    def joined(self, fresh: Layer) -> Layer:
        """These slots, then those of ``fresh``; what was observed stays."""
        positions = torch.cat([self.positions, fresh.positions], 1)
        return Layer(_cat(self.keys, fresh.keys), _cat(self.values, fresh.values), positions, self.observed)

    def only(self, slots: Tensor) -> Layer:
        """The ``slots`` (Hkv, b), and what was observed of them; slot -1 is an empty one."""
        empty, slots = slots < 0, slots.clamp(min=0)
        positions = self.positions.gather(1, slots).masked_fill(empty, -1)
        observed = self.observed.only(slots, empty)
        return Layer(_gathered(self.keys, slots), _gathered(self.values, slots), positions, observed)

    def observing(self, observed: Observed) -> Layer:
        """The same with other observations."""
        return replace(self, observed=observed)

    def plain(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values as numbers."""
        keys, values = (x.unpack(dtype) if isinstance(x, Packed) else x for x in (self.keys, self.values))
        return keys, values

    def nbytes(self) -> int:
        """Measured bytes of the keys and values in slots that are not empty."""
        whole = self.allocated()
        return whole * int((self.positions >= 0).sum()) // self.positions.numel() if self.ragged else whole

    def allocated(self) -> int:
        """Measured bytes of all slots."""
        return sum(
            x.nbytes() if isinstance(x, Packed) else x.numel() * x.element_size()
            for x in (self.keys, self.values)
        )

    def state_nbytes(self) -> int:
        """Measured bytes of everything else: text positions, and what a policy remembers."""
        return self.positions.numel() * self.positions.element_size() + self.observed.nbytes()


def _cat(first: Stored, second: Stored) -> Stored:
    if isinstance(first, Packed):
        assert isinstance(second, Packed)
        return first.joined(second)
    assert isinstance(second, Tensor)
    return torch.cat([first, second], 2)


def _gathered(x: Stored, slots: Tensor) -> Stored:
    def take(one: Tensor) -> Tensor:
        index = slots[None, :, :, None].expand(-1, -1, -1, one.shape[-1])
        as_bytes = one.view(torch.uint8) if one.dtype is torch.float8_e4m3fn else one
        return as_bytes.gather(2, index).view(one.dtype)

    return x.map(take) if isinstance(x, Packed) else take(x)
