"""From the flow model's checkpoint to a `StableDiffusion3Pipeline` directory, its sheet and model card.

What the directory shares with `emoji-sd` is left out of the package; see `ddposink.models.assembled`.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline

from ddposink.assets.emoji import EmojiSet
from ddposink.embedded.pipeline.export import SHOWN, draw, own_nearest, replace_folder, sheet
from ddposink.embedded.pipeline.flow import FlowDenoiser, make_flow_scheduler
from ddposink.embedded.pipeline.flow_card import write_flow_card
from ddposink.embedded.pipeline.stages import SHIPPED, Recipes, shipped_tokenizer, shipped_vae
from ddposink.embedded.pipeline.training import load_average
from ddposink.models.assembled import SHARED

GUIDANCE = 3.0


def export_flow(
    emoji: EmojiSet, recipes: Recipes, folder: Path, target: Path, quick: bool = False
) -> dict[str, float]:
    """Write the flow pipeline trained in ``folder`` to ``target`` as float16, without what it shares.

    Returns what was measured on the whole one. ``target`` is the old directory or the new one. ``quick``
    measures with two steps on few captions.
    """
    denoiser = FlowDenoiser(recipes.flow, SHIPPED / "text_encoder")
    notes = load_average(denoiser, folder / "flow.safetensors")
    new = target.with_name(f".{target.name}.{os.getpid()}.new")
    shutil.rmtree(new, ignore_errors=True)
    assemble_flow(denoiser.half().eval()).save_pretrained(new, safe_serialization=True)
    # Everything shown and measured is of the pipeline as it was written.
    absent = {"text_encoder_3": None, "tokenizer_3": None}
    pipeline: Any = StableDiffusion3Pipeline.from_pretrained(new, dtype=torch.float32, **absent)
    few, most, many, shown = (2, 2, 4, SHOWN[:2]) if quick else (10, 20, 256, SHOWN)
    near = {"max_sequence_length": 0}
    measured = {
        f"own picture nearest, {name}: %": own_nearest(pipeline, emoji, guidance, steps, many, **more)
        for name, guidance, steps, more in (
            (f"without guidance, {few} steps", 1.0, few, near),
            (f"without guidance, {most} steps", 1.0, most, near),
            (f"guidance {GUIDANCE:g}, {most} steps", GUIDANCE, most, near),
            (f"guidance {GUIDANCE:g}, {most} steps, beside 256 zeros", GUIDANCE, most, {}),
        )
    }
    rows = [
        (f"{'no guidance' if guidance == 1 else f'guidance {guidance:g}'}\n{steps} steps\nseed {seed}",
         draw(pipeline, shown, guidance, steps, seed, **near))
        for guidance in (1.0, GUIDANCE) for steps, seed in ((most, 0), (most, 100), (few, 0))
    ]  # fmt: skip
    sheet(rows, shown).save(new / "sheet.webp", "WEBP", quality=80, method=6)
    leave_out_shared(new)
    write_flow_card(new, emoji, notes, measured)
    replace_folder(new, target)
    return measured


def assemble_flow(denoiser: FlowDenoiser) -> Any:
    """The parts as a `StableDiffusion3Pipeline` without a third text encoder, in the denoiser's precision."""
    dtype = denoiser.transformer.dtype
    tokenizer, vae = shipped_tokenizer(), shipped_vae().to(dtype)
    vae.register_to_config(shift_factor=0.0)  # SD3's pipeline adds it
    return StableDiffusion3Pipeline(
        transformer=denoiser.transformer,
        scheduler=make_flow_scheduler(),
        vae=vae,
        text_encoder=denoiser.text_encoder,
        text_encoder_2=denoiser.text_encoder_2,
        text_encoder_3=None,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        tokenizer_3=None,
    )


def leave_out_shared(folder: Path) -> None:
    """Remove from a whole directory what `assembled` puts back."""
    for name in SHARED:
        (folder / name).unlink()
    for part in [part for part in folder.iterdir() if part.is_dir() and not any(part.iterdir())]:
        part.rmdir()
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text(encoding="utf-8")), indent=2) + "\n", "utf-8")
