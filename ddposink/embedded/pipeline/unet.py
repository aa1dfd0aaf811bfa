"""The denoiser: a UNet on 8×8×8 latents and its text encoder, trained together on latents computed once.

It predicts v = sqrt(ᾱ)·noise − sqrt(1−ᾱ)·x₀ (Salimans & Ho 2022, section 4), whose unit weight is even over
noise levels. One caption in ten is dropped for classifier-free guidance (Ho & Salimans 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional

from ddposink.embedded.pipeline.text import encode, make_text_encoder
from ddposink.embedded.pipeline.training import PipelineRecipe


@dataclass(frozen=True)
class CaptionedRecipe(PipelineRecipe):
    """What every training on captioned latents has."""

    batch: int = 48
    dropped: float = 0.1  # captions replaced by the empty one
    reworded: float = 0.1  # captions replaced by the other wording


@dataclass(frozen=True)
class UnetRecipe(CaptionedRecipe):
    """Everything that decides UNet and text encoder, given latents and captions."""

    steps: int = 5_000
    learning_rate: float = 1.5e-3
    channels: tuple[int, ...] = (64, 128)
    text_width: int = 128
    text_layers: int = 2


class Denoiser(nn.Module):
    """UNet and text encoder as one module, so that one optimizer trains both."""

    def __init__(self, recipe: UnetRecipe, tokenizer: Any) -> None:
        super().__init__()
        torch.manual_seed(recipe.seed)
        levels = len(recipe.channels)
        self.text_encoder = make_text_encoder(tokenizer, recipe.text_width, recipe.text_layers)
        self.unet: Any = UNet2DConditionModel(
            sample_size=8,
            in_channels=8,
            out_channels=8,
            down_block_types=("CrossAttnDownBlock2D",) * levels,
            up_block_types=("CrossAttnUpBlock2D",) * levels,
            block_out_channels=recipe.channels,
            layers_per_block=1,
            cross_attention_dim=recipe.text_width,
            attention_head_dim=tuple(width // 32 for width in recipe.channels),  # heads, in spite of the name
            norm_num_groups=16,
        )

    def forward(self, noisy: Tensor, timesteps: Tensor, ids: Tensor) -> Tensor:
        """Predicted v (B, 8, 8, 8) from noisy latents of that shape, timesteps (B,) and ids (B, tokens)."""
        text = self.text_encoder(ids).last_hidden_state
        predicted: Tensor = self.unet(noisy, timesteps, encoder_hidden_states=text).sample
        return predicted


def make_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, with v-prediction."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


@dataclass(frozen=True)
class Examples:
    """Latents (N, 8, 8, 8), ids (N, tokens) of both wordings and of no caption (tokens,), weights (N,)."""

    latents: Tensor
    ids: Tensor
    other_ids: Tensor
    empty_ids: Tensor
    weights: Tensor

    @classmethod
    def make(
        cls, latents: Tensor, tokenizer: Any, captions: Sequence[str], others: Sequence[str], weights: Tensor
    ) -> Examples:
        """Tokenise both wordings of every latent."""
        empty = encode(tokenizer, [""])[0]
        return cls(latents, encode(tokenizer, captions), encode(tokenizer, others), empty, weights)

    def draw(self, recipe: CaptionedRecipe, random: torch.Generator) -> Batch:
        """A batch drawn by weight, some captions dropped or reworded."""
        size = recipe.batch
        chosen = torch.multinomial(self.weights, size, replacement=True, generator=random)
        reworded = torch.rand(size, 1, generator=random) < recipe.reworded
        dropped = torch.rand(size, 1, generator=random) < recipe.dropped
        ids = torch.where(reworded, self.other_ids[chosen], self.ids[chosen])
        ids = torch.where(dropped, self.empty_ids, ids)
        latents = self.latents[chosen]
        noise = torch.randn(latents.shape, generator=random)
        # One from each of equal slices of the range: less variance than independent ones.
        slices = (torch.arange(size) + torch.rand(size, generator=random)) / size
        return Batch(latents, ids, noise, slices)


@dataclass(frozen=True)
class Batch:
    """``latents`` and ``noise`` (B, 8, 8, 8), ``ids`` (B, tokens), ``slices`` (B,) of time, in [0, 1)."""

    latents: Tensor
    ids: Tensor
    noise: Tensor
    slices: Tensor


def unet_loss(
    model: Denoiser, recipe: UnetRecipe, scheduler: Any, data: Examples, random: torch.Generator
) -> Tensor:
    """Mean squared error of v on one batch drawn by weight."""
    batch = data.draw(recipe, random)
    timesteps = (batch.slices * scheduler.config.num_train_timesteps).long()
    noisy = scheduler.add_noise(batch.latents, batch.noise, timesteps)
    wanted = scheduler.get_velocity(batch.latents, batch.noise, timesteps)
    return functional.mse_loss(model(noisy, timesteps, batch.ids), wanted)
