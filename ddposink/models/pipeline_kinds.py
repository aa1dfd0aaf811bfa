"""Which diffusion pipelines can be trained here, told from their configurations: no torch, no weights.

The engines know one kind: a UNet that denoises the latents of a text, on a noise schedule given by betas.
Whatever is of another kind is named, rather than trained under assumptions that do not hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TRAINED = "StableDiffusionPipeline"
# Parts of class names, most telling first, and what such a pipeline is.
_FAMILIES = {
    "XL": "SDXL has two text encoders and conditions of its own, which the engines do not train",
    "StableDiffusion3": "SD3 is a flow model denoised by a transformer, not by a UNet",
    "Flux": "Flux is a flow model denoised by a transformer, not by a UNet",
    "QwenImage": "Qwen-Image is a flow model denoised by a transformer, not by a UNet",
    "Inpaint": "an inpainting model needs a picture and a mask besides the text",
    "Pix2Pix": "it needs a picture besides the text",
    "Img2Img": "it needs a picture besides the text",
    "ControlNet": "it needs a picture besides the text",
}


def refused_class(name: str) -> str | None:
    """Why a pipeline of class ``name`` is not trained here; None if it is."""
    if name == TRAINED:
        return None
    why = next((f"; {why}" for part, why in _FAMILIES.items() if part in name), "")
    return f"a {name}; needed is a {TRAINED}{why}"


def refused_unet(
    unet: Mapping[str, Any], vae: Mapping[str, Any], text_encoder: Mapping[str, Any]
) -> str | None:
    """Why a UNet of this configuration does not denoise the latents of a text alone; None if it does."""
    latent, taken, given = vae.get("latent_channels", 4), unet.get("in_channels"), unet.get("out_channels")
    if taken != latent:
        extra = {9: ": an inpainting model", 8: ": a model that edits pictures"}.get(taken or 0, "")
        return f"a UNet that takes {taken} channels where the latents have {latent}{extra}"
    if given != latent:
        return f"a UNet that gives {given} channels where the latents have {latent}: it predicts its variance"
    if unet.get("addition_embed_type") or unet.get("class_embed_type"):
        return "a UNet with conditions besides the text (SDXL's sizes, or classes)"
    if unet.get("time_cond_proj_dim"):
        return "a UNet that takes its guidance scale as an input (a distilled, few-step model)"
    width, hidden = unet.get("cross_attention_dim"), text_encoder.get("hidden_size")
    if isinstance(width, int) and hidden is not None and width != hidden:
        return f"a UNet that reads text of width {width} where the text encoder gives {hidden}"
    return None


def refused_scheduler(scheduler: Mapping[str, Any], name: str = "") -> str | None:
    """Why a scheduler of this configuration has no noise schedule for DDIM; None if it has one."""
    name = name or str(scheduler.get("_class_name", "scheduler"))
    flow = scheduler.get("use_flow_sigmas") or "flow" in str(scheduler.get("prediction_type"))
    if flow or "Flow" in name:
        return f"a {name}, of flow models, on whose path this UNet was not trained; use a DDIMScheduler"
    if not {"beta_schedule", "trained_betas"} & scheduler.keys():
        return f"a {name}, whose noise schedule is not given by betas, as DDIM's is; use a DDIMScheduler"
    return None
