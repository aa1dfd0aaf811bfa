"""The two DDPO objectives on log-probabilities of denoising steps (Black et al. 2024, eq. 3 and 4).

DDPO-IS is PPO's clipped importance ratio, DDPO-SF the plain policy gradient (score function), which is
right for exactly one update per sampling. Both are means over (sample, denoising step) pairs.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddposink.ddpo.config import DDPOConfig
from ddposink.models.denoiser import latent_shape

RATIO_LIMIT = 1e-5  # |ratio - 1| that rounding explains in fp32, of a log-probability per latent dimension


class LossTerms(NamedTuple):
    """Per pair (B,): the loss, half the squared change of log-probability, ratio outside the clip or not."""

    loss: Tensor
    approx_kl: Tensor
    clipped: Tensor


def loss_terms(
    log_prob: Tensor,
    sampled: Tensor,
    advantage: Tensor,
    *,
    kind: str,
    clip_range: float,
    advantage_max: float,
) -> LossTerms:
    """``log_prob`` (B,) with gradient, ``sampled`` those at sampling, ``advantage`` of each pair's sample."""
    advantage = advantage.clamp(-advantage_max, advantage_max)
    change = log_prob - sampled
    ratio = change.exp()
    if kind == "sf":
        loss = -advantage * log_prob
    else:
        clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
        loss = torch.maximum(-advantage * ratio, -advantage * clipped)
    with torch.no_grad():
        return LossTerms(loss, 0.5 * change.square(), ((ratio - 1.0).abs() > clip_range).float())


def ratio_limit(config: DDPOConfig, pipeline: Any) -> float:
    """|ratio − 1| that rounding explains in fp32: `RATIO_LIMIT`, for summed ones × dimensions."""
    if config.log_prob_reduction == "mean":
        return RATIO_LIMIT
    return RATIO_LIMIT * math.prod(latent_shape(pipeline))
