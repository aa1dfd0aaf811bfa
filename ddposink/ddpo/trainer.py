"""The native DDPO engine: TRL's algorithm, laid out anew.

A training step samples an epoch of trajectories, asks the reward, turns rewards into advantages and learns.
What differs from TRL is only how the work is cut into UNet forwards, and that nothing waits for the device
between them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddposink.ddpo import lora, rules
from ddposink.ddpo.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from ddposink.ddpo.config import DDPOConfig
from ddposink.ddpo.costs import forwards_of_a_step, samples_measured
from ddposink.ddpo.diagnostics import told
from ddposink.ddpo.layout import make_layout
from ddposink.ddpo.learner import Learner, updates
from ddposink.ddpo.merged import MergedLora
from ddposink.ddpo.networks import network_of
from ddposink.ddpo.policy import DenoisingPolicy, Texts
from ddposink.ddpo.protocol import DivergedError, Pipeline, Prompts, RewardFunction, StepLog
from ddposink.ddpo.randomness import PromptSource, Randomness
from ddposink.ddpo.ranks import Ranks
from ddposink.ddpo.reference import base_means, evenly
from ddposink.ddpo.sampler import Draw, Trajectories, sample
from ddposink.ddpo.schedule import DenoisingSchedule, flow_schedule, make_schedule
from ddposink.ddpo.table import flow_table, grid, shift_of
from ddposink.ddpo.verdict import Court
from ddposink.ddpo.window import DDIM
from ddposink.devices import keep_freed_pages
from ddposink.models.denoiser import denoiser, latent_shape, tokens_of

HALVES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class NativeEngine:
    """A DDPO training of a pipeline's denoising network in place. See `ddposink.ddpo.protocol.Engine`."""

    def __init__(
        self, config: DDPOConfig, pipeline: Pipeline, reward: RewardFunction, prompts: Prompts
    ) -> None:
        """ValueError, Unavailable: see `make_engine`."""
        self.config, self.pipeline, self.step = config, pipeline, 0
        self._reward, self._prompts = reward, PromptSource(prompts, config.samples_per_prompt)
        unet = denoiser(pipeline)
        self._device = unet.device
        self._ranks = Ranks(self._device)
        self._randomness = Randomness(config.seed + self._ranks.rank, self._device)
        self._fingerprint = lora.fingerprint(unet)
        half = HALVES[config.precision_on(self._device.type)]
        lora.freeze(pipeline, half, config.use_lora)
        self._original = None if config.use_lora else lora.copies(unet)
        self._merged: Callable[[], AbstractContextManager[None]] = nullcontext
        with self._working():
            weights = lora.make_trainable(unet, config)
        self._ranks.share_weights(weights.values())
        unet.eval()
        if config.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        network = network_of(pipeline, config.max_sequence_length, config.sample_guidance_scale)
        self._shape = latent_shape(pipeline)
        self._policy = DenoisingPolicy(
            unet=torch.compile(unet, dynamic=False) if config.compile else unet,
            schedule=self._schedule(),
            scale=config.sample_guidance_scale,
            dtype=half if config.use_lora else torch.float32,
            autocast=None if config.use_lora or half == torch.float32 else half,
            reduction=config.log_prob_reduction,
            network=network,
            guided=config.guided and not network.embeds_guidance,
            learns_guided=config.learns_guided and not network.embeds_guidance,
        )
        self._forwards = forwards_of_a_step(config, network.embeds_guidance)
        self._texts = Texts(pipeline, config.negatives, network)
        self._learner = Learner(config, self._policy, weights, self._ranks)
        self._court = Court(config, pipeline, reward, self._ranks)
        self._comparison = self._court.comparison
        self._layout = make_layout(config, self._shape[1] * self._shape[2], self._device.type)
        on_cpu = self._device.type == "cpu"
        if on_cpu:
            keep_freed_pages()
            pipeline.vae.to(memory_format=torch.channels_last)  # a sixth faster; the UNet gains nothing
        merge = config.use_lora and (on_cpu if config.merge_lora is None else config.merge_lora)
        if merge:
            self._merged = MergedLora(unet, lora.adapter(unet) or lora.ADAPTER).active

    def _schedule(self) -> DenoisingSchedule:
        """The denoising steps of the training step that comes next."""
        config, scheduler = self.config, self.pipeline.scheduler
        if config.sample_kernel == DDIM:
            return make_schedule(scheduler, config.sample_num_steps, config.sample_eta, self._device)
        shift = config.sample_shift or shift_of(scheduler, tokens_of(self.pipeline))
        times = grid(config.sample_num_steps, shift)
        noisy = range(0) if rules.deterministic(config) else config.window.at(self.step)
        return flow_schedule(
            flow_table(config.sample_kernel, times, config.sample_eta, noisy), noisy, self._device
        )

    def run(self, until: int) -> Iterator[StepLog]:
        """Train until ``step == until``, yielding after each step. Raises DivergedError."""
        while self.step < until:
            with self._working():
                log = self._train()
            yield log

    def save(self, folder: Path) -> None:
        """Write the full training state to ``folder``, at once or not at all. OSError if it cannot be."""
        states = self._ranks.gather(self._randomness.tensors())
        if self._ranks.first:
            write_checkpoint(folder, self._checkpoint(states))
        self._ranks.wait()

    def load(self, folder: Path) -> None:
        """Go on from ``folder``. ValueError if it is damaged or of another configuration."""
        saved = read_checkpoint(folder, like=self._checkpoint([]))
        saved.restore_learner(self._learner)
        if self._learner.average is not None:
            self._learner.average.restore(saved.tensors)
        self._randomness.restore(saved.random[self._ranks.rank])
        self._comparison.restore(saved.statistics)
        self.step = saved.step

    def base(self) -> AbstractContextManager[None]:
        """Inside, the network acts as before training."""
        return lora.without(denoiser(self.pipeline), self._original)

    def evaluated(self) -> AbstractContextManager[None]:
        """Inside, the network has the weights that are evaluated and exported: see `ddposink.ddpo.ema`."""
        average = self._learner.average
        return nullcontext() if average is None else average.active()

    def export(self, folder: Path) -> None:
        """Write what a stock pipeline loads: LoRA in diffusers format, or a ``unet`` folder."""
        if self._ranks.first:
            with self.evaluated():
                lora.export(self.pipeline, self.config, folder)
        self._ranks.wait()

    def ratio_deviation(self) -> Tensor:
        """Largest |ratio − 1| (T,) per denoising step between sampling and learning, without learning.

        Draws one batch and forgets it: the engine's random state and weights are as before.
        """
        randomness = Randomness(self.config.seed, self._device)
        with randomness.active(), self._merged(), torch.no_grad():
            found = self._sample(batches=1, keep_graph=False)
            deviation = []
            for step in self._policy.schedule.noisy:
                which = torch.full((len(found.prompts),), step, device=self._device)
                text = found.text.rows(self._policy.learns_guided)
                mean = self._policy.mean(which, found.latents[step], text)
                log_prob = self._policy.log_prob(which, mean, found.latents[step + 1])
                deviation.append(((log_prob - found.log_probs[step]).exp() - 1).abs().max())
        return torch.stack(deviation).cpu()

    def _train(self) -> StepLog:
        begun = time.perf_counter()
        found = self._sample(self.config.sample_num_batches_per_epoch, self.config.keep_sampling_graph)
        everybodys, mine = self._judge(found)
        sampled = time.perf_counter()
        if asked := samples_measured(self.config):
            with self.base():
                some = evenly(asked, len(found.prompts))
                rows, learnt = self._layout.sampling, self.config.window.size
                found.base = base_means(self._policy, found, rows, learnt, some)
        values = self._learn(found, torch.as_tensor(mine, device=self._device)).tolist()
        tally = told(self._ranks.mean(self._learner.tally.take()), bool(asked))
        self.step += 1
        samples = self.step * self.config.samples_per_epoch * self._ranks.count
        return StepLog(
            step=self.step,
            reward_mean=float(everybodys.mean()),
            reward_std=float(everybodys.std()),
            loss=values[0],
            approx_kl=values[1],
            clip_fraction=values[2],
            flat_share=self._comparison.flat_share,
            samples=samples,
            unet_forwards=self.step * self._ranks.count * self._forwards,
            sampling_s=sampled - begun,
            training_s=time.perf_counter() - sampled,
            reward_s=self._verdict.reward_s,
            gradient_norm=values[3] if math.isfinite(values[3]) else None,
            parts=self._verdict.parts,
            shares=self._verdict.shares,
            **vars(tally),
        )

    def _sample(self, batches: int, keep_graph: bool, steps: int | None = None) -> Trajectories:
        """``steps``: see `Draw`."""
        config = self.config
        denoiser(self.pipeline).eval()
        if config.sample_kernel != DDIM:
            self._policy.schedule = self._schedule()  # its window may have moved
        self._prompts.begin()
        prompts = [self._prompts.draw() for _ in range(config.sample_batch_size * batches)]
        text = self._texts.conditions(prompts, config.sample_batch_size, config.samples_per_prompt)
        draw = Draw(
            config.sample_batch_size,
            batches,
            self._layout.sampling,
            self._policy.guided,
            keep_graph,
            config.samples_per_prompt if config.share_initial_noise else 1,
            steps=steps,
            keep_means=config.ratio_norm,
        )
        return sample(self._policy, text, prompts, draw, self._shape)

    def _judge(self, found: Trajectories) -> tuple[Any, Any]:
        """Rewards of all processes, and this one's advantages; both (N,) float32 arrays."""
        if not bool(torch.isfinite(found.log_probs).all() & torch.isfinite(found.latents[-1]).all()):
            raise DivergedError("the sampled latents are not finite", self.step + 1)
        self._verdict = self._court.judge(found)
        return self._verdict.rewards, self._verdict.advantages

    def _learn(self, found: Trajectories, mine: Tensor) -> Tensor:
        """All updates of the step; mean loss, approximate KL, clip fraction and gradient norm (4,)."""
        network = denoiser(self.pipeline).train()
        values = torch.stack(
            [
                self._learner.update(found, mine, pairs, self._layout.learning)
                for pairs in updates(self.config, self._device, self._policy.schedule.noisy.start)
            ]
        )
        network.eval()
        # A scaled half-precision gradient may overflow; the scaler then leaves the update out.
        watched = values[:, :3] if self._learner.scaler.is_enabled() else values
        if not bool(torch.isfinite(watched).all()):
            what = "the loss" if not bool(torch.isfinite(values[:, :3]).all()) else "the gradient"
            raise DivergedError(f"{what} is not finite", self.step + 1)
        return self._ranks.mean(values.mean(0))

    def _checkpoint(self, states: list[dict[str, Tensor]]) -> Checkpoint:
        average = self._learner.average
        made = Checkpoint.of(
            self._learner,
            step=self.step,
            random=states,
            statistics=self._comparison.state(),
            identity=self.config.decisive()
            | {"processes": self._ranks.count, "base": self._fingerprint, "prompts": self._prompts.names()},
        )
        made.tensors |= {} if average is None else average.tensors()
        return made

    @contextmanager
    def _working(self) -> Iterator[None]:
        """The engine's random state, thread count and matrix precision; the caller's afterwards."""
        threads, matmul = torch.get_num_threads(), torch.backends.cuda.matmul
        tf32 = matmul.allow_tf32
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)
        if self.config.allow_tf32 and self._device.type == "cuda":
            matmul.allow_tf32 = True
        try:
            with self._randomness.active(), self._merged():
                yield
        finally:
            torch.set_num_threads(threads)
            matmul.allow_tf32 = tf32
