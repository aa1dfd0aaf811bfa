"""Which diffusion pipelines can be trained here, told from their configurations: no torch, no weights.

Each kind is named with its parts, what they must be, and whether it is a flow model. Whatever is of another
kind is named, rather than trained under assumptions that do not hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Settings = Mapping[str, Any]
CLIP, PROJECTED = ("CLIPTextModel",), ("CLIPTextModelWithProjection",)
CLIP_TOKENS = ("CLIPTokenizer", "CLIPTokenizerFast")
T5, T5_TOKENS = ("T5EncoderModel",), ("T5TokenizerFast", "T5Tokenizer")
VAE, UNET = ("AutoencoderKL",), ("UNet2DConditionModel",)


@dataclass(frozen=True)
class Kind:
    """``parts``: their classes by name, none for any; those of ``optional`` may be missing."""

    parts: dict[str, tuple[str, ...]]
    flow: bool = False
    optional: frozenset[str] = field(default_factory=frozenset)

    @property
    def denoiser(self) -> str:
        """Name of the part that denoises."""
        return "transformer" if "transformer" in self.parts else "unet"

    @property
    def networks(self) -> tuple[str, ...]:
        """The parts that have weights."""
        return tuple(name for name in self.parts if name != "scheduler" and not name.startswith("tokenizer"))


KINDS: dict[str, Kind] = {
    "StableDiffusionPipeline": Kind(
        {"unet": UNET, "vae": VAE, "text_encoder": CLIP, "tokenizer": CLIP_TOKENS, "scheduler": ()}
    ),
    "StableDiffusionXLPipeline": Kind({
        "unet": UNET, "vae": VAE, "text_encoder": CLIP, "text_encoder_2": PROJECTED,
        "tokenizer": CLIP_TOKENS, "tokenizer_2": CLIP_TOKENS, "scheduler": (),
    }),
    "StableDiffusion3Pipeline": Kind({
        "transformer": ("SD3Transformer2DModel",), "vae": VAE, "text_encoder": PROJECTED,
        "text_encoder_2": PROJECTED, "text_encoder_3": T5, "tokenizer": CLIP_TOKENS,
        "tokenizer_2": CLIP_TOKENS, "tokenizer_3": T5_TOKENS, "scheduler": (),
    }, flow=True, optional=frozenset({"text_encoder_3", "tokenizer_3"})),
    "FluxPipeline": Kind({
        "transformer": ("FluxTransformer2DModel",), "vae": VAE, "text_encoder": CLIP, "text_encoder_2": T5,
        "tokenizer": CLIP_TOKENS, "tokenizer_2": T5_TOKENS, "scheduler": (),
    }, flow=True),
}  # fmt: skip
# Parts of class names, most telling first, and what such a pipeline is.
_FAMILIES = {
    "QwenImage": "Qwen-Image reads its text with a language model, which the engines do not ask",
    "Inpaint": "an inpainting model needs a picture and a mask besides the text",
    "Pix2Pix": "it needs a picture besides the text",
    "Img2Img": "it needs a picture besides the text",
    "ControlNet": "it needs a picture besides the text",
}


def refused_class(name: str) -> str | None:
    """Why a pipeline of class ``name`` is not trained here; None if it is."""
    if name in KINDS:
        return None
    why = next((f"; {why}" for part, why in _FAMILIES.items() if part in name), "")
    return f"a {name}; needed is one of {', '.join(KINDS)}{why}"


def refused_parts(kind: str, settings: Mapping[str, Settings]) -> str | None:
    """Why parts of these ``settings`` do not make a pipeline of ``kind`` that is trained; None if they do."""
    if KINDS[kind].denoiser == "transformer":
        return _refused_transformer(kind, settings)
    encoders = [settings[name] for name in ("text_encoder", "text_encoder_2") if name in settings]
    return refused_unet(settings["unet"], settings["vae"], *encoders)


def refused_unet(unet: Settings, vae: Settings, *text_encoders: Settings) -> str | None:
    """Why a UNet of this configuration does not denoise the latents of a text alone; None if it does.

    With two text encoders it is SDXL's, which is told sizes and a pooled text too.
    """
    latent, taken, given = vae.get("latent_channels", 4), unet.get("in_channels"), unet.get("out_channels")
    if taken != latent:
        extra = {9: ": an inpainting model", 8: ": a model that edits pictures"}.get(taken or 0, "")
        return f"a UNet that takes {taken} channels where the latents have {latent}{extra}"
    if given != latent:
        return f"a UNet that gives {given} channels where the latents have {latent}: it predicts its variance"
    sizes = "text_time" if len(text_encoders) > 1 else None
    if (unet.get("addition_embed_type") or None) != sizes or unet.get("class_embed_type"):
        if sizes:
            return "a UNet that is not told sizes and a pooled text, as SDXL's is"
        return "a UNet with conditions besides the text (SDXL's sizes, or classes)"
    if unet.get("time_cond_proj_dim"):
        return "a UNet that takes its guidance scale as an input (a distilled, few-step model)"
    width, hidden = unet.get("cross_attention_dim"), [e.get("hidden_size") for e in text_encoders]
    if isinstance(width, int) and None not in hidden and width != sum(hidden):  # type: ignore[arg-type]
        gives = f"{'text encoders' if sizes else 'the text encoder'} give{'' if sizes else 's'}"
        return f"a UNet that reads text of width {width} where {gives} {sum(hidden)}"  # type: ignore[arg-type]
    return None


def _refused_transformer(kind: str, settings: Mapping[str, Settings]) -> str | None:
    network, latent = settings["transformer"], settings["vae"].get("latent_channels", 4)
    packed = 4 if kind == "FluxPipeline" else 1
    taken, given = network.get("in_channels"), network.get("out_channels") or network.get("in_channels")
    for name, channels in (("takes", taken), ("gives", given)):
        if channels != packed * latent:
            return f"a transformer that {name} {channels} channels where the latents have {packed * latent}"
    if packed > 1:
        pooled, wanted = settings["text_encoder"].get("hidden_size"), network.get("pooled_projection_dim")
        width, reads = settings["text_encoder_2"].get("d_model"), network.get("joint_attention_dim")
        fits = width == reads
    else:
        both = [settings["text_encoder"], settings["text_encoder_2"]]
        pooled, wanted = sum(e.get("projection_dim", 0) for e in both), network.get("pooled_projection_dim")
        width, reads = sum(e.get("hidden_size", 0) for e in both), network.get("joint_attention_dim", 0)
        fits = width <= reads  # narrower text is padded with zeros
    if not fits:
        return f"a transformer that reads text of width {reads} where the text encoders give {width}"
    if pooled != wanted:
        return f"a transformer that reads pooled text of width {wanted} where the text encoders give {pooled}"
    return None


def refused_scheduler(scheduler: Settings, name: str = "", flow: bool = False) -> str | None:
    """Why a scheduler of this configuration has no noise schedule for DDIM; None if it has one.

    ``flow``: for a flow model, whose scheduler must be one of flow models.
    """
    name = name or str(scheduler.get("_class_name", "scheduler"))
    its = (
        scheduler.get("use_flow_sigmas") or "flow" in str(scheduler.get("prediction_type")) or "Flow" in name
    )
    if flow:
        needed = "use a FlowMatchEulerDiscreteScheduler"
        return None if its else f"a {name}, which is none of flow models, as this transformer is; {needed}"
    if its:
        return f"a {name}, of flow models, on whose path this UNet was not trained; use a DDIMScheduler"
    if not {"beta_schedule", "trained_betas"} & scheduler.keys():
        return f"a {name}, whose noise schedule is not given by betas, as DDIM's is; use a DDIMScheduler"
    return None


def refused_kernel(kind: str, kernel: str, engine: str = "native") -> str | None:
    """Why pipelines of class ``kind`` do not denoise by ``kernel`` in ``engine``; None if they do."""
    flow = KINDS[kind].flow
    if engine == "trl" and kind != "StableDiffusionPipeline":
        return f"TRL's engine trains a StableDiffusionPipeline, not a {kind}; set engine to native"
    if flow and kernel == "ddim":
        return f"a {kind} is a flow model, which DDIM does not denoise; set sample_kernel to flow-sde"
    if not flow and kernel != "ddim":
        return f"a {kind} is no flow model; set sample_kernel to ddim, not {kernel}"
    return None
