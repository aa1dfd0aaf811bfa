"""DiffusionNFT (Zheng et al. 2025, arXiv 2509.16117): learning in the forward process, without likelihoods.

An old policy v_old draws samples x_0; the group-normalised reward makes each of them good with a probability
r in [0, 1]. A sample is noised to x_t, and two mixtures of old and trained policy,

    v+ = (1 − β) v_old + β v_θ,    v− = (1 + β) v_old − β v_θ,

are asked for the velocity v* that is right: r ‖v+ − v*‖² + (1 − r) ‖v− − v*‖². Their mean is v_old, whatever
β. The weights add up to one, so that any output of the network may stand for the velocity (`forward`). As in
the authors' code errors are those of the clean latents, each divided by its mean size without gradient
(adaptive weighting), which makes them the same for every kind of output; and
r = ½ + ½ clip(A / A_max, −1, 1) with A the advantage and A_max ``train_adv_clip_max``.

The old policy follows the trained one after each training step i: θ_old ← d θ_old + (1 − d) θ with
d = min(``nft_decay_rate`` · i, ``nft_decay``). The network is asked without guidance, also where samples are
drawn with it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from ddposink.ddpo.algorithms.forward import ForwardProcess, drawn_times, forward_process
from ddposink.ddpo.algorithms.protocol import Invariant, Learnt, Workshop, swapped
from ddposink.ddpo.randomness import noise_like
from ddposink.ddpo.rules import times_learnt
from ddposink.ddpo.sampler import Trajectories

SMALLEST = 1e-5  # mean error of the clean latents by which one is divided, as in the authors' code
ROUNDING = 1e-5  # relative; of v+ and v− in fp32


def optimality(advantages: Tensor, most: float) -> Tensor:
    """r (B,) in [0, 1], the probability that a sample is a good one, of its advantage."""
    return 0.5 + 0.5 * (advantages / most).clamp(-1, 1)


def mixtures(trained: Tensor, old: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """v+ and v− (B,C,H,W)."""
    return (1 - beta) * old + beta * trained, (1 + beta) * old - beta * trained


def loss(
    process: ForwardProcess, step: Tensor, noised: Tensor, clean: Tensor,
    trained: Tensor, old: Tensor, good: Tensor, beta: float,
) -> Tensor:  # fmt: skip
    """(B,) of ``trained`` and ``old`` outputs at ``noised``; ``good``: r (B,). See the module docstring."""
    found = []
    for mixture in mixtures(trained, old, beta):
        error = process.clean(step, noised, mixture) - clean
        size = error.detach().abs().flatten(1).mean(1).clamp_min(SMALLEST)
        found.append(error.square().flatten(1).mean(1) / size)
    return good * found[0] + (1 - good) * found[1]


class Nft:
    """See the module docstring; implements `Algorithm`."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop, self.config = workshop, workshop.config
        self.old = {name: weight.detach().clone() for name, weight in workshop.learner.weights.items()}

    def step(self, number: int) -> Learnt:
        """See `Algorithm.step`."""
        with self._old_policy():
            found = self.workshop.sample(self.config.sample_num_batches_per_epoch, None)
        judged = self.workshop.judge(found)
        sampled = time.perf_counter()
        advantages = torch.as_tensor(judged.advantages, device=self.workshop.device)
        good = optimality(advantages, self.config.train_adv_clip_max)
        values = [self._update(found, good, which) for which in self._updates(len(good))]
        losses, norms = torch.stack(values).unbind(1)
        self._follow(number)
        return Learnt(judged.everybodys, losses, norms, judged.flat_share, sampled)

    def invariant(self) -> Invariant:
        """That v+ and v− average to v_old, also where the trained policy is another."""
        found = self.workshop.sample(1, None)
        which = torch.arange(len(found.prompts), device=self.workshop.device)
        step = torch.zeros_like(which)
        with torch.no_grad():
            old = self.workshop.ask(found, which, step, found.latents[0])
            weights = list(self.workshop.learner.weights.values())
            with swapped(weights, [weight + 0.01 * torch.randn_like(weight) for weight in weights]):
                trained = self.workshop.ask(found, which, step, found.latents[0])
            positive, negative = mixtures(trained, old, self.config.nft_beta)
            off = ((positive + negative) / 2 - old).abs().max() / old.abs().max()
        return Invariant("v+ and v− average to v_old", float(off), ROUNDING)

    def identity(self) -> dict[str, Any]:
        """Nothing beside the configuration."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """The old policy's weights."""
        return {f"old.{name}": weight for name, weight in self.old.items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """See `Algorithm.restore`."""
        if tensors.keys() != self.tensors().keys():
            raise ValueError("the checkpoint has no old policy of this model")
        for name, weight in self.old.items():
            weight.copy_(tensors[f"old.{name}"])

    def _updates(self, count: int) -> Iterator[Tensor]:
        """The samples of every update; all are learnt from once in an inner epoch."""
        size = self.config.train_batch_size * self.config.train_gradient_accumulation_steps
        for _ in range(self.config.train_num_inner_epochs):
            yield from torch.randperm(count, device=self.workshop.device).split(size)

    def _update(self, found: Trajectories, good: Tensor, samples: Tensor) -> Tensor:
        """One update from ``samples`` (M,), each noised at its times: mean loss and gradient norm (2,)."""
        config, shop = self.config, self.workshop
        process = forward_process(shop.pipeline.scheduler, shop.policy.schedule.timesteps, shop.flow)
        last = config.sample_num_steps - config.train_skip_last_steps
        times = drawn_times(len(samples), times_learnt(config), last, shop.device)
        sample, step = samples.repeat_interleave(times.shape[1]), times.flatten()
        total = torch.zeros((), device=shop.device)
        for which in torch.arange(len(sample), device=shop.device).split(shop.layout.learning):
            who, when = sample[which], step[which]
            clean = found.latents[-1, who]
            noise = noise_like(clean)
            noised = process.noised(when, clean, noise)
            with torch.no_grad(), self._old_policy():
                old = shop.ask(found, who, when, noised)
            trained = shop.ask(found, who, when, noised)
            losses = loss(process, when, noised, clean, trained, old, good[who], config.nft_beta)
            total += shop.backward(losses.sum() / len(sample))
        return torch.stack([total, shop.learner.apply()])

    def _old_policy(self) -> AbstractContextManager[None]:
        """Inside, the network has the old policy's weights."""
        return swapped(list(self.workshop.learner.weights.values()), list(self.old.values()))

    def _follow(self, number: int) -> None:
        decay = min(self.config.nft_decay_rate * number, self.config.nft_decay)
        for name, weight in self.workshop.learner.weights.items():
            self.old[name].lerp_(weight.detach(), 1 - decay)
