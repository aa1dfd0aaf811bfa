"""`emoji-sd` as it was when its training was not done: something that a reward can still improve.

The UNet and text encoder of the same recipe, on the shipped autoencoder and tokenizer, cut off early: the
learning rate is still high, and pictures are vague. Not shipped; a quarter of an hour makes it.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ddposink.assets.emoji import EmojiSet
from ddposink.embedded.pipeline.export import assemble, own_nearest, replace_folder
from ddposink.embedded.pipeline.latents import encode_images, weights_of
from ddposink.embedded.pipeline.stages import SHIPPED, Loss, Recipes, image_tensor
from ddposink.embedded.pipeline.training import PipelineState, load_average, load_state, new_state
from ddposink.embedded.pipeline.unet import Denoiser, Examples, UnetRecipe, make_scheduler, unet_loss

STOP = 1_000  # of the recipe's steps


def unfinished_recipe(recipes: Recipes) -> UnetRecipe:
    """The UNet's recipe, cut off."""
    return replace(recipes.unet, stop=recipes.unet.stop or STOP)


def begin_unfinished(emoji: EmojiSet, recipes: Recipes, folder: Path) -> tuple[PipelineState, Loss]:
    """The training, where it was left; needs the shipped `emoji-sd` and nothing else."""
    vae, tokenizer, recipe = shipped_vae(), shipped_tokenizer(), unfinished_recipe(recipes)
    latents = encode_images(vae, image_tensor(emoji))
    examples = Examples.make(latents, tokenizer, emoji.captions, emoji.others, weights_of(emoji))
    denoiser, scheduler = Denoiser(recipe, tokenizer), make_scheduler()
    state, file = new_state(recipe, denoiser), folder / "unfinished.safetensors"
    return (
        load_state(state, file) if file.is_file() else state,
        lambda _, random: unet_loss(denoiser, recipe, scheduler, examples, random),
    )


def export_unfinished(
    emoji: EmojiSet, recipes: Recipes, folder: Path, target: Path, quick: bool = False
) -> dict[str, float]:
    """Write the pipeline to ``target`` as float16; returns its steps, and how often a caption is followed.

    ``target`` is the old directory or the whole new one. ``quick`` measures with two steps on few captions.
    """
    denoiser = Denoiser(recipes.unet, tokenizer := shipped_tokenizer())
    notes = load_average(denoiser, folder / "unfinished.safetensors")
    new = target.with_name(f".{target.name}.{os.getpid()}.new")
    shutil.rmtree(new, ignore_errors=True)
    pipeline = assemble(shipped_vae().half(), denoiser.half().eval(), tokenizer)
    pipeline.save_pretrained(new, safe_serialization=True)
    steps, many = (2, 4) if quick else (10, 256)
    nearest = own_nearest(pipeline.to(torch.float32), emoji, 1.0, steps, many)
    replace_folder(new, target)
    return {"steps": notes["step"], f"own picture nearest, without guidance, {steps} steps: %": nearest}


def shipped_vae() -> Any:
    """The autoencoder of `emoji-sd` in float32."""
    from diffusers import AutoencoderKL

    vae: Any = AutoencoderKL.from_pretrained(SHIPPED / "vae", dtype=torch.float32)
    vae.register_to_config(_name_or_path="")  # where it was read from is nobody's business
    return vae.eval()


def shipped_tokenizer() -> Any:
    """The tokenizer of `emoji-sd`."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(SHIPPED / "tokenizer")
