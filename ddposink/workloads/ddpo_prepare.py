"""What the cells of a `ddpo` pass share: pipeline, engine, evaluator, rewards. In the child only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.track.memory import MemoryTracker
from bench.workload import Context
from ddposink.ddpo import DDPOConfig, Engine, make_engine
from ddposink.ddpo.pairs import PreferencePairs
from ddposink.ddpo.policy import reader, same_to_the_model
from ddposink.devices import chosen_device
from ddposink.errors import Unavailable
from ddposink.evaluation.scores import Evaluator, Scorer
from ddposink.models.contrastive import load_encoder
from ddposink.models.diffusion import PipelineRef, load_pipeline
from ddposink.prompts import evaluation_prompts, load_prompts
from ddposink.rewards import load_reward
from ddposink.rewards.base import Checked
from ddposink.rewards.weighted import WeightedSum
from ddposink.workloads.ddpo_params import reward_ref
from ddposink.workloads.ddpo_resume import Findings, Progress, Scratch
from ddposink.workloads.ddpo_scores import TRAINED

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": None}


@dataclass
class TrainingRun:
    """Everything the cells of a pass share."""

    params: Any
    config: DDPOConfig
    engine: Engine
    reward: Checked  # the one trained on
    evaluator: Evaluator
    scorers: dict[str, Scorer]
    unavailable: dict[str, str]
    features: Callable[[torch.Tensor], torch.Tensor]
    tracker: MemoryTracker
    device: torch.device
    out: Path
    scratch: Scratch
    pairs: PreferencePairs | None  # learnt from, as they were read once: the file may change meanwhile
    alike: list[str]  # sentences on prompts that the text encoder cannot tell apart
    invariant: str | None = None  # what was found to hold before an algorithm without likelihoods learns
    progress: Progress = field(default_factory=Progress)
    found: Findings = field(default_factory=Findings)
    taken_up: bool = False  # whether an earlier attempt's training has been looked for
    resumed_at: int | None = None  # training steps that an earlier attempt has done

    @property
    def trained(self) -> str:
        """Key of the reward trained on among the scores."""
        name = self.params.reward
        return reward_ref(name).kind if name in self.params.evaluate else TRAINED

    @property
    def weighted(self) -> WeightedSum | None:
        """The reward trained on, if it is a weighted sum."""
        return self.reward.function if isinstance(self.reward.function, WeightedSum) else None


def prepare(params: Any, seed: int, ctx: Context, planned: str | None = None) -> TrainingRun:
    """Load everything. Raises Unavailable for what cannot be had here.

    ``planned``: sha256 of the pairs to be learnt from, if it is known. ValueError if they have changed.
    """
    pairs = params.pairs
    device = chosen_device(params.device)
    tracker = MemoryTracker(device)  # before the model, so that the device figure counts all we take
    ref = PipelineRef.parse(params.pipeline)
    pipeline = load_pipeline(ref, device=str(device))
    config = params.config(seed)
    scorers, unavailable = _scorers(params, str(device))
    trained = load_reward(reward_ref(params.reward), device=str(device))
    if params.reward not in params.evaluate:
        scorers[TRAINED] = trained
    prompts = pairs.once if pairs else load_prompts(params.prompts).prompts
    engine = make_engine(config, pipeline, trained, prompts)
    if pairs:
        _check_unchanged(pairs, getattr(engine, "pairs", None), planned or pairs.sha256)
    evaluator = Evaluator(
        pipeline,
        evaluation_prompts(params.eval_prompts).prompts,
        params.eval_seeds,
        params.sample_guidance_scale,
        params.sample_eta,
        AUTOCAST[config.precision_on(device.type)],
        tuple(config.negatives),
        config.sample_kernel,
        config.sample_shift,
        config.max_sequence_length,
    )
    asked = {"prompts": prompts, "eval_prompts": load_prompts(params.eval_prompts).prompts}
    features, scratch = load_encoder().features, Scratch(ctx.scratch)
    return TrainingRun(
        params, config, engine, trained, evaluator, scorers, unavailable, features, tracker, device, ctx.out,
        scratch, pairs, [said for which, texts in asked.items() if (said := _alike(pipeline, which, texts))],
    )  # fmt: skip


def _check_unchanged(read: PreferencePairs, learnt: PreferencePairs | None, planned: str) -> None:
    """Raise ValueError unless what was read and what the engine learns from are the planned pairs."""
    if read.sha256 != planned or learnt is None or learnt.sha256 != planned:
        raise ValueError(f"'{read.file}' changed while it was read; run the same command again")


def _alike(pipeline: Any, which: str, texts: Sequence[str]) -> str | None:
    """A sentence if the text encoder cannot tell some of ``texts`` apart."""
    alike = same_to_the_model(reader(pipeline), texts)
    if not alike:
        return None
    return (
        f"{which}: {sum(map(len, alike))} differ only beyond what the text encoder reads, for example "
        f"{alike[0][0]!r} and {alike[0][1]!r}"
    )


def _scorers(params: Any, device: str) -> tuple[dict[str, Scorer], dict[str, str]]:
    """The rewards of the evaluation by name, and why others cannot be had here."""
    found: dict[str, Scorer] = {}
    unavailable = {}
    for text in params.evaluate:
        ref = reward_ref(text)
        if why := ref.unanswered(evaluation_prompts(params.eval_prompts).prompts):
            unavailable[ref.kind] = why
            continue
        try:
            found[ref.kind] = load_reward(ref, device=device)
        except Unavailable as error:
            unavailable[ref.kind] = str(error)
    return found, unavailable
