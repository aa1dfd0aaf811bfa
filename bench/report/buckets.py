"""A series of a million tokens as a dozen numbers: means over stretches of positions.

Entry i of a series belongs to position i + 1, so the bucket ``(first, last)`` covers entries
first − 1 … last − 1. Entries that were not scored are NaN and are left out, never counted as zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bench.stats import block_bootstrap_mean

Array = NDArray[np.float64]
_EXP_LIMIT = 700.0  # exp of more than this overflows


@dataclass(frozen=True)
class Buckets:
    """Means over buckets: all arrays have one entry per bucket; NaN where a bucket has no value."""

    first: NDArray[np.int64]  # first position, counted from 1
    last: NDArray[np.int64]  # last position, included
    mean: Array
    low: Array
    high: Array
    count: NDArray[np.int64]  # entries that were scored

    @property
    def centre(self) -> Array:
        """Middle of each bucket, where its mean is drawn."""
        return (self.first + self.last) / 2


def octave_edges(n: int, most: int = 12) -> list[int]:
    """Upper ends of at most ``most`` buckets that double in width: …, 256, 512, …, n."""
    if n < 1:
        return []
    top = math.ceil(math.log2(n))
    powers = [1 << p for p in range(max(6, top - most + 1), top)]
    return [*[p for p in powers if p < n], n]


def fine_edges(n: int, per_octave: int = 4, least: int = 64) -> list[int]:
    """Upper ends of buckets for a curve: up to ``per_octave`` in each doubling, the first of ``least``.

    Powers of two are always ends, so that a change at 1,024 or 8,192 is not smeared over a bucket; a
    short rest at the end joins the bucket before it.
    """
    ends, octave = [least], least
    while octave < n:
        parts = min(per_octave, octave // least)
        ends += [round(octave * 2 ** (i / parts)) for i in range(1, parts + 1)]
        octave *= 2
    inside = [end for end in ends if end < n]
    width = ends[len(inside)] - (inside[-1] if inside else 0)
    if inside and n - inside[-1] < width / 2:
        inside.pop()
    return [*inside, n]


def bucket_means(series: Array, ends: list[int], *, intervals: bool = False, resamples: int = 400) -> Buckets:
    """Mean of a series in each bucket, with a 95 % block-bootstrap interval if asked for.

    Buckets beyond the series are left out; the one in which it stops covers what there is.
    """
    first, last, mean, low, high, count = [], [], [], [], [], []
    begin = 0
    for wanted in ends:
        end = min(wanted, len(series))
        if end <= begin:
            break
        scored = series[begin:end]
        scored = scored[~np.isnan(scored)]
        first.append(begin + 1)
        last.append(end)
        count.append(len(scored))
        mean.append(scored.mean() if len(scored) else np.nan)
        limits = (np.nan, np.nan)
        if intervals and np.isfinite(scored).sum() >= 8:
            found = block_bootstrap_mean(scored, resamples=resamples)
            limits = (found.low, found.high)
        low.append(limits[0])
        high.append(limits[1])
        begin = end
    positions = [np.array(v, np.int64) for v in (first, last, count)]
    values = [np.array(v, np.float64) for v in (mean, low, high)]
    return Buckets(positions[0], positions[1], values[0], values[1], values[2], positions[2])


def exp(values: ArrayLike) -> Array:
    """Perplexity of a mean NLL; what would overflow becomes infinite without a warning."""
    values = np.asarray(values, np.float64)
    return np.where(values > _EXP_LIMIT, np.inf, np.exp(np.minimum(values, _EXP_LIMIT)))
