"""What the base model would have done: the means of its denoising steps on the trajectories just drawn.

The divergence of a step from the base model's is exact: both are Gaussians of one variance, so it is
‖μ_θ − μ_base‖²/(2s²) nats, summed over the latent's dimensions (Fan et al. 2023, DPOK, arXiv 2305.16381;
Liu et al. 2025, Flow-GRPO, arXiv 2505.05470, section 4). ``kl_beta`` weighs the mean of it over all (sample,
denoising step) pairs of an update.

Published values of β are on other scales. Flow-GRPO's code takes the mean over dimensions, and σ²
for s² = σ²·|Δt|: its β is ``kl_beta`` · D / |Δt| for latents of D dimensions and a step of length |Δt|.

The means are computed once a training step, before the first update, and kept: so several updates share
them, and a training of all weights can be asked too. They take as much memory as the trajectories.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddposink.ddpo.policy import DenoisingPolicy
from ddposink.ddpo.sampler import Trajectories


@torch.no_grad()
def base_means(policy: DenoisingPolicy, found: Trajectories, rows: int) -> Tensor:
    """(T, N, C, H, W) means of the noisy steps of ``found``, 0 elsewhere; at most ``rows`` in a forward.

    The network must act as the base model. Samples that start alike are asked once until they part.
    """
    means = torch.zeros_like(found.latents[:-1])
    device, count = means.device, len(found.prompts)
    first, which = (one.to(device) for one in torch.unique(found.source, return_inverse=True))
    for step in policy.schedule.noisy:
        together = step <= found.together and len(first) < count
        asked = first if together else torch.arange(count, device=device)
        parts = []
        for some in asked.split(rows):
            text = found.text.take(some).rows(policy.learns_guided)
            parts.append(policy.mean(step, found.latents[step, some], text))
        mean = torch.cat(parts)
        means[step] = mean[which] if together else mean
    return means
