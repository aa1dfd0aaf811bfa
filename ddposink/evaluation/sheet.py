"""Sheets of pictures: prompts across, seeds down. For people, who would rather look than read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SIDE = 128  # pixels of a picture on a sheet
GAP, LABEL, MARGIN = 4, 18, 6
QUALITY = 80  # of WebP: a third of the size of a PNG, and no difference to the eye
INK, PAPER = (34, 34, 34), (255, 255, 255)


def to_image(picture: Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] as an 8-bit RGB picture."""
    values = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(values)


def sheet(columns: Sequence[Sequence[Tensor]], labels: Sequence[str]) -> Image.Image:
    """Columns of pictures (3, H, W), each below its label. Raises ValueError where there are none.

    Small pictures are enlarged without smoothing, so that one sees what the model drew.
    """
    if not columns or not columns[0]:
        raise ValueError("a sheet needs at least one picture")
    rows = max(len(column) for column in columns)
    size = (2 * MARGIN + len(columns) * (SIDE + GAP) - GAP, 2 * MARGIN + LABEL + rows * (SIDE + GAP) - GAP)
    page = Image.new("RGB", size, PAPER)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for x, (column, label) in enumerate(zip(columns, labels, strict=True)):
        left = MARGIN + x * (SIDE + GAP)
        pen.text((left, MARGIN), _fitted(label, SIDE, pen, font), fill=INK, font=font)
        for y, picture in enumerate(column):
            page.paste(_resized(to_image(picture)), (left, MARGIN + LABEL + y * (SIDE + GAP)))
    return page


def save_sheet(columns: Sequence[Sequence[Tensor]], labels: Sequence[str], path: Path) -> Path:
    """Write a sheet as WebP and return its path."""
    sheet(columns, labels).save(path, "WEBP", quality=QUALITY, method=6)
    return path


def _resized(image: Image.Image) -> Image.Image:
    smaller = image.width >= SIDE
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS if smaller else Image.Resampling.NEAREST)


def _fitted(text: str, width: int, pen: ImageDraw.ImageDraw, font: Any) -> str:
    text = " ".join(text.split())
    if pen.textlength(text, font=font) <= width:
        return text
    while text and pen.textlength(text + "…", font=font) > width:
        text = text[:-1]
    return text + "…"
