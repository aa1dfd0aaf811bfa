"""Keys and values stored with fewer bits: plain arithmetic, exact bytes (see `ddposink.caches.codec`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddposink.caches.codec import group_of

_FP8 = torch.float8_e4m3fn
_FP8_MAX = torch.finfo(_FP8).max  # 448


@dataclass(frozen=True)
class Packed:
    """Numbers (…, n, D) stored with ``bits``: ``codes`` uint8 or fp8, ``scale``, ``offset`` of each group."""

    codes: Tensor
    scale: Tensor
    offset: Tensor | None
    bits: str

    def nbytes(self) -> int:
        """Measured bytes of all parts."""
        parts = (self.codes, self.scale, self.offset)
        return sum(x.numel() * x.element_size() for x in parts if x is not None)

    def unpack(self, dtype: torch.dtype) -> Tensor:
        """The numbers (…, n, D) that are stored, in ``dtype``."""
        groups = self.scale.shape[-1]
        if self.bits == "fp8":
            values = self.codes.float().unflatten(-1, (groups, -1)) * self.scale.float()[..., None]
            return values.flatten(-2).to(dtype)
        assert self.offset is not None
        width = int(self.bits)
        shifts = torch.arange(0, 8, width, device=self.codes.device, dtype=torch.uint8)
        codes = (self.codes[..., None] >> shifts) & (2**width - 1)
        values = codes.flatten(-2).unflatten(-1, (groups, -1)).float()
        values = values * self.scale.float()[..., None] + self.offset.float()[..., None]
        return values.flatten(-2).to(dtype)

    def map(self, change: Callable[[Tensor], Tensor]) -> Packed:
        """The same with ``change`` applied to each part: slots live in the last dimension but one."""
        offset = None if self.offset is None else change(self.offset)
        return Packed(change(self.codes), change(self.scale), offset, self.bits)

    def joined(self, other: Packed) -> Packed:
        """These slots, then those of ``other``."""
        offset = None if self.offset is None else torch.cat([self.offset, other.offset], -2)
        codes = torch.cat([self.codes.view(torch.uint8), other.codes.view(torch.uint8)], -2)
        return Packed(
            codes.view(self.codes.dtype), torch.cat([self.scale, other.scale], -2), offset, self.bits
        )


def pack(x: Tensor, bits: str) -> Packed:
    """Store ``x`` (…, n, D). Integers lie evenly between the least and the largest number of a group.

    Raises ValueError if a group does not fill whole bytes.
    """
    groups = x.float().unflatten(-1, (-1, group_of(x.shape[-1])))
    if bits == "fp8":
        scale = (groups.abs().amax(-1) / _FP8_MAX).clamp(min=1e-7).half()
        return Packed((groups / scale.float()[..., None]).flatten(-2).to(_FP8), scale, None, bits)
    width = int(bits)
    if x.shape[-1] * width % 8:
        raise ValueError(f"{x.shape[-1]} numbers of {width} bits do not fill whole bytes")
    low, high = groups.amin(-1), groups.amax(-1)
    scale = ((high - low) / (2**width - 1)).clamp(min=1e-7).half()
    offset = low.half()
    codes = ((groups - offset.float()[..., None]) / scale.float()[..., None]).round()
    codes = codes.clamp(0, 2**width - 1).to(torch.uint8).flatten(-2).unflatten(-1, (-1, 8 // width))
    shifts = torch.arange(0, 8, width, device=x.device, dtype=torch.uint8)
    return Packed((codes << shifts).sum(-1, dtype=torch.uint8), scale, offset, bits)
