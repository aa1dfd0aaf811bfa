"""Diffusion-DPO (Wallace et al. 2023, arXiv 2311.12908, eq. 14) online: a group's best and its worst.

`offline` learns from a file of pairs in the same way.


Both pictures of a pair, w and l, are noised to one time by one noise. With e(u) the mean squared error of an
output against the one that is right (`forward`), and "base" the network as it was before training,

    −log σ( −½ β' [ (e_θ(x^w) − e_base(x^w)) − (e_θ(x^l) − e_base(x^l)) ] ),    β' = ``dpo_beta`` · D / 16384,

where β' is the paper's β T ω(λ_t) with a constant ω. The paper's squared errors are sums over the D
dimensions of a latent, those of its authors' code are means, over latents of 4·64·64 = 16384 dimensions. So
``dpo_beta`` is on the scale of that code, and weighs a sum alike whatever the size of the latents. Before
the first update θ is the base, and the loss is log 2. Groups whose rewards are all equal teach nothing. The
network is asked without guidance, also where samples are drawn with it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddposink.ddpo.algorithms.forward import drawn_times, forward_process
from ddposink.ddpo.algorithms.protocol import Invariant, Learnt, Workshop
from ddposink.ddpo.randomness import noise_like
from ddposink.ddpo.rules import DPO_DIMENSIONS, times_learnt
from ddposink.ddpo.sampler import Trajectories
from ddposink.ddpo.stats import ROUNDING as EQUAL

ROUNDING = 1e-5  # of the loss before the first update in fp32, at latents of `rules.DPO_DIMENSIONS`
HALF = 1e-1  # and where the network computes in half precision, adapters on and off


def best_and_worst(rewards: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(G, 2) samples, best first, of groups of ``size`` in a row; and (G,) which groups differ at all."""
    groups = np.asarray(rewards, dtype=np.float64).reshape(-1, size)
    start = size * np.arange(len(groups))
    pairs = np.stack([start + groups.argmax(1), start + groups.argmin(1)], 1)
    differ = np.ptp(groups, axis=1) > EQUAL * np.abs(groups).max(1)
    return pairs, differ


def loss(errors: Tensor, base_errors: Tensor, beta: float) -> Tensor:
    """(B,) of mean squared errors (B, 2), the better picture first; ``beta``: β' of the module docstring."""
    gained = errors - base_errors
    return -F.logsigmoid(-0.5 * beta * (gained[:, 0] - gained[:, 1]))


class Dpo:
    """See the module docstring; implements `Algorithm`."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop, self.config = workshop, workshop.config

    def step(self, number: int) -> Learnt:
        """See `Algorithm.step`."""
        found = self.workshop.sample(self.config.sample_num_batches_per_epoch, None)
        judged = self.workshop.judge(found)
        sampled, size = time.perf_counter(), self.config.samples_per_prompt
        pairs, differ = best_and_worst(judged.rewards, size)
        device = self.workshop.device
        losses, norms = self.learn(
            found, torch.as_tensor(pairs, device=device), torch.as_tensor(differ, device=device), size
        )
        return Learnt(judged.everybodys, losses, norms, judged.flat_share, sampled)

    def invariant(self) -> Invariant:
        """That the loss of a pair is log 2 before the first update."""
        found = self.workshop.sample(1, None)
        count = len(found.prompts) // self.config.samples_per_prompt
        first = self.config.samples_per_prompt * torch.arange(count, device=self.workshop.device)
        return self.log_two(found, torch.stack([first, first + 1], 1))

    def log_two(self, found: Trajectories, pairs: Tensor) -> Invariant:
        """`invariant`, of ``pairs`` (M, 2) of the samples."""
        with torch.no_grad():
            losses = self._losses(found, pairs, torch.zeros_like(pairs[:, 0]))
        exact = self.config.precision_on(self.workshop.device.type) == "no"
        off = float((losses - math.log(2)).abs().max())
        return Invariant("the loss is log 2 before the first update", off, ROUNDING if exact else HALF)

    def tensors(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Nothing to restore."""

    def identity(self) -> dict[str, Any]:
        """That β is on the scale of the module docstring: it was of a mean over any latent once."""
        return {"dpo_dimensions": DPO_DIMENSIONS}

    def learn(self, found: Trajectories, pairs: Tensor, differ: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """All updates from ``pairs`` (M, 2) of samples: losses (U,) and gradient norms (U,).

        ``differ`` (M,): pairs that teach something. ``size``: samples of an update that a pair stands for.
        """
        values = [self._update(found, pairs, differ, which) for which in self._updates(len(pairs), size)]
        losses, norms = torch.stack(values).unbind(1)
        return losses, norms

    def _updates(self, pairs: int, size: int) -> Iterator[Tensor]:
        """The pairs of every update; all are learnt from once in an inner epoch."""
        samples = self.config.train_batch_size * self.config.train_gradient_accumulation_steps
        for _ in range(self.config.train_num_inner_epochs):
            yield from torch.randperm(pairs, device=self.workshop.device).split(samples // size)

    def _update(self, found: Trajectories, pairs: Tensor, differ: Tensor, groups: Tensor) -> Tensor:
        """One update from pairs ``groups`` (M,), each at its times: mean loss and gradient norm (2,)."""
        config, shop = self.config, self.workshop
        last = config.sample_num_steps - config.train_skip_last_steps
        times = drawn_times(len(groups), times_learnt(config), last, shop.device)
        group, step = groups.repeat_interleave(times.shape[1]), times.flatten()
        total = torch.zeros((), device=shop.device)
        for which in torch.arange(len(group), device=shop.device).split(max(1, shop.layout.learning // 2)):
            losses = self._losses(found, pairs[group[which]], step[which])
            total += shop.backward((losses * differ[group[which]]).sum() / len(group))
        return torch.stack([total, shop.learner.apply()])

    def _losses(self, found: Trajectories, pairs: Tensor, step: Tensor) -> Tensor:
        """(B,) of ``pairs`` (B, 2) of samples, both at the time of ``step`` (B,)."""
        shop = self.workshop
        process = forward_process(shop.pipeline.scheduler, shop.policy.schedule.timesteps, shop.flow)
        who, when = pairs.flatten(), step.repeat_interleave(2)
        clean = found.latents[-1, who]
        noise = noise_like(clean[::2]).repeat_interleave(2, 0)
        noised, target = process.noised(when, clean, noise), process.target(when, clean, noise)

        def errors() -> Tensor:
            output = shop.ask(found, who, when, noised)
            return (output - target).square().flatten(1).mean(1).view(-1, 2)

        with torch.no_grad(), shop.base():
            base = errors()
        return loss(errors(), base, self.config.dpo_beta * clean[0].numel() / DPO_DIMENSIONS)
