"""How a model family tells positions apart, in the one form the streaming code needs.

Scores of rotary and ALiBi models depend on the *distance* between query and key only. The streaming
code therefore works in local frames: keys carry small local positions for their whole life, and a
key that must appear elsewhere is turned (rotary) or given another bias (ALiBi).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rope:
    """Half-split rotary embedding (Su et al. 2021) with the model's own inverse frequencies.

    ``inv_freq`` (rotary_dim / 2,) float32; only the first ``rotary_dim`` head dimensions turn
    (partial rotary). Any attention scaling of YaRN and kin is already in q and k and is not
    applied again. Angles are computed in float64: a turn by millions is as exact as a turn by ten.
    """

    inv_freq: Tensor

    def table(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin of the angles at ``positions`` (L,): each (L, rotary_dim / 2)."""
        compute = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
        angles = positions.double()[:, None] * self.inv_freq.double()[None, :]
        return angles.cos().to(compute), angles.sin().to(compute)

    def turn(self, x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        """Rotate ``x`` (…, L, D) further by the angles of ``table``; returns a new tensor."""
        cos, sin = table
        half = cos.shape[-1]
        source = x.to(cos.dtype)
        first, second = source[..., :half], source[..., half : 2 * half]
        if torch.compiler.is_compiling():  # fuses this, but not writes into views
            turned = (first * cos - second * sin, second * cos + first * sin, source[..., 2 * half :])
            return torch.cat(turned, -1).to(x.dtype)
        out = torch.empty_like(source)
        torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
        torch.mul(second, cos, out=out[..., half : 2 * half]).addcmul_(first, sin)
        if 2 * half < x.shape[-1]:
            out[..., 2 * half :] = source[..., 2 * half :]
        return out.to(x.dtype)


@dataclass(frozen=True)
class Alibi:
    """Linear biases (Press et al. 2022): ``slopes`` (H,) float32, score += -slope * distance."""

    slopes: Tensor


Positions = Rope | Alibi
