"""The interval of a mean of independent values: what workloads ask of statistics while they measure.

Apart from `bench.stats`, which only judges and draws, so that a change there leaves measured numbers alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats


@dataclass(frozen=True)
class Interval:
    """A point estimate between two limits. ``n`` counts observations, ``block`` is the block length."""

    estimate: float
    low: float
    high: float
    n: int
    block: int | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the limits."""
        return self.low > 0 or self.high < 0


def t_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Student's interval of the mean of independent values, at least two."""
    x = np.asarray(values, np.float64)
    if len(x) < 2:
        raise ValueError(f"a t-interval needs at least two values, got {len(x)}")
    half = scipy_stats.t.ppf(0.5 + level / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))
    return Interval(float(x.mean()), float(x.mean() - half), float(x.mean() + half), len(x))
