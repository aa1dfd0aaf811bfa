"""The `ddpo` workload, declared: a diffusion pipeline fine-tuned on a reward, scored on all of them.

Everything here is data: what a cell may say, which metrics it yields, which pictures are drawn. No
torch; what runs in the child is `ddposink.workloads.ddpo_run`.
"""

from __future__ import annotations

import math
import os
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator, model_validator

from bench.version import code_version
from bench.workload import ALLOW_CODE, Context, Cost, Pass, Scalar, Skip
from ddposink.ddpo.config import DDPOConfig
from ddposink.errors import Unavailable
from ddposink.models.contrastive import encoder_sha256
from ddposink.models.diffusion import PipelineRef
from ddposink.prompts import evaluation_prompts, load_prompts
from ddposink.rewards import RewardRef, parse_reward
from ddposink.rewards.weighted import HARDLY, SPREADS, in_words, shares, weighted
from ddposink.workloads.ddpo_tables import EVALUATED, METRICS, VIEWS

TABLES = "ddposink.workloads.ddpo_tables"  # how metrics are shown: no number changes with it
NEEDED = ("diffusers", "peft", "trl")
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
        description="emoji-sd (embedded), path:DIR, ORG/NAME@REVISION (40 hex digits) or random:sd15"
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
        return self

    def config(self, seed: int) -> DDPOConfig:
        """The engines' configuration of this cell. Raises ValueError if it contradicts itself."""
        own = {name: getattr(self, name) for name in CONFIGURED}
        own["lora_targets"] = tuple(own["lora_targets"])
        return DDPOConfig(**own, seed=seed, threads=self.threads, log_with=None)


def reward_ref(text: str) -> RewardRef:
    """A reward as a suite names it; code only where the command line allows it."""
    return parse_reward(text, allow_python=os.environ.get(ALLOW_CODE) == "1")


def _shared(params: Any) -> list[str]:
    """Prompts of the evaluation that are trained on, in their order."""
    trained = set(load_prompts(params.prompts).prompts)
    return [prompt for prompt in evaluation_prompts(params.eval_prompts).prompts if prompt in trained]


def _shares(argument: str, pipeline: str) -> str:
    """What the parts of a weighted sum will weigh in training, as far as it is known before the run."""
    spread = {ref.name: factor * SPREADS.get(ref.name, math.nan) for factor, ref in weighted.parts(argument)}
    if pipeline != "emoji-sd" or any(map(math.isnan, spread.values())):
        return f"weighted:{argument}: what each part makes of its variance is measured in the run"
    parts = shares({name: sd**2 for name, sd in spread.items()})
    hardly = "; a part below 1 % has hardly a say" if min(parts.values()) < HARDLY else ""
    return f"weighted:{argument}: of its variance about {in_words(parts)}{hardly}"


def _short(pipeline: str) -> str:
    """A pipeline's name for tables: of a path its last part."""
    ref = PipelineRef.parse(pipeline)
    return Path(ref.name).name if ref.kind == "path" else ref.name


def _configured() -> dict[str, Any]:
    """Every setting of `DDPOConfig` under its own name and with its own default."""
    default = DDPOConfig()
    hints = get_type_hints(DDPOConfig)  # not the fields' types, which argument parsers write over
    optional = (float | None, int | None, bool | None)
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


