"""How good the embedded image–text encoder is, measured, and the card that says so."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddposink.assets.emoji import EmojiSet
from ddposink.models.augment import augment, move
from ddposink.models.contrastive import Encoder


def pictures(emoji: EmojiSet) -> Tensor:
    """(N, 3, 64, 64) in [0, 1]."""
    return torch.from_numpy(emoji.images).permute(0, 3, 1, 2).float() / 255


def variations(images: Tensor, seed: int = 1000) -> dict[str, Tensor]:
    """The pictures under changes that training did not draw, and of three kinds that it does not know."""
    generator = torch.Generator().manual_seed(seed)
    turned = move(images, generator, shift=0.05, turn=0.25)
    median = F.pad(images, (2,) * 4, mode="replicate").unfold(2, 5, 1).unfold(3, 5, 1)
    return {
        "as drawn": images,
        "new draws of the training changes": augment(images, generator),
        "JPEG of quality 10": _jpeg(images, 10),
        "turned by up to 14°": turned,
        "5×5 median": median.flatten(-2).median(dim=-1).values,
    }


def _jpeg(images: Tensor, quality: int) -> Tensor:
    from PIL import Image

    found = []
    for picture in (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy():
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="JPEG", quality=quality)
        found.append(np.asarray(Image.open(buffer)))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 255


def recall(seen: Tensor, read: Tensor, k: int) -> tuple[float, float]:
    """Part of pictures whose caption, and of captions whose picture, is among the ``k`` nearest of all."""
    similar = seen @ read.T
    own = similar.diagonal()
    to_text = (similar > own.view(-1, 1)).sum(1) < k
    to_image = (similar > own).sum(0) < k
    return to_text.float().mean().item(), to_image.float().mean().item()


def evaluate(encoder: Encoder, emoji: EmojiSet) -> dict[str, dict[str, float]]:
    """Recall at 1 and 5 both ways, for every set of `variations`, among all captions."""
    read = encoder.text(emoji.captions)
    found = {}
    for name, images in variations(pictures(emoji)).items():
        seen = torch.cat([encoder.image(part) for part in images.split(256)])
        (text1, image1), (text5, image5) = recall(seen, read, 1), recall(seen, read, 5)
        found[name] = {"text@1": text1, "text@5": text5, "image@1": image1, "image@5": image5}
    return found


def card(notes: Mapping[str, Any], parameters: int) -> str:
    """The model card in Markdown; ``notes`` is what training.json holds."""
    recipe, rows = notes["recipe"], []
    for name, found in notes["recall"].items():
        cells = " | ".join(f"{found[key]:.3f}" for key in ("text@1", "text@5", "image@1", "image@5"))
        rows.append(f"| {name} | {cells} |")
    table, curve = "\n".join(rows), ", ".join(f"{step}: {loss:.2f}" for step, loss in notes["loss"][::4])
    return f"""# Image–text encoder for emoji

A stand-in for CLIP score that fits in a repository: a small convolutional image tower and a bag-of-words
text tower ({parameters / 1e6:.2f}M parameters, half precision), trained with CLIP's symmetric contrastive
loss on 1,412 Noto emoji and their Unicode names. It knows these pictures and words and nothing else. Its
cosines are comparable with each other, never with those of CLIP.

**Use.** `ddposink.models.contrastive.load_encoder()`: `.image`, `.text` (unit vectors), `.features` (before
the projection; the feature space of diversity). As a reward: `alignment`.

**Data.** npm package `emoji-datasource-google` 16.0.0: pictures by Google (Noto Emoji, Apache-2.0), names
of the Unicode standard. Flags, symbols and skin tones are left out. Every emoji was trained on; held out
are the changes made to them, not the emoji.

**Training.** `python -m ddposink.train_encoder --steps {recipe["steps"]} --batch {recipe["batch"]}
--seed {recipe["seed"]}`: {notes["seconds"] / 60:.0f} minutes of wall time on one thread of a busy, shared
machine. Pictures are scaled, mirrored, shifted, recoloured, and most are blurred, speckled or coarsely
quantised; words are left out at random. Captions that share half their words are no negatives of each
other. Loss by step: {curve}.

**Measured.** Recall among all 1,412: the part of pictures whose own caption is among the first 1 or 5
(text@k), and of captions whose own picture is (image@k). The last three changes were no part of training.

| pictures | text@1 | text@5 | image@1 | image@5 |
|---|---|---|---|---|
{table}

**Limits.** Words that are not in the 1,412 names all mean the same to it; word order means nothing. It has
seen one drawing per caption, so it measures "looks like that emoji", not "shows that thing". Whoever
optimises its cosine finds pictures that please it and nobody else, as with any such score.

Licence: Apache-2.0.
"""
