"""JPEG size as a reward: the two toy tasks of the DDPO paper.

Black et al. 2023 (arXiv 2305.13301), section 5.1: the file size in kilobytes (1,000 bytes) of the picture
as a JPEG of quality 95, negated for compressibility. Smooth pictures gain one, busy pictures the other.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from ddposink.rewards.base import RewardFunction, RewardInfo, RewardKind, to_uint8

if TYPE_CHECKING:
    from torch import Tensor

QUALITY = 95


def jpeg_kilobytes(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] → (B,) float32 sizes in units of 1,000 bytes."""
    import torch
    from PIL import Image

    sizes = []
    for picture in to_uint8(images).numpy():
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="JPEG", quality=QUALITY)
        sizes.append(buffer.tell() / 1000)
    return torch.tensor(sizes, dtype=torch.float32, device=images.device)


class Jpeg(RewardKind):
    """``sign`` is -1 for compressibility, 1 for incompressibility."""

    def __init__(self, sign: int) -> None:
        self.sign = sign
        self.info = RewardInfo(
            range=(-200.0, 0.0) if sign < 0 else (0.0, 200.0),
            unit="−kB" if sign < 0 else "kB",
            needs="nothing",
            licence="none needed",
            source="Black et al. 2023, section 5.1",
        )

    def identity(self, argument: str) -> dict[str, str]:
        """The definition; the encoder's version is part of the environment's fingerprint."""
        return {"definition": f"{'−' if self.sign < 0 else ''}kB of JPEG quality {QUALITY}"}

    def load(self, argument: str, device: str) -> RewardFunction:
        """Nothing to load."""
        return lambda images, prompts: self.sign * jpeg_kilobytes(images)


compressibility = Jpeg(-1)
incompressibility = Jpeg(1)
