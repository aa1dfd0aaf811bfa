"""What a preflight examines: fresh engines of one configuration on copies of one pipeline."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from ddposink.ddpo.config import DDPOConfig
from ddposink.ddpo.engine import make_engine
from ddposink.ddpo.protocol import Engine, Pipeline
from ddposink.models.denoiser import denoiser

PROMPTS = ("red apple", "tiger face")
MOST_STEPS, FEW_STEPS = 10, 3  # denoising steps: where their noise matters, and where it does not


class NotPossible(Exception):  # noqa: N818 - a state of the world, not a mistake
    """The question cannot be put here; the message says why."""


class Finding(NamedTuple):
    """The answer to one question."""

    ok: bool | None
    value: str
    limit: str
    note: str


@dataclass(frozen=True)
class Subject:
    """What is examined: fresh engines of one configuration on copies of one pipeline."""

    pipeline: Pipeline  # never trained itself
    config: DDPOConfig
    disabled: Sequence[str] = ()  # repairs of TRL's engine to leave out

    @property
    def device(self) -> str:
        """Kind of device: cpu, cuda."""
        return denoiser(self.pipeline).device.type

    @property
    def precision(self) -> str:
        """no, fp16 or bf16, as it is on this device."""
        return self.config.precision_on(self.device)

    def pipeline_copy(self) -> Pipeline:
        """The same pipeline with networks of its own."""
        parts = {
            name: copy.deepcopy(part) if isinstance(part, nn.Module) else part
            for name, part in self.pipeline.components.items()
        }
        if "requires_safety_checker" in self.pipeline.config:
            parts["requires_safety_checker"] = False
        fresh = type(self.pipeline)(**parts)
        fresh.set_progress_bar_config(disable=True)
        return fresh

    def shortened(self) -> Subject:
        """The same with few denoising steps."""
        steps = min(self.config.sample_num_steps, FEW_STEPS)
        config = replace(
            self.config, sample_num_steps=steps, sample_sde_window=None,
            draft_steps=min(self.config.draft_steps, steps),
        )  # fmt: skip
        return replace(self, config=config)

    def engine(self) -> Engine:
        """A fresh engine at step 0."""
        if not self.disabled:
            return make_engine(self.config, self.pipeline_copy(), brightness, PROMPTS)
        from ddposink.ddpo.trl.engine import TrlEngine

        return TrlEngine(self.config, self.pipeline_copy(), brightness, PROMPTS, disabled=self.disabled)


def reduced(config: DDPOConfig) -> DDPOConfig:
    """The same training with one update of four samples per step and few denoising steps."""
    return replace(
        config,
        sample_num_steps=min(config.sample_num_steps, MOST_STEPS),
        sample_sde_window=None,
        sample_batch_size=2,
        samples_per_prompt=min(config.samples_per_prompt, 2),
        sample_num_batches_per_epoch=2,
        train_batch_size=2,
        train_gradient_accumulation_steps=2,
        train_num_inner_epochs=1,
        train_timestep_fraction=1.0,
        draft_steps=min(config.draft_steps, config.sample_num_steps, MOST_STEPS),
        async_reward_computation=False,
        log_with=None,
    )


def brightness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """A reward that needs nothing: mean brightness (B,) of images (B, 3, H, W)."""
    return images.float().mean(dim=(1, 2, 3)).cpu()


def trained_weights(unet: Any) -> dict[str, Tensor]:
    """A copy of every weight that is learnt."""
    named = unet.named_parameters()
    return {name: value.detach().cpu().clone() for name, value in named if value.requires_grad}
