"""The bundled comparison set: pictures of the embedded pipeline, chosen between by a made-up judge.

``python -m ddposink.rewards.preference_synthetic --out FILE.parquet``. It exists so that all three stages of
learning from preferences run offline. The judge is a formula with noise and stands for nobody: it likes vivid
colours, strong contrast and a large subject in the middle. The pipeline draws one prompt much the same each
time, so two of three pictures are recoloured and moved: a choice needs something to choose between.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

JUDGE = "synthetic: vivid, contrasty, large in the middle; Bradley–Terry noise"
# Logits per unit of saturation, of luminance's standard deviation and of central coverage.
SATURATION, CONTRAST, CENTRE = 16.0, 24.0, 8.0
TIE = 0.15  # logits closer than this are called a tie
COLOURS = 64  # per picture, which keeps the file small


def judge(images: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) uint8 → (N,) logits of the judge's liking.

    Saturation and contrast are means over the picture; the subject is what is not nearly white, weighted
    by a bell of a quarter of the width around the middle.
    """
    x = images.astype(np.float64) / 255
    high, low = x.max(-1), x.min(-1)
    saturation = ((high - low) / np.maximum(high, 0.05)).mean((1, 2))
    contrast = (x @ [0.2125, 0.7154, 0.0721]).std((1, 2))
    line = np.linspace(-2, 2, x.shape[1])
    bell = np.exp(-(line[:, None] ** 2 + line**2) / 2)
    centre = ((low < 0.9) * bell).sum((1, 2)) / bell.sum()
    return SATURATION * saturation + CONTRAST * contrast + CENTRE * centre


def choose(liking_a: float, liking_b: float, generator: np.random.Generator) -> str:
    """``tie`` if the judge hardly cares, else a or b with Bradley–Terry's chance."""
    margin = liking_a - liking_b
    if abs(margin) < TIE:
        return "tie"
    return "a" if generator.random() < 1 / (1 + np.exp(-margin)) else "b"


def webp(picture: np.ndarray) -> bytes:
    """(H, W, 3) uint8 in few colours, as a WebP file without loss: a sixth smaller than as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    small = Image.fromarray(picture).quantize(COLOURS, dither=Image.Dither.NONE).convert("RGB")
    small.save(buffer, format="WEBP", lossless=True, quality=100, method=6)
    return buffer.getvalue()


def from_pipeline(
    prompts: Sequence[str], count: int, name: str, seed: int
) -> Iterator[tuple[str, np.ndarray]]:
    """``count`` pictures per prompt (count, H, W, 3): few and many denoising steps, all guidance scales."""
    import torch

    from ddposink.evaluation.scores import ddim, generator
    from ddposink.models.diffusion import PipelineRef, load_pipeline

    pipeline: Any = load_pipeline(PipelineRef.parse(name))
    settings, changes = [(6, 2.0), (10, 4.0), (20, 6.0)], torch.Generator().manual_seed(seed)
    with ddim(pipeline), torch.no_grad():
        for prompt in prompts:
            drawn = []
            for number, (steps, guidance) in enumerate(settings):
                each = range(number, count, len(settings))
                images = pipeline(
                    prompt=[prompt] * len(each), num_inference_steps=steps, guidance_scale=guidance, eta=1.0,
                    generator=[generator(prompt, seed + i) for i in each], output_type="np",
                ).images  # fmt: skip
                drawn += list(zip(each, images, strict=True))
            ordered = np.stack([image for _, image in sorted(drawn, key=lambda pair: pair[0])])
            varied = vary(torch.from_numpy(ordered).permute(0, 3, 1, 2).clamp(0, 1), changes)
            yield prompt, (varied * 255).round().byte().permute(0, 2, 3, 1).numpy()


def vary(images: Any, generator: Any) -> Any:
    """(N, 3, H, W) in [0, 1]: every third picture as it is, the others recoloured and moved."""
    import torch

    from ddposink.models.augment import move, recolour

    kept = torch.arange(len(images)) % 3 == 0
    changed = recolour(move(images, generator), generator)
    return torch.where(kept.view(-1, 1, 1, 1), images, changed)


def from_emoji(prompts: Sequence[str], count: int, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """The same from moved, recoloured and damaged emoji, where there is no pipeline."""
    import torch

    from ddposink.assets.emoji import load_emoji
    from ddposink.models.augment import augment

    emoji, generator = load_emoji(), torch.Generator().manual_seed(seed)
    for prompt in prompts:
        image = torch.from_numpy(emoji.images[emoji.index(prompt)]).permute(2, 0, 1).float() / 255
        drawn = augment(image.expand(count, -1, -1, -1), generator)
        yield prompt, (drawn * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def captions(count: int, seed: int) -> list[str]:
    """Captions of things, plants, animals and food, all categories alike; none of people."""
    from ddposink.assets.emoji import load_emoji

    emoji = load_emoji()
    wanted = (
        "Animals & Nature",
        "Food & Drink",
        "Objects",
        "Travel & Places",
        "Activities",
        "Smileys & Emotion",
    )
    generator, found = np.random.default_rng(seed), []
    for number, category in enumerate(wanted):
        members = [c for c, k in zip(emoji.captions, emoji.categories, strict=True) if k == category]
        share = count // len(wanted) + (number < count % len(wanted))
        found += [members[i] for i in sorted(generator.permutation(len(members))[:share])]
    return found


def rows(pictures: Iterator[tuple[str, np.ndarray]], seed: int) -> Iterator[dict[str, object]]:
    """Every picture of a prompt's first half against every one of its second half."""
    generator = np.random.default_rng(seed)
    for prompt, images in pictures:
        files = [webp(image) for image in images]
        liking = judge(np.stack([_pixels(file) for file in files]))
        half = len(files) // 2
        for i in range(half):
            for j in range(half, len(files)):
                yield {
                    "prompt": prompt, "image_a": {"bytes": files[i]}, "image_b": {"bytes": files[j]},
                    "choice": choose(liking[i], liking[j], generator), "judge": JUDGE,
                    "margin": float(liking[i] - liking[j]),
                }  # fmt: skip


def _pixels(file: bytes) -> np.ndarray:
    from ddposink.comparisons import decode

    return decode(file)


def main(
    out: Annotated[Path, typer.Option(help="The Parquet file to write.")],
    pipeline: Annotated[str, typer.Option(help="A pipeline, or 'none' to use changed emoji.")] = "emoji-sd",
    prompts: Annotated[int, typer.Option(min=2, help="Number of captions.")] = 72,
    each: Annotated[int, typer.Option(min=2, help="Pictures per caption.")] = 6,
    seed: Annotated[int, typer.Option(help="Of everything.")] = 0,
) -> None:
    """Draw, judge and write."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = captions(prompts, seed)
    drawn = (
        from_emoji(texts, each, seed) if pipeline == "none" else from_pipeline(texts, each, pipeline, seed)
    )
    table = pa.Table.from_pylist(list(rows(drawn, seed)))
    out.parent.mkdir(parents=True, exist_ok=True)
    # A dictionary keeps every picture once, however many comparisons it is in.
    pq.write_table(table, out, compression="zstd", use_dictionary=True, dictionary_pagesize_limit=8 * 2**20)
    typer.echo(f"{len(table)} comparisons of {len(texts)} prompts, {out.stat().st_size / 1e6:.2f} MB: {out}")


if __name__ == "__main__":
    typer.run(main)
