"""CLIP's picture pre-processing on tensors, and the small head that LAION and ImageReward put on top."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import nn

from ddposink.rewards.hub_kind import loading

if TYPE_CHECKING:
    from torch import Tensor

# Mean and standard deviation of red, green and blue in OpenAI's training pictures (Radford et al. 2021).
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def clip_pixels(images: Tensor, size: int) -> Tensor:
    """(B, 3, H, W) in [0, 1] → (B, 3, size, size): shorter side resized, middle cut out, standardised.

    As the image processors of CLIP and BLIP: bicubic, antialiased, values clipped.
    """
    x = images.float()
    height, width = x.shape[-2:]
    if min(height, width) != size:
        short = min(height, width)
        to = (max(size, size * height // short), max(size, size * width // short))
        x = F.interpolate(x, to, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    top, left = (x.shape[-2] - size) // 2, (x.shape[-1] - size) // 2
    x = x[..., top : top + size, left : left + size]
    mean, std = (x.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (x - mean) / std


def score_head(weights: Mapping[str, Tensor], source: Path) -> nn.Sequential:
    """The head width-1024-128-64-16-1 without activations, from ``layers.N.weight`` and ``.bias``.

    Dropout stands between the layers where the training code had it, so that the names fit; it is off.
    """
    with loading("the score head", source):
        width = weights["layers.0.weight"].shape[1]
        layers = nn.Sequential(
            nn.Linear(width, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )
        own = {k.removeprefix("layers."): v.float() for k, v in weights.items() if k.startswith("layers.")}
        layers.load_state_dict(own)
    return layers.eval().requires_grad_(False)
