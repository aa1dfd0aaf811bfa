"""Several rewards at once: what each said, what each decides, and advantages that let every one speak.

A weighted sum is decided by the part that varies most. GDPO (arXiv 2601.05242; the authors' code)
compares each reward for itself, adds the advantages by their weights, and brings the sum to unit deviation
over the whole step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ddposink.ddpo.stats import BATCH_EPSILON, Advantages, Floats, advantages

Parts = Mapping[str, Floats]  # name → (N,) rewards of a part, times its factor


class Several(Protocol):
    """A reward that is a sum of others. ``weights``: the factor of each by name."""

    weights: Mapping[str, float]

    def each(self, images: Any, prompts: list[str]) -> Mapping[str, Any]:
        """(B,) rewards of every part, times its factor."""


def several(reward: Any) -> Several | None:
    """``reward`` if it is a sum of others, itself or within its check; else None."""
    for one in (reward, getattr(reward, "function", None)):
        if hasattr(one, "each") and hasattr(one, "weights"):
            return one
    return None


def gdpo(
    make: Callable[[], Advantages], weights: Mapping[str, float], prompts: Sequence[str], parts: Parts
) -> tuple[Floats, float]:
    """Advantages (N,) of ``parts``, and the share of all their comparisons that were flat.

    ``make`` gives a fresh comparison, each part its own. A part's sign is in its rewards already, so it
    counts by the size of its weight.
    """
    total = np.zeros(len(prompts), dtype=np.float64)
    flat = []
    for name, rewards in parts.items():
        comparison = make()
        total += abs(weights[name]) * comparison.update(prompts, rewards)
        flat.append(comparison.flat_share)
    found = advantages(total.astype(np.float32), total.astype(np.float32), BATCH_EPSILON)
    share = float(np.mean(flat))
    return (np.zeros(len(prompts), np.float32) if found is None else found), share


def told(parts: Parts, group: int) -> tuple[dict[str, float], dict[str, float]]:
    """Mean of each of ``parts``, and its `variance_shares`; both empty where the reward is no sum."""
    return {name: float(np.mean(rewards)) for name, rewards in parts.items()}, variance_shares(parts, group)


def variance_shares(parts: Parts, group: int) -> dict[str, float]:
    """Part of the sum's variance that each part makes, within groups of ``group`` (1: within the step).

    What parts do together (covariances) is left out. Empty if nothing varies.
    """
    found = {}
    for name, rewards in parts.items():
        rows = np.asarray(rewards, dtype=np.float64).reshape(-1, group if group > 1 else len(rewards))
        found[name] = float(rows.var(axis=1).mean())
    whole = sum(found.values())
    return {name: value / whole for name, value in found.items()} if whole > 0 else {}
