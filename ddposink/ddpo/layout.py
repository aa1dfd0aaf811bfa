"""How many samples go through the UNet at once. It decides time and memory, never the result.

Gradients of all (sample, denoising step) pairs of an update are added up before it, so any of them may
share a forward. Small latents leave a forward of TRL's size (``train_batch_size`` samples, one denoising
step) mostly to overhead, so pairs are joined until a forward holds about ``POSITIONS`` latent positions;
Stable Diffusion's 64x64 latents reach that by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

from ddposink.ddpo.config import DDPOConfig

POSITIONS = 4096


@dataclass(frozen=True)
class Layout:
    """Samples in a forward of sampling, and pairs in a forward of learning; guidance doubles either."""

    sampling: int
    learning: int


def make_layout(config: DDPOConfig, positions: int) -> Layout:
    """For latents of ``positions`` (height x width)."""
    joined = config.rows_per_forward or max(1, POSITIONS // positions)
    if config.steps_per_forward is not None:
        learning = config.train_batch_size * config.steps_per_forward
    else:
        learning = config.rows_per_forward or max(joined, config.train_batch_size)
    sampling = config.rows_per_forward or max(joined, config.sample_batch_size)
    return Layout(min(sampling, config.samples_per_epoch), learning)
