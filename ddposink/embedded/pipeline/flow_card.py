"""The model card of the embedded flow pipeline, written from what was measured."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from ddposink.assets.emoji import EmojiSet
from ddposink.embedded.pipeline.card import data_facts, found_facts, stage_row, write_curves
from ddposink.models.packed import packed_name

WEIGHTS = ("transformer/diffusion_pytorch_model.safetensors", "text_encoder_2/model.safetensors")
STAGES = {"flow": "transformer and second text encoder"}


def write_flow_card(folder: Path, emoji: EmojiSet, notes: dict[str, Any], measured: dict[str, float]) -> None:
    """README.md, loss.csv and loss.png in ``folder``. ``notes``: step, seconds, recipe and loss curve."""
    write_curves(folder, {"flow": notes}, STAGES)
    recipe = notes["recipe"]
    text = CARD.format(
        **data_facts(emoji),
        stages=stage_row(STAGES["flow"], notes),
        shift=f"{recipe['time_shift']:g}",
        every=recipe["absent_every"],
        seed=recipe["seed"],
        minutes=f"{notes['seconds'] / 60:.0f}",
        machine=f"on one of {os.cpu_count()} cores ({platform.machine()}), no GPU",
        **found_facts(folder, [packed_name(name) for name in WEIGHTS], measured),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# emoji-sd3

A `StableDiffusion3Pipeline` of 64×64 pictures, small enough to fine-tune on a CPU: a stand-in for Stable
Diffusion 3 where no weights can be downloaded, and a flow model on the very latents, captions and words of
`emoji-sd`. It draws Noto emoji from their Unicode names, and nothing else.

```python
import torch
from diffusers import StableDiffusion3Pipeline
from ddposink.models.assembled import assembled

pipeline = StableDiffusion3Pipeline.from_pretrained(
    assembled("emoji-sd3"), text_encoder_3=None, tokenizer_3=None, dtype=torch.float32
)
picture = pipeline("red apple", num_inference_steps=20, guidance_scale=3.0, max_sequence_length=0).images[0]
```

This folder holds what is its own, packed. Autoencoder, tokenizer and first text encoder are those of
`emoji-sd`; `assembled` unpacks and copies all of it into the cache folder: a directory that any tool loads.

There is no third text encoder (T5), which the library wants to be told. In its place it puts zeros beside the
tokens, 256 unless `max_sequence_length` says otherwise. They say nothing and take three quarters of the time.
One training step in {every} had them, so that the pipeline draws with them too.

![prompts, with and without guidance](sheet.webp)

## Data

npm package `{package}` {version} (pictures: Google's Noto Emoji, Apache-2.0; sha256 of the package
`{package_sha256}`):
{pictures} pictures of 64×64 on white, as for `emoji-sd`, and drawn as unequally: the 24 captions of the
project's prompt sets `emoji-train` and `emoji-heldout` {favoured} times, people {people} times, clock faces
{clocks} times as often as the rest. All pictures were trained on, also those of `emoji-heldout`.

## Training

| stage | steps | batch | learning rate | minutes | first loss | last loss |
|---|---|---|---|---|---|---|
{stages}

Rectified flow on 8×8×8 latents: x_t = (1−t)·x₀ + t·noise, the transformer predicts noise − x₀, t is drawn
from a logit-normal shifted by {shift}. The first text encoder is that of `emoji-sd`, frozen, its pooled
output projected by the identity; the second is trained along. One caption in ten is dropped for
classifier-free guidance. Seed {seed}; AdamW, cosine decay, averaged weights (decay 0.999); {minutes} minutes
of wall time, {machine}, other programs beside it. All losses are in `loss.csv`.

![loss curve](loss.png)

`python -m ddposink.train_tiny flow` and `export-flow` do it again; another machine or number of threads gives
other rounding, so not the same weights to the bit.

## What it can do

| measure | value |
|---|---|
{measures}

*Own picture nearest*: one picture per caption is drawn (256 captions evenly spaced); how often, in percent,
the picture of that caption is the nearest of all {pictures} by pixel distance.

## Limits

As those of `emoji-sd`: it memorises, knows no other words, and absolute rewards on it say nothing about large
models.

## Weights

Trained in float32, then packed: matrices as 8-bit integers with a float16 scale for each row, the rest
float16 (`ddposink.models.packed`; `assembled` writes float16). Apache-2.0, as the pictures they were trained
on. Pictures and measures are of the packed weights unless it says otherwise.

| file | sha256 |
|---|---|
{hashes}
"""
