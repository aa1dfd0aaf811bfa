"""The three trainings in their order, and how one stands on the files of another.

vae → decoder (the encoder stays as it is) and vae → unet: the last two are independent of each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddposink.assets.emoji import EmojiSet
from ddposink.embedded.pipeline.flow import FlowDenoiser, FlowRecipe, flow_loss
from ddposink.embedded.pipeline.latents import encode_images, normalise, weights_of
from ddposink.embedded.pipeline.text import make_tokenizer
from ddposink.embedded.pipeline.training import PipelineState, load_average, load_state, new_state
from ddposink.embedded.pipeline.unet import Denoiser, Examples, UnetRecipe, make_scheduler, unet_loss
from ddposink.embedded.pipeline.vae import (
    DecoderRecipe,
    VaeRecipe,
    decoder_loss,
    draw_batch,
    freeze_encoder,
    make_vae,
    vae_loss,
)

SHIPPED = Path(__file__).parents[2] / "data" / "emoji-sd"
UNFINISHED_STOP = 1_000  # of the UNet's steps
Loss = Callable[[int, torch.Generator], Tensor]  # of a step, from what is random in it


@dataclass(frozen=True)
class Recipes:
    """What makes a pipeline. The defaults are those of the embedded one."""

    vae: VaeRecipe = field(default_factory=VaeRecipe)
    decoder: DecoderRecipe = field(default_factory=DecoderRecipe)
    unet: UnetRecipe = field(default_factory=UnetRecipe)
    flow: FlowRecipe = field(default_factory=FlowRecipe)


# Seconds instead of an hour: shows that everything runs, draws nothing.
SMALL = Recipes(
    VaeRecipe(steps=6, stop=4, crop_steps=3, batch=2, channels=(8, 8, 8, 8)),
    DecoderRecipe(steps=3, batch=2),
    UnetRecipe(steps=4, batch=4, channels=(32, 32), text_width=32, text_layers=1),
    FlowRecipe(steps=4, batch=4, width=32, layers=2, heads=2, text_width=32, absent_every=2),
)


def begin_vae(emoji: EmojiSet, recipes: Recipes, folder: Path) -> tuple[PipelineState, Loss]:
    """The autoencoder's training, where it was left."""
    images, vae = image_tensor(emoji), make_vae(recipes.vae)

    def loss(step: int, random: torch.Generator) -> Tensor:
        return vae_loss(vae, recipes.vae, draw_batch(images, recipes.vae, step, random), random)

    return _resumed(new_state(recipes.vae, vae), folder / "vae.safetensors"), loss


def begin_decoder(emoji: EmojiSet, recipes: Recipes, folder: Path) -> tuple[PipelineState, Loss]:
    """The decoder's own training, where it was left; needs the finished autoencoder."""
    images, vae = image_tensor(emoji), freeze_encoder(make_vae(recipes.vae))
    load_average(vae, folder / "vae.safetensors")
    latents = encode_images(vae, images)

    def loss(step: int, random: torch.Generator) -> Tensor:
        return decoder_loss(vae, recipes.decoder, images, latents, random)

    return _resumed(new_state(recipes.decoder, vae), folder / "decoder.safetensors"), loss


def begin_unet(emoji: EmojiSet, recipes: Recipes, folder: Path) -> tuple[PipelineState, Loss]:
    """The training of UNet and text encoder, where it was left; needs the finished autoencoder."""
    images, tokenizer, vae = image_tensor(emoji), tokenizer_of(emoji), make_vae(recipes.vae)
    load_average(vae, folder / "vae.safetensors")
    normalise(vae, images)
    return _begin_unet(emoji, vae, tokenizer, recipes.unet, folder / "unet.safetensors")


def begin_unfinished(emoji: EmojiSet, recipes: Recipes, folder: Path) -> tuple[PipelineState, Loss]:
    """The same on the shipped autoencoder and tokenizer, cut off early; needs nothing else."""
    recipe = replace(recipes.unet, stop=recipes.unet.stop or UNFINISHED_STOP)
    file = folder / "unfinished.safetensors"
    return _begin_unet(emoji, shipped_vae(), shipped_tokenizer(), recipe, file)


def begin_flow(emoji: EmojiSet, recipes: Recipes, folder: Path) -> tuple[PipelineState, Loss]:
    """The training of the flow model, where it was left; needs the shipped `emoji-sd` and nothing else."""
    examples = _examples(emoji, shipped_vae(), shipped_tokenizer())
    denoiser = FlowDenoiser(recipes.flow, SHIPPED / "text_encoder")

    def loss(step: int, random: torch.Generator) -> Tensor:
        return flow_loss(denoiser, recipes.flow, examples, step, random)

    return _resumed(new_state(recipes.flow, denoiser), folder / "flow.safetensors"), loss


BEGIN = {
    "vae": begin_vae,
    "decoder": begin_decoder,
    "unet": begin_unet,
    "flow": begin_flow,
    "unfinished": begin_unfinished,
}


def finish(emoji: EmojiSet, recipes: Recipes, folder: Path) -> tuple[Any, Denoiser, Any, dict[str, Any]]:
    """Averaged autoencoder, denoiser and tokenizer, and the notes of each training."""
    tokenizer, vae = tokenizer_of(emoji), make_vae(recipes.vae)
    denoiser = Denoiser(recipes.unet, tokenizer)
    notes = {
        "vae": load_average(vae, folder / "vae.safetensors"),
        "decoder": load_average(vae, folder / "decoder.safetensors"),
        "unet": load_average(denoiser, folder / "unet.safetensors"),
    }
    normalise(vae, image_tensor(emoji))
    return vae.eval(), denoiser.eval(), tokenizer, notes


def image_tensor(emoji: EmojiSet) -> Tensor:
    """(N, 3, 64, 64) uint8."""
    return torch.from_numpy(emoji.images).permute(0, 3, 1, 2).contiguous()


def tokenizer_of(emoji: EmojiSet) -> Any:
    """The tokenizer of both wordings of every caption."""
    return make_tokenizer([*emoji.captions, *emoji.others])


def shipped_vae() -> Any:
    """The autoencoder of the shipped `emoji-sd` in float32; where it was read from is nobody's business."""
    from diffusers import AutoencoderKL

    vae: Any = AutoencoderKL.from_pretrained(SHIPPED / "vae", dtype=torch.float32)
    vae.register_to_config(_name_or_path="")
    return vae.eval()


def shipped_tokenizer() -> Any:
    """The tokenizer of the shipped `emoji-sd`."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(SHIPPED / "tokenizer")


def _examples(emoji: EmojiSet, vae: Any, tokenizer: Any) -> Examples:
    latents = encode_images(vae, image_tensor(emoji))
    return Examples.make(latents, tokenizer, emoji.captions, emoji.others, weights_of(emoji))


def _begin_unet(
    emoji: EmojiSet, vae: Any, tokenizer: Any, recipe: UnetRecipe, file: Path
) -> tuple[PipelineState, Loss]:
    examples = _examples(emoji, vae, tokenizer)
    denoiser, scheduler = Denoiser(recipe, tokenizer), make_scheduler()

    def loss(step: int, random: torch.Generator) -> Tensor:
        return unet_loss(denoiser, recipe, scheduler, examples, random)

    return _resumed(new_state(recipe, denoiser), file), loss


def _resumed(state: PipelineState, file: Path) -> PipelineState:
    return load_state(state, file) if file.is_file() else state
