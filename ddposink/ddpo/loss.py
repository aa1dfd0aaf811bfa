"""The two DDPO objectives on log-probabilities of denoising steps (Black et al. 2024, eq. 3 and 4).

DDPO-IS is PPO's clipped importance ratio, DDPO-SF the plain policy gradient (score function), which is
right for exactly one update per sampling. Both are means over (sample, denoising step) pairs.

The clip range may be wider above than below (clip-higher; Yu et al. 2025, DAPO, arXiv 2503.14476, section
3.1). A divergence from the base model may be added, see `ddposink.ddpo.reference`.
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
    """Per pair (B,): the loss, half the squared change of log-probability, ratio outside the clip or not.

    ``off``: ratio − 1, as it is clipped; ``above``, ``below``: outside on which side; ``divergence``: KL from
    the base model in nats, None where it is not asked for.
    """

    loss: Tensor
    approx_kl: Tensor
    clipped: Tensor
    off: Tensor
    above: Tensor
    below: Tensor
    divergence: Tensor | None = None


def loss_terms(
    log_prob: Tensor,
    sampled: Tensor,
    advantage: Tensor,
    *,
    kind: str,
    clip_range: float,
    advantage_max: float,
    clip_high: float | None = None,
    log_ratio: Tensor | None = None,
    divergence: Tensor | None = None,
    beta: float = 0.0,
) -> LossTerms:
    """``log_prob`` (B,) with gradient, ``sampled`` those at sampling, ``advantage`` of each pair's sample.

    ``clip_range``: below, and above too unless there is a ``clip_high``. ``log_ratio`` (B,) stands in for the
    change of log-probability, see `normalised`. ``divergence`` (B,) is added ``beta`` times, at 0 only told.
    """
    advantage = advantage.clamp(-advantage_max, advantage_max)
    change, high = log_prob - sampled, clip_range if clip_high is None else clip_high
    ratio = (change if log_ratio is None else log_ratio).exp()
    if kind == "sf":
        loss = -advantage * log_prob
    else:
        clipped = ratio.clamp(1.0 - clip_range, 1.0 + high)
        loss = torch.maximum(-advantage * ratio, -advantage * clipped)
    if divergence is not None and beta:
        loss = loss + beta * divergence
    with torch.no_grad():
        off = ratio - 1.0
        above, below = (off > high).float(), (off < -clip_range).float()
        told = None if divergence is None else divergence.detach()
        return LossTerms(loss, 0.5 * change.square(), above + below, off.detach(), above, below, told)


def normalised(log_ratio: Tensor, bias: Tensor, sigma: Tensor) -> Tensor:
    """The log-ratio (B,) of one centre and width at every denoising step: σ·(log r + ‖Δμ‖²/(2σ²)).

    GRPO-Guard's ratio normalisation (Wang et al. 2025, arXiv 2510.22319, eq. 8). As the sample is
    μ_old + σ·ε, log r = Δμ·ε/σ − ‖Δμ‖²/(2σ²): its mean is below zero, and its width grows as σ falls. What
    is left of it here is Δμ·ε. ``bias``: ‖Δμ‖²/(2σ²), reduced over dimensions as the log-probabilities are;
    ``sigma`` (B,): of each pair's step. The paper's weights of denoising steps are no part of it.
    """
    return sigma * (log_ratio + bias)


def ratio_limit(config: DDPOConfig, pipeline: Any) -> float:
    """|ratio − 1| that rounding explains in fp32: `RATIO_LIMIT`, for summed ones × dimensions."""
    if config.log_prob_reduction == "mean":
        return RATIO_LIMIT
    return RATIO_LIMIT * math.prod(latent_shape(pipeline))
