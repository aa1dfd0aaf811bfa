"""How far the samples of one metric in one cell let its value be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from bench.report.frames import RunData
from bench.report.vocabulary import Vocabulary
from bench.results.record import Value
from bench.stats import bootstrap_median, is_mean_of, t_interval, two_level_interval

MEAN = "95 % interval of the mean over samples"
RANGE = "range over seeds and repeats"
MEDIAN = "95 % bootstrap interval of the median"
_FEWEST = {MEAN: 3, MEDIAN: 2}  # samples from which an interval is drawn up
_ROUNDED = 1e-3  # relative; medians are recorded rounded


class Spread(NamedTuple):
    """Limits of a metric's value, in its unit, and what they bound (``MEAN`` or ``MEDIAN``)."""

    estimate: float
    low: float
    high: float
    what: str
    replicates: int = 1  # seeds behind it

    @property
    def excludes_zero(self) -> bool:
        """Whether the value is certain to be above zero, or to be below it."""
        return self.low > 0 or self.high < 0

    def supports(self, words: Vocabulary) -> bool:
        """Whether it is a claim: an interval without zero, over several seeds where sentences are of them."""
        return self.what != RANGE and self.excludes_zero and (self.replicates > 1 or not words.replicated)


def spread_of(value: Value | None) -> Spread | None:
    """The interval of a metric from its samples, if the value is their mean, or else their median.

    None where the samples say nothing: there are too few, all are the same, or the value is neither.
    """
    if value is None or value.value is None or not value.samples:
        return None
    samples = np.array(value.samples, np.float64)
    if not samples.std() > 0:
        return None
    if len(samples) >= _FEWEST[MEAN] and is_mean_of(value.value, samples):
        mean = t_interval(samples)
        return Spread(mean.estimate, mean.low, mean.high, MEAN)
    if len(samples) >= _FEWEST[MEDIAN] and np.isclose(np.median(samples), value.value, rtol=_ROUNDED, atol=0):
        median = bootstrap_median(samples)
        return Spread(median.estimate, median.low, median.high, MEDIAN)
    return None


def spread_over(data: RunData, cells: pd.DataFrame, name: str) -> Spread | None:
    """The interval of a metric over cells that differ in seed and repeat at most; None if nothing is known.

    Of samples that all seeds share, it is over seeds and samples (`two_level_interval`); repeats of one seed
    are averaged first, because they are no independent ones. Without such samples it is the range.
    """
    seeds: dict[int, list[Value]] = {}
    for index in cells.index:
        value = data.records[int(index)].metrics.get(name)
        if value is not None:
            seeds.setdefault(data.records[int(index)].seed, []).append(value)
    return spread_of_seeds(data.words, seeds)


def spread_of_seeds(words: Vocabulary, seeds: Mapping[int, Sequence[Value]]) -> Spread | None:
    """As `spread_over`, of values by seed; what is missing is left out."""
    kept = {seed: [v for v in own if v.value is not None] for seed, own in seeds.items()}
    seeds = {seed: own for seed, own in kept.items() if own}
    values = [value for own in seeds.values() for value in own]
    if len(values) < 2:
        return _of_one(words, values[0]) if values else None
    samples = [_mean_samples(own) for own in seeds.values()]
    rows = [row for row in samples if row is not None]
    if len(rows) > 1 and len(rows) == len(seeds) and len({len(row) for row in rows}) == 1:
        found = two_level_interval(rows)
        over = f"{len(rows)} {words.replicate}s and their {words.sample}s"
        return Spread(found.estimate, found.low, found.high, f"95 % interval over {over}", len(rows))
    numbers = [float(value.value) for value in values if value.value is not None]
    return Spread(float(np.mean(numbers)), min(numbers), max(numbers), RANGE, len(seeds))


def _of_one(words: Vocabulary, value: Value) -> Spread | None:
    found = spread_of(value)
    if found is None or found.what != MEAN or not words.replicated:
        return found
    return found._replace(what=f"95 % interval over {words.sample}s of this {words.replicate}")


def _mean_samples(values: Sequence[Value]) -> list[float] | None:
    """Samples of one seed, averaged over its repeats; None unless they are what the value is the mean of."""
    rows = [value.samples for value in values]
    if any(not row or len(row) < _FEWEST[MEAN] or len(row) != len(rows[0] or []) for row in rows):
        return None
    means = np.array(rows, np.float64).mean(axis=0)
    expected = float(np.mean([float(value.value) for value in values if value.value is not None]))
    return means.tolist() if is_mean_of(expected, means) else None
