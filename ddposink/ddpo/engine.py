"""What both DDPO engines are to their users, and how one is made.

An engine trains ``pipeline.unet`` in place on a reward. It draws all its random numbers from a state of
its own (`ddposink.ddpo.randomness`), so that whatever a caller does between two steps changes nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ddposink.ddpo import checks
from ddposink.ddpo.config import DDPOConfig
from ddposink.models.pipeline_kinds import TRAINED, refused_class, refused_scheduler, refused_unet

if TYPE_CHECKING:
    from torch import Tensor

RewardFunction = Callable[["Tensor", list[str]], "Tensor"]  # (B,3,H,W) in [0,1], prompts -> (B,) float32
Prompts = Sequence[str] | Callable[[], str]  # to draw from, or a function that draws one
Pipeline = Any  # diffusers.StableDiffusionPipeline


class DivergedError(RuntimeError):
    """Training has left the finite numbers; ``step`` is the training step in which it did."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(f"training diverged in step {step}: {what}; a lower learning rate may help")
        self.step = step


@dataclass(frozen=True)
class StepLog:
    """One training step: an epoch of sampling and the updates that follow."""

    step: int  # steps finished, counted from 1
    reward_mean: float
    reward_std: float
    loss: float  # mean over the step's updates
    approx_kl: float  # half the mean squared difference of log-probabilities, new against sampled
    clip_fraction: float  # part of the ratios further from 1 than the clip range
    flat_share: float  # part of the comparisons whose rewards were all equal, and taught nothing
    samples: int  # samples (reward queries) drawn so far, all processes
    unet_forwards: int  # of one sample, so far, a backward counted as two; those saved by sharing noise too
    sampling_s: float  # wall seconds of this step's sampling and rewards
    training_s: float  # wall seconds of this step's updates


class Engine(Protocol):
    """A DDPO training in progress."""

    config: DDPOConfig
    pipeline: Pipeline  # pipeline.unet carries the trained weights live
    step: int

    def run(self, until: int) -> Iterator[StepLog]:
        """Train until ``step == until``, yielding after each step. Raises DivergedError."""

    def save(self, folder: Path) -> None:
        """Write the full training state to ``folder``, at once or not at all."""

    def load(self, folder: Path) -> None:
        """Go on from ``folder``. ValueError if it is damaged or of another configuration."""

    def ratio_deviation(self) -> Tensor:
        """Largest |ratio − 1| (T,) between sampling and learning, without learning; changes nothing."""

    def base(self) -> AbstractContextManager[None]:
        """Inside, ``pipeline.unet`` acts as before training."""

    def export(self, folder: Path) -> None:
        """Write what a stock pipeline loads: LoRA in diffusers format, or a ``unet`` folder."""


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
