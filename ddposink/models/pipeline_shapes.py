"""Pipelines of true shape with random weights, for measurements of speed and memory without a download.

The shapes are those of the published configuration files.
"""

from __future__ import annotations

from typing import Any

from ddposink.models.shapes import fill_weights

SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "sd15": {
        "unet": {
            "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
            "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768, "attention_head_dim": 8,
            "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
            "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        },
        "vae": {
            "sample_size": 512, "latent_channels": 4, "layers_per_block": 2,
            "block_out_channels": [128, 256, 512, 512],
            "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
        },
        "text_encoder": {
            "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "projection_dim": 768,
            "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 77,
            "hidden_act": "quick_gelu", "bos_token_id": 49406, "eos_token_id": 49407,
        },
        "scheduler": {
            "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
            "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
        },
    },
}  # fmt: skip


def random_parts(name: str, dtype: Any, device: str) -> dict[str, Any]:
    """The parts of a pipeline of shape ``name``, seeded, made on ``device`` in ``dtype`` at once.

    The libraries' own initialisation would take minutes on a CPU and float32 copies on the way.
    """
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    shape = SHAPES[name]
    with torch.device("meta"):
        models = {
            "unet": UNet2DConditionModel(**shape["unet"]),
            "vae": AutoencoderKL(**shape["vae"]),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**shape["text_encoder"])),
        }
    parts: dict[str, Any] = {
        label: _fill(model.to(dtype).to_empty(device=device), device) for label, model in models.items()
    }
    encoder = shape["text_encoder"]
    parts["tokenizer"] = byte_tokenizer(encoder["bos_token_id"], encoder["max_position_embeddings"])
    parts["scheduler"] = DDIMScheduler(**shape["scheduler"])
    return parts


def byte_tokenizer(start: int, length: int) -> Any:
    """A `CLIPTokenizer` of single bytes, whose special tokens are ``start`` and ``start + 1`` as in CLIP."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: n for n, letter in enumerate(letters + [f"{letter}</w>" for letter in letters])}
    vocab |= {"<|startoftext|>": start, "<|endoftext|>": start + 1}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=length)


def _fill(model: Any, device: str) -> Any:
    """Seeded random weights; buffers as the model makes them."""
    import torch

    fill_weights(model, device)
    with torch.no_grad():
        for label, buffer in model.named_buffers():
            if not label.endswith("position_ids"):
                raise NotImplementedError(f"buffer {label} of a random model has no value")
            buffer.copy_(torch.arange(buffer.numel()).view_as(buffer))
    return model
