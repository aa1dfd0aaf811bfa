"""Between the trainings: latents of every picture, put on one scale, and how often each is drawn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddposink.assets.emoji import EmojiSet
from ddposink.prompts import SETS

# Hundreds of pictures show nearly the same person or clock; a few captions are the project's prompts.
RARE = {"People & Body": 0.4}
RARE_WORDS = {"clock face": 0.25, "family": 0.25}
FAVOURED = 4.0


@torch.no_grad()
def normalise(vae: Any, images: Tensor) -> None:
    """Fold scale and shift into the autoencoder so that each latent channel has mean 0 and deviation 1.

    ``images`` (N, 3, 64, 64) uint8. A stock pipeline only knows one scaling factor for all channels, and
    starts from noise of mean 0; the 1×1 convolutions on both sides of the latents absorb the rest.
    """
    means = encode_images(vae, images)
    shift, scale = means.mean((0, 2, 3)), means.std((0, 2, 3))
    into, out = vae.quant_conv, vae.post_quant_conv
    n = len(shift)
    into.weight[:n] /= scale[:, None, None, None]
    into.bias[:n] = (into.bias[:n] - shift) / scale
    into.bias[n:] -= 2 * scale.log()  # of the log-variances
    out.bias += (out.weight * shift[None, :, None, None]).sum((1, 2, 3))
    out.weight *= scale[None, :, None, None]


@torch.no_grad()
def encode_images(vae: Any, images: Tensor) -> Tensor:
    """Mean latents (N, 8, 8, 8) of ``images`` (N, 3, 64, 64) uint8."""
    parts = [vae.encode(part.float() / 127.5 - 1).latent_dist.mean for part in images.split(64)]
    return torch.cat(parts).contiguous()


def weights_of(emoji: EmojiSet) -> Tensor:
    """(N,) how often each picture is drawn, relative to the others."""
    favoured = set(SETS["emoji-train"]) | set(SETS["emoji-heldout"])
    weights = []
    for caption, category in zip(emoji.captions, emoji.categories, strict=True):
        weight = RARE.get(category, 1.0)
        for words, factor in RARE_WORDS.items():
            weight *= factor if caption.startswith(words) else 1.0
        weights.append(FAVOURED if caption in favoured else weight)
    return torch.tensor(weights)
