"""From a checkpoint to a `StableDiffusion3Pipeline` directory: weights, sheet and model card."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from transformers import CLIPTokenizer

from ddposink.assets.emoji import EmojiSet
from ddposink.embedded.pipeline.card import write_flow_card
from ddposink.embedded.pipeline.export import GUIDANCE, SHOWN, own_nearest_of, replace_folder, sheet
from ddposink.embedded.pipeline.flow import ABSENT_TOKENS, FlowDenoiser, make_flow_scheduler
from ddposink.embedded.pipeline.stages import SHIPPED, Recipes
from ddposink.embedded.pipeline.training import load_average

WITHOUT_T5: dict[str, None] = {"text_encoder_3": None, "tokenizer_3": None}


def export_flow(
    emoji: EmojiSet, recipes: Recipes, folder: Path, target: Path, quick: bool = False
) -> dict[str, float]:
    """Write the flow pipeline trained in ``folder`` to ``target`` as float16; returns what was measured.

    ``target`` is the old directory or the whole new one. ``quick`` measures with two steps on few captions.
    """
    denoiser = FlowDenoiser(recipes.flow, SHIPPED / "text_encoder")
    notes = {"flow": load_average(denoiser, folder / "flow.safetensors")}
    new = target.with_name(f".{target.name}.{os.getpid()}.new")
    shutil.rmtree(new, ignore_errors=True)
    assemble_flow(denoiser.eval().half()).save_pretrained(new, safe_serialization=True)
    # Everything shown and measured is of the pipeline as it was written.
    pipeline: Any = StableDiffusion3Pipeline.from_pretrained(new, dtype=torch.float32, **WITHOUT_T5)
    steps, many, shown = (2, 4, SHOWN[:2]) if quick else (20, 256, SHOWN)
    few = max(2, steps // 2)
    measured = {}
    for name, guidance in (("without guidance", 1.0), (f"guidance {GUIDANCE:g}", GUIDANCE)):
        measured[f"own picture nearest, {name}, {few} steps: %"] = own_nearest_of(
            partial(_drawn, pipeline, guidance, few), emoji, many
        )
    rows = [
        (f"{'no guidance' if guidance == 1 else f'guidance {guidance:g}'}\n{t} steps\nseed {seed}"
         + ("\nas T5" if absent else ""), draw_flow(pipeline, shown, guidance, t, seed, absent))
        for guidance, t, seed, absent in (
            (1.0, steps, 0, 0), (1.0, few, 0, 0), (1.0, few, 100, 0), (GUIDANCE, few, 0, 0),
            (1.0, few, 0, ABSENT_TOKENS))
    ]  # fmt: skip
    sheet(rows, shown).save(new / "sheet.webp", "WEBP", quality=80, method=6)
    write_flow_card(new, emoji, notes, measured)
    replace_folder(new, target)
    return measured


def assemble_flow(denoiser: FlowDenoiser) -> Any:
    """The parts as a `StableDiffusion3Pipeline` with the autoencoder and tokenizer of `emoji-sd`."""
    vae: Any = AutoencoderKL.from_pretrained(SHIPPED / "vae", dtype=torch.float16)
    vae.register_to_config(shift_factor=0.0)  # this pipeline adds it to every latent
    tokenizer = CLIPTokenizer.from_pretrained(SHIPPED / "tokenizer")
    return StableDiffusion3Pipeline(
        transformer=denoiser.transformer,
        scheduler=make_flow_scheduler(),
        vae=vae,
        text_encoder=denoiser.text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=denoiser.text_encoder_2,
        tokenizer_2=tokenizer,
        **WITHOUT_T5,
    )


def _drawn(pipeline: Any, guidance: float, steps: int, prompts: list[str], seed: int) -> np.ndarray:
    return draw_flow(pipeline, prompts, guidance, steps, seed)


@torch.no_grad()
def draw_flow(
    pipeline: Any, prompts: Sequence[str], guidance: float, steps: int, seed: int = 0, absent: int = 0
) -> np.ndarray:
    """As `draw`, of a flow model; with ``absent`` zeros in the place of T5's tokens."""
    pipeline.set_progress_bar_config(disable=True)
    pictures = pipeline(
        list(prompts),
        generator=[torch.Generator().manual_seed(seed + n) for n in range(len(prompts))],
        num_inference_steps=steps,
        guidance_scale=guidance,
        max_sequence_length=absent,
        output_type="np",
    ).images
    return (pictures * 255).round().astype(np.uint8)
