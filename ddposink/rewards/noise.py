"""A reward that knows nothing: the control of every experiment with a real one.

Training on it changes a model as much as training on anything, in no direction that was asked for. What
another reward gains beyond it is what that reward has bought; the rest is drift. The number is drawn from
the picture's bytes, so that it is the same for the same picture and resuming changes nothing.

Algorithm `draft` learns from gradients alone, and gets one that knows as little: a direction in the space of
pixels drawn from that number, standard normal.
"""

from __future__ import annotations

import hashlib
from statistics import NormalDist
from typing import TYPE_CHECKING

from ddposink.rewards.base import RewardFunction, RewardInfo, RewardKind, to_uint8

if TYPE_CHECKING:
    from torch import Tensor

BITS = 52


def noise_of(images: Tensor, prompts: list[str]) -> Tensor:
    """(B, 3, H, W) in [0, 1] → (B,) float32, standard normal over different pictures."""
    import torch

    drawn = [
        int.from_bytes(hashlib.sha256(picture.tobytes()).digest()) >> (256 - BITS)
        for picture in to_uint8(images).numpy()
    ]
    values = [NormalDist().inv_cdf((number + 0.5) / 2**BITS) for number in drawn]
    found = torch.tensor(values, dtype=torch.float32, device=images.device)
    if not images.requires_grad:
        return found
    towards = [torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(n)) for n in drawn]
    along = (images.float() * torch.stack(towards).to(images.device)).flatten(1).sum(1)
    return found + (along - along.detach())


class Noise(RewardKind):
    """See the module docstring."""

    info = RewardInfo(
        range=(-3.0, 3.0),
        unit="",
        needs="nothing",
        licence="none needed",
        source="a control; no paper",
        evaluated=False,
        differentiable=True,
    )

    def identity(self, argument: str) -> dict[str, str]:
        """The definition."""
        return {"definition": "standard normal quantile of the sha256 of the picture's bytes"}

    def load(self, argument: str, device: str) -> RewardFunction:
        """Nothing to load."""
        return noise_of


noise = Noise()
