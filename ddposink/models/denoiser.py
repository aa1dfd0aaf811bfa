"""Which part of a pipeline denoises, and the shape of the latents it denoises."""

from __future__ import annotations

from collections.abc import Mapping
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
    """(channels, height, width) of the latents that ``pipeline`` denoises in the size it was made for."""
    return latents_of(denoiser(pipeline).config, pipeline.vae.config)


def latents_of(network: Mapping[str, Any], vae: Mapping[str, Any]) -> tuple[int, int, int]:
    """The same of the settings of the denoising network and the autoencoder.

    Flux's transformer reads 2x2 squares of latents as one token and knows no size; its autoencoder does.
    """
    size = network.get("sample_size")
    if size is None:
        side = vae["sample_size"] // _shrinks(vae) // 2 * 2
        return network["in_channels"] // 4, side, side
    height, width = (size, size) if isinstance(size, int) else size
    return network["in_channels"], height, width


def size_of(network: Mapping[str, Any], vae: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) in pixels of the pictures that come of `latents_of`."""
    _, height, width = latents_of(network, vae)
    return height * _shrinks(vae), width * _shrinks(vae)


def _shrinks(vae: Mapping[str, Any]) -> int:
    """Pixels to a latent, along a side."""
    return int(2 ** (len(vae["block_out_channels"]) - 1))


def tokens_of(pipeline: Any) -> int:
    """Tokens of a picture's latents, by which a flow scheduler may shift its times."""
    _, height, width = latent_shape(pipeline)
    patch = denoiser(pipeline).config.get("patch_size") or 1
    if "sample_size" not in denoiser(pipeline).config:
        patch = 2  # Flux packs squares before its transformer sees them
    return (height // patch) * (width // patch)
