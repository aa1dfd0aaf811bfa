"""What a cell of a `ddpo` suite may say."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator, model_validator

from bench.workload import ALLOW_CODE
from ddposink.ddpo.config import DDPOConfig
from ddposink.ddpo.grpo import needs_several
from ddposink.ddpo.pairs import PreferencePairs, read_pairs
from ddposink.models.diffusion import PipelineRef, check_kernel, drawn_size
from ddposink.prompts import load_prompts
from ddposink.rewards import RewardRef, parse_reward, reward_infos
from ddposink.workloads.ddpo_tables import EVALUATED

# Fields of the configuration that a suite says in its own words, or that only matter outside of one.
_OWN = (
    "seed threads exp_name run_name log_with tracker_kwargs accelerator_kwargs project_kwargs logdir "
    "tracker_project_name num_epochs save_freq num_checkpoint_limit resume_from async_reward_computation "
    "max_workers push_to_hub"
).split()
CONFIGURED = tuple(f.name for f in fields(DDPOConfig) if f.name not in _OWN)


class _Cell(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    pipeline: str = Field(
        description="emoji-sd or emoji-sd3 (embedded), path:DIR, ORG/NAME@REVISION (40 hex), random:SHAPE"
    )
    reward: str = Field(description="the reward trained on, e.g. jpeg_compressibility, aesthetic, preference")
    steps: int = Field(ge=0, le=100_000, description="training steps; 0 is the pipeline as it is")
    prompts: str = Field(default="emoji-train", description="prompts trained on: a set's name or file:PATH")
    eval_prompts: str = Field(
        default="emoji-heldout", description="held-out prompts, each evaluated once: a name or file:PATH"
    )
    eval_seeds: int = Field(default=4, ge=1, le=1000, description="pictures per held-out prompt")
    eval_denoising_steps: tuple[int, ...] = Field(
        default=(), description="also evaluate the last step count with so many denoising steps"
    )
    evaluate: tuple[str, ...] = Field(
        default=("jpeg_compressibility", "jpeg_incompressibility", "brisque", "alignment"),
        description="the rewards every cell is scored on, whatever it was trained on",
    )
    device: str = Field(
        default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N"
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads; default: torch's choice")
    save_freq: int = Field(
        default=10, ge=0, description="training steps between checkpoints that a killed run resumes; 0: none"
    )

    @field_validator("pipeline")
    @classmethod
    def _pipeline(cls, value: str) -> str:
        PipelineRef.parse(value)
        return value

    @field_validator("prompts", "eval_prompts")
    @classmethod
    def _prompts(cls, value: str) -> str:
        load_prompts(value)
        return value

    @field_validator("reward")
    @classmethod
    def _reward(cls, value: str) -> str:
        reward_ref(value)
        return value

    @field_validator("evaluate")
    @classmethod
    def _evaluate(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        seen: dict[str, str] = {}
        for value in values:
            name = reward_ref(value).kind
            if name not in EVALUATED:
                known = ", ".join(EVALUATED)
                raise ValueError(f"'{value}' has no column in the evaluation; it takes: {known}")
            if name in seen:
                raise ValueError(f"two rewards named '{name}': '{seen[name]}' and '{value}'; keep one")
            seen[name] = value
        return values

    @field_validator("eval_denoising_steps")
    @classmethod
    def _eval_steps(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if any(value < 2 for value in values):
            raise ValueError(f"at least 2 denoising steps, not {min(values)}")
        return values

    @model_validator(mode="after")
    def _consistent(self) -> _Cell:
        self.config(seed=0)
        kernel, engine = self.sample_kernel, self.engine  # type: ignore[attr-defined]
        check_kernel(PipelineRef.parse(self.pipeline), kernel, engine)
        if self.algorithm == "draft" and not reward_ref(self.reward).differentiable:  # type: ignore[attr-defined]
            names = ", ".join(name for name, info in reward_infos().items() if info.differentiable)
            raise ValueError(
                f"algorithm 'draft' learns from the reward's gradient, and '{self.reward}' has none; these "
                f"have one: {names}; or use ddpo, nft or dpo"
            )
        self._answerable()
        if self.dpo_pairs is not None and reward_ref(self.reward).kind == "noise":  # type: ignore[attr-defined]
            raise ValueError(
                f"reward '{self.reward}' is the control of trainings that ask a reward; one from dpo_pairs "
                "asks none and would be the same training under another name: leave it out"
            )
        if (pairs := self.pairs) and (size := drawn_size(PipelineRef.parse(self.pipeline))):
            pairs.check_size(size, f"pipeline '{self.pipeline}'")
        return self

    def _answerable(self) -> None:
        """Raise ValueError where the reward trained on has no number for some prompt, or for GDPO."""
        ref = reward_ref(self.reward)
        asked = ("eval_prompts",) if self.pairs else ("prompts", "eval_prompts")
        for name in asked:
            if why := ref.unanswered(load_prompts(getattr(self, name)).prompts):
                raise ValueError(f"reward '{self.reward}' on {name} '{getattr(self, name)}': {why}")
        if self.combine_rewards == "gdpo" and ref.kind != "weighted":  # type: ignore[attr-defined]
            raise ValueError(needs_several(f"'{self.reward}'"))

    @property
    def pairs(self) -> PreferencePairs | None:
        """What is learnt from in place of samples, if anything. Raises ValueError: see `read_pairs`."""
        file = self.dpo_pairs  # type: ignore[attr-defined]
        return None if file is None else read_pairs(file)

    @property
    def trained_prompts(self) -> tuple[str, ...]:
        """The prompts learnt from, those of a file of pairs once each."""
        return pairs.once if (pairs := self.pairs) else load_prompts(self.prompts).prompts

    def config(self, seed: int) -> DDPOConfig:
        """The engines' configuration of this cell. Raises ValueError if it contradicts itself."""
        own = {name: getattr(self, name) for name in CONFIGURED}
        own["lora_targets"] = tuple(own["lora_targets"])
        return DDPOConfig(**own, seed=seed, threads=self.threads, log_with=None)


def reward_ref(text: str) -> RewardRef:
    """A reward as a suite names it; code only where the command line allows it."""
    return parse_reward(text, allow_python=os.environ.get(ALLOW_CODE) == "1")


def _configured() -> dict[str, Any]:
    """Every setting of `DDPOConfig` under its own name and with its own default."""
    default = DDPOConfig()
    hints = get_type_hints(DDPOConfig)  # not the fields' types, which argument parsers write over
    optional = (float | None, int | None, bool | None, str | None)
    found = {}
    for name in CONFIGURED:
        value = getattr(default, name)
        kind: Any = tuple[str, ...] if isinstance(value, tuple) else type(value)
        if hints[name] in optional:
            kind = hints[name]
        found[name] = (kind, Field(default=value, description=f"DDPOConfig.{name}"))
    return found


# A tool that reads the source sees `_Cell`; the settings are added so that each exists in one place only.
DdpoParams: Any = create_model("DdpoParams", __base__=_Cell, __doc__="One cell.", **_configured())
