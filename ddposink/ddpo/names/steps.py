"""The methods of TRL's DDPO trainer that scripts call or override, on the engine's weights and optimizer.

The engines have no such methods: they lay the work out anew. Where a script has its own of one of them,
`step` goes through these, TRL's algorithm in TRL's cut. Signatures,
shapes and values are those of TRL 0.23.1.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ddposink.ddpo.learner import make_optimizer
from ddposink.ddpo.names.accelerator import TrlAttributes, encoded
from ddposink.ddpo.randomness import shared_noise
from ddposink.ddpo.stats import make_comparison

OVER_TIME = ("timesteps", "latents", "next_latents", "log_probs")  # (B, T, …); the other samples are (B, …)


class TrlMethods(TrlAttributes):
    """To be mixed into a trainer."""

    def compute_rewards(
        self, prompt_image_pairs: list[Any], is_async: bool = False
    ) -> Iterator[tuple[Any, ...]]:
        """Of ``_generate_samples``' pairs: all rewards, a tensor (B,) a batch, then all their metadata."""
        run = self.executor.map if is_async else map
        answers = run(lambda batch: self.reward_fn(*batch[:3]), prompt_image_pairs)
        device = self.accelerator.device
        pairs = [(torch.as_tensor(reward, device=device), about) for reward, about in map(both, answers)]
        return zip(*pairs, strict=True)

    def calculate_loss(
        self,
        latents: Tensor,
        timesteps: Tensor,
        next_latents: Tensor,
        log_probs: Tensor,
        advantages: Tensor,
        embeds: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, approximate KL and clip fraction, each (), of one denoising step.

        ``latents`` and ``next_latents`` (B,C,H,W); ``timesteps``, ``log_probs`` and ``advantages`` (B,);
        ``embeds`` (B,L,D), or with ``train_cfg`` (2B,L,D), the negative prompts' first.
        """
        config, unet = self.config, self.sd_pipeline.unet
        _ = self.accelerator  # which refuses what these methods cannot do
        with self.autocast():
            if config.train_cfg:
                output = unet(torch.cat([latents] * 2), torch.cat([timesteps] * 2), embeds).sample
                negative, positive = output.chunk(2)
                output = negative + config.sample_guidance_scale * (positive - negative)
            else:
                output = unet(latents, timesteps, embeds).sample
            step = self.sd_pipeline.scheduler_step(
                output, timesteps, latents, eta=config.sample_eta, prev_sample=next_latents
            )
        log_prob = self._reduced(step.log_probs, latents)
        most = config.train_adv_clip_max
        ratio = torch.exp(log_prob - log_probs)
        loss = self.loss(torch.clamp(advantages, -most, most), config.train_clip_range, ratio)
        approx_kl = 0.5 * torch.mean((log_prob - log_probs) ** 2)
        clipped = torch.mean(((ratio - 1).abs() > config.train_clip_range).float())
        return loss, approx_kl, clipped

    def loss(self, advantages: Tensor, clip_range: float, ratio: Tensor) -> Tensor:
        """The clipped policy-gradient loss (), to be minimised, of ``advantages`` and ``ratio`` (B,)."""
        clipped = torch.clamp(ratio, 1.0 - clip_range, 1.0 + clip_range)
        return torch.mean(torch.maximum(-advantages * ratio, -advantages * clipped))

    def _setup_optimizer(self, trainable_layers_parameters: Any) -> torch.optim.Optimizer:
        return make_optimizer(self.engine.config, list(trainable_layers_parameters))

    def _generate_samples(
        self, iterations: int, batch_size: int
    ) -> tuple[list[dict[str, Tensor]], list[list[Any]]]:
        """``iterations`` batches: their trajectories, and [pictures (B,3,H,W), prompts, metadata] of each.

        Of B samples and T denoising steps: ``prompt_ids`` (B,L), ``prompt_embeds`` and
        ``negative_prompt_embeds`` (B,L,D), ``timesteps`` (B,T), ``latents`` and ``next_latents`` (B,T,C,H,W),
        ``log_probs`` (B,T).
        """
        self.sd_pipeline.unet.eval()
        negative = self.neg_prompt_embed
        group = self.engine.config.samples_per_prompt
        negative = negative[torch.arange(batch_size) // group % len(negative)]
        samples, pairs = [], []
        for _ in range(iterations):
            prompts, metadata = zip(*self._prompts(batch_size), strict=True)
            ids, embeddings = encoded(self.sd_pipeline, prompts, self.accelerator.device)
            images, trajectory = self._draw(embeddings, negative)
            samples.append(
                {"prompt_ids": ids, "prompt_embeds": embeddings}
                | trajectory
                | {"negative_prompt_embeds": negative}
            )
            pairs.append([images, prompts, metadata])
        return samples, pairs

    def _train_batched_samples(
        self, inner_epoch: int, epoch: int, global_step: int, batched_samples: list[dict[str, Tensor]]
    ) -> int:
        """Learn from training batches; logs each update and returns ``global_step`` after them."""
        found: dict[str, list[Tensor]] = defaultdict(list)
        for sample in batched_samples:
            embeds = sample["prompt_embeds"]
            if self.config.train_cfg:
                embeds = torch.cat([sample["negative_prompt_embeds"], embeds])
            for j in range(self.num_train_timesteps):
                with self.accelerator.accumulate(self.sd_pipeline.unet):
                    latents, times = sample["latents"][:, j], sample["timesteps"][:, j]
                    following, log_probs = sample["next_latents"][:, j], sample["log_probs"][:, j]
                    values = self.calculate_loss(
                        latents, times, following, log_probs, sample["advantages"], embeds
                    )
                    for name, value in zip(("loss", "approx_kl", "clipfrac"), values, strict=True):
                        found[name].append(value.detach())
                    self.accelerator.backward(values[0])
                    if self.accelerator.sync_gradients:
                        self.accelerator.clip_grad_norm_(
                            self.trainable_layers, self.config.train_max_grad_norm
                        )
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                if self.accelerator.sync_gradients:
                    means = {name: torch.stack(values).mean() for name, values in found.items()}
                    means = self.accelerator.reduce(means, reduction="mean")
                    self.accelerator.log(
                        means | {"epoch": epoch, "inner_epoch": inner_epoch}, step=global_step
                    )
                    found.clear()
                    global_step += 1
        return global_step

    def _step_by_step(self, epoch: int, global_step: int) -> int:
        """One training step through the methods above; returns ``global_step`` after its updates."""
        config, accelerator = self.config, self.accelerator
        drawn, pairs = self._generate_samples(
            iterations=config.sample_num_batches_per_epoch, batch_size=config.sample_batch_size
        )
        samples = {name: torch.cat([batch[name] for batch in drawn]) for name in drawn[0]}
        batches, about = self.compute_rewards(pairs, is_async=config.async_reward_computation)
        for pair, reward, metadata in zip(pairs, batches, about, strict=True):
            pair.extend([reward, metadata])
        if self.image_samples_callback is not None:
            self.image_samples_callback(pairs, global_step, accelerator.trackers[0])
        samples["advantages"] = self._advantages(
            torch.cat(batches), samples.pop("prompt_ids"), epoch, global_step
        )
        for inner_epoch in range(config.train_num_inner_epochs):
            samples = _shuffled(samples)
            self.sd_pipeline.unet.train()
            batched = _batched(samples, config.train_batch_size)
            global_step = self._train_batched_samples(inner_epoch, epoch, global_step, batched)
            if not accelerator.sync_gradients:
                raise ValueError(
                    "an inner epoch ended between two updates: samples do not split into updates"
                )
        self.sd_pipeline.unet.eval()
        return global_step

    def _advantages(self, rewards: Tensor, prompt_ids: Tensor, epoch: int, global_step: int) -> Tensor:
        """Of this process's ``rewards`` (N,), as everybody's are spread; logs them. ``prompt_ids`` (N, L)."""
        accelerator, rewards = self.accelerator, one_each(rewards)
        if rewards.shape != prompt_ids.shape[:1]:
            raise ValueError(
                f"rewards are {tuple(rewards.shape)} for {len(prompt_ids)} pictures, not one each"
            )
        everybodys = accelerator.gather(rewards).float().cpu().numpy()
        spread = {"reward_mean": everybodys.mean(), "reward_std": everybodys.std()}
        accelerator.log({"reward": everybodys, "epoch": epoch} | spread, step=global_step)
        if self.engine.config.compares == "prompt":
            ids = accelerator.gather(prompt_ids).cpu().numpy()
            prompts = self.sd_pipeline.tokenizer.batch_decode(ids, skip_special_tokens=True)
            found = self.stat_tracker.update(prompts, everybodys)
        else:  # which look at no prompt
            found = make_comparison(self.engine.config).update([], everybodys)
        mine = torch.as_tensor(found).reshape(accelerator.num_processes, -1)[accelerator.process_index]
        return mine.to(accelerator.device)

    def _prompts(self, count: int) -> list[tuple[str, Any]]:
        times = self.engine.config.samples_per_prompt
        return [found for _ in range(count // times) for found in [self.prompt_fn()] * times]

    def _draw(self, embeddings: Tensor, negative: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Pictures and a trajectory for each of the prompts ``embeddings`` (B,L,D)."""
        ours, config, latents = self.engine.config, self.config, None
        if ours.share_initial_noise:
            shape = (len(embeddings), *self.engine._shape)
            noise = torch.randn(shape, device=embeddings.device, dtype=embeddings.dtype)
            latents = shared_noise(noise, ours.samples_per_prompt)
        guided = config.sample_guidance_scale > 1
        with self.autocast():
            drawn = self.sd_pipeline(
                prompt_embeds=embeddings,
                negative_prompt_embeds=negative if guided else None,
                num_inference_steps=config.sample_num_steps,
                guidance_scale=config.sample_guidance_scale,
                eta=config.sample_eta,
                output_type="pt",
                **{} if latents is None else {"latents": latents},
            )
        states, log_probs = torch.stack(drawn.latents, dim=1), torch.stack(drawn.log_probs, dim=1)
        learnt = log_probs.shape[1] - ours.train_skip_last_steps
        times = self.sd_pipeline.scheduler.timesteps.repeat(len(embeddings), 1)
        return drawn.images, {
            "timesteps": times[:, :learnt],
            "latents": states[:, :learnt],
            "next_latents": states[:, 1 : learnt + 1],
            "log_probs": self._reduced(log_probs[:, :learnt], states[:, 0]),
        }

    def _reduced(self, log_probs: Tensor, latents: Tensor) -> Tensor:
        """TRL's mean over the latents' dimensions, or their sum if that is wanted."""
        return log_probs * (latents[0].numel() if self.engine.config.log_prob_reduction == "sum" else 1)


def both(answer: Any) -> tuple[Any, Any]:
    """Rewards and their metadata, of a reward function that answers with both or with rewards alone."""
    return answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, {})


def one_each(rewards: Tensor) -> Tensor:
    """Rewards (B,), which a function may answer as (B, 1): TRL takes a column too."""
    return rewards[:, 0] if rewards.ndim == 2 and rewards.shape[1] == 1 else rewards


def _shuffled(samples: dict[str, Tensor]) -> dict[str, Tensor]:
    """Samples in another order, and the denoising steps of each; drawn as TRL draws them."""
    count, steps = samples["timesteps"].shape
    device = samples["timesteps"].device
    order = torch.randperm(count, device=device)
    samples = {name: values[order] for name, values in samples.items()}
    times = torch.stack([torch.randperm(steps, device=device) for _ in range(count)])
    rows = torch.arange(count, device=device)[:, None]
    return samples | {name: samples[name][rows, times] for name in OVER_TIME}


def _batched(samples: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    split = {name: values.split(size) for name, values in samples.items()}
    return [dict(zip(split, rows, strict=True)) for rows in zip(*split.values(), strict=True)]
