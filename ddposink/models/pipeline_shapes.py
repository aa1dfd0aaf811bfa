"""Pipelines of true shape with random weights, for measurements of speed and memory without a download.

The shapes are those of the published configuration files; ``kind`` is the pipeline's class. SD3 comes without
its third text encoder (T5), which is optional and larger than all the rest.
"""

from __future__ import annotations

from typing import Any

from ddposink.models.pipeline_kinds import KINDS
from ddposink.models.shapes import fill_weights

CLIP_L: dict[str, Any] = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "projection_dim": 768,
    "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 77,
    "hidden_act": "quick_gelu", "bos_token_id": 49406, "eos_token_id": 49407,
}  # fmt: skip
CLIP_G = CLIP_L | {
    "hidden_size": 1280, "intermediate_size": 5120, "projection_dim": 1280, "num_hidden_layers": 32,
    "num_attention_heads": 20, "hidden_act": "gelu",
}  # fmt: skip
T5_XXL: dict[str, Any] = {
    "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
    "feed_forward_proj": "gated-gelu", "is_encoder_decoder": False,
}  # fmt: skip
SD_VAE: dict[str, Any] = {
    "sample_size": 512, "latent_channels": 4, "layers_per_block": 2,
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
SD_SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "sd15": {
        "kind": "StableDiffusionPipeline",
        "unet": {
            "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
            "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768, "attention_head_dim": 8,
            "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
            "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        },
        "vae": SD_VAE,
        "text_encoder": CLIP_L,
        "scheduler": SD_SCHEDULE,
    },
    "sdxl": {
        "kind": "StableDiffusionXLPipeline",
        "unet": {
            "sample_size": 128, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
            "block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048,
            "attention_head_dim": [5, 10, 20], "transformer_layers_per_block": [1, 2, 10],
            "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
            "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
            "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        "vae": SD_VAE | {"sample_size": 1024, "scaling_factor": 0.13025},
        "text_encoder": CLIP_L,
        "text_encoder_2": CLIP_G,
        "scheduler": SD_SCHEDULE,
    },
    "sd35-medium": {
        "kind": "StableDiffusion3Pipeline",
        "transformer": {
            "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24,
            "attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096,
            "caption_projection_dim": 1536, "pooled_projection_dim": 2048, "pos_embed_max_size": 384,
            "dual_attention_layers": list(range(13)), "qk_norm": "rms_norm",
        },
        "vae": SD_VAE | {
            "sample_size": 1024, "latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609,
            "use_quant_conv": False, "use_post_quant_conv": False,
        },
        "text_encoder": CLIP_L,
        "text_encoder_2": CLIP_G,
        "scheduler": {"shift": 3.0},
    },
    "flux-dev": {
        "kind": "FluxPipeline",
        "transformer": {
            "patch_size": 1, "in_channels": 64, "num_layers": 19, "num_single_layers": 38,
            "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 4096,
            "pooled_projection_dim": 768, "guidance_embeds": True, "axes_dims_rope": [16, 56, 56],
        },
        "vae": SD_VAE | {
            "sample_size": 1024, "latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159,
            "use_quant_conv": False, "use_post_quant_conv": False,
        },
        "text_encoder": CLIP_L,
        "text_encoder_2": T5_XXL,
        "scheduler": {
            "shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15,
            "base_image_seq_len": 256, "max_image_seq_len": 4096,
        },
    },
}  # fmt: skip


def random_parts(name: str, dtype: Any, device: str) -> tuple[str, dict[str, Any]]:
    """Class and parts of a pipeline of shape ``name``, seeded, made on ``device`` in ``dtype`` at once.

    The libraries' own initialisation would take minutes on a CPU and float32 copies on the way.
    """
    import diffusers
    import torch
    import transformers

    shape = SHAPES[name]
    kind = KINDS[shape["kind"]]
    parts: dict[str, Any] = {}
    for label, classes in kind.parts.items():
        if label in kind.optional and label.replace("tokenizer", "text_encoder") not in shape:
            parts[label] = None
        elif label.startswith("text_encoder"):
            config = {"T5EncoderModel": transformers.T5Config}.get(classes[0], transformers.CLIPTextConfig)
            with torch.device("meta"):
                model = getattr(transformers, classes[0])(config(**shape[label]))
            parts[label] = _fill(model.to(dtype).to_empty(device=device), device)
        elif label.startswith("tokenizer"):
            encoder = shape[label.replace("tokenizer", "text_encoder")]
            # T5 has no token to begin with and no longest text; Flux has it read 512 tokens.
            start = encoder.get("bos_token_id", encoder["vocab_size"] - 2)
            parts[label] = byte_tokenizer(start, encoder.get("max_position_embeddings", 512))
        elif label == "scheduler":
            made = diffusers.FlowMatchEulerDiscreteScheduler if kind.flow else diffusers.DDIMScheduler
            parts[label] = made(**shape[label])
        else:
            with torch.device("meta"):
                model = getattr(diffusers, classes[0])(**shape[label])
            parts[label] = _fill(model.to(dtype).to_empty(device=device), device)
    return shape["kind"], parts


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
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    fill_weights(model, device)
    with torch.no_grad():
        for label, buffer in model.named_buffers():
            if label == "pos_embed.pos_embed":
                side, width = model.pos_embed.pos_embed_max_size, buffer.shape[-1]
                base = model.config.sample_size // model.config.patch_size
                places = get_2d_sincos_pos_embed(width, side, base_size=base, output_type="pt")
                buffer.copy_(places.view_as(buffer))
                continue
            if not label.endswith("position_ids"):
                raise NotImplementedError(f"buffer {label} of a random model has no value")
            buffer.copy_(torch.arange(buffer.numel()).view_as(buffer))
    return model
