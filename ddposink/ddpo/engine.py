"""How an engine is made: which one a configuration names, and what it is refused for."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from ddposink.ddpo import checks
from ddposink.ddpo.config import DDPOConfig
from ddposink.ddpo.protocol import Engine, Pipeline, Prompts, RewardFunction
from ddposink.models.pipeline_kinds import TRAINED, refused_class, refused_scheduler, refused_unet


def make_engine(config: DDPOConfig, pipeline: Pipeline, reward: RewardFunction, prompts: Prompts) -> Engine:
    """The engine ``config.engine`` names, at step 0.

    ``pipeline`` is a StableDiffusionPipeline on its device. A list of prompts is drawn from evenly, within a
    step without replacement while it lasts; a function is called once a group, and resumes where it stopped
    if it draws from the global generators. Warns of prompts between which the model cannot tell.
    Raises ValueError for what cannot be trained on, Unavailable for what cannot be had here.
    """
    from ddposink.ddpo.schedule import check_signal

    checks.check_prompts(prompts)
    check_pipeline(pipeline)
    check_signal(pipeline.scheduler, config.sample_num_steps)
    prompts = prompts if callable(prompts) else list(prompts)
    if not callable(prompts):
        _warn_of_prompts_alike(pipeline.tokenizer, prompts)
    if config.engine == "trl":
        from ddposink.ddpo.trl.engine import TrlEngine

        return TrlEngine(config, pipeline, reward, prompts)
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


def check_pipeline(pipeline: Pipeline) -> None:
    """Raise ValueError, naming what it is, unless ``pipeline`` is one that the engines train."""
    kinds = [kind.__name__ for kind in type(pipeline).__mro__]
    if "DiffusionPipeline" in kinds and TRAINED not in kinds:
        raise ValueError(f"the pipeline is {refused_class(kinds[0])}")
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        if getattr(pipeline, part, None) is None:
            raise ValueError(
                f"the pipeline has no {part}; DDPO needs a text-conditioned Stable Diffusion pipeline"
            )
    unet, vae, scheduler = (dict(getattr(pipeline, part).config) for part in ("unet", "vae", "scheduler"))
    why = refused_unet(unet, vae, pipeline.text_encoder.config.to_dict())
    why = why or refused_scheduler(scheduler, type(pipeline.scheduler).__name__)
    if why:
        raise ValueError(f"the pipeline has {why}")
