"""One training step of `nft` or `dpo` written plainly: a forward a step, a sample and a time; nothing shared.

For SD3 pipelines without guidance by Euler's steps, one prompt, one update. Random numbers come from the
global generator in the order in which the engine draws them.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch

from ddposink.ddpo.config import DDPOConfig

PROMPT = "cat"


def plain_step(pipeline: Any, base: Any, config: DDPOConfig) -> float:
    """Sample, judge by brightness, one update of ``pipeline``; the loss. ``base``: an untrained copy."""
    velocity = _velocity(pipeline)
    clean, rewards = _samples(pipeline, config, velocity)
    pairs = {"nft": _nft, "dpo": _dpo}[config.algorithm](config, clean, rewards, velocity, _velocity(base))
    learnt = [p for n, p in pipeline.transformer.named_parameters() if "lora_" in n]
    optimizer = torch.optim.AdamW(
        learnt, lr=config.train_learning_rate, weight_decay=config.train_adam_weight_decay
    )
    total = 0.0
    for loss in pairs:
        loss.backward()
        total += float(loss.detach())
    torch.nn.utils.clip_grad_norm_(learnt, config.train_max_grad_norm)
    optimizer.step()
    return total


def _velocity(pipeline: Any) -> Any:
    text, _, pooled, _ = pipeline.encode_prompt(
        PROMPT, None, None, do_classifier_free_guidance=False, max_sequence_length=0
    )

    def ask(x: torch.Tensor, t: float) -> torch.Tensor:
        time = torch.tensor([1000 * t], dtype=torch.float32)
        return pipeline.transformer(x, text, pooled, time, return_dict=False)[0]

    return ask


def _times(config: DDPOConfig) -> list[float]:
    return [1 - i / config.sample_num_steps for i in range(config.sample_num_steps + 1)]


def _samples(pipeline: Any, config: DDPOConfig, velocity: Any) -> tuple[list[torch.Tensor], list[float]]:
    steps, count = config.sample_num_steps, config.sample_batch_size
    noise = torch.stack([torch.randn(count, 4, 8, 8) for _ in range(steps + 1)])
    times, clean, rewards = _times(config), [], []
    with torch.no_grad():
        for n in range(count):
            x = noise[0, n : n + 1]
            for t, later in pairwise(times):
                x = x + (later - t) * velocity(x, t)
            scaled = x / pipeline.vae.config.scaling_factor + pipeline.vae.config.shift_factor
            picture = (pipeline.vae.decode(scaled).sample * 0.5 + 0.5).clamp(0, 1)
            clean.append(x)
            rewards.append(float(picture.mean()))
    return clean, rewards


def _nft(config: DDPOConfig, clean: Any, rewards: Any, velocity: Any, old: Any) -> Any:
    """Losses (each a part of the mean), one sample and time after the other."""
    count, beta, times = len(clean), config.nft_beta, _times(config)
    mean = sum(rewards) / count
    deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards) / count)
    order = torch.randperm(count)
    steps = torch.rand((count, config.sample_num_steps)).argsort(1)[:, : config.num_train_timesteps]
    noise = torch.randn(steps.numel(), 4, 8, 8)
    for place, (sample, step) in enumerate((int(s), int(t)) for s, row in zip(order, steps) for t in row):  # noqa: B905
        t, x0 = times[step], clean[sample]
        noised = (1 - t) * x0 + t * noise[place : place + 1]
        with torch.no_grad():
            before = old(noised, t)
        now = velocity(noised, t)
        advantage = (rewards[sample] - mean) / (deviation + 1e-6)
        good = 0.5 + 0.5 * max(-1.0, min(1.0, advantage / config.train_adv_clip_max))
        total = torch.zeros(())
        for share, mixed in (
            (good, (1 - beta) * before + beta * now),
            (1 - good, (1 + beta) * before - beta * now),
        ):
            error = (noised - t * mixed) - x0
            total = total + share * (error**2).mean() / error.detach().abs().mean()
        yield total / noise.shape[0]


def _dpo(config: DDPOConfig, clean: Any, rewards: Any, velocity: Any, base: Any) -> Any:
    """The same of pairs."""
    size, times = config.samples_per_prompt, _times(config)
    groups = len(clean) // size
    order = torch.randperm(groups)
    steps = torch.rand((groups, config.sample_num_steps)).argsort(1)[:, : config.num_train_timesteps]
    noise = torch.randn(steps.numel(), 4, 8, 8)
    for place, (group, step) in enumerate((int(g), int(t)) for g, row in zip(order, steps) for t in row):  # noqa: B905
        t, u = times[step], noise[place : place + 1]
        members = range(group * size, (group + 1) * size)
        gained = []
        for sample in (max(members, key=lambda n: rewards[n]), min(members, key=lambda n: rewards[n])):
            noised, target = (1 - t) * clean[sample] + t * u, u - clean[sample]
            with torch.no_grad():
                before = ((base(noised, t) - target) ** 2).mean()
            gained.append(((velocity(noised, t) - target) ** 2).mean() - before)
        inside = -0.5 * config.dpo_beta * (gained[0] - gained[1])
        yield torch.log1p(torch.exp(-inside)) / noise.shape[0]
