"""A Stable Diffusion pipeline of 52,000 random UNet weights: all parts real, a sample in milliseconds."""

from __future__ import annotations

import string
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

LENGTH = 12
PROMPTS = ["cat", "dog", "red fox"]


def tiny_tokenizer() -> CLIPTokenizer:
    """One token a letter; special tokens at 0 and 1 as padding is the end token, like CLIP's."""
    letters = [c + end for c in string.ascii_lowercase + string.digits for end in ("", "</w>")]
    words = ["<|startoftext|>", "<|endoftext|>", *letters]
    return CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=LENGTH)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random weights from ``seed``; the global generator is afterwards as before."""
    kept = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(kept)


def tiny_vae(**settings: Any) -> AutoencoderKL:
    """16x16 pictures and 4x8x8 latents."""
    return AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=16,
        **settings,
    ).eval()


def tiny_pipeline(seed: int = 0, *, prediction: str = "epsilon", **scheduler: Any) -> StableDiffusionPipeline:
    """16x16 pictures from 4x8x8 latents; ``scheduler`` overrides Stable Diffusion's DDIM settings."""
    tokenizer = tiny_tokenizer()
    with seeded(seed):
        encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=LENGTH,
                projection_dim=16,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=1,
            )
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=4,
        )
        vae = tiny_vae()
    settings: dict[str, Any] = {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": prediction,
    }
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=DDIMScheduler(**settings),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    # The constructor corrects settings that are unusual for Stable Diffusion; here they are meant.
    pipeline.scheduler = DDIMScheduler(**(settings | scheduler))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def brightness(images: Tensor, prompts: list[str]) -> Tensor:
    """A reward with a gradient any policy finds: the mean of the picture. (B,3,H,W) -> (B,)"""
    return images.float().mean((1, 2, 3))
