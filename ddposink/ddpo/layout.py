"""The shape of the latents, and how many samples go through the UNet at once. The latter decides time and
memory, never the result.

Gradients of all (sample, denoising step) pairs of an update are added up before it, so any of them may
share a forward. Small latents leave a forward of TRL's size (``train_batch_size`` samples, one denoising
step) partly to overhead, so pairs are joined until a forward holds about so many latent positions as below.
More would still be a little faster, but the activations kept for the backward would cost more memory than
TRL takes. Stable Diffusion's 64x64 latents are beyond that by themselves.

A flow model's transformer keeps several times as much for the backward for each position as a UNet does, and
TRL has no measure for it. On a CPU, whose memory is also that of everything else, policy gradients are taken
from fewer positions at once, and still much faster than by a step written plainly, a sample at a time
(``benchmarks/test_flow.py``); ``rows_per_forward`` says otherwise. On a GPU they are as above, for there
small forwards cost the most.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ddposink.ddpo import rules
from ddposink.ddpo.config import DDPOConfig
from ddposink.ddpo.window import DDIM

SAMPLING, LEARNING = 2048, 1024  # latent positions (height x width, of all samples) in a forward
FLOW_LEARNING = 512  # of policy gradients of flow models on a CPU
DECODING = 16384  # pixels decoded at once on a CPU: more are no faster, and take memory
DIFFERENTIATED = 65536  # pixels of the samples whose last steps `draft` differentiates at once on a CPU


@dataclass(frozen=True)
class BatchLayout:
    """Samples in a forward of sampling, and pairs in a forward of learning; guidance doubles either."""

    sampling: int
    learning: int


def decoded_at_once(latents: Tensor, blocks: int, pixels: int = DECODING) -> int:
    """How many of ``latents`` (B, C, H, W) a decoder of so many blocks takes at once; a GPU takes all."""
    if latents.device.type != "cpu":
        return len(latents)
    return max(1, pixels // (latents.shape[2] * latents.shape[3] * 4 ** (blocks - 1)))


def make_layout(config: DDPOConfig, positions: int, device: str = "cpu") -> BatchLayout:
    """For latents of ``positions`` (height x width) on a ``device``: "cpu", "cuda", …"""
    sampling = config.rows_per_forward or max(SAMPLING // positions, config.sample_batch_size)
    learning = max(LEARNING // positions, config.train_batch_size)
    if device == "cpu" and config.sample_kernel != DDIM and config.algorithm == rules.DDPO:
        learning = max(1, FLOW_LEARNING // positions)
    learning = config.rows_per_forward or learning
    if config.steps_per_forward is not None:
        learning = config.train_batch_size * config.steps_per_forward
    return BatchLayout(min(sampling, config.samples_per_epoch), learning)
