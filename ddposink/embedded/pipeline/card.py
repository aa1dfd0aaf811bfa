"""The model card of the embedded pipeline, written from what was measured, and its loss curves."""

from __future__ import annotations

import csv
import hashlib
import os
import platform
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from ddposink.assets.catalogue import ASSETS
from ddposink.assets.emoji import EmojiSet
from ddposink.embedded.pipeline.latents import FAVOURED, RARE, RARE_WORDS

WEIGHTS = (
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)
STAGES = {"vae": "autoencoder", "decoder": "decoder alone", "unet": "UNet and text encoder"}


def write_card(folder: Path, emoji: EmojiSet, notes: dict[str, Any], measured: dict[str, float]) -> None:
    """README.md, loss.csv and loss.png in the pipeline's ``folder``.

    ``notes`` holds step, seconds, recipe and loss curve of each stage.
    """
    write_curves(folder, notes)
    text = CARD.format(
        **data_facts(emoji),
        rewordings=sum(a != b for a, b in zip(emoji.captions, emoji.others, strict=True)),
        stages="\n".join(stage_row(title, notes[name]) for name, title in STAGES.items()),
        seed=notes["unet"]["recipe"]["seed"],
        minutes=f"{sum(n['seconds'] for n in notes.values()) / 60:.0f}",
        machine=f"on {os.cpu_count()} cores ({platform.machine()}), no GPU",
        **found_facts(folder, WEIGHTS, measured),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def write_curves(folder: Path, notes: dict[str, Any], stages: dict[str, str] = STAGES) -> None:
    """loss.csv (stage, step, seconds, loss) and loss.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with (folder / "loss.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["stage", "step", "seconds", "loss"])
        for name in stages:
            for x in notes[name]["curve"]:
                writer.writerow([name, x["step"], f"{x['seconds']:.1f}", f"{x['loss']:.5f}"])
    size = (3 * len(stages), 2.4)
    figure, axes = pyplot.subplots(1, len(stages), figsize=size, layout="constrained", squeeze=False)
    for axis, (name, title) in zip(axes[0], stages.items(), strict=True):
        curve = notes[name]["curve"]
        axis.plot([x["step"] for x in curve], [x["loss"] for x in curve], linewidth=0.8)
        axis.set(title=title, xlabel="step", ylabel="loss", yscale="log")
    drawn = BytesIO()
    figure.savefig(drawn, dpi=90)
    pyplot.close(figure)
    # A palette is all that lines and text need, and a third of the size.
    Image.open(drawn).convert("RGB").quantize(64).save(folder / "loss.png", optimize=True)


def data_facts(emoji: EmojiSet) -> dict[str, str]:
    """What a card says of the pictures."""
    asset = ASSETS["emoji"]
    return {
        "package": asset.package,
        "version": asset.version,
        "package_sha256": asset.sha256,
        "pictures": f"{len(emoji):,}",
        "favoured": f"{FAVOURED:g}",
        "people": f"{RARE['People & Body']:g}",
        "clocks": f"{RARE_WORDS['clock face']:g}",
    }


def found_facts(folder: Path, weights: Sequence[str], measured: dict[str, float]) -> dict[str, str]:
    """What a card says of what was measured, and of the ``weights`` in ``folder``."""
    return {
        "measures": "\n".join(f"| {name} | {value:.1f} |" for name, value in measured.items()),
        "hashes": "\n".join(f"| `{name}` | `{_sha256(folder / name)}` |" for name in weights),
    }


def stage_row(title: str, notes: dict[str, Any]) -> str:
    """What a training was, as a row of the card's table."""
    recipe, curve = notes["recipe"], notes["curve"]
    tail = [x["loss"] for x in curve[-10:]]
    return (
        f"| {title} | {notes['step']:,} | {recipe['batch']} | {recipe['learning_rate']:g} "
        f"| {notes['seconds'] / 60:.0f} | {curve[0]['loss']:.3f} | {sum(tail) / len(tail):.3f} |"
    )


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# emoji-sd

A `StableDiffusionPipeline` of 64×64 pictures, small enough to fine-tune on a CPU: a stand-in for Stable
Diffusion where no weights can be downloaded. It draws Noto emoji from their Unicode names, and nothing else.

```python
import torch
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("ddposink/data/emoji-sd", dtype=torch.float32)
pipeline("red apple", num_inference_steps=25, guidance_scale=4.0).images[0]
```

![prompts, with and without guidance](sheet.webp)

## Data

npm package `{package}` {version} (pictures: Google's Noto Emoji, Apache-2.0; sha256 of the package
`{package_sha256}`):
{pictures} pictures of 64×64 on white. Flags, symbols and skin tones are left out.
Captions are the Unicode names in lower case; {rewordings} pictures have a second wording, used one time in
ten. Not every picture is drawn equally often: the 24 captions of the project's prompt sets `emoji-train` and
`emoji-heldout` {favoured} times, people {people} times, clock faces {clocks} times as often as the rest. All
pictures were trained on, also those of `emoji-heldout`: that set is held out from fine-tuning, not from this
training.

## Training

| stage | steps | batch | learning rate | minutes | first loss | last loss |
|---|---|---|---|---|---|---|
{stages}

Seed {seed}; AdamW, cosine decay, averaged weights (decay 0.999); {minutes} minutes of wall time in all,
{machine}. The autoencoder (8×8×8 latents) learns on crops of 32×32 and is cut off before
its learning rate has come down; then the encoder stays as it is and the decoder goes on with whole pictures.
The UNet predicts v; one caption in ten is dropped for classifier-free guidance. All losses are in `loss.csv`.

![loss curves](loss.png)

`python -m ddposink.train_tiny all` does it again from the package; another machine or number of threads gives
other rounding, so not the same weights to the bit.

## What it can do

| measure | value |
|---|---|
{measures}

*Own picture nearest*: one picture per caption is drawn (25 denoising steps, 256 captions evenly spaced); how
often, in percent, the picture of that caption is the nearest of all {pictures} by pixel distance. It says how
well captions are followed and how much is memory.

## Limits

It memorises: a caption that was trained on gives that emoji or a blurred relative, in nearly the same pose
from every seed. Words it never saw are spelled in bytes and mean nothing to it; new combinations of known
words mostly give the nearest known picture or a blend. Detail finer than a few pixels is lost in the
autoencoder. Without guidance pictures are less clean. Absolute rewards on it say nothing about large models.

## Weights

float16 safetensors, trained in float32.

| file | sha256 |
|---|---|
{hashes}
"""
