"""Tiny random pipelines of the other kinds: SD3, Flux and SDXL, all parts real, on the same letters."""

from __future__ import annotations

import string
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from helpers.tiny import LENGTH, seeded, tiny_pipeline, tiny_tokenizer, tiny_vae

SHIFTED = {"scaling_factor": 1.5, "shift_factor": 0.1}  # of a flow model's autoencoder


def tiny_clip(width: int, kind: Any = CLIPTextModelWithProjection, layers: int = 2) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(tiny_tokenizer()), hidden_size=width, intermediate_size=32, num_hidden_layers=layers,
        num_attention_heads=2, max_position_embeddings=LENGTH, projection_dim=width, bos_token_id=0,
        eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return kind(config).eval()


def tiny_sd3(seed: int = 0, **scheduler: Any) -> StableDiffusion3Pipeline:
    """16x16 pictures from 4x8x8 latents; ``scheduler``: settings of the flow scheduler."""
    with seeded(seed):
        transformer = SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=16,
            pooled_projection_dim=24, pos_embed_max_size=8, qk_norm="rms_norm",
        )  # fmt: skip
        # As initialised it might draw the same for every input.
        for parameter in transformer.proj_out.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        pipeline = StableDiffusion3Pipeline(
            transformer=transformer.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(**scheduler),
            vae=tiny_vae(**SHIFTED),
            text_encoder=tiny_clip(16),
            text_encoder_2=tiny_clip(8),
            text_encoder_3=None,
            tokenizer=tiny_tokenizer(),
            tokenizer_2=tiny_tokenizer(),
            tokenizer_3=None,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_t5_tokenizer() -> Any:
    """One token a letter, as SentencePiece has it."""
    words = ["<pad>", "</s>", "<unk>", "▁", *string.ascii_lowercase]
    return T5TokenizerFast(vocab=[(word, -1.0) for word in words], extra_ids=0)


def tiny_flux(seed: int = 0, guidance_embeds: bool = True, **scheduler: Any) -> FluxPipeline:
    """16x16 pictures from 4x8x8 latents, of which the transformer sees 4x4 squares."""
    with seeded(seed):
        transformer = FluxTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=8, pooled_projection_dim=16,
            axes_dims_rope=(4, 6, 6), guidance_embeds=guidance_embeds,
        )  # fmt: skip
        torch.nn.init.normal_(transformer.proj_out.weight, std=0.3)
        tokenizer = tiny_t5_tokenizer()
        t5 = T5Config(
            vocab_size=len(tokenizer), d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2,
            feed_forward_proj="gated-gelu",
        )  # fmt: skip
        pipeline = FluxPipeline(
            transformer=transformer.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(**scheduler),
            vae=tiny_vae(**SHIFTED),
            text_encoder=tiny_clip(16, CLIPTextModel),
            text_encoder_2=T5EncoderModel(t5).eval(),
            tokenizer=tiny_tokenizer(),
            tokenizer_2=tokenizer,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_sdxl(seed: int = 0) -> StableDiffusionXLPipeline:
    """16x16 pictures from 4x8x8 latents, with SDXL's conditions."""
    with seeded(seed):
        unet = UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), norm_num_groups=4, attention_head_dim=2,
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=24,
            addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 8, use_linear_projection=True,
        )  # fmt: skip
        pipeline = StableDiffusionXLPipeline(
            unet=unet.eval(),
            scheduler=tiny_pipeline().scheduler,
            vae=tiny_vae(scaling_factor=1.5),
            text_encoder=tiny_clip(16, CLIPTextModel),
            text_encoder_2=tiny_clip(8),
            tokenizer=tiny_tokenizer(),
            tokenizer_2=tiny_tokenizer(),
            add_watermarker=False,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
