"""What a training asks of the denoising network, counted once for plan, engines and records. No torch.

In forwards for one sample, a backward counted as two. What samples of a group share is counted as if each
had asked for itself. The autoencoder and the reward are not the network and are not counted, nor is what
`gradient_checkpointing` computes again.
"""

from __future__ import annotations

import math
from typing import Any

from ddposink.ddpo import rules

Settings = Any  # those of `ddpo.settings`


def forwards_of_a_step(config: Settings, embeds_guidance: bool = False) -> int:
    """Forwards of one training step of one process, sampling and learning.

    ``embeds_guidance``: guidance is an input of the network, which is then never asked twice (Flux).
    """
    drawn = config.samples_per_epoch
    asked = 2 if config.guided and not embeds_guidance else 1
    if config.algorithm == rules.DDPO:
        learns = 2 if config.learns_guided and not embeds_guidance else 1
        return drawn * asked * config.sample_num_steps + _likelihoods(config, asked, learns)
    if config.algorithm == rules.DRAFT:  # learns through the guided steps themselves
        return drawn * asked * (config.sample_num_steps + 2 * config.draft_steps)
    # At a noised picture once with a gradient, and once more for the old or the base policy; never guided.
    sampled = drawn * asked * config.sample_num_steps
    learnt = drawn if config.algorithm == rules.NFT else 2 * drawn // config.samples_per_prompt
    if rules.offline(config):  # from a file of pairs, without drawing
        sampled, learnt = 0, 2 * drawn
    return sampled + 4 * learnt * rules.times_learnt(config) * config.train_num_inner_epochs


def samples_measured(config: Settings) -> int:
    """Samples of a training step on which the base model is asked: all for a KL term, else `measure_kl`."""
    share = 1.0 if config.kl_beta else config.measure_kl
    asked = math.ceil(round(share * config.samples_per_epoch, 9))  # 0.07 · 100 is 7.000000000000001
    return max(asked, int(share > 0))


def _likelihoods(config: Settings, asked: int, learns: int) -> int:
    """Policy gradients: learning, and the base model where it is asked; ``asked``, ``learns``: see above."""
    pairs = config.samples_per_epoch * config.num_train_timesteps * config.train_num_inner_epochs
    if config.keep_sampling_graph:  # the forward was that of sampling
        return 2 * asked * pairs
    return 3 * learns * pairs + learns * samples_measured(config) * config.window.size
