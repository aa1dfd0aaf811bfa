"""The reference engine: TRL 0.23.1's own DDPO trainer, repaired, behind the `Engine` protocol.

Nothing of the algorithm is here. TRL samples, computes advantages and loss, and updates; this module
hands it a pipeline that is already loaded, reads what it logs, and keeps its state. Leaving repairs out
(``disabled``) shows what they are for; `ddposink.ddpo.preflight.run` must notice.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddposink.ddpo import lora
from ddposink.ddpo.config import DDPOConfig
from ddposink.ddpo.costs import forwards_of_a_step
from ddposink.ddpo.judge import SeedWatch, ask_in_parts, joined
from ddposink.ddpo.protocol import DivergedError, Pipeline, Prompts, RewardFunction, StepLog
from ddposink.ddpo.randomness import PromptSource, Randomness
from ddposink.ddpo.ranks import Ranks
from ddposink.ddpo.schedule import float32_eta
from ddposink.ddpo.several import Parts, told
from ddposink.ddpo.stats import make_comparison
from ddposink.ddpo.trl import state
from ddposink.ddpo.trl.pipeline import around
from ddposink.ddpo.trl.repairs import TrlClasses, repaired
from ddposink.ddpo.trl.watch import Watched


class TrlEngine:
    """A DDPO training by TRL. See `ddposink.ddpo.protocol.Engine`."""

    def __init__(
        self,
        config: DDPOConfig,
        pipeline: Pipeline,
        reward: RewardFunction,
        prompts: Prompts,
        *,
        disabled: Sequence[str] = (),
    ) -> None:
        """``disabled`` names repairs to leave out. ValueError, Unavailable: see `make_engine`."""
        _check(config)
        if not config.split_negative_prompts:
            disabled = [*disabled, "negative-prompts"]
        self.config = config
        self.pipeline = pipeline
        self.step = 0
        self._disabled = tuple(disabled)
        self._said: list[dict[str, Tensor]] = []
        source = self._prompts = PromptSource(prompts, config.samples_per_prompt)
        classes = repaired(disabled)
        device = pipeline.unet.device
        state.prepare_accelerate(device.type, _precision(config, device.type, disabled))
        wrapped = around(classes.pipeline, pipeline, config)
        self._identity = config.decisive() | {
            "base": lora.fingerprint(pipeline.unet),
            "prompts": source.names(),
        }
        self._original = None if config.use_lora else lora.copies(pipeline.unet)
        self._randomness = Randomness(config.seed, device)  # TRL seeds it again, and adds the rank
        with self._working():
            self._trainer = _trainer(
                classes, config, device.type, self._for_trl(reward), source, wrapped, disabled
            )
        self._updates = 0

    def run(self, until: int) -> Iterator[StepLog]:
        """Train until ``step == until``, yielding after each step. Raises DivergedError."""
        while self.step < until:
            with self._working():
                log = self._train()
            yield log

    def save(self, folder: Path) -> None:
        """Write the full training state to ``folder``, at once or not at all."""
        with self._working():
            state.save(folder, self._trainer, self._identity, self.step)

    def load(self, folder: Path) -> None:
        """Go on from ``folder``. ValueError if it is damaged or of another configuration."""
        with self._working():
            self.step = state.load(folder, self._trainer, self._identity)
        self._updates = self.step * self.config.updates_per_epoch

    def base(self) -> AbstractContextManager[None]:
        """Inside, ``pipeline.unet`` acts as before training."""
        return lora.without(self.pipeline.unet, self._original)

    def export(self, folder: Path) -> None:
        """Write what a stock pipeline loads: LoRA in diffusers format, or a ``unet`` folder."""
        if not self._trainer.accelerator.is_main_process:
            return
        if "save-pretrained" in self._disabled:
            self._trainer.sd_pipeline.save_pretrained(str(folder))
        else:
            lora.export(self.pipeline, self.config, folder)

    def ratio_deviation(self) -> Tensor:
        """Largest |ratio − 1| (T,) per denoising step between sampling and learning, without learning.

        Draws one batch and forgets it: the engine's random state and weights are as before.
        """
        randomness = Randomness(self.config.seed, self.pipeline.unet.device)
        self._prompts.begin()
        with randomness.active(), _quiet():
            deviation = self._trainer.ratio_deviation()
        self.pipeline.unet.eval()
        return deviation

    def _for_trl(self, reward: RewardFunction) -> Callable[..., tuple[Tensor, dict[str, Any]]]:
        watch = SeedWatch()

        def reward_function(
            images: Tensor, prompts: tuple[str, ...], _: Any
        ) -> tuple[Tensor, dict[str, Any]]:
            with watch.over(reward):
                found, parts = ask_in_parts(reward, images, list(prompts))
            self._said.append({name: values.cpu() for name, values in parts.items()})
            return found, {}

        return reward_function

    def _parts(self) -> Parts:
        """What the parts of a sum of rewards said in this training step, of all processes."""
        everybodys = [some for said in Ranks(self.pipeline.unet.device).gather(self._said) for some in said]
        return {name: said.numpy() for name, said in joined(everybodys).items()}

    @contextmanager
    def _working(self) -> Iterator[None]:
        """The engine's random state, its thread count, and no chatter."""
        threads = torch.get_num_threads()
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)
        try:
            with self._randomness.active(), _quiet():
                yield
        finally:
            torch.set_num_threads(threads)

    def evaluated(self) -> AbstractContextManager[None]:
        """The weights as they are: TRL's engine keeps no average."""
        return nullcontext()

    def _train(self) -> StepLog:
        trainer, started = self._trainer, time.perf_counter()
        trainer.logged.clear()
        self._said.clear()
        self._prompts.begin()
        self._updates = trainer.step(self.step, self._updates)
        self.pipeline.unet.eval()
        finished = time.perf_counter()
        self.step += 1
        values = trainer.means()
        for name, value in values.items():
            if not torch.isfinite(torch.tensor(value)):
                raise DivergedError(f"{name} is {value}", self.step)
        steps = self.step * trainer.accelerator.num_processes
        parts, shares = told(self._parts(), self.config.group)
        return StepLog(
            step=self.step,
            reward_mean=values["reward_mean"],
            reward_std=values["reward_std"],
            loss=values["loss"],
            approx_kl=values["approx_kl"],
            clip_fraction=values["clipfrac"],
            flat_share=trainer.flat_share,
            samples=steps * self.config.samples_per_epoch,
            unet_forwards=steps * forwards_of_a_step(self.config),
            sampling_s=trainer.sampled_at - started,
            training_s=finished - trainer.sampled_at,
            parts=parts,
            shares=shares,
        )


