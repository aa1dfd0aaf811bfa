"""The autoencoder: 64×64 pictures to 8×8×8 latents, small enough to train on one CPU core.

Most of its cost is at full resolution. So it first learns on crops of 32×32, four times cheaper; then the
decoder alone goes on with whole pictures, against latents that no longer change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from ddposink.embedded.pipeline.training import PipelineRecipe

# Rows of RGB → Cb, Cr (ITU-R BT.601). Emoji are mostly yellow and white: unweighted, reds and greens fade.
CHROMA = torch.tensor([[-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]])


@dataclass(frozen=True)
class VaeRecipe(PipelineRecipe):
    """Everything that decides the autoencoder. Learns on crops for the first ``crop_steps``."""

    steps: int = 7_000
    learning_rate: float = 1.5e-3
    stop: int | None = 4_475  # the encoder is good by then; the decoder goes on by itself
    crop_steps: int = 6_000
    crop: int = 32
    batch: int = 16
    channels: tuple[int, ...] = (16, 32, 48, 64)
    kl_weight: float = 5e-4
    chroma_weight: float = 1.0
    coarse_weight: float = 0.5


@dataclass(frozen=True)
class DecoderRecipe(PipelineRecipe):
    """The decoder's own training, on whole pictures. ``jitter`` is noise on latents, in their deviations:

    a denoiser never hits a picture's latents exactly, and the decoder shall not mind.
    """

    steps: int = 3_500
    learning_rate: float = 1e-3
    seed: int = 1
    batch: int = 8
    jitter: float = 0.1
    chroma_weight: float = 1.0
    coarse_weight: float = 0.5


def make_vae(recipe: VaeRecipe) -> Any:
    """An `AutoencoderKL` with random weights, seeded, in channels-last layout."""
    torch.manual_seed(recipe.seed)
    blocks = len(recipe.channels)
    vae: Any = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=recipe.channels,
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        scaling_factor=1.0,  # see `latents.normalise`
    )
    return vae.to(memory_format=torch.channels_last)


def freeze_encoder(vae: Any) -> Any:
    """Leave only the decoder to train."""
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    return vae


def draw_batch(images: Tensor, recipe: VaeRecipe, step: int, generator: torch.Generator) -> Tensor:
    """(batch, 3, s, s) in [-1, 1] from ``images`` (N, 3, 64, 64) uint8: mirrored by chance, cropped early."""
    chosen = images[torch.randint(len(images), (recipe.batch,), generator=generator)]
    flips = torch.rand(recipe.batch, generator=generator) < 0.5
    batch = torch.where(flips[:, None, None, None], chosen.flip(3), chosen)
    if step < recipe.crop_steps:
        size, room = recipe.crop, images.shape[-1] - recipe.crop + 1
        corners = torch.randint(room, (recipe.batch, 2), generator=generator).tolist()
        crops = [x[:, i : i + size, j : j + size] for x, (i, j) in zip(batch, corners, strict=True)]
        batch = torch.stack(crops)
    return (batch.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def vae_loss(vae: Any, recipe: VaeRecipe, batch: Tensor, generator: torch.Generator) -> Tensor:
    """Error of pictures decoded from sampled latents, plus a little KL divergence."""
    posterior = vae.encode(batch).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator)
    error = vae.decode(posterior.mean + posterior.std * noise).sample - batch
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar)
    return picture_error(error, recipe) + recipe.kl_weight * kl.mean()


def decoder_loss(
    vae: Any, recipe: DecoderRecipe, images: Tensor, latents: Tensor, generator: torch.Generator
) -> Tensor:
    """Error of pictures decoded from jittered ``latents`` (N, 8, 8, 8) of ``images`` (N, 3, 64, 64) uint8."""
    chosen = torch.randint(len(images), (recipe.batch,), generator=generator)
    scale = recipe.jitter * latents.std((0, 2, 3))[:, None, None]
    jittered = latents[chosen] + scale * torch.randn(latents[chosen].shape, generator=generator)
    return picture_error(vae.decode(jittered).sample - (images[chosen].float() / 127.5 - 1), recipe)


def picture_error(error: Tensor, recipe: VaeRecipe | DecoderRecipe) -> Tensor:
    """Mean absolute error of pixels, of chroma and of 4×4 means; ``error`` (B, 3, h, w) in [-2, 2]."""
    chroma = torch.einsum("kc,bchw->bkhw", CHROMA, error)
    coarse = functional.avg_pool2d(error, 4)
    return (
        error.abs().mean()
        + recipe.chroma_weight * chroma.abs().mean()
        + recipe.coarse_weight * coarse.abs().mean()
    )


@torch.no_grad()
def quality(vae: Any, images: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of ``images`` (N, 3, 64, 64) uint8, decoded from mean latents."""
    wanted = images.float() / 127.5 - 1
    drawn = vae.decode(vae.encode(wanted).latent_dist.mean).sample.clamp(-1, 1)
    return float(10 * torch.log10(4 / (drawn - wanted).square().mean()))
