"""What a reward does not see: do the pictures still differ, and how far has the model moved?

Diversity is measured in a feature space (unit vectors of an image encoder), drift as the divergence
between the denoising policies of the tuned and of the base model, and as the size of the weight change.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def pairwise_distance(features: Tensor, groups: Sequence[str]) -> float:
    """Mean cosine distance of pictures of the same group (prompt).

    features: (N, D), any length; groups: N names. Groups of one picture have no pair and do not count.
    Raises ValueError where no group has two pictures.
    """
    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    same = torch.tensor([[a == b for b in groups] for a in groups])
    pairs = torch.triu(same, diagonal=1)
    if not pairs.any():
        raise ValueError("no prompt has two pictures")
    return float((1 - unit @ unit.T)[pairs].mean())


def vendi_score(features: Tensor) -> float:
    """Effective number of different pictures: exp of the entropy of the similarity matrix's spectrum.

    features: (N, D). 1 where all pictures are alike, N where all are orthogonal. Friedman and Dieng 2023,
    equation 1, with the cosine kernel.
    """
    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    # The nonzero eigenvalues of X Xᵀ/N are those of Xᵀ X/N: take the smaller matrix.
    n = len(unit)
    gram = unit @ unit.T if n <= unit.shape[1] else unit.T @ unit
    eigenvalues = torch.linalg.eigvalsh(gram / n).clamp_min(0)
    positive = eigenvalues[eigenvalues > 1e-12]
    return float(torch.exp(-(positive * positive.log()).sum()))


def gaussian_kl(mean: Tensor, other_mean: Tensor, std: float) -> Tensor:
    """KL divergence in nats of two Gaussians of one standard deviation: (B, …), (B, …) → (B,).

    Of a denoising step: both policies at the same noisy picture, summed over all latent dimensions.
    """
    return (mean - other_mean).double().square().flatten(1).sum(dim=1) / (2 * std**2)


def frobenius_norm(differences: Iterable[Tensor]) -> float:
    """Length of the weight change: square root of the sum of squares over all tensors."""
    return float(
        sum((d.double().square().sum() for d in differences), torch.zeros((), dtype=torch.double)).sqrt()
    )
