"""How far the samples of one metric in one cell let its value be trusted."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bench.record import Value
from bench.stats import bootstrap_median, t_interval

MEAN = "95 % interval of the mean over samples"
MEDIAN = "95 % bootstrap interval of the median"
_FEWEST = {MEAN: 3, MEDIAN: 2}  # samples from which an interval is drawn up
_ROUNDED = 1e-3  # relative; medians are recorded rounded


class Spread(NamedTuple):
    """Limits of a metric's value, in its unit, and what they bound (``MEAN`` or ``MEDIAN``)."""

    estimate: float
    low: float
    high: float
    what: str

    @property
    def excludes_zero(self) -> bool:
        """Whether the value is certain to be above zero, or to be below it."""
        return self.low > 0 or self.high < 0


def spread_of(value: Value | None) -> Spread | None:
    """The interval of a metric from its samples, if the value is their mean, or else their median.

    None where the samples say nothing: there are too few, all are the same, or the value is neither.
    """
    if value is None or value.value is None or not value.samples:
        return None
    samples = np.array(value.samples, np.float64)
    if not samples.std() > 0:
        return None
    if len(samples) >= _FEWEST[MEAN] and np.isclose(samples.mean(), value.value, rtol=1e-6, atol=1e-12):
        mean = t_interval(samples)
        return Spread(mean.estimate, mean.low, mean.high, MEAN)
    if len(samples) >= _FEWEST[MEDIAN] and np.isclose(np.median(samples), value.value, rtol=_ROUNDED):
        median = bootstrap_median(samples)
        return Spread(median.estimate, median.low, median.high, MEDIAN)
    return None
