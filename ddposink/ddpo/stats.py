"""From rewards to advantages: normalised over all samples, or over the last rewards of each prompt."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
OVERALL_EPSILON, PROMPT_EPSILON = 1e-8, 1e-6  # TRL's


def advantages(rewards: Floats, epsilon: float | None = None) -> Floats:
    """(N,) rewards in units of their standard deviation, around their mean."""
    spread = rewards.std() + (OVERALL_EPSILON if epsilon is None else epsilon)
    return ((rewards - rewards.mean()) / spread).astype(np.float32)


class PromptStatistics:
    """The last ``buffer`` rewards of each prompt; with fewer than ``least``, all samples' are used."""

    def __init__(self, buffer: int, least: int, epsilon: float | None = None) -> None:
        self._buffer, self._least = buffer, least
        self._epsilon = PROMPT_EPSILON if epsilon is None else epsilon
        self._rewards: dict[str, deque[np.float32]] = {}

    def advantages(self, prompts: Sequence[str], rewards: Floats) -> Floats:
        """Take in ``rewards`` (N,), one a prompt, and return the advantages (N,)."""
        found, names = np.empty_like(rewards), np.array(prompts)
        for prompt in np.unique(names):
            mine = rewards[names == prompt]
            kept = self._rewards.setdefault(str(prompt), deque(maxlen=self._buffer))
            kept.extend(mine)
            known = rewards if len(kept) < self._least else np.array(kept)
            found[names == prompt] = (mine - known.mean()) / (known.std() + self._epsilon)
        return found

    def state(self) -> dict[str, list[float]]:
        """The rewards kept, exactly; for a checkpoint."""
        return {prompt: [float(r) for r in kept] for prompt, kept in self._rewards.items()}

    def restore(self, state: Mapping[str, Sequence[float]]) -> None:
        """The reverse of `state`."""
        self._rewards = {p: deque(map(np.float32, kept), maxlen=self._buffer) for p, kept in state.items()}
