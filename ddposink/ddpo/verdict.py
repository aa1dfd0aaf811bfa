"""From finished samples to advantages: the reward asked, everybody's answers gathered and compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ddposink.ddpo.config import DDPOConfig
from ddposink.ddpo.grpo import needs_several
from ddposink.ddpo.judge import Reward, SeedWatch, joined, name_of
from ddposink.ddpo.ranks import Ranks
from ddposink.ddpo.sampler import Trajectories, judged
from ddposink.ddpo.several import Parts, gdpo, several, told
from ddposink.ddpo.stats import Advantages, Floats, make_comparison


@dataclass(frozen=True)
class Verdict:
    """On the samples of one training step: of all processes, but for ``advantages``, this one's.

    ``parts`` and ``shares``: mean of each part of a weighted reward, and its share of the variance.
    """

    rewards: Floats
    advantages: Floats
    parts: dict[str, float]
    shares: dict[str, float]
    reward_s: float


class Court:
    """Asks ``reward`` and compares. Raises ValueError if it is one where several are wanted."""

    def __init__(self, config: DDPOConfig, pipeline: Any, reward: Reward, ranks: Ranks) -> None:
        self._config, self._pipeline, self._reward, self._ranks = config, pipeline, reward, ranks
        self.comparison: Advantages = make_comparison(config)
        self._several, self._watch = several(reward), SeedWatch()
        if config.combine_rewards == "gdpo" and self._several is None:
            raise ValueError(needs_several(name_of(reward)))

    def judge(self, found: Trajectories) -> Verdict:
        """Raises ValueError, or what the reward raises, where it does not answer."""
        config, ranks = self._config, self._ranks
        with self._watch.over(self._reward):
            asked = judged(self._pipeline, found, self._reward, config.sample_batch_size)
        everybodys = ranks.gather((found.prompts, asked.rewards.cpu(), asked.cpu_parts()))
        prompts = [prompt for some, _, _ in everybodys for prompt in some]
        rewards = torch.cat([some for _, some, _ in everybodys]).numpy()
        parts = {name: said.numpy() for name, said in joined([p for _, _, p in everybodys]).items()}
        advantages = self._compare(prompts, rewards, parts)
        mine = advantages.reshape(ranks.count, -1)[ranks.rank]
        return Verdict(rewards, mine, *told(parts, config.group), asked.seconds)

    def _compare(self, prompts: list[str], rewards: Floats, parts: Parts) -> Floats:
        if self._config.combine_rewards != "gdpo" or self._several is None:
            return self.comparison.update(prompts, rewards)
        found, flat = gdpo(lambda: make_comparison(self._config), self._several.weights, prompts, parts)
        self.comparison.flat_share = flat
        return found
