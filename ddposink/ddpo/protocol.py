"""What a DDPO engine is to its users, whichever it is.

An engine trains a pipeline's network (``unet`` or ``transformer``) in place on a reward. It draws all its
random numbers from a state of its own (`ddposink.ddpo.randomness`), so that whatever a caller does between
two steps changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ddposink.ddpo.config import DDPOConfig

if TYPE_CHECKING:
    from torch import Tensor

RewardFunction = Callable[["Tensor", list[str]], "Tensor"]  # (B,3,H,W) in [0,1], prompts -> (B,) float32
Row = list[float | None]  # (T,) one a denoising step; None where nothing was learnt from it
Prompts = Sequence[str] | Callable[[], str]  # to draw from, or a function that draws one
Pipeline = Any  # of diffusers, one of `ddposink.models.pipeline_kinds.KINDS`


class DivergedError(RuntimeError):
    """Training has left the finite numbers; ``step`` is the training step in which it did."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(f"training diverged in step {step}: {what}; a lower learning rate may help")
        self.step = step


@dataclass(frozen=True)
class StepLog:
    """One training step: an epoch of sampling and the updates that follow.

    None where an algorithm has no such thing: a ratio without likelihoods, a comparison in `draft`, a reward
    in learning from a file of pairs, which draws no samples either.
    """

    step: int  # steps finished, counted from 1
    reward_mean: float | None
    reward_std: float | None
    loss: float  # mean over the step's updates
    approx_kl: float | None  # half the mean squared difference of log-probabilities, new against sampled
    clip_fraction: float | None  # part of the ratios further from 1 than the clip range
    flat_share: float | None  # part of the comparisons whose rewards were all equal, and taught nothing
    samples: int  # samples (reward queries) drawn so far, all processes
    unet_forwards: int  # of one sample, so far, a backward counted as two; those saved by sharing noise too
    sampling_s: float  # wall seconds of this step's sampling and rewards
    training_s: float  # wall seconds of this step's updates
    # None, or empty, where an engine does not tell
    reward_s: float | None = None  # of `sampling_s`, what the reward took
    gradient_norm: float | None = None  # before it is clipped, mean over the step's updates
    ratio_mean: float | None = None  # importance ratios of all (sample, denoising step) pairs
    ratio_std: float | None = None
    clipped_above: float | None = None  # part of the ratios above the clip range, and below it
    clipped_below: float | None = None
    kl_base: float | None = None  # nats per denoising step, all dimensions; where the base is asked
    by_step: Mapping[str, Row] = field(default_factory=dict)  # the last five, per denoising step
    parts: Mapping[str, float] = field(default_factory=dict)  # mean of each part of a weighted reward
    shares: Mapping[str, float] = field(default_factory=dict)  # of its variance within what is compared


class Engine(Protocol):
    """A DDPO training in progress."""

    config: DDPOConfig
    pipeline: Pipeline  # its network carries the trained weights live
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
        """Inside, the network acts as before training."""

    def evaluated(self) -> AbstractContextManager[None]:
        """Inside, the network has the weights that are evaluated and exported: see `ddposink.ddpo.ema`."""

    def export(self, folder: Path) -> None:
        """Write what a stock pipeline loads: LoRA in diffusers format, or a folder of the whole network."""
