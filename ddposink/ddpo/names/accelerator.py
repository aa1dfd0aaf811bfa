"""The ``accelerator`` that methods written for TRL's trainer find on theirs, and what they find beside it.

It is accelerate's own, and holds nothing of the training: optimizer, loss scaling, trackers and checkpoints
are the engine's, so that the engine and methods that go round it train the same thing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import ProjectConfiguration
from torch import Tensor

from ddposink.ddpo import grpo
from ddposink.ddpo.config import DDPOConfig
from ddposink.ddpo.stats import PROMPT_EPSILON, Prompts
from ddposink.ddpo.trackers import log
from ddposink.ddpo.trl import state


class TrainersAccelerator(Accelerator):
    """Accelerate's, made for an engine. ``save`` and ``load`` take a checkpoint's folder or None."""

    def __init__(
        self,
        engine: Any,
        trackers: list[Any],
        save: Callable[[Any], None],
        load: Callable[[Any], None],
    ) -> None:
        config: DDPOConfig = engine.config
        device = engine.pipeline.unet.device.type
        precision = config.precision_on(device)
        state.prepare_accelerate(device, precision)
        super().__init__(
            mixed_precision=precision,
            project_config=ProjectConfiguration(**config.project_kwargs),
            # Gradients are accumulated over denoising steps, too.
            gradient_accumulation_steps=config.train_gradient_accumulation_steps * config.num_train_timesteps,
            **config.accelerator_kwargs | {"cpu": device == "cpu"},
        )
        self.trackers, self._save, self._load = trackers, save, load
        self._ranks = engine._ranks
        if precision == "fp16":
            self.scaler = engine._learner.scaler

    def clip_grad_norm_(self, parameters: Any, max_norm: float, norm_type: float = 2) -> Any:
        """Accelerate's, of gradients that are averaged over the processes first: nothing else does it."""
        parameters = list(parameters)
        if self.sync_gradients:
            self._ranks.average_gradients(parameters)
        return super().clip_grad_norm_(parameters, max_norm, norm_type)

    def log(self, values: dict[str, Any], step: int | None = None, log_kwargs: Any = None) -> None:
        """Log to every tracker, numpy's numbers as plain ones."""
        log(self.trackers, values, step or 0)

    def save_state(self, output_dir: Any = None, **_: Any) -> None:
        """Write the trainer's checkpoint."""
        self._save(output_dir)

    def load_state(self, input_dir: Any = None, **_: Any) -> None:
        """Go on from the trainer's checkpoint."""
        self._load(input_dir)


class StepsWithAccelerator(AcceleratedOptimizer):
    """The engine's optimizer, which inside ``accelerator.accumulate`` steps once an update."""

    def __init__(self, accelerator: Accelerator, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer, device_placement=False, scaler=accelerator.scaler)


class StatTracker:
    """TRL's ``PerPromptStatTracker``, over the statistics that the engine keeps and saves."""

    def __init__(self, statistics: Prompts) -> None:
        self._statistics = statistics

    def update(self, prompts: Sequence[str], rewards: Any) -> Any:
        """Take in rewards (N,), one a prompt; returns advantages (N,), a numpy array of their dtype."""
        return self._statistics.update(list(prompts), np.array(rewards))

    def get_stats(self) -> dict[str, dict[str, Any]]:
        """Mean, standard deviation and count of the rewards kept of each prompt."""
        return {
            prompt: {"mean": np.mean(kept), "std": np.std(kept), "count": len(kept)}
            for prompt, kept in self._statistics.state().items()
        }