class DdpoWorkload:
    """See the module docstring; implements `bench.workload.Workload`."""

    name = "ddpo"
    Params = DdpoParams
    metrics = METRICS
    views = VIEWS
    prefix_axis = "steps"
    replicate, sample = "training", "prompt"
    preload = ("ddposink.workloads.ddpo_run",)

    def version(self) -> str:
        """Hash of the code that produces the numbers, a subclass's own included."""
        return code_version(__name__, type(self).__module__, shown=[TABLES], metrics=self.metrics)

    def label(self, params: Any) -> str:
        """``emoji-sd · brisque · 25``; what differs from the defaults of an engine is named."""
        unusual = [params.engine] if params.engine != "native" else []
        unusual += [params.loss] if params.loss != "is" else []
        return " · ".join([_short(params.pipeline), params.reward, *unusual, f"{params.steps:,}"])

    def columns(self, params: Any) -> dict[str, Scalar]:
        """Everything a table or an exclusion may ask for."""
        config = params.config(seed=0)
        return {
            "pipeline": _short(params.pipeline),
            "reward": params.reward,
            "steps": params.steps,
            "engine": params.engine,
            "loss": params.loss,
            "prompts": params.prompts,
            "eval_prompts": params.eval_prompts,
            "prompts_shared": len(_shared(params)),
            "learning_rate": params.train_learning_rate,
            "denoising_steps": params.sample_num_steps,
            "guidance": params.sample_guidance_scale,
            "eta": params.sample_eta,
            "samples_per_step": config.samples_per_epoch,
            "updates_per_step": config.updates_per_epoch,
            "clip_range": params.train_clip_range,
            "tuned": f"LoRA r={params.lora_rank}" if params.use_lora else "full",
            "precision": params.mixed_precision,
            "device": params.device,
        }

    def identity(self, params: Any) -> dict[str, str]:
        """Revision or sha256 of pipeline, rewards, encoder and prompts; raises Skip if one is unknown."""
        try:
            found = {f"pipeline.{k}": v for k, v in PipelineRef.parse(params.pipeline).identity().items()}
            for text in dict.fromkeys((params.reward, *params.evaluate)):
                found |= {f"reward.{text}.{k}": v for k, v in reward_ref(text).identity().items()}
            found["encoder.sha256"] = encoder_sha256()  # tells the diversity of every cell's pictures
        except Unavailable as error:
            raise Skip(str(error)) from error
        found["prompts.sha256"] = load_prompts(params.prompts).sha256
        found["eval_prompts.sha256"] = evaluation_prompts(params.eval_prompts).sha256
        return found

    def cost(self, params: Any) -> Cost:
        """UNet forwards of one sample, a backward counted as two: sampling, learning and evaluation."""
        config = params.config(seed=0)
        rows = 2 if config.guided else 1
        learning = 3 * (rows if config.train_cfg else 1) * config.num_train_timesteps
        per_sample = rows * config.sample_num_steps + learning * config.train_num_inner_epochs
        pictures = len(evaluation_prompts(params.eval_prompts).prompts) * params.eval_seeds
        evaluation = pictures * rows * config.sample_num_steps
        return Cost(params.steps * config.samples_per_epoch * per_sample + evaluation, "UNet forwards")

    def notes(self, params: Any) -> list[str]:
        """Whether evaluation prompts are trained on, and how many are left out because they repeat."""
        found = []
        given, once = load_prompts(params.eval_prompts), evaluation_prompts(params.eval_prompts)
        if shared := _shared(params):
            found.append(
                f"not held out: {len(shared)} of {len(once.prompts)} evaluation prompts ({once.name}) "
                f"are also trained on ({load_prompts(params.prompts).name}), for example {shared[0]!r}"
            )
        if (ref := reward_ref(params.reward)).kind == "weighted":
            found.append(_shares(ref.argument, params.pipeline))
        if left_out := len(given.prompts) - len(once.prompts):
            found.append(f"{once.name}: every prompt is evaluated once: {left_out} repeated left out")
        return found

    def published(self) -> list[dict[str, Scalar]]:
        """None that could stand beside: no paper reports these rewards on this pipeline."""
        return []

    def run(self, work: Pass, ctx: Context) -> None:
        """Train once, evaluate at every step count of the pass; child process only."""
        absent = [name for name in NEEDED if find_spec(name) is None]
        if absent:
            raise Skip(f"{', '.join(absent)} not installed: pip install 'ddposink[ddpo]'")
        from ddposink.workloads.ddpo_run import run

        run([(cell, DdpoParams(**cell.params)) for cell in work.cells], ctx)
