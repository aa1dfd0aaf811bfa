"""From checkpoints to a `StableDiffusionPipeline` directory, with sheets to look at."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw

from ddposink.tiny.unet import Denoiser, make_scheduler

SHOWN = (
    "red apple", "tiger face", "rocket", "grinning face", "cat face", "sunflower", "automobile", "hamburger",
    "penguin", "octopus", "panda face", "tulip", "sailboat", "doughnut", "soccer ball", "pear",
)  # fmt: skip


def assemble(vae: Any, denoiser: Denoiser, tokenizer: Any) -> StableDiffusionPipeline:
    """The parts as a pipeline in float32, without safety checker (there is nothing unsafe to draw)."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=denoiser.text_encoder,
        tokenizer=tokenizer,
        unet=denoiser.unet,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def replace_folder(new: Path, target: Path) -> None:
    """Put folder ``new`` in the place of ``target``, so that a reader finds the old one or the new one."""
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


@torch.no_grad()
def draw(
    pipeline: StableDiffusionPipeline, prompts: Sequence[str], guidance: float, steps: int = 25, seed: int = 0
) -> np.ndarray:
    """(N, 64, 64, 3) uint8 pictures of ``prompts``, the n-th from seed ``seed + n``."""
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed + n) for n in range(len(prompts))]
    options = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "np"}
    pictures = pipeline(list(prompts), generator=generators, **options).images
    return (pictures * 255).round().astype(np.uint8)


def sheet(rows: Sequence[tuple[str, np.ndarray]], columns: Sequence[str], scale: int = 2) -> Image.Image:
    """Rows of pictures (N, h, w, 3) with a name each, under column names."""
    height, width = rows[0][1].shape[1:3]
    cell, head, left = width * scale, 16, 120
    page = Image.new("RGB", (left + cell * len(columns), head + (height * scale) * len(rows)), "white")
    pen = ImageDraw.Draw(page)
    for n, name in enumerate(columns):
        pen.text((left + n * cell + 4, 2), name[: cell // 6], fill="black")
    for row, (name, pictures) in enumerate(rows):
        pen.text((4, head + row * height * scale + height), name, fill="black")
        for n, picture in enumerate(pictures):
            image = Image.fromarray(picture).resize((cell, height * scale), Image.Resampling.NEAREST)
            page.paste(image, (left + n * cell, head + row * height * scale))
    return page
