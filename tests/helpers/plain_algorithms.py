"""One training step of `nft` or `dpo` written plainly: a forward a step, a sample and a time; nothing shared.

For SD3 pipelines without guidance by Euler's steps, one prompt, one update; `dpo` from a file of pairs also
for Stable Diffusion. Random numbers come from the global generator in the order in which the engine draws
them.
"""

from __future__ import annotations

import csv
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ddposink.ddpo.config import DDPOConfig

PROMPT = "cat"


def plain_step(pipeline: Any, base: Any, config: DDPOConfig) -> float:
    """Sample, judge by brightness, one update of ``pipeline``; the loss. ``base``: an untrained copy."""
    velocity = _velocity(pipeline)
    clean, rewards = _samples(pipeline, config, velocity)
    pairs = {"nft": _nft, "dpo": _dpo}[config.algorithm](config, clean, rewards, velocity, _velocity(base))
    return _learn(pipeline.transformer, config, pairs)


def plain_offline_step(pipeline: Any, base: Any, config: DDPOConfig, order: list[int]) -> float:
    """One update of ``pipeline`` from the decided rows ``order`` of ``config.dpo_pairs``; the loss."""
    network = getattr(pipeline, "transformer", None) or pipeline.unet
    return _learn(network, config, _offline(config, pipeline, base, order))


def _learn(network: Any, config: DDPOConfig, losses: Any) -> float:
    """Adam's step on the sum of ``losses``; that sum."""
    learnt = [p for n, p in network.named_parameters() if "lora_" in n]
    optimizer = torch.optim.AdamW(
        learnt, lr=config.train_learning_rate, weight_decay=config.train_adam_weight_decay
    )
    total = 0.0
    for loss in losses:
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
                before = ((base(noised, t) - target) ** 2).sum()
            gained.append(((velocity(noised, t) - target) ** 2).sum() - before)
        inside = -0.5 * config.dpo_beta / 16384 * (gained[0] - gained[1])
        yield torch.log1p(torch.exp(-inside)) / noise.shape[0]


def _offline(config: DDPOConfig, pipeline: Any, base: Any, order: list[int]) -> Any:
    """Losses of pairs in a CSV file, one pair and time after the other."""
    file = Path(str(config.dpo_pairs))
    rows = [row for row in csv.DictReader(file.open()) if row["choice"] != "tie"]
    shuffled = torch.randperm(len(order))
    steps = torch.rand((len(order), config.sample_num_steps)).argsort(1)[:, : config.num_train_timesteps]
    noise = torch.randn(steps.numel(), 4, 8, 8)
    # The engine goes through pairs in the shuffled order, the times of each in a row.
    for place, (pair, step) in enumerate((int(p), int(t)) for p, row in zip(shuffled, steps) for t in row):  # noqa: B905
        row, u, gained = rows[order[pair]], noise[place : place + 1], []
        for side in "ab" if row["choice"] == "a" else "ba":
            with torch.no_grad(), Image.open(file.parent / row[f"image_{side}"]) as image:
                mean = pipeline.vae.encode(pipeline.image_processor.preprocess(image)).latent_dist.mean
            settings = pipeline.vae.config
            clean = (mean - (settings.shift_factor or 0)) * settings.scaling_factor
            with torch.no_grad():
                before = _squared_error(base, config, row["prompt"], clean, u, step)
            gained.append(_squared_error(pipeline, config, row["prompt"], clean, u, step) - before)
        inside = -0.5 * config.dpo_beta / 16384 * (gained[0] - gained[1])
        yield torch.log1p(torch.exp(-inside)) / noise.shape[0]


def _squared_error(pipeline: Any, config: DDPOConfig, prompt: str, clean: Any, u: Any, step: int) -> Any:
    """Summed over the latent's dimensions, at the time of denoising step ``step``."""
    if getattr(pipeline, "transformer", None) is not None:
        t = _times(config)[step]
        text, _, pooled, _ = pipeline.encode_prompt(
            prompt, None, None, do_classifier_free_guidance=False, max_sequence_length=0
        )
        time = torch.tensor([1000 * t], dtype=torch.float32)
        found = pipeline.transformer((1 - t) * clean + t * u, text, pooled, time, return_dict=False)[0]
        return ((found - (u - clean)) ** 2).sum()
    pipeline.scheduler.set_timesteps(config.sample_num_steps)
    when = pipeline.scheduler.timesteps[step]
    text, _ = pipeline.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)
    noised = pipeline.scheduler.add_noise(clean, u, when[None])
    return ((pipeline.unet(noised, when, text, return_dict=False)[0] - u) ** 2).sum()
