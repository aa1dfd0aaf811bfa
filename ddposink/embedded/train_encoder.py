"""Train the embedded image–text encoder on captioned emoji: ``python -m ddposink.train_encoder``.

CLIP's symmetric contrastive loss (Radford et al. 2021), at a size for one CPU thread. Two emoji that share
half their words ("man running", "woman running") look alike: such a pair is taken out of the negatives, for
an encoder pushed to tell them apart learns skin and hair instead of the subject.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.progress import Progress, TextColumn
from torch import Generator, Tensor

from ddposink.assets.emoji import EmojiSet, load_emoji
from ddposink.embedded.encoder_card import card, evaluate, pictures
from ddposink.models.augment import augment
from ddposink.models.contrastive import FOLDER, Encoder, Shape, make_towers, save_encoder, words_of

ALIKE = 0.5  # part of the words that two captions share (Jaccard) from which they are no negatives


@dataclass(frozen=True)
class EncoderRecipe:
    """Everything that decides the weights, beside the pictures and torch's version."""

    steps: int = 1800
    batch: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    word_dropout: float = 0.2
    average: float = 0.995  # decay of the weight average that is saved
    seed: int = 0


def overlap(captions: list[str]) -> Tensor:
    """(N, N) part of words that captions share: size of the intersection over that of the union."""
    words = sorted({word for caption in captions for word in words_of(caption)})
    place = {word: i for i, word in enumerate(words)}
    bags = torch.zeros(len(captions), len(words))
    for row, caption in enumerate(captions):
        bags[row, [place[word] for word in words_of(caption)]] = 1
    both = bags @ bags.T
    count = bags.sum(1)
    return both / (count.view(-1, 1) + count - both)


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, alike: Tensor) -> Tensor:
    """Symmetric InfoNCE. images, texts: (B, D) of length 1; alike: (B, B) pairs that are no negatives."""
    logits = scale * images @ texts.T
    logits = logits.masked_fill(alike & ~torch.eye(len(logits), dtype=torch.bool), -torch.inf)
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def train(emoji: EmojiSet, recipe: EncoderRecipe, shape: Shape) -> Iterator[tuple[int, float, Any]]:
    """Yields step, loss and the averaged towers after every step."""
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    towers = make_towers(shape).to(memory_format=torch.channels_last)  # a quarter faster on a CPU
    averaged = copy.deepcopy(towers).requires_grad_(False)
    tokenizer = Encoder(shape, averaged)
    images, alike = pictures(emoji), overlap(list(emoji.captions)) >= ALIKE
    optimizer = torch.optim.AdamW(
        towers.parameters(), recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )
    order = _order(len(emoji), recipe, generator)
    for step in range(1, recipe.steps + 1):
        _set_rate(optimizer, recipe, step)
        chosen = next(order)
        texts = [_caption(emoji, i, recipe.word_dropout, generator) for i in chosen.tolist()]
        towers.train()
        seen = towers.image_embedding(towers.image_features(augment(images[chosen], generator)))
        read = towers.text_embedding(*tokenizer.tokens(texts))
        scale = towers.log_scale.exp().clamp(max=100)
        loss = contrastive_loss(seen, read, scale, alike[chosen][:, chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(towers.parameters(), 1.0)
        optimizer.step()
        _average(averaged, towers, min(recipe.average, step / (step + 10)))
        yield step, loss.item(), averaged


def _order(count: int, recipe: EncoderRecipe, generator: Generator) -> Iterator[Tensor]:
    """Batches of indices without end; every picture once per round."""
    size = min(recipe.batch, count)
    while True:
        mixed = torch.randperm(count, generator=generator)
        yield from (mixed[i : i + size] for i in range(0, count - size + 1, size))


def _caption(emoji: EmojiSet, index: int, dropout: float, generator: Generator) -> str:
    """One of the two wordings with some words left out, so that parts of a caption mean something too."""
    first = torch.rand((), generator=generator) < 0.7
    words = words_of((emoji.captions if first else emoji.others)[index])
    kept = torch.rand(len(words), generator=generator) >= dropout
    return " ".join(w for w, keep in zip(words, kept.tolist(), strict=True) if keep) or " ".join(words)


def _set_rate(optimizer: torch.optim.Optimizer, recipe: EncoderRecipe, step: int) -> None:
    """Linear warm-up over a twentieth of the steps, then half a cosine down to zero."""
    warm = max(1, recipe.steps // 20)
    falling = 0.5 + 0.5 * math.cos(math.pi * max(0, step - warm) / max(1, recipe.steps - warm))
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate * min(1.0, step / warm) * falling


@torch.no_grad()
def _average(averaged: Any, towers: Any, decay: float) -> None:
    for mean, new in zip(averaged.state_dict().values(), towers.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(new, 1 - decay)
        else:
            mean.copy_(new)


def main(
    out: Annotated[Path, typer.Option(help="Folder for the encoder.")] = FOLDER,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = EncoderRecipe.steps,
    batch: Annotated[int, typer.Option(min=2, help="Pictures per step.")] = EncoderRecipe.batch,
    seed: Annotated[int, typer.Option(help="Of weights, order and changes.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Train, evaluate and write the encoder with its model card."""
    torch.set_num_threads(threads)
    emoji, recipe = load_emoji(), EncoderRecipe(steps=steps, batch=batch, seed=seed)
    shape = Shape(tuple(sorted({w for text in (*emoji.captions, *emoji.others) for w in words_of(text)})))
    start, losses, towers = time.monotonic(), [], make_towers(shape)
    columns = (*Progress.get_default_columns(), TextColumn("loss {task.fields[loss]:.3f}"))
    console = Console()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=steps, loss=math.nan)
        for step, loss, averaged in train(emoji, recipe, shape):
            losses.append(loss)
            towers = averaged
            progress.update(task, completed=step, loss=loss)
            if step % 100 == 0 and not console.is_terminal:
                console.print(
                    f"step {step}: loss {np.mean(losses[-100:]):.3f}, {time.monotonic() - start:.0f} s"
                )
    seconds = time.monotonic() - start
    save_encoder(shape, towers, out)
    results = evaluate(Encoder(shape, towers), emoji)
    notes = {"recipe": asdict(recipe), "seconds": round(seconds), "loss": _curve(losses), "recall": results}
    (out / "training.json").write_text(json.dumps(notes) + "\n", encoding="utf-8")
    size = sum(p.numel() for p in towers.parameters())
    (out / "README.md").write_text(card(notes, size), encoding="utf-8")
    print(json.dumps({"out": str(out), "seconds": round(seconds), "recall": results}))


def _curve(losses: list[float], points: int = 40) -> list[tuple[int, float]]:
    """Means over equal stretches of the training."""
    parts = np.array_split(np.array(losses), min(points, len(losses)))
    ends = np.cumsum([len(part) for part in parts])
    return [(int(end), round(float(part.mean()), 4)) for end, part in zip(ends, parts, strict=True)]
