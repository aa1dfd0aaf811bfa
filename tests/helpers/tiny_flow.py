"""Tiny random pipelines of the other kinds: SD3, Flux and SDXL, all parts real, on the same letters."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from helpers.tiny import LENGTH, tiny_tokenizer


def tiny_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=16,
        scaling_factor=1.5,
        shift_factor=0.1,
    )


def tiny_clip(width: int, kind: Any = CLIPTextModelWithProjection, layers: int = 2) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(tiny_tokenizer()), hidden_size=width, intermediate_size=32, num_hidden_layers=layers,
        num_attention_heads=2, max_position_embeddings=LENGTH, projection_dim=width, bos_token_id=0,
        eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return kind(config).eval()


def tiny_sd3(seed: int = 0, **scheduler: Any) -> StableDiffusion3Pipeline:
    """16x16 pictures from 4x8x8 latents; ``scheduler``: settings of the flow scheduler."""
    kept = torch.get_rng_state()
    torch.manual_seed(seed)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=24,
        pos_embed_max_size=8, qk_norm="rms_norm",
    )  # fmt: skip
    for parameter in transformer.proj_out.parameters():  # some initialisations draw the same for every input
        torch.nn.init.normal_(parameter, std=0.3)
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(**scheduler),
        vae=tiny_vae().eval(),
        text_encoder=tiny_clip(16),
        text_encoder_2=tiny_clip(8),
        text_encoder_3=None,
        tokenizer=tiny_tokenizer(),
        tokenizer_2=tiny_tokenizer(),
        tokenizer_3=None,
    )
    torch.set_rng_state(kept)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
