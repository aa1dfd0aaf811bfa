"""Updates from trajectories: which (sample, denoising step) pairs make an update, and one pass over them.

TRL goes through an update's pairs a training batch and a denoising step at a time, and divides each loss by
their number. The sum is the same in any order, so they are flattened and cut into forwards of equal size,
and what the UNet is asked more than once is asked only once: samples that start from the same noise share
their first denoising step.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddposink.ddpo.config import DDPOConfig
from ddposink.ddpo.diagnostics import Tally
from ddposink.ddpo.ema import MovingAverage
from ddposink.ddpo.loss import LossTerms, loss_terms, normalised
from ddposink.ddpo.policy import DenoisingPolicy
from ddposink.ddpo.ranks import Ranks
from ddposink.ddpo.sampler import Trajectories


@dataclass(frozen=True)
class Pairs:
    """Pairs of one update, ``sample`` (M,) and ``step`` (M,)."""

    sample: Tensor
    step: Tensor

    def __len__(self) -> int:
        return len(self.sample)

    def take(self, rows: Tensor | slice) -> Pairs:
        """Some of them."""
        return Pairs(self.sample[rows], self.step[rows])

    def to(self, device: torch.device) -> Pairs:
        """The same on another device."""
        return Pairs(self.sample.to(device), self.step.to(device))


def updates(config: DDPOConfig, device: torch.device, first: int = 0) -> Iterator[Pairs]:
    """The pairs of every update of one training step, in TRL's order, drawn from the global generator.

    Samples are shuffled anew in each inner epoch, and the denoising steps of each sample on their own; the
    first ``num_train_timesteps`` of them are learnt from. ``first``: the first denoising step that has a
    density in this training step. Lazily: an inner epoch draws when it begins.
    """
    count, learnt = config.samples_per_epoch, config.num_train_timesteps
    steps = config.window.size
    samples, order = torch.arange(count), first + torch.arange(steps).repeat(count, 1)
    per_update = config.train_batch_size * config.train_gradient_accumulation_steps
    for _ in range(config.train_num_inner_epochs):
        shuffled = torch.randperm(count, device=device).cpu()
        samples, order = samples[shuffled], order[shuffled]
        times = torch.stack([torch.randperm(steps, device=device).cpu() for _ in range(count)])
        order = order.gather(1, times)
        for start in range(0, count, per_update):
            rows = slice(start, start + per_update)
            chosen = order[rows, :learnt]
            yield Pairs(samples[rows, None].expand_as(chosen).flatten(), chosen.flatten())


def forwards(
    pairs: Pairs, source: Tensor, rows: int, together: int = 0
) -> Iterator[tuple[Pairs, Pairs, Tensor]]:
    """Cut ``pairs`` so that the UNet sees at most ``rows`` inputs at once, each once.

    ``source``, ``together``: see `Trajectories`. Yields some pairs (M,), the inputs they need, named by pairs
    (U,), and which of these each needs (M,).
    """
    first = torch.where(pairs.step <= together, source[pairs.sample], pairs.sample)
    inputs, which = Pairs(first, pairs.step), torch.arange(len(pairs))
    if not torch.equal(first, pairs.sample):
        distinct, which = torch.unique(torch.stack([first, pairs.step]), dim=1, return_inverse=True)
        inputs = Pairs(distinct[0], distinct[1])
    for start in range(0, len(inputs), rows):
        mine = ((which >= start) & (which < start + rows)).nonzero().flatten()
        yield pairs.take(mine), inputs.take(slice(start, start + rows)), which[mine] - start


class Learner:
    """Optimizer and weights; `update` is one optimizer update."""

    def __init__(
        self, config: DDPOConfig, policy: DenoisingPolicy, weights: dict[str, Tensor], ranks: Ranks
    ) -> None:
        self.config, self.policy, self.weights, self.ranks = config, policy, weights, ranks
        self.optimizer = make_optimizer(config, list(weights.values()))
        device = next(iter(weights.values())).device
        half = config.precision_on(device.type) == "fp16"
        self.scaler = torch.amp.GradScaler(device.type, enabled=half)
        self.tally = Tally(config.sample_num_steps, device)
        self.average = MovingAverage(weights, config.ema_decay) if config.ema_decay else None

    def update(self, found: Trajectories, advantages: Tensor, pairs: Pairs, rows: int) -> Tensor:
        """One update from ``pairs`` (on the CPU), at most ``rows`` UNet inputs in a forward.

        Returns (4,) on the device: mean loss, approximate KL, clip fraction, and the gradient's norm.
        """
        total = torch.zeros(3, device=advantages.device)
        if found.graph:
            total += self._backward(self._kept(found, advantages), len(pairs))
        else:
            device = advantages.device
            for some, inputs, which in forwards(pairs, found.source, rows, found.together):
                terms = self._terms(found, advantages, some.to(device), inputs.to(device), which.to(device))
                total += self._backward(terms, len(pairs))
        return torch.cat([total, self.apply()[None]])

    def _terms(
        self, found: Trajectories, advantages: Tensor, pairs: Pairs, inputs: Pairs, which: Tensor
    ) -> LossTerms:
        text = found.text.take(inputs.sample).rows(self.policy.learns_guided)
        mean = self.policy.mean(inputs.step, found.latents[inputs.step, inputs.sample], text)[which]
        step, sample, schedule = pairs.step, pairs.sample, self.policy.schedule
        log_prob = self.policy.log_prob(step, mean, found.latents[step + 1, sample])
        sampled = found.log_probs[step, sample]
        more: dict[str, Tensor] = {}
        if found.means is not None:
            bias = schedule.divergence(step, mean, found.means[step, sample], self.policy.reduction)
            more["log_ratio"] = normalised(log_prob - sampled, bias, schedule.sigma[step])
        if found.base is not None:
            base, known = found.base.of(step, sample)
            # Where it is only told it has no gradient, and is no part of the loss.
            compared = mean if self.config.kl_beta else mean.detach()
            more["divergence"] = schedule.divergence(step, compared, base)
        terms = self._loss(log_prob, sampled, advantages[sample], **more)
        self.tally.add(step, terms, None if found.base is None else known)
        return terms

    def _kept(self, found: Trajectories, advantages: Tensor) -> LossTerms:
        """From the sampling forwards themselves: every log-probability is its own old one."""
        log_prob = torch.cat([kept.flatten() for _, kept in found.graph])
        advantage = torch.cat([advantages[rows].expand_as(kept).flatten() for rows, kept in found.graph])
        steps = torch.arange(len(found.log_probs), device=advantage.device)
        step = torch.cat([steps[:, None].expand_as(kept).flatten() for _, kept in found.graph])
        found.graph.clear()
        terms = self._loss(log_prob, log_prob.detach(), advantage)
        self.tally.add(step, terms)
        return terms

    def _loss(self, log_prob: Tensor, sampled: Tensor, advantage: Tensor, **more: Tensor) -> LossTerms:
        config = self.config
        return loss_terms(
            log_prob,
            sampled,
            advantage,
            kind=config.loss,
            clip_range=config.train_clip_range,
            advantage_max=config.train_adv_clip_max,
            clip_high=config.train_clip_range_high,
            beta=config.kl_beta,
            **more,
        )

    def _backward(self, terms: LossTerms, pairs: int) -> Tensor:
        loss = terms.loss.sum() / pairs
        self.scaler.scale(loss).backward()
        return torch.stack([loss.detach(), terms.approx_kl.sum() / pairs, terms.clipped.sum() / pairs])

    def apply(self) -> Tensor:
        """One optimizer step by the gradients that are there; their norm before clipping, a scalar."""
        parameters = list(self.weights.values())
        self.ranks.average_gradients(parameters)
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.train_max_grad_norm)
        scale = self.scaler.get_scale() if self.average else 1.0
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        # A smaller scale says that the gradient overflowed, and the update was left out.
        if self.average and self.scaler.get_scale() >= scale:
            self.average.update()
        return norm.detach()


def make_optimizer(config: DDPOConfig, parameters: list[Any]) -> torch.optim.Optimizer:
    """AdamW with TRL's settings; its 8-bit form needs bitsandbytes (Unavailable without)."""
    settings: dict[str, Any] = {
        "lr": config.train_learning_rate,
        "betas": (config.train_adam_beta1, config.train_adam_beta2),
        "weight_decay": config.train_adam_weight_decay,
        "eps": config.train_adam_epsilon,
    }
    if not config.train_use_8bit_adam:
        return torch.optim.AdamW(parameters, fused=True, **settings)
    try:
        bitsandbytes = importlib.import_module("bitsandbytes")
    except ImportError as error:
        from ddposink.errors import Unavailable

        raise Unavailable(
            f"train_use_8bit_adam needs bitsandbytes: pip install bitsandbytes ({error})"
        ) from error
    return bitsandbytes.optim.AdamW8bit(parameters, **settings)
