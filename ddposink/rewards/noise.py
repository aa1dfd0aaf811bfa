"""A reward that knows nothing: the control of every experiment with a real one.

Training on it changes a model as much as training on anything, in no direction that was asked for. What
another reward gains beyond it is what that reward has bought; the rest is drift. The number is drawn from
the picture's bytes, so that it is the same for the same picture and resuming changes nothing.
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

    values = []
    for picture in to_uint8(images).numpy():
        drawn = int.from_bytes(hashlib.sha256(picture.tobytes()).digest()) >> (256 - BITS)
        values.append(NormalDist().inv_cdf((drawn + 0.5) / 2**BITS))
    return torch.tensor(values, dtype=torch.float32, device=images.device)


class Noise(RewardKind):
    """See the module docstring."""

    info = RewardInfo(
        range=(-3.0, 3.0),
        unit="",
        needs="nothing",
        licence="none needed",
        source="a control; no paper",
        evaluated=False,
    )

    def identity(self, argument: str) -> dict[str, str]:
        """The definition."""
        return {"definition": "standard normal quantile of the sha256 of the picture's bytes"}

    def load(self, argument: str, device: str) -> RewardFunction:
        """Nothing to load."""
        return noise_of


noise = Noise()
