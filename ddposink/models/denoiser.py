"""Which part of a pipeline denoises, and the shape of the latents it denoises."""

from __future__ import annotations

from typing import Any

PARTS = ("unet", "transformer")
NETWORKS = ("vae", "text_encoder", "text_encoder_2", "text_encoder_3", *PARTS)


def denoiser_name(pipeline: Any) -> str:
    """``unet`` or ``transformer``. Raises ValueError for a pipeline that has neither."""
    for name in PARTS:
        if getattr(pipeline, name, None) is not None:
            return name
    raise ValueError("the pipeline has no unet and no transformer; DDPO needs a text-conditioned pipeline")


def denoiser(pipeline: Any) -> Any:
    """The network that denoises: ``pipeline.unet`` or ``pipeline.transformer``."""
    return getattr(pipeline, denoiser_name(pipeline))


def networks(pipeline: Any) -> list[str]:
    """Names of the networks that ``pipeline`` has; a stand-in may have these attributes and no others."""
    return [name for name in NETWORKS if getattr(pipeline, name, None) is not None]


def latent_shape(pipeline: Any) -> tuple[int, int, int]:
    """(channels, height, width) of the latents that ``pipeline`` denoises in the size it was made for.

    Flux's transformer reads 2x2 squares of latents as one token and knows no size; its autoencoder does.
    """
    config = denoiser(pipeline).config
    size = config.get("sample_size")
    if size is None:
        vae = pipeline.vae.config
        side = vae.sample_size // 2 ** (len(vae.block_out_channels) - 1) // 2 * 2
        return config.in_channels // 4, side, side
    height, width = (size, size) if isinstance(size, int) else size
    return config.in_channels, height, width


def tokens_of(pipeline: Any) -> int:
    """Tokens of a picture's latents, by which a flow scheduler may shift its times."""
    _, height, width = latent_shape(pipeline)
    patch = denoiser(pipeline).config.get("patch_size") or 1
    if "sample_size" not in denoiser(pipeline).config:
        patch = 2  # Flux packs squares before its transformer sees them
    return (height // patch) * (width // patch)
