"""`emoji-sd` as it was when its training was not done: something that a reward can still improve.

The UNet and text encoder of the same recipe, on the shipped autoencoder and tokenizer, cut off early: the
learning rate is still high, and pictures are vague. Not shipped; a quarter of an hour makes it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from ddposink.assets.emoji import EmojiSet
from ddposink.embedded.pipeline.export import assemble, own_nearest, replace_folder
from ddposink.embedded.pipeline.stages import Recipes, shipped_tokenizer, shipped_vae
from ddposink.embedded.pipeline.training import load_average
from ddposink.embedded.pipeline.unet import Denoiser


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
