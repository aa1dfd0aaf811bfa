"""Random changes to pictures, for encoders that must judge what a diffusion model draws.

Generated pictures are shifted, blurred, washed out or noisy. An encoder that has only seen clean ones
would judge these faults of drawing before it judges what is shown. All functions take and give
(B, 3, H, W) in [0, 1] and draw their random numbers from the generator they are given.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


def augment(images: Tensor, generator: Generator) -> Tensor:
    """Each picture moved and recoloured, and most of them also damaged in one or several ways."""
    x = move(images, generator)
    x = recolour(x, generator)
    for damage, part in ((soften, 0.6), (quantise, 0.3), (speckle, 0.5)):
        chosen = torch.rand(len(x), generator=generator) < part
        if chosen.any():
            x = torch.where(chosen.view(-1, 1, 1, 1), damage(x, generator), x)
    return x.clamp(0, 1)


def uniform(count: int, low: float, high: float, generator: Generator) -> Tensor:
    """(count, 1, 1, 1) numbers between ``low`` and ``high``."""
    return low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)


def move(images: Tensor, generator: Generator, shift: float = 0.12, turn: float = 0.0) -> Tensor:
    """Scaled to 75–120 %, mirrored or not, shifted by up to ``shift`` widths, turned by ``turn`` radians."""
    n = len(images)
    scale = 1 / uniform(n, 0.75, 1.2, generator).flatten()
    mirror = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    angle = uniform(n, -turn, turn, generator).flatten()
    x, y = (2 * uniform(n, -shift, shift, generator).flatten() for _ in range(2))
    across = torch.stack([mirror * scale * angle.cos(), -scale * angle.sin(), x], dim=1)
    down = torch.stack([mirror * scale * angle.sin(), scale * angle.cos(), y], dim=1)
    grid = F.affine_grid(torch.stack([across, down], dim=1), list(images.shape), align_corners=False)
    # Outside lies the paper, which is white in all our pictures.
    return 1 - F.grid_sample(1 - images, grid, padding_mode="zeros", align_corners=False)


def recolour(images: Tensor, generator: Generator) -> Tensor:
    """Other brightness, contrast and saturation, and a slight tint."""
    n = len(images)
    grey = images.mean(1, keepdim=True)
    x = grey + (images - grey) * uniform(n, 0.5, 1.5, generator)
    middle = x.mean((1, 2, 3), keepdim=True)
    x = middle + (x - middle) * uniform(n, 0.6, 1.3, generator)
    tint = 1 + 0.12 * (torch.rand(n, 3, 1, 1, generator=generator) - 0.5)
    return (x * tint + uniform(n, -0.08, 0.08, generator)).clamp(0, 1)


def soften(images: Tensor, generator: Generator) -> Tensor:
    """Shrunk to between a quarter and all of its size, and enlarged again; up to eight sizes per batch."""
    size, found = images.shape[-1], []
    for part in images.chunk(8):
        small = int(torch.randint(size // 4, size, (), generator=generator))
        x = F.interpolate(part, (small, small), mode="bilinear", antialias=True, align_corners=False)
        found.append(F.interpolate(x, images.shape[-2:], mode="bilinear", align_corners=False))
    return torch.cat(found)


def speckle(images: Tensor, generator: Generator) -> Tensor:
    """Gaussian noise of up to 0.1, most of it in patches of 4×4 pixels."""
    n, _, h, w = images.shape
    fine = torch.randn(images.shape, generator=generator)
    coarse = torch.randn(n, 3, h // 4, w // 4, generator=generator)
    coarse = F.interpolate(coarse, (h, w), mode="bilinear", align_corners=False)
    return images + uniform(n, 0, 0.1, generator) * (0.5 * fine + coarse)


def quantise(images: Tensor, generator: Generator) -> Tensor:
    """The blocks and ripples of a JPEG: 8×8 cosine coefficients rounded, coarser the higher they are."""
    n, c, h, w = images.shape
    k = torch.arange(8.0)
    basis = torch.cos((2 * k + 1) * k.view(-1, 1) * torch.pi / 16) * 0.5
    basis[0] *= 0.5**0.5
    step = uniform(n, 0.02, 0.12, generator).view(n, 1, 1, 1, 1, 1) * (1 + k.view(-1, 1) + k).view(
        1, 1, 1, 8, 1, 8
    )
    blocks = images.reshape(n, c, h // 8, 8, w // 8, 8)
    waves = torch.einsum("ui,ncaibj,vj->ncaubv", basis, blocks, basis)
    waves = (waves / step).round() * step
    return torch.einsum("ui,ncaubv,vj->ncaibj", basis, waves, basis).reshape(n, c, h, w)
