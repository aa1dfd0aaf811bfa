"""From checkpoints to a `StableDiffusionPipeline` directory: weights, sheet and model card."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw

from ddposink.assets.emoji import EmojiSet
from ddposink.embedded.pipeline.card import write_card
from ddposink.embedded.pipeline.stages import Recipes, finish, image_tensor
from ddposink.embedded.pipeline.unet import Denoiser, make_scheduler
from ddposink.embedded.pipeline.vae import quality

SHOWN = (
    "red apple", "tiger face", "rocket", "grinning face", "cat face", "sunflower", "automobile", "hamburger",
    "penguin", "octopus", "panda face", "tulip", "sailboat", "doughnut", "soccer ball", "pear",
)  # fmt: skip
GUIDANCE = 4.0


def export(
    emoji: EmojiSet, recipes: Recipes, folder: Path, target: Path, quick: bool = False
) -> dict[str, float]:
    """Write the pipeline trained in ``folder`` to ``target`` as float16; returns what was measured on it.

    ``target`` is the old directory or the whole new one. ``quick`` measures with two steps on few captions.
    """
    vae, denoiser, tokenizer, notes = finish(emoji, recipes, folder)
    new = target.with_name(f".{target.name}.{os.getpid()}.new")
    shutil.rmtree(new, ignore_errors=True)
    assemble(vae.half(), denoiser.half(), tokenizer).save_pretrained(new, safe_serialization=True)
    unindent(new / "tokenizer" / "tokenizer.json")
    # Everything shown and measured is of the pipeline as it was written.
    pipeline: Any = StableDiffusionPipeline.from_pretrained(new, dtype=torch.float32)
    steps, many, shown = (2, 4, SHOWN[:2]) if quick else (25, 256, SHOWN)
    measured = {"autoencoder, all pictures: PSNR in dB": quality(pipeline.vae, image_tensor(emoji))}
    for name, guidance in (("without guidance", 1.0), (f"guidance {GUIDANCE:g}", GUIDANCE)):
        measured[f"own picture nearest, {name}: %"] = own_nearest(pipeline, emoji, guidance, steps, many)
    rows = [
        (f"{'no guidance' if guidance == 1 else f'guidance {guidance:g}'}\n{t} steps\nseed {seed}",
         draw(pipeline, shown, guidance, t, seed))
        for guidance in (1.0, GUIDANCE) for t, seed in ((steps, 0), (steps, 100), (max(2, 2 * steps // 5), 0))
    ]  # fmt: skip
    save_sheet(rows, shown, new)
    write_card(new, emoji, notes, measured)
    replace_folder(new, target)
    return measured


def own_nearest(
    pipeline: Any, emoji: EmojiSet, guidance: float, steps: int, many: int, **options: Any
) -> float:
    """In percent, how often a caption's drawing is nearer to that caption's picture than to any other.

    ``many`` captions evenly spaced, one drawing each, squared distance of pixels; ``options``: its own.
    """
    chosen = np.unique(np.linspace(0, len(emoji) - 1, min(many, len(emoji))).round().astype(int))
    known = torch.from_numpy(emoji.images.reshape(len(emoji), -1)).float()
    right = 0
    for part in np.array_split(chosen, max(1, len(chosen) // 64)):
        captions = [emoji.captions[i] for i in part]
        drawn = draw(pipeline, captions, guidance, steps, seed=int(part[0]), **options)
        distances = torch.cdist(torch.from_numpy(drawn.reshape(len(part), -1)).float(), known)
        right += int((distances.argmin(1).numpy() == part).sum())
    return 100 * right / len(chosen)


def assemble(vae: Any, denoiser: Denoiser, tokenizer: Any) -> Any:
    """The parts as a `StableDiffusionPipeline` in float32, without a safety checker."""
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


def unindent(file: Path) -> None:
    """The same JSON on one line: of a vocabulary, half the bytes."""
    known = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(known, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


def replace_folder(new: Path, target: Path) -> None:
    """Put folder ``new`` in the place of ``target`` by two renames."""
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


@torch.no_grad()
def draw(
    pipeline: Any, prompts: Sequence[str], guidance: float, steps: int = 25, seed: int = 0, **more: Any
) -> np.ndarray:
    """(N, 64, 64, 3) uint8 pictures of ``prompts``, the n-th from seed ``seed + n``; ``more``: options."""
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed + n) for n in range(len(prompts))]
    options = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "np"}
    pictures = pipeline(list(prompts), generator=generators, **options, **more).images
    return (pictures * 255).round().astype(np.uint8)


def save_sheet(rows: Sequence[tuple[str, np.ndarray]], columns: Sequence[str], folder: Path) -> None:
    """The `sheet` as sheet.webp, no heavier than it has to be: it is in every checkout."""
    sheet(rows, columns).save(folder / "sheet.webp", "WEBP", quality=50, method=6)


def sheet(rows: Sequence[tuple[str, np.ndarray]], columns: Sequence[str], scale: int = 2) -> Image.Image:
    """Rows of pictures (N, h, w, 3) with a name each, under column names, enlarged ``scale`` times."""
    height, width = rows[0][1].shape[1:3]
    cell, head, left = width * scale, 16, 80
    page = Image.new("RGB", (left + cell * len(columns), head + (height * scale) * len(rows)), "white")
    pen = ImageDraw.Draw(page)
    for n, name in enumerate(columns):
        pen.text((left + n * cell + 4, 2), name, fill="black")
    for row, (name, pictures) in enumerate(rows):
        pen.text((4, head + row * height * scale + 8), name, fill="black")
        for n, picture in enumerate(pictures):
            image = Image.fromarray(picture).resize((cell, height * scale), Image.Resampling.NEAREST)
            page.paste(image, (left + n * cell, head + row * height * scale))
    return page
