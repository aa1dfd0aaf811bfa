"""From rewards to advantages: how much better a sample did than those it is compared with.

Three ways (`DDPOConfig.compares`): with all samples of the step ("batch", TRL's default), with the last
rewards of its prompt ("prompt", TRL's per-prompt statistics), or with the samples drawn together with it
("group": one prompt and, with shared noise, one start; Shao et al. 2024, arXiv 2402.03300, eq. 1).

What is left above the mean is divided (`DDPOConfig.advantage_deviation`) by the deviation of those it is
compared with ("own"), by that of the whole step ("batch", Flow-GRPO's ``global_std``: a group that hardly
differs then hardly counts), or by nothing ("none": Dr. GRPO, Liu et al. 2025, arXiv 2503.20783, section 3,
as the division favours prompts on which rewards hardly differ; advantages then are in the reward's unit,
and `train_adv_clip_max` and the learning rate are to be chosen for it).

Means and deviations are float64. In float32 the mean of equal rewards is off by a rounding, and that
rounding divided by the same rounding is an advantage of one: a reward without any preference would teach at
the full rate. Rewards that differ by no more than a float32 computation may leave are equal here, and among
equals every advantage is 0.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ddposink.ddpo.config import DDPOConfig

Floats = NDArray[np.float32]
BATCH_EPSILON, PROMPT_EPSILON = 1e-8, 1e-6  # TRL's; groups take the second
ROUNDING = 16 * float(np.finfo(np.float32).eps)  # relative; what differs by less does not differ


class Advantages(Protocol):
    """Turns the rewards of a step into advantages, and remembers what it needs of them."""

    flat_share: float  # part of the last step's comparisons whose rewards were all equal

    def update(self, prompts: Sequence[str], rewards: Floats) -> Floats:
        """``rewards`` (N,) in the order drawn, ``prompts`` theirs → advantages (N,)."""

    def state(self) -> dict[str, list[float]]:
        """What is remembered, exactly; for a checkpoint."""

    def restore(self, state: Mapping[str, Sequence[float]]) -> None:
        """The reverse of `state`."""


def make_comparison(config: DDPOConfig) -> Advantages:
    """The comparison that ``config`` asks for."""
    epsilon, by = config.advantage_epsilon, config.advantage_deviation
    if config.compares == "group":
        return Groups(config.samples_per_prompt, PROMPT_EPSILON if epsilon is None else epsilon, by)
    if config.compares == "batch":
        return Batch(BATCH_EPSILON if epsilon is None else epsilon, by)
    return Prompts(
        config.per_prompt_stat_tracking_buffer_size,
        config.per_prompt_stat_tracking_min_count,
        PROMPT_EPSILON if epsilon is None else epsilon,
        by,
    )


def divisor(rewards: Floats, by: str, epsilon: float) -> float | None:
    """What a step's ``rewards`` (N,) above their mean are divided by; None: by each comparison's own."""
    if by == "own":
        return None
    return 1.0 if by == "none" else float(np.asarray(rewards, dtype=np.float64).std()) + epsilon


def advantages(rewards: Floats, among: Floats, epsilon: float, divided: float | None = None) -> Floats | None:
    """``rewards`` (N,) around the mean of ``among`` (M,), in its deviations; None if all are equal.

    ``divided``: by this, and not by the deviation of ``among``; see `divisor`.
    """
    everything = np.concatenate([rewards, among]).astype(np.float64)
    if np.ptp(everything) <= ROUNDING * np.abs(everything).max():
        return None
    known = np.asarray(among, dtype=np.float64)
    scale = known.std() + epsilon if divided is None else divided
    return ((rewards - known.mean()) / scale).astype(np.float32)


class Batch:
    """All samples of a step are compared with each other."""

    def __init__(self, epsilon: float = BATCH_EPSILON, by: str = "own") -> None:
        self._epsilon, self._by, self.flat_share = epsilon, by, 0.0

    def update(self, prompts: Sequence[str], rewards: Floats) -> Floats:
        """See `Advantages`."""
        found = advantages(rewards, rewards, self._epsilon, divisor(rewards, self._by, self._epsilon))
        self.flat_share = float(found is None)
        return np.zeros(len(rewards), np.float32) if found is None else found

    def state(self) -> dict[str, list[float]]:
        """Nothing."""
        return {}

    def restore(self, state: Mapping[str, Sequence[float]]) -> None:
        """Nothing to restore."""


class Groups(Batch):
    """Samples drawn together, ``size`` in a row, are compared with each other and with nothing else.

    A group is what was drawn once, not a text: two groups of one prompt stay two, and so do prompts that
    are equal once the tokenizer has cut them off.
    """

    def __init__(self, size: int, epsilon: float = PROMPT_EPSILON, by: str = "own") -> None:
        super().__init__(epsilon, by)
        self._size = size

    def update(self, prompts: Sequence[str], rewards: Floats) -> Floats:
        """See `Advantages`. N is a multiple of the group's size."""
        divided, rows = divisor(rewards, self._by, self._epsilon), rewards.reshape(-1, self._size)
        groups = [advantages(group, group, self._epsilon, divided) for group in rows]
        self.flat_share = sum(group is None for group in groups) / len(groups)
        flat = np.zeros(self._size, np.float32)
        return np.concatenate([flat if group is None else group for group in groups])


class Prompts:
    """The last ``buffer`` rewards of each prompt; with fewer than ``least``, all samples' are used."""

    def __init__(self, buffer: int, least: int, epsilon: float = PROMPT_EPSILON, by: str = "own") -> None:
        self._buffer, self._least, self._epsilon, self._by = buffer, least, epsilon, by
        self._rewards: dict[str, deque[np.float32]] = {}
        self.flat_share = 0.0

    def update(self, prompts: Sequence[str], rewards: Floats) -> Floats:
        """See `Advantages`."""
        found, flat = np.zeros(len(rewards), np.float32), 0
        parts, divided = list(self._parts(prompts, rewards)), divisor(rewards, self._by, self._epsilon)
        for mine, known in parts:
            values = advantages(rewards[mine], known, self._epsilon, divided)
            flat += values is None
            found[mine] = 0 if values is None else values
        self.flat_share = flat / len(parts)
        return found

    def _parts(self, prompts: Sequence[str], rewards: Floats) -> Iterator[tuple[NDArray[np.bool_], Floats]]:
        """For every prompt which samples are its own, and the rewards they are compared with."""
        names = np.array(prompts)
        for prompt in np.unique(names):
            mine = names == prompt
            kept = self._rewards.setdefault(str(prompt), deque(maxlen=self._buffer))
            kept.extend(rewards[mine])
            yield mine, rewards if len(kept) < self._least else np.array(kept)

    def state(self) -> dict[str, list[float]]:
        """The rewards kept, exactly."""
        return {prompt: [float(r) for r in kept] for prompt, kept in self._rewards.items()}

    def restore(self, state: Mapping[str, Sequence[float]]) -> None:
        """The reverse of `state`."""
        self._rewards = {p: deque(map(np.float32, kept), maxlen=self._buffer) for p, kept in state.items()}
