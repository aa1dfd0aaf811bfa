"""TRL's aesthetic scorer, mended: for those who call TRL's own reward.

TRL's needs torchvision, which has no build beside a CPU torch, and takes what
``CLIPModel.get_image_features`` returns for a tensor: since transformers 5 it is an output object.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, per channel
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


class AestheticScorer(nn.Module):
    """Score of pictures by a head on CLIP's normalised image embedding (LAION's aesthetic predictor)."""

    def __init__(self, clip: Any, head: nn.Module) -> None:
        """``clip`` is a CLIPModel; ``head`` maps its (B, D) embeddings to (B, 1)."""
        super().__init__()
        self.clip, self.head = clip, head
        self.size = clip.config.vision_config.image_size
        self.eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Scores (B,) of ``images`` (B, 3, H, W) in [0, 1]."""
        weight = next(self.clip.parameters())
        size = (self.size, self.size)
        pixels = interpolate(images.float().clamp(0, 1), size, mode="bilinear", antialias=True)
        mean, deviation = (pixels.new_tensor(v).view(3, 1, 1) for v in (MEAN, DEVIATION))
        features = image_features(self.clip, ((pixels - mean) / deviation).to(weight))
        return self.head(nn.functional.normalize(features, dim=-1)).squeeze(1)


def image_features(clip: Any, pixels: Tensor) -> Tensor:
    """Projected image embeddings (B, D), whatever this version of transformers wraps them in."""
    output = clip.get_image_features(pixel_values=pixels)
    return output if isinstance(output, Tensor) else output.pooler_output