class TrlAttributes:
    """To be mixed into a trainer that has ``config``, ``engine``, ``sd_pipeline``, functions and trackers."""

    config: Any  # as given: what is assigned to it counts from the next step on
    engine: Any
    sd_pipeline: Any
    reward_fn: Callable[..., Any]
    prompt_fn: Callable[[], Any]
    image_samples_callback: Callable[[Any, Any, Any], Any] | None
    trackers: list[Any]
    _save_to: Callable[[Any], None]
    _load_from: Callable[[Any], None]
    _optimizer: StepsWithAccelerator | None = None

    @cached_property
    def accelerator(self) -> TrainersAccelerator:
        """Accelerate's view of this process. Raises ValueError where the engine cannot be gone round."""
        config = self.engine.config
        if config.engine != "native":
            raise ValueError(
                "engine 'trl' runs TRL's own methods: to call or override them use engine 'native'"
            )
        if config.loss != "is":
            raise ValueError(
                "TRL's methods have only the loss 'is'; 'sf' needs a trainer that overrides none"
            )
        if used := beyond_trl(config):
            raise ValueError(
                f"TRL's methods know no {used}: with a method or a pipeline of one's own leave it out, or "
                "train with a trainer that overrides none"
            )
        return TrainersAccelerator(self.engine, self.trackers, self._save_to, self._load_from)

    @property
    def optimizer(self) -> Any:
        """The engine's optimizer as accelerate wraps it; assigning another one replaces the engine's."""
        if self._optimizer is None or self._optimizer.optimizer is not self.engine._learner.optimizer:
            self._optimizer = StepsWithAccelerator(self.accelerator, self.engine._learner.optimizer)
        return self._optimizer

    @optimizer.setter
    def optimizer(self, optimizer: Any) -> None:
        self.engine._learner.optimizer = getattr(optimizer, "optimizer", optimizer)

    @cached_property
    def trainable_layers(self) -> list[Any]:
        """The parameters that are learnt."""
        return list(self.engine._learner.weights.values())

    @cached_property
    def neg_prompt_embed(self) -> Tensor:
        """Embeddings (K, L, D) of the negative prompts, one unless there are commas in them."""
        return encoded(self.sd_pipeline, self.engine.config.negatives, self.accelerator.device)[1]

    @cached_property
    def autocast(self) -> Callable[[], Any]:
        """Makes the context of every forward: none for LoRA, accelerate's for full fine-tuning."""
        return getattr(self.sd_pipeline, "autocast", None) or self.accelerator.autocast

    @cached_property
    def stat_tracker(self) -> StatTracker:
        """Rewards of each prompt."""
        kept, epsilon = self.engine._comparison, self.engine.config.advantage_epsilon
        if not isinstance(kept, Prompts):  # the engine has none as they would never be used
            kept = Prompts(
                self.config.per_prompt_stat_tracking_buffer_size,
                self.config.per_prompt_stat_tracking_min_count,
                PROMPT_EPSILON if epsilon is None else epsilon,
            )
        return StatTracker(kept)

    @cached_property
    def executor(self) -> ThreadPoolExecutor:
        """Where rewards are computed with ``async_reward_computation``."""
        return ThreadPoolExecutor(max_workers=self.engine.config.max_workers)

    @cached_property
    def num_train_timesteps(self) -> int:
        """Denoising steps of each sample that are learnt from."""
        return self.engine.config.num_train_timesteps


def beyond_trl(config: Any) -> str | None:
    """The first setting that only the engine's own training step obeys; None if there is none."""
    if config.algorithm != "ddpo":
        return f"algorithm '{config.algorithm}'"
    passed_on = ("advantage_deviation",)  # which the comparison obeys, see `TrlMethods._advantages`
    used = (n for n, default in grpo.OPTIONS.items() if n not in passed_on and getattr(config, n) != default)
    return next(used, None)


def encoded(pipeline: Any, texts: Iterable[str], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids (B, L) and embeddings (B, L, D) of ``texts``, on ``device``."""
    tokenizer = pipeline.tokenizer
    ids = tokenizer(
        list(texts),
        return_tensors="pt",
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
    ).input_ids.to(device)
    with torch.no_grad():
        return ids, pipeline.text_encoder(ids)[0]