def _check(config: DDPOConfig) -> None:
    """ValueError for what TRL's trainer cannot do."""
    if not config.guided:
        raise ValueError("TRL's engine cannot sample without guidance: sample_guidance_scale must be above 1")
    if config.log_prob_reduction != "mean":
        raise ValueError("TRL's engine takes the mean log-probability: log_prob_reduction must be 'mean'")


def _precision(config: DDPOConfig, device: str, disabled: Sequence[str]) -> str:
    return config.mixed_precision if "fp16-on-cpu" in disabled else config.precision_on(device)


def _trainer(
    classes: TrlClasses,
    config: DDPOConfig,
    device: str,
    reward: Any,
    source: PromptSource,
    pipeline: Any,
    disabled: Sequence[str],
) -> Any:
    values = {f.name: getattr(config, f.name) for f in fields(classes.config)}
    values["resume_from"] = ""  # the engine's caller says where from
    values["accelerator_kwargs"] = {"cpu": device == "cpu"} | config.accelerator_kwargs
    # A little more than the ratio: TRL truncates the product with the number of denoising steps.
    values["train_timestep_fraction"] = (config.num_train_timesteps + 0.5) / config.sample_num_steps
    values["sample_eta"] = float32_eta(pipeline.scheduler, config.sample_eta)
    own: dict[str, Any] = {
        "skipped": config.train_skip_last_steps,
        "samples_per_prompt": config.samples_per_prompt,
    }
    if "advantages" not in disabled:
        values["per_prompt_stat_tracking"] = True  # makes TRL ask its tracker, in whose place ours is put
        own["comparison"] = make_comparison(config)
    watched = type("WatchedTrainer", (Watched, classes.trainer), own)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "fp16 needs a GPU")
        trainer = watched(classes.config(**values), reward, lambda: (source.draw(), {}), pipeline)
    pipeline.set_progress_bar_config(disable=True)
    return trainer


@contextmanager
def _quiet() -> Iterator[None]:
    """TRL and diffusers announce at every start what every start does."""
    noisy = [logging.getLogger(name) for name in ("trl", "diffusers.models.modeling_utils")]
    before = [logger.level for logger in noisy]
    for logger in noisy:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*_encode_prompt", FutureWarning)
            yield
    finally:
        for logger, level in zip(noisy, before, strict=True):
            logger.setLevel(level)
