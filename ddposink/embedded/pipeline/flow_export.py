"""From the flow model's checkpoint to a `StableDiffusion3Pipeline` directory, its sheet and model card.

Its weights are packed, and what it shares with `emoji-sd` is left out; see `ddposink.models.assembled`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline

from ddposink.assets.catalogue import write_atomic
from ddposink.assets.emoji import EmojiSet
from ddposink.embedded.pipeline.export import SHOWN, draw, own_nearest, replace_folder, save_sheet
from ddposink.embedded.pipeline.flow import FlowDenoiser, make_flow_scheduler
from ddposink.embedded.pipeline.flow_card import WEIGHTS, write_flow_card
from ddposink.embedded.pipeline.stages import SHIPPED, Recipes, shipped_tokenizer, shipped_vae
from ddposink.embedded.pipeline.training import load_average
from ddposink.models.assembled import SHARED
from ddposink.models.packed import pack_bytes, packed_name, unpack_bytes

GUIDANCE = 3.0


def export_flow(
    emoji: EmojiSet, recipes: Recipes, folder: Path, target: Path, quick: bool = False
) -> dict[str, float]:
    """Write the flow pipeline trained in ``folder`` to ``target``, packed and without what it shares.

    Returns what was measured on the whole one. ``target`` is the old directory or the new one. ``quick``
    measures with two steps on few captions.
    """
    denoiser = FlowDenoiser(recipes.flow, SHIPPED / "text_encoder")
    notes = load_average(denoiser, folder / "flow.safetensors")
    new = target.with_name(f".{target.name}.{os.getpid()}.new")
    shutil.rmtree(new, ignore_errors=True)
    assemble_flow(denoiser.eval()).save_pretrained(new, safe_serialization=True)
    few, most, many, shown = (2, 2, 4, SHOWN[:2]) if quick else (10, 20, 256, SHOWN)
    kinds = ways(few, most)
    trained = nearest(emoji, _pipeline(new), kinds[:3:2], many, ", weights as trained")
    packed = {name: pack_bytes((new / name).read_bytes()) for name in WEIGHTS}
    for name, data in packed.items():
        write_atomic(new / name, unpack_bytes(data, "float16"))
    # Everything else shown and measured is of the pipeline as it was written.
    pipeline = _pipeline(new)
    measured = nearest(emoji, pipeline, kinds, many) | trained
    rows = [
        (f"{'no guidance' if guidance == 1 else f'guidance {guidance:g}'}\n{steps} steps\nseed {seed}",
         draw(pipeline, shown, guidance, steps, seed, max_sequence_length=0))
        for guidance in (1.0, GUIDANCE) for steps, seed in ((most, 0), (most, 100), (few, 0))
    ]  # fmt: skip
    save_sheet(rows, shown, new)
    leave_out_shared(new)
    for name, data in packed.items():
        (new / name).unlink()
        (new / packed_name(name)).write_bytes(data)
    write_flow_card(new, emoji, notes, measured)
    replace_folder(new, target)
    return measured


@dataclass(frozen=True)
class Way:
    """How pictures are drawn to be measured."""

    name: str
    guidance: float
    steps: int
    options: dict[str, Any]


def ways(few: int, most: int) -> list[Way]:
    """In few and in most steps without guidance, then guided, then beside the zeros in T5's place."""
    near, guided = {"max_sequence_length": 0}, f"guidance {GUIDANCE:g}, {most} steps"
    return [
        Way(f"without guidance, {few} steps", 1.0, few, near),
        Way(f"without guidance, {most} steps", 1.0, most, near),
        Way(guided, GUIDANCE, most, near),
        Way(f"{guided}, beside 256 zeros", GUIDANCE, most, {}),
    ]


def nearest(
    emoji: EmojiSet, pipeline: Any, kinds: Sequence[Way], many: int, note: str = ""
) -> dict[str, float]:
    """`own_nearest` in percent by the name of each way, with ``note`` behind it."""
    return {
        f"own picture nearest, {way.name}{note}: %": own_nearest(
            pipeline, emoji, way.guidance, way.steps, many, **way.options
        )
        for way in kinds
    }


def _pipeline(folder: Path) -> Any:
    absent = {"text_encoder_3": None, "tokenizer_3": None}
    return StableDiffusion3Pipeline.from_pretrained(folder, dtype=torch.float32, **absent)


def assemble_flow(denoiser: FlowDenoiser) -> Any:
    """The parts as a `StableDiffusion3Pipeline` without a third text encoder, float32."""
    tokenizer, vae = shipped_tokenizer(), shipped_vae()
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
