"""How a model's attention layers tell positions apart, in the form the streaming code needs.

Scores of rotary and ALiBi models depend on the *distance* between query and key only. The streaming
code therefore works in local frames: keys carry small local positions for their whole life, and a
key that must appear elsewhere is turned (rotary) or given another bias (ALiBi). Which rotation a layer
has, and how far it sees, is read off the model at work (see `rotation` and `examine`), not off a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rope:
    """Rotary embedding (Su et al. 2021) of one layer.

    ``inv_freq`` (n,) float32, radians per position of n pairs of head dimensions; the other dimensions do
    not turn, and with n = 0 nothing does (a layer without positions). Pairs start at dimension ``start``:
    (start + i, start + n + i), or (start + 2i, start + 2i + 1) if ``interleaved``. Any attention scaling of
    YaRN and kin is already in q and k and is not applied again. Angles are computed in float64: a turn by
    millions is as exact as a turn by ten.
    """

    inv_freq: Tensor
    start: int = 0
    interleaved: bool = False

    def table(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin of the angles at ``positions`` (L,): each (L, n)."""
        compute = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
        angles = positions.double()[:, None] * self.inv_freq.double()[None, :]
        return angles.cos().to(compute), angles.sin().to(compute)

    def to(self, device: torch.device | str) -> Rope:
        """The same with its frequencies on ``device``."""
        return replace(self, inv_freq=self.inv_freq.to(device))

    def pairs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """First and second member of every pair: views of ``x`` (…, D), each (…, n)."""
        n, start = len(self.inv_freq), self.start
        if self.interleaved:
            return x[..., start : start + 2 * n : 2], x[..., start + 1 : start + 2 * n : 2]
        return x[..., start : start + n], x[..., start + n : start + 2 * n]

    def turn(self, x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        """Rotate ``x`` (…, L, D) further by the angles of ``table``; returns a new tensor."""
        cos, sin = table
        source = x.to(cos.dtype)
        first, second = self.pairs(source)
        if torch.compiler.is_compiling():  # fuses this, but not writes into views
            return self._joined(source, first * cos - second * sin, second * cos + first * sin).to(x.dtype)
        out = torch.empty_like(source)
        out_first, out_second = self.pairs(out)
        torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-1)
        torch.mul(second, cos, out=out_second).addcmul_(first, sin)
        end = self.start + 2 * len(self.inv_freq)
        if self.start:
            out[..., : self.start] = source[..., : self.start]
        if end < x.shape[-1]:
            out[..., end:] = source[..., end:]
        return out.to(x.dtype)

    def _joined(self, source: Tensor, first: Tensor, second: Tensor) -> Tensor:
        turned = torch.stack([first, second], -1).flatten(-2) if self.interleaved else None
        middle = [first, second] if turned is None else [turned]
        end = self.start + 2 * len(self.inv_freq)
        return torch.cat([source[..., : self.start], *middle, source[..., end:]], -1)


@dataclass(frozen=True, eq=False)
class Alibi:
    """Linear biases (Press et al. 2022): ``slopes`` (H,) float32, score += -slope * distance."""

    slopes: Tensor

    def to(self, device: torch.device | str) -> Alibi:
        """The same with its slopes on ``device``."""
        return replace(self, slopes=self.slopes.to(device))


Positions = Rope | Alibi


@dataclass(frozen=True, eq=False)
class AttentionLayer:
    """One attention layer: its positions, its own sliding window in tokens (None: sees all), and the bytes of
    one token's key and value, as the layer hands them to its attention.
    """

    positions: Positions
    window: int | None = None
    token_bytes: int = 0


@dataclass(frozen=True, eq=False)
class Layout:
    """The attention layers of a model by their layer index (of a hybrid model, not every layer has one)."""

    layers: Mapping[int, AttentionLayer]

    def __getitem__(self, layer: int) -> AttentionLayer:
        return self.layers[layer]

    @property
    def windows(self) -> dict[int, int | None]:
        """The model's own sliding window of every attention layer, in tokens."""
        return {index: layer.window for index, layer in self.layers.items()}

    def narrowed(self, window: int) -> Layout:
        """The same with windows of the model's own of at most ``window`` tokens."""
        cut = {i: min(one.window, window) if one.window else one.window for i, one in self.layers.items()}
        return Layout({i: replace(one, window=cut[i]) for i, one in self.layers.items()})

    def to(self, device: torch.device | str) -> Layout:
        """The same with its numbers on ``device``; layers that shared a rotation still do."""
        moved: dict[int, Positions] = {}
        for one in self.layers.values():
            moved.setdefault(id(one.positions), one.positions.to(device))
        return Layout({i: replace(one, positions=moved[id(one.positions)]) for i, one in self.layers.items()})

    @property
    def sliding(self) -> bool:
        """Whether some layer has a window of its own."""
        return any(layer.window is not None for layer in self.layers.values())

    @property
    def rotary(self) -> bool:
        """Whether positions are turns (of some layers at least), not biases."""
        return all(isinstance(layer.positions, Rope) for layer in self.layers.values())
