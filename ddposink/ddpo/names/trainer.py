"""TRL's names for what is here: a script written for TRL's DDPO changes its import and nothing else.

    from ddposink.ddpo.trl_names import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline

Names, signatures and values are those of TRL 0.23.1, methods that subclasses override among them. A training
runs on an engine of `ddposink.ddpo.make_engine`, or, where a script has its own of a method, through TRL's
methods (`ddposink.ddpo.names.steps`) on the same weights, optimizer and checkpoints.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ddposink.ddpo import config as configuration
from ddposink.ddpo.engine import make_engine
from ddposink.ddpo.names.config import DDPOConfig, checked
from ddposink.ddpo.names.layers import Layers, overridden_layers
from ddposink.ddpo.names.pipeline import DefaultDDPOStableDiffusionPipeline
from ddposink.ddpo.names.saving import Saving
from ddposink.ddpo.names.steps import TrlMethods, both, one_each
from ddposink.ddpo.protocol import StepLog
from ddposink.ddpo.trackers import log, start_trackers

__all__ = ["DDPOConfig", "DDPOTrainer", "DefaultDDPOStableDiffusionPipeline"]

# An engine does without these, so who has one of his own trains through them.
METHODS = ("compute_rewards", "calculate_loss", "loss", "_generate_samples", "_train_batched_samples")
ATTRIBUTES = ("stat_tracker", "neg_prompt_embed", "autocast", "trainable_layers", "num_train_timesteps")
ONLY_TRLS = "engine 'trl' runs TRL's own methods and settings: to have one's own use engine 'native'"
OF_PIPELINE = (
    "__call__",
    "scheduler_step",
    "autocast",
    "unet",
    "vae",
    "text_encoder",
    "tokenizer",
    "scheduler",
)


class DDPOTrainer(Saving, TrlMethods):
    """TRL's trainer on either engine of `ddposink.ddpo.make_engine`.

    ``reward_function(images, prompts, prompt_metadata)`` is handed pictures (B, 3, H, W) in [0, 1] and two
    tuples; it answers with rewards (B,), or with a pair of these and anything. ``prompt_function()`` answers
    (prompt, metadata). ``image_samples_hook(batches, global_step, tracker)`` gets for each sampled batch
    [images, prompts, prompt_metadata, rewards, reward_metadata], in each epoch. The pipeline is moved to
    the GPU if there is one. As in TRL the global random generators are seeded; a training draws from its own
    state of them. Raises ValueError, one line, for what cannot be trained with.
    """

    _by_steps = _inside = False
    engine: Any  # an Engine; TRL's methods look into it

    def __init__(
        self,
        config: Any,
        reward_function: Callable[..., Any],
        prompt_function: Callable[[], tuple[str, Any]],
        sd_pipeline: Any,
        image_samples_hook: Callable[[Any, Any, Any], Any] | None = None,
    ) -> None:
        self.config, self._given = config, sd_pipeline
        self.reward_fn, self.prompt_fn = reward_function, prompt_function
        self.image_samples_callback = image_samples_hook
        own = self._checked()
        is_okay, message = self._config_check()
        if not is_okay:
            raise ValueError(message)
        pipeline = getattr(sd_pipeline, "sd_pipeline", sd_pipeline)
        for part in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
            part.to(_device(own))
        stock = isinstance(sd_pipeline, DiffusionPipeline)
        self.sd_pipeline = (
            DefaultDDPOStableDiffusionPipeline.around(pipeline, own.use_lora) if stock else sd_pipeline
        )
        self._batches: list[list[Any]] = []
        self._start(own, pipeline)
        self.trackers = start_trackers(own, cpu=pipeline.unet.device.type == "cpu")
        self.first_epoch = 0
        if own.resume_from:
            self._resume(own.resume_from)
        # As TRL's constructor leaves them: what a script draws next is what it draws with TRL.
        self.engine._randomness._write(self.engine._randomness._state)

    def __setattr__(self, name: str, value: Any) -> None:
        """Attributes; what an engine does not look at is noticed."""
        if name in METHODS or name in ATTRIBUTES:
            self.__dict__["_by_steps"] = True
        super().__setattr__(name, value)

    def train(self, epochs: int | None = None) -> None:
        """Train ``epochs`` (default: ``num_epochs``), less those before ``resume_from``; saves the last."""
        first, last = self.first_epoch, self._checked().num_epochs if epochs is None else epochs
        global_step = first * self.engine.config.updates_per_epoch
        for epoch in range(first, last):
            done = self.engine.step
            with self._own_randomness() if self._overridden("step") else nullcontext():
                global_step = self.step(epoch, global_step)
            if self.engine.step == done:  # a step of the script's own
                self.engine.step += 1
            self._finish(epoch, last=epoch == last - 1)

    def step(self, epoch: int, global_step: int) -> int:
        """One epoch: sample, ask rewards, call the hook, learn, log. Returns ``global_step`` after it."""
        by_steps = self._goes_by_steps()
        with self._own_randomness():
            if by_steps:
                updates = self._step_by_step(epoch, global_step) - global_step
                self.engine.step += 1
            else:
                self._batches.clear()
                finished, updates = self.engine._train(), self.engine.config.updates_per_epoch
        if not by_steps:
            self._tell(finished, epoch, global_step)
        self._finish(epoch, last=False)
        return global_step + updates

    def _config_check(self) -> tuple[bool, str]:
        config, processes = self.config, int(os.environ.get("WORLD_SIZE", "1"))
        sample, learnt = config.sample_batch_size, config.train_batch_size
        drawn = sample * processes * config.sample_num_batches_per_epoch
        update = learnt * processes * config.train_gradient_accumulation_steps
        if sample < learnt:
            return False, f"Sample batch size ({sample}) must be at least the train batch size ({learnt})"
        if sample % learnt:
            return False, f"Sample batch size ({sample}) must be divisible by the train batch size ({learnt})"
        if drawn % update:
            return (
                False,
                f"Samples per epoch ({drawn}) must be divisible by the samples of an update ({update})",
            )
        return True, ""

    def _checked(self) -> configuration.DDPOConfig:
        """The configuration as it is now. The pipeline knows about LoRA, if it says so."""
        config = self.config
        stock = isinstance(self._given, DiffusionPipeline)
        use_lora = getattr(self._given, "use_lora", stock and getattr(config, "use_lora", True))
        told = isinstance(config, configuration.DDPOConfig) and not isinstance(config, DDPOConfig)
        if told and use_lora and not config.use_lora:
            raise ValueError(
                "the configuration has use_lora False, the pipeline True: give the pipeline False too"
            )
        return checked(config, use_lora)

    def _start(self, own: configuration.DDPOConfig, pipeline: Any) -> None:
        """Make the engine, on the layers and with the optimizer that are overridden, if any are."""
        self._made_of = own.decisive()
        engine_only = own.engine == "trl"
        if engine_only and (self._has_its_own() or self._overridden("_setup_optimizer")):
            raise ValueError(ONLY_TRLS)
        layers: Layers | None = None
        if not engine_only and self._pipeline_overrides("get_trainable_layers"):
            layers = overridden_layers(self.sd_pipeline, own, pipeline.unet.device)
            own = layers.config
        # The engine's own trackers, threads and checkpoints would be second ones.
        quiet = replace(own, log_with=None, async_reward_computation=False, resume_from="")
        self.engine = make_engine(quiet, pipeline, self._named_reward(), self._prompt)
        if layers is not None:
            layers.put_into(self.engine)
        if not engine_only:
            self.engine._learner.optimizer = self._setup_optimizer(self.trainable_layers)

    def _overridden(self, *names: str) -> bool:
        """Whether a subclass, or this trainer, has methods of its own."""
        mine = type(self)
        return any(n in self.__dict__ or getattr(mine, n) is not getattr(DDPOTrainer, n) for n in names)

    def _pipeline_overrides(self, *names: str) -> bool:
        """Whether the pipeline's class has its own of these. Those that TRL and we ship have not."""
        theirs = type(self.sd_pipeline).__mro__
        return any(
            name in kind.__dict__
            for kind in theirs
            if kind.__module__.partition(".")[0] not in ("builtins", "trl")
            and kind is not DefaultDDPOStableDiffusionPipeline
            for name in names
        )

    def _goes_by_steps(self) -> bool:
        """Whether an epoch must go through TRL's methods, as something is not what the engine was made of."""
        by_steps = self._checked().decisive() != self._made_of or self._has_its_own()
        if by_steps and self.engine.config.engine == "trl":
            raise ValueError(ONLY_TRLS)
        return by_steps

    def _has_its_own(self) -> bool:
        return self._by_steps or self._overridden(*METHODS) or self._pipeline_overrides(*OF_PIPELINE)

    @contextmanager
    def _own_randomness(self) -> Iterator[None]:
        """The engine's random state; a step that calls the base's step is in it already."""
        if self._inside:
            yield
            return
        self._inside = True
        try:
            with self.engine._working():
                yield
        finally:
            self._inside = False

    def _prompt(self) -> str:
        answer = self.prompt_fn()
        if not (isinstance(answer, tuple | list) and len(answer) == 2):
            raise ValueError(f"prompt_function must answer (prompt, metadata), not {answer!r}")
        return _Prompt(answer[0], answer[1]) if isinstance(answer[0], str) else answer[0]

    def _named_reward(self) -> Callable[[Tensor, list[str]], Tensor]:
        """`_reward` under the name of the script's function, which is what sentences about it call it."""

        def reward(images: Tensor, prompts: list[str]) -> Tensor:
            return self._reward(images, prompts)

        reward.__qualname__ = getattr(self.reward_fn, "__qualname__", type(self.reward_fn).__name__)
        return reward

    def _reward(self, images: Tensor, prompts: list[str]) -> Tensor:
        # By the prompt itself: `draft` asks in another order than was drawn in.
        metadata = tuple(prompt.metadata for prompt in prompts)  # type: ignore[attr-defined]
        prompts = list(map(str, prompts))
        scores, about = both(self.reward_fn(images, tuple(prompts), metadata))
        scores = torch.as_tensor(scores, device=images.device)
        if self.image_samples_callback is not None:
            self._batches.append([images, tuple(prompts), metadata, scores, about])
        return one_each(scores)

    def _tell(self, finished: StepLog, epoch: int, global_step: int) -> None:
        """Hook and trackers, of an epoch that the engine has trained."""
        if self.image_samples_callback is not None:
            self.image_samples_callback(self._batches, global_step, self.trackers[0])
        values: dict[str, Any] = {"epoch": epoch}
        more = {"reward_mean": finished.reward_mean, "reward_std": finished.reward_std}
        more |= {"approx_kl": finished.approx_kl, "clipfrac": finished.clip_fraction}
        values |= {"loss": finished.loss} | {name: v for name, v in more.items() if v is not None}
        log(self.trackers, values | _told(finished), global_step)


class _Prompt(str):
    """A prompt and what the script says about it; a plain text where it is sent to other processes."""

    __slots__ = ("metadata",)
    metadata: Any

    def __new__(cls, text: str, metadata: Any) -> _Prompt:
        found = super().__new__(cls, text)
        found.metadata = metadata
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)


_TOLD = (
    "sampling_s", "reward_s", "training_s", "gradient_norm", "ratio_mean", "ratio_std", "clipped_above",
    "clipped_below", "kl_base", "flat_share",
)  # fmt: skip


def _told(finished: StepLog) -> dict[str, float]:
    """What the engine tells beyond TRL's own numbers, for the trackers."""
    found = {name: getattr(finished, name) for name in _TOLD}
    found |= {f"reward/{name}": value for name, value in finished.parts.items()}
    found |= {f"variance_share/{name}": value for name, value in finished.shares.items()}
    for name, row in finished.by_step.items():
        found |= {f"{name}/denoising_step_{step + 1}": value for step, value in enumerate(row)}
    return {name: value for name, value in found.items() if value is not None}


def _device(config: configuration.DDPOConfig) -> str:
    if config.accelerator_kwargs.get("cpu") or not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
