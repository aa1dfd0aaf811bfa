"""How an engine is made: which one a configuration names, and what it is refused for."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from ddposink.ddpo import checks, rules
from ddposink.ddpo.config import DDPOConfig
from ddposink.ddpo.protocol import Engine, Pipeline, Prompts, RewardFunction
from ddposink.ddpo.window import DDIM
from ddposink.models.pipeline_kinds import (
    KINDS,
    refused_class,
    refused_kernel,
    refused_parts,
    refused_scheduler,
)


def make_engine(config: DDPOConfig, pipeline: Pipeline, reward: RewardFunction, prompts: Prompts) -> Engine:
    """The engine ``config.engine`` names, at step 0.

    ``pipeline`` is one of `KINDS` on its device. A list of prompts is drawn from evenly, within a
    step without replacement while it lasts; a function is called once a group, and resumes where it stopped
    if it draws from the global generators. Warns of prompts between which the model cannot tell.
    Raises ValueError for what cannot be trained on, Unavailable for what cannot be had here.
    """
    from ddposink.ddpo.policy import reader
    from ddposink.ddpo.schedule import check_signal

    checks.check_prompts(prompts)
    check_pipeline(pipeline)
    kind = kind_of(pipeline)
    if kind is not None and (why := refused_kernel(kind, config.sample_kernel, config.engine)):
        raise ValueError(f"the pipeline: {why}")
    if config.sample_kernel == DDIM:
        check_signal(pipeline.scheduler, config.sample_num_steps)
    prompts = prompts if callable(prompts) else list(prompts)
    if not callable(prompts):
        _warn_of_prompts_alike(reader(pipeline), prompts)
    if config.engine == "trl":
        from ddposink.ddpo.trl.engine import TrlEngine

        return TrlEngine(config, pipeline, reward, prompts)
    if config.algorithm != rules.DDPO:
        from ddposink.ddpo.algorithms.engine import AlgorithmEngine

        return AlgorithmEngine(config, pipeline, reward, prompts)
    from ddposink.ddpo.trainer import NativeEngine

    return NativeEngine(config, pipeline, reward, prompts)


def _warn_of_prompts_alike(tokenizer: Any, prompts: Sequence[str]) -> None:
    from ddposink.ddpo.policy import same_to_the_model

    if alike := same_to_the_model(tokenizer, prompts):
        warnings.warn(
            f"{sum(map(len, alike))} of the prompts differ only beyond the {tokenizer.model_max_length} "
            f"tokens that the text encoder sees, so it cannot tell them apart, for example {alike[0][0]!r} "
            f"and {alike[0][1]!r}; each stays a prompt of its own",
            stacklevel=3,
        )


def kind_of(pipeline: Pipeline) -> str | None:
    """Which of `KINDS` ``pipeline`` is or is derived from; None for a stand-in that is no library's class."""
    names = [kind.__name__ for kind in type(pipeline).__mro__]
    return next((name for name in names if name in KINDS), None)


def check_pipeline(pipeline: Pipeline) -> None:
    """Raise ValueError, naming what it is, unless ``pipeline`` is one that the engines train."""
    names = [kind.__name__ for kind in type(pipeline).__mro__]
    name = kind_of(pipeline)
    if "DiffusionPipeline" in names and name is None:
        raise ValueError(f"the pipeline is {refused_class(names[0])}")
    name = name or "StableDiffusionPipeline"
    kind = KINDS[name]
    parts: dict[str, Any] = {part: getattr(pipeline, part, None) for part in kind.parts}
    for part, found in parts.items():
        if found is None and part not in kind.optional:
            raise ValueError(f"the pipeline has no {part}; DDPO needs a whole text-conditioned {name}")
    settings = {
        part: parts[part].config.to_dict() if part.startswith("text_encoder") else dict(parts[part].config)
        for part in (*kind.networks, "scheduler")
        if parts[part] is not None
    }
    scheduler = type(pipeline.scheduler).__name__
    if why := refused_parts(name, settings) or refused_scheduler(settings["scheduler"], scheduler, kind.flow):
        raise ValueError(f"the pipeline has {why}")
