"""What the base model would have done: the means of its denoising steps on the trajectories just drawn.

The divergence of a step from the base model's is exact: both are Gaussians of one variance, so it is
‖μ_θ − μ_base‖²/(2s²) nats, summed over the latent's dimensions (Fan et al. 2023, DPOK, arXiv 2305.16381;
Liu et al. 2025, Flow-GRPO, arXiv 2505.05470, section 4). ``kl_beta`` weighs the mean of it over all (sample,
denoising step) pairs of an update.

Published values of β are on other scales. Flow-GRPO's code takes the mean over dimensions, and σ²
for s² = σ²·|Δt|: its β is ``kl_beta`` · D / |Δt| for latents of D dimensions and a step of length |Δt|.

The means are computed once a training step, before the first update, and kept: so several updates share
them, and a training of all weights can be asked too. They take as much memory as the trajectories.

Without a KL term the divergence can be measured still, on a share of the samples (``measure_kl``): spread
evenly over the step, so that every group of at least 1/``measure_kl`` samples has its part, and always the
same ones, so that no random number is drawn for it and the training is what it is without.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddposink.ddpo.policy import DenoisingPolicy
from ddposink.ddpo.sampler import BaseMeans, Trajectories


def evenly(some: int, count: int) -> Tensor:
    """(some,) of ``count`` samples, spread evenly; all of them where ``some`` is ``count``."""
    return torch.arange(some) * count // some


@torch.no_grad()
def base_means(
    policy: DenoisingPolicy, found: Trajectories, rows: int, learnt: int, samples: Tensor | None = None
) -> BaseMeans:
    """Of ``samples`` (M,), on the CPU, or all; at most ``rows`` in a forward.

    At the first ``learnt`` of the noisy steps; the others are left out of learning, and their means are 0.
    The network must act as the base model. Samples that start alike are asked once until they part.
    """
    samples = torch.arange(len(found.prompts)) if samples is None else samples
    means = torch.zeros_like(found.latents[:-1, : len(samples)])
    device, count = means.device, len(samples)
    place = torch.full((len(found.prompts),), -1)
    place[samples] = torch.arange(count)
    first, which = torch.unique(found.source[samples], return_inverse=True)
    first, which, samples = first.to(device), which.to(device), samples.to(device)
    for step in policy.schedule.noisy[:learnt]:
        together = step <= found.together and len(first) < count
        asked = first if together else samples
        parts = []
        for some in asked.split(rows):
            text = found.text.take(some).rows(policy.learns_guided)
            parts.append(policy.mean(step, found.latents[step, some], text))
        mean = torch.cat(parts)
        means[step] = mean[which] if together else mean
    return BaseMeans(means, place.to(device))
