"""What an algorithm is to the engine, and what it works with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ddposink.ddpo.config import DDPOConfig
from ddposink.ddpo.layout import BatchLayout
from ddposink.ddpo.learner import Learner
from ddposink.ddpo.policy import Conditions, DenoisingPolicy
from ddposink.ddpo.ranks import Ranks
from ddposink.ddpo.sampler import Trajectories
from ddposink.ddpo.several import Parts


class Judged(NamedTuple):
    """Rewards of all processes (all,) and this one's rewards and advantages (N,), float32 arrays of numpy."""

    everybodys: Any
    rewards: Any
    advantages: Any
    flat_share: float


@dataclass(frozen=True)
class Workshop:
    """What the engine lends an algorithm. ``flow``: whether the network is a flow model's."""

    config: DDPOConfig
    pipeline: Any
    policy: DenoisingPolicy
    learner: Learner
    ranks: Ranks
    layout: BatchLayout
    flow: bool
    reward: Callable[[Tensor, list[str]], Tensor]
    sample: Callable[[int, int | None], Trajectories]  # batches; denoising steps to take, None: all
    judge: Callable[[Trajectories], Judged]
    base: Callable[[], AbstractContextManager[None]]  # inside, the network acts as before training
    texts: Callable[[list[str]], Conditions]  # what the network reads of prompts

    @property
    def device(self) -> torch.device:
        """Where latents and weights are."""
        return self.policy.schedule.timesteps.device

    def ask(self, found: Trajectories, sample: Tensor, step: Tensor, latents: Tensor) -> Tensor:
        """Output (B,C,H,W) float32, without guidance, for the prompts of samples ``sample`` (B,)."""
        text = found.text.take(sample).rows(guided=False)
        return self.policy.output(latents, self.policy.schedule.timesteps[step], text).float()

    def backward(self, loss: Tensor) -> Tensor:
        """Add the gradient of ``loss``, a scalar, to that of the update; the loss without history."""
        self.learner.scaler.scale(loss).backward()
        return loss.detach()


class Learnt(NamedTuple):
    """One training step: rewards of all processes (N,), losses (U,) and gradient norms (U,) of its updates.

    ``rewards``: None where no reward was asked. ``flat_share``: see `StepLog`. ``sampled``: when sampling and
    judging were over (`time.perf_counter`). ``parts``: of a sum of rewards that the algorithm itself asked.
    """

    rewards: Any
    losses: Tensor
    norms: Tensor
    flat_share: float | None
    sampled: float
    parts: Parts = {}  # noqa: RUF012 (never written to)


class Invariant(NamedTuple):
    """What must hold before training: by how much it does not (``off``), and by how much it may not."""

    name: str
    off: float
    limit: float

    @property
    def holds(self) -> bool:
        """Not so either where ``off`` is no number."""
        return self.off <= self.limit

    def __str__(self) -> str:
        return f"{self.name}: off by {self.off:.2g} (at most {self.limit:g})"


class Algorithm(Protocol):
    """One way to learn from samples and their rewards."""

    def step(self, number: int) -> Learnt:
        """Training step ``number``, counted from 1: draw, judge, learn. ValueError: see `judge.ask`."""

    def invariant(self) -> Invariant:
        """Put to a fresh engine; changes no weight. Draws from the global generators."""

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must share with whoever resumes it, beside the configuration."""

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must keep beside weights and optimizer."""

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The reverse of `tensors`. ValueError, before any change, if they do not fit."""


@contextmanager
def swapped(weights: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Inside, ``weights`` have other ``values``; afterwards the very tensors they had."""
    kept = [weight.data for weight in weights]
    try:
        for weight, value in zip(weights, values, strict=True):
            weight.data = value
        yield
    finally:
        for weight, data in zip(weights, kept, strict=True):
            weight.data = data
