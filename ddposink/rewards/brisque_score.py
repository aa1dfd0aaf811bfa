"""The computation behind `ddposink.rewards.brisque`, in float64 and for whole batches.

It follows the feature definitions of PyPI `brisque` 0.2.0, whose parameters we use, with two liberties:
the shape parameter is looked up in a fine table, within the limits of the authors' own search, where the
package runs an unbounded root finder; and a flat picture, on which the package divides zero by zero, has
statistics of zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddposink.rewards.base import to_uint8

WINDOW, SIGMA = 7, 7 / 6
GREY = (0.2125, 0.7154, 0.0721)
SHAPES = (0.2, 10.0)  # as in the authors' grid search, with whose features the regression was trained
TINY = 1e-40  # a variance that changes nothing
SMALLEST = 16  # pixels; below, the halved picture is smaller than the window


@dataclass(frozen=True)
class Regression:
    """Radial basis support vector regression from scaled features to the BRISQUE score."""

    support_vectors: Tensor  # (770, 36)
    coefficients: Tensor  # (770,)
    minimum: Tensor  # (36,) of the training features
    maximum: Tensor
    gamma: float
    rho: float

    @classmethod
    def read(cls, path: Path, device: str | torch.device = "cpu") -> Regression:
        """Parameters from an .npz."""
        with np.load(path, allow_pickle=False) as arrays:
            names = ("support_vectors", "coefficients", "minimum", "maximum")
            tensors = {n: torch.tensor(arrays[n], dtype=torch.float64, device=device) for n in names}
            return cls(**tensors, gamma=float(arrays["gamma"]), rho=float(arrays["rho"]))

    def __call__(self, features: Tensor) -> Tensor:
        """(B, 36) features → (B,) scores, lower is better."""
        features = features.to(self.minimum.device)
        scaled = -1 + 2 * (features - self.minimum) / (self.maximum - self.minimum)
        squared = torch.cdist(
            scaled, self.support_vectors, compute_mode="donot_use_mm_for_euclid_dist"
        ).square()
        return torch.exp(-self.gamma * squared) @ self.coefficients - self.rho


def features(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] → (B, 36) float64: 18 statistics at full size and 18 at half size."""
    if min(images.shape[-2:]) < SMALLEST:
        raise ValueError(f"pictures of at least {SMALLEST}×{SMALLEST} pixels are needed")
    # As saved: what lies below one grey level is not part of the picture, yet would be amplified.
    pixels = to_uint8(images).to(images.device).double() / 255
    if images.requires_grad:  # rounding is taken for nothing backwards, as its own gradient is zero
        exact = images.double().permute(0, 2, 3, 1)
        pixels = pixels + (exact - exact.detach())
    grey = (pixels @ pixels.new_tensor(GREY)).unsqueeze(1)
    return torch.cat([_statistics(grey), _statistics(_halved(grey))], dim=1)


def _halved(grey: Tensor) -> Tensor:
    """(B, 1, H, W) → (B, 1, H/2, W/2), every pixel of two by two, also at odd sides, as OpenCV does it."""
    height, width = grey.shape[-2:]
    even = F.pad(grey, (0, width % 2, 0, height % 2), mode="replicate")  # beyond the edge is the edge
    half = [side // 2 for side in even.shape[-2:]]
    smaller = F.interpolate(even, size=half, mode="bicubic", align_corners=False, antialias=False)
    return smaller[..., : round(height / 2), : round(width / 2)]


def _statistics(grey: Tensor) -> Tensor:
    """(B, 1, H, W) → (B, 18): shape and variance of the coefficients, four moments per neighbour product."""
    x = normalised(grey)
    products = (
        x[..., :, :-1] * x[..., :, 1:],
        x[..., :-1, :] * x[..., 1:, :],
        x[..., :-1, :-1] * x[..., 1:, 1:],
        x[..., 1:, :-1] * x[..., :-1, 1:],
    )
    shape, _, left, right = _moments(x)
    columns = [shape, (left + right) / 2]
    for product in products:
        columns += _moments(product)
    return torch.stack(columns, dim=1)


def normalised(grey: Tensor) -> Tensor:
    """Mean subtracted and contrast normalised coefficients, (B, 1, H, W) each; zeros around the picture."""
    line = torch.arange(WINDOW, dtype=grey.dtype, device=grey.device) - WINDOW // 2
    bell = torch.exp(-line.square() / (2 * SIGMA**2))
    bell = bell / bell.sum()

    def blur(x: Tensor) -> Tensor:
        x = F.conv2d(x, bell.view(1, 1, -1, 1), padding=(WINDOW // 2, 0))
        return F.conv2d(x, bell.view(1, 1, 1, -1), padding=(0, WINDOW // 2))

    mean = blur(grey)
    # Flat areas have a deviation of zero, where a root has no gradient.
    deviation = (mean.square() - blur(grey.square())).abs().clamp_min(TINY).sqrt()
    return (grey - mean) / (deviation + 1 / 255)


def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Asymmetric generalised Gaussian fitted to each picture: shape, mean, left, right variance; (B,)."""
    x = x.flatten(1)
    negative = x < 0
    left = _mean_square(x, negative)
    right = _mean_square(x, ~negative)
    spread = torch.where(right > 0, (left / right).sqrt(), torch.where(left > 0, torch.inf, 1.0))
    square = x.square().mean(1)
    ratio = torch.where(square > 0, x.abs().mean(1).square() / square, 0.0)
    # (g³+1)(g+1)/(g²+1)² is the same for g and 1/g, and 1 at both ends.
    g = torch.minimum(spread, 1 / spread)
    shape = _shape(ratio * (g**3 + 1) * (g + 1) / (g**2 + 1).square())
    a, b, c = (torch.lgamma(k / shape) for k in (1.0, 2.0, 3.0))
    mean = (right.sqrt() - left.sqrt()) * torch.exp((a - c) / 2 + b - a)
    return shape, mean, left, right


def _mean_square(x: Tensor, chosen: Tensor) -> Tensor:
    return (x.square() * chosen).sum(1) / chosen.sum(1).clamp_min(1)


def _shape(ratio: Tensor) -> Tensor:
    """Solve Γ(2/a)² / (Γ(1/a) Γ(3/a)) = ratio for a; the left side grows with a."""
    ratios, shapes = (torch.from_numpy(column).to(ratio) for column in _table())
    right = torch.searchsorted(ratios, ratio.detach()).clamp(1, len(ratios) - 1)
    slope = (shapes[right] - shapes[right - 1]) / (ratios[right] - ratios[right - 1])
    inside = ratio.clamp(ratios[0], ratios[-1])
    return torch.exp(shapes[right - 1] + slope * (inside - ratios[right - 1]))


@cache
def _table() -> tuple[np.ndarray, np.ndarray]:
    """Ratios and logarithms of shapes."""
    from scipy.special import gammaln

    shapes = np.linspace(math.log(SHAPES[0]), math.log(SHAPES[1]), 20_001)
    inverse = np.exp(-shapes)
    return np.exp(2 * gammaln(2 * inverse) - gammaln(inverse) - gammaln(3 * inverse)), shapes
