"""DRaFT-K (Clark et al. 2024, arXiv 2309.17400): the reward's own gradient, through the last K steps.

Samples are drawn without a gradient up to the last K = ``draft_steps`` denoising steps. Those, the
autoencoder's decoder and the reward are differentiated, and minus the mean reward is the loss. The noise of
noisy steps is drawn before and held fixed, so that x_0 is a function of the weights. A sample is drawn,
judged and learnt from once, so it costs T forwards, K backwards and one reward query.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from ddposink.ddpo.algorithms.protocol import Invariant, Learnt, Workshop, swapped
from ddposink.ddpo.judge import ask_with_gradient
from ddposink.ddpo.layout import DIFFERENTIATED, decoded_at_once
from ddposink.ddpo.sampler import Trajectories, decoded

# By which weights are moved along the gradient, as a vector, for finite differences: a long step meets the
# curvature, a short one rounding, and a gradient that is wrong is so by every one of them.
STEPS = (2e-2, 5e-3, 8e-2)
CLOSE, CLOSE_IN_HALF = 0.05, 0.5  # relative; finite differences in fp32, and where the network is in half


class Draft:
    """See the module docstring; implements `Algorithm`."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop, self.config = workshop, workshop.config
        if self.config.gradient_checkpointing:
            workshop.pipeline.vae.enable_gradient_checkpointing()

    def step(self, number: int) -> Learnt:
        """See `Algorithm.step`. Learning includes the judging: the gradient comes from it."""
        config, shop = self.config, self.workshop
        found = shop.sample(config.sample_num_batches_per_epoch, self._without_gradient)
        sampled = time.perf_counter()
        count = len(found.prompts)
        rewards = torch.zeros(count, device=shop.device)
        parts: dict[str, Tensor] = {}
        values = []
        size = config.train_batch_size * config.train_gradient_accumulation_steps
        for samples in torch.randperm(count, device=shop.device).split(size):
            for rows in samples.split(self._rows(found)):
                found_rewards, said = self._rewards(found, rows)
                shop.backward(-found_rewards.sum() / len(samples))
                rewards[rows] = found_rewards.detach()
                for name, part in said.items():
                    parts.setdefault(name, torch.zeros_like(rewards))[rows] = part
            values.append(torch.stack([-rewards[samples].mean(), shop.learner.apply()]))
        losses, norms = torch.stack(values).unbind(1)
        everybodys, *others = (
            torch.cat(shop.ranks.gather(one.cpu())).numpy() for one in (rewards, *parts.values())
        )
        return Learnt(everybodys, losses, norms, None, sampled, dict(zip(parts, others, strict=True)))

    def invariant(self) -> Invariant:
        """That the gradient is that of finite differences, for the brightness of the pictures.

        Along the gradient itself, where the derivative is its norm.
        """
        shop = self.workshop
        found = shop.sample(1, self._without_gradient)
        rows = torch.arange(min(len(found.prompts), self._rows(found)), device=shop.device)
        weights = list(shop.learner.weights.values())
        with torch.enable_grad():
            mean = self._pictures(found, rows).mean()
            gradient = torch.autograd.grad(mean, weights, allow_unused=True)
        known = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, gradient, strict=True)]
        norm = float(torch.stack([g.square().sum() for g in known]).sum().sqrt())
        if not norm:
            return Invariant("the gradient is that of finite differences", float("nan"), CLOSE)
        exact, off = self.config.precision_on(shop.device.type) == "no", float("inf")
        limit = CLOSE if exact else CLOSE_IN_HALF
        for step in STEPS:
            sides = []
            for sign in (1.0, -1.0):
                moved = [w + sign * step / norm * g for w, g in zip(weights, known, strict=True)]
                with torch.no_grad(), swapped(weights, moved):
                    sides.append(float(self._pictures(found, rows).double().mean()))
            off = min(off, abs((sides[0] - sides[1]) / (2 * step) / norm - 1))
            if off <= limit:
                break
        return Invariant("the gradient is that of finite differences", off, limit)

    def identity(self) -> dict[str, Any]:
        """Nothing beside the configuration."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Nothing to restore."""

    @property
    def _without_gradient(self) -> int:
        return self.config.sample_num_steps - self.config.draft_steps

    def _rows(self, found: Trajectories) -> int:
        """Samples whose steps and pictures are differentiated at once."""
        blocks = len(self.workshop.pipeline.vae.config.block_out_channels)
        return min(self.workshop.layout.learning, decoded_at_once(found.latents[0], blocks, DIFFERENTIATED))

    def _rewards(self, found: Trajectories, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Rewards (M,) of samples ``rows``, with their history, and the parts of a sum."""
        prompts = [found.prompts[row] for row in rows.tolist()]
        return ask_with_gradient(self.workshop.reward, self._pictures(found, rows), prompts)

    def _pictures(self, found: Trajectories, rows: Tensor) -> Tensor:
        """Pictures (M,3,H,W) of samples ``rows``, with their history."""
        policy = self.workshop.policy
        text, latents = found.text.take(rows).rows(policy.guided), found.latents[self._without_gradient, rows]
        for step in range(self._without_gradient, len(policy.schedule)):
            noise = found.latents[step + 1, rows]  # not stepped over yet: see `Draw.steps`
            latents = policy.mean(step, latents, text) + policy.schedule.sigma[step] * noise
        return decoded(self.workshop.pipeline, latents)
