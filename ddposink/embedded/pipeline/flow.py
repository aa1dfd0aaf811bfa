"""The flow model: a small SD3 transformer on the latents of `emoji-sd`, and its second text encoder.

Rectified flow (Liu et al. 2023; Esser et al. 2024, section 2): x_t = (1−t)·x₀ + t·noise, and the model learns
v = noise − x₀. The first text encoder is that of `emoji-sd`, frozen, its pooled output projected by the
identity; a second, smaller one is trained along. Stable Diffusion 3 has a third (T5), for whose absence its
pipeline puts zeros beside the tokens: 256 of them unless told otherwise. One step in twelve is trained with
them, so that the pipeline draws both ways.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from ddposink.embedded.pipeline.unet import CaptionedRecipe, Examples
from ddposink.models.assembled import projected

ABSENT_TOKENS = 256  # zeros that the pipeline puts in the place of T5's tokens


@dataclass(frozen=True)
class FlowRecipe(CaptionedRecipe):
    """Everything that decides transformer and second text encoder, given latents and captions."""

    steps: int = 2_400
    learning_rate: float = 1e-3
    width: int = 128
    layers: int = 6
    heads: int = 4
    text_width: int = 64
    time_shift: float = 0.3  # of the logit-normal that t is drawn from
    absent_every: int = 12  # steps


class FlowDenoiser(nn.Module):
    """Transformer and both text encoders as one module; the first encoder stays as it is."""

    def __init__(self, recipe: FlowRecipe, first: Path) -> None:
        super().__init__()
        torch.manual_seed(recipe.seed)
        self.text_encoder = first_encoder(first).requires_grad_(False)
        known = self.text_encoder.config
        self.text_encoder_2 = CLIPTextModelWithProjection(
            CLIPTextConfig.from_dict(known.to_dict() | {
                "hidden_size": recipe.text_width, "intermediate_size": 4 * recipe.text_width,
                "projection_dim": recipe.text_width, "num_hidden_layers": 2,
                "num_attention_heads": max(1, recipe.text_width // 32)}))  # fmt: skip
        joint = known.hidden_size + recipe.text_width
        self.transformer: Any = SD3Transformer2DModel(
            sample_size=8,
            patch_size=1,
            in_channels=8,
            out_channels=8,
            num_layers=recipe.layers,
            attention_head_dim=recipe.width // recipe.heads,
            num_attention_heads=recipe.heads,
            joint_attention_dim=joint,
            caption_projection_dim=recipe.width,
            pooled_projection_dim=joint,
            pos_embed_max_size=8,
            qk_norm="rms_norm",
        )

    def encode(self, ids: Tensor, absent: int = 0) -> tuple[Tensor, Tensor]:
        """(B, tokens + absent, joint) and pooled (B, joint) of ids (B, tokens), as the pipeline has them."""
        both = [
            encoder(ids, output_hidden_states=True) for encoder in (self.text_encoder, self.text_encoder_2)
        ]
        tokens = torch.cat([one.hidden_states[-2] for one in both], -1)
        if absent:
            tokens = torch.cat([tokens, tokens.new_zeros(len(ids), absent, tokens.shape[-1])], 1)
        return tokens, torch.cat([one.text_embeds for one in both], -1)

    def forward(self, noisy: Tensor, times: Tensor, ids: Tensor, absent: int = 0) -> Tensor:
        """Predicted v (B, 8, 8, 8) from noisy latents of that shape, times (B,) and ids (B, tokens)."""
        tokens, pooled = self.encode(ids, absent)
        predicted: Tensor = self.transformer(
            noisy, encoder_hidden_states=tokens, pooled_projections=pooled, timestep=1000 * times
        ).sample
        return predicted


def first_encoder(folder: Path) -> CLIPTextModelWithProjection:
    """The text encoder in ``folder`` with the identity as its projection, float32."""
    config = CLIPTextConfig.from_pretrained(folder)
    config.dtype = torch.float32  # else that of the file, for this encoder and for whatever is made like it
    encoder = CLIPTextModelWithProjection(config)
    try:
        encoder.load_state_dict(load(projected((folder / "model.safetensors").read_bytes())))
    except (RuntimeError, StopIteration) as error:
        raise ValueError(f"'{folder}' is no CLIP text encoder: {error}") from error
    return encoder


def make_flow_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Plain Euler steps: latents of 64 places need no shift towards noise."""
    return FlowMatchEulerDiscreteScheduler(shift=1.0)


def flow_loss(
    model: FlowDenoiser, recipe: FlowRecipe, data: Examples, step: int, random: torch.Generator
) -> Tensor:
    """Mean squared error of v on one batch drawn by weight; t from a shifted logit-normal, one a slice."""
    batch = data.draw(recipe, random)
    normal = torch.special.ndtri(batch.slices.double().clamp(1e-6, 1 - 1e-6)).float()
    times = torch.sigmoid(normal + recipe.time_shift)
    at = times.view(-1, 1, 1, 1)
    absent = ABSENT_TOKENS if step % recipe.absent_every == recipe.absent_every - 1 else 0
    noisy = (1 - at) * batch.latents + at * batch.noise
    return functional.mse_loss(model(noisy, times, batch.ids, absent), batch.noise - batch.latents)
