"""Pure statistics of the reports: arrays in, intervals out; no disk, no clock, no plotting.

Two cells of one suite are usually measured on the *same* inputs, so their per-token values rise and
fall together, and a difference is known far better than either mean. Neighbouring tokens are also
alike, which an ordinary bootstrap ignores; hence whole blocks of positions are drawn. Every function
that draws takes a seed and is reproducible.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as scipy_stats

from bench.intervals import Interval, t_interval

_MOST_BLOCKS = 4096  # more would cost time and gain nothing: longer blocks than needed do no harm
_CHUNK = 4_000_000  # indices drawn at once: bounds memory at about 100 MB, whatever the series length


def autocovariance(x: NDArray[np.float64], lags: int) -> NDArray[np.float64]:
    """Autocovariances (divided by n) of a 1-D series at lags 0 … ``lags``, by FFT."""
    centred = x - x.mean()
    size = 1 << (2 * len(x) - 1).bit_length()
    spectrum = np.fft.rfft(centred, size)
    return np.fft.irfft(np.abs(spectrum) ** 2, size)[: lags + 1] / len(x)


def block_length(series: ArrayLike) -> int:
    """Automatic block length for a circular block bootstrap of the mean.

    Politis and White (2004) with the correction of Patton, Politis and White (2009): the length that
    minimises the error of the variance estimate, from a flat-top estimate of the spectrum. Never less
    than the cube root of n, the rate at which it should grow, and never more than min(3·√n, n/3).
    """
    x = np.asarray(series, np.float64)
    n = len(x)
    if n < 8 or np.ptp(x) == 0:
        return 1
    longest = math.ceil(min(3 * math.sqrt(n), n / 3))
    quiet = max(5, math.ceil(math.log10(n)))  # so many small autocorrelations in a row mean: no more
    lags = min(math.ceil(math.sqrt(n)) + quiet, n - 1)
    covariance = autocovariance(x, lags)
    loud = np.abs(covariance[1:] / covariance[0]) > 2 * math.sqrt(math.log10(n) / n)
    run, last = 0, lags
    for lag, is_loud in enumerate(loud, start=1):
        run = 0 if is_loud else run + 1
        if run == quiet:
            last = lag - quiet
            break
    bandwidth = min(2 * max(last, 1), lags)
    k = np.arange(1, bandwidth + 1)
    taper = np.clip(2 * (1 - k / bandwidth), 0, 1)
    slope = 2 * np.sum(taper * k * covariance[1 : bandwidth + 1])
    long_run = covariance[0] + 2 * np.sum(taper * covariance[1 : bandwidth + 1])
    best = (1.5 * (slope / long_run) ** 2 * n) ** (1 / 3) if long_run > 0 else longest
    return int(np.clip(math.ceil(best), math.ceil(n ** (1 / 3)), longest))


def block_bootstrap_mean(
    series: ArrayLike,
    *,
    block: int | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of the mean of a serially dependent 1-D series; non-finite entries are left out.

    Circular moving blocks, so that every position is drawn equally often. The percentiles are widened
    as a t-interval over the number of blocks would be (Hesterberg 2015), because a plain percentile
    interval is too short when blocks are few.
    """
    x = np.asarray(series, np.float64)
    x = x[np.isfinite(x)]
    n = len(x)
    if n < 2:
        raise ValueError(f"an interval needs at least two finite values, got {n}")
    if block is not None and block < 1:
        raise ValueError(f"block length must be at least 1, got {block}")
    size = min(block or max(block_length(x), math.ceil(n / _MOST_BLOCKS)), n)
    means = _resampled_means(x, size, resamples, np.random.default_rng(seed))
    blocks = max(n / size, 2.0)
    wide = math.sqrt(blocks / (blocks - 1)) * scipy_stats.t.ppf(0.5 + level / 2, blocks - 1)
    tail = scipy_stats.norm.cdf(-wide)
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(x.mean()), float(low), float(high), n, size)


def _resampled_means(
    x: NDArray[np.float64], block: int, resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Means of ``resamples`` circular block resamples: block sums are differences of one running sum."""
    n = len(x)
    centre = x.mean()
    running = np.concatenate([[0.0], np.cumsum(np.concatenate([x, x[:block]]) - centre)])
    whole, rest = divmod(n, block)
    full = running[block:] - running[:-block]
    part = running[rest:] - running[: len(running) - rest]
    means = np.empty(resamples)
    step = max(1, _CHUNK // max(whole, 1))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        total = full[rng.integers(0, n, (rows, whole))].sum(axis=1)
        if rest:
            total += part[rng.integers(0, n, rows)]
        means[start : start + rows] = centre + total / n
    return means


def paired_block_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    *,
    block: int | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of mean(a − b) of two series over the same positions, equally long.

    Positions at which either value is missing are left out of both.
    """
    left, right = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if left.shape != right.shape or left.ndim != 1:
        raise ValueError(f"paired series must be 1-D and equally long, got {left.shape} and {right.shape}")
    with np.errstate(invalid="ignore"):
        difference = left - right
    return block_bootstrap_mean(difference, block=block, resamples=resamples, level=level, seed=seed)


def paired_log_ratio(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> Interval:
    """Geometric mean of a/b over independent pairs with a t-interval of the log-ratios.

    For noisy positive quantities such as latencies; one pair per process, at least two pairs.
    """
    left, right = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if left.shape != right.shape:
        raise ValueError(f"pairs must be equally many, got {left.shape} and {right.shape}")
    if not (np.all(left > 0) and np.all(right > 0)):
        raise ValueError("a log-ratio needs positive values")
    logs = t_interval(np.log(left) - np.log(right), level)
    return Interval(math.exp(logs.estimate), math.exp(logs.low), math.exp(logs.high), logs.n)


def two_level_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Interval of the grand mean over replicates *and* the samples they share: (k, m), both at least two.

    Row i is one replicate (a training), column j one sample (a prompt), the same in every row. Both are
    drawn from something larger: y_ij = μ + a_i + b_j + e_ij. The variance of the mean has a part that the
    rows show, estimated by their mean square, and one that only the columns do, by theirs beyond the rest's.
    Each part is widened by Student's factor for its own degrees of freedom, and the two are added in squares
    (Howe 1974, JASA 69, for two components): where replicates differ it is their t-interval, and with few of
    them it is wide, as it should be. ``n`` counts the replicates.
    """
    y = np.asarray(values, np.float64)
    if y.ndim != 2 or min(y.shape) < 2:
        raise ValueError(f"a two-level interval needs two rows and two columns at least, got {y.shape}")
    k, m = y.shape
    mean, rows, columns = y.mean(), y.mean(axis=1), y.mean(axis=0)
    rest = y - rows[:, None] - columns[None, :] + mean
    of_rows = m * ((rows - mean) ** 2).sum() / (k - 1)
    of_columns = k * ((columns - mean) ** 2).sum() / (m - 1) - (rest**2).sum() / ((k - 1) * (m - 1))
    wide = scipy_stats.t.ppf(0.5 + level / 2, [k - 1, m - 1]) ** 2
    half = math.sqrt((wide[0] * of_rows + wide[1] * max(of_columns, 0.0)) / (k * m))
    return Interval(float(mean), float(mean - half), float(mean + half), k)


def bootstrap_median(
    values: ArrayLike, *, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of the median of independent values.

    A resample of sorted values is fixed by uniform order statistics, of which the median needs only
    the middle one or two; these are drawn directly, so the cost does not grow with the sample.
    """
    x = np.sort(np.asarray(values, np.float64))
    n = len(x)
    if n < 2 or not np.all(np.isfinite(x)):
        raise ValueError("a median interval needs at least two values, all finite")
    rng = np.random.default_rng(seed)
    k = (n + 1) // 2
    lower = rng.beta(k, n - k + 1, resamples)
    medians = x[_index(lower, n)]
    if n % 2 == 0:
        upper = 1 - (1 - lower) * rng.random(resamples) ** (1 / (n - k))
        medians = (medians + x[_index(upper, n)]) / 2
    low, high = np.quantile(medians, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(float(np.median(x)), float(low), float(high), n)


def _index(uniform: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    return np.minimum((uniform * n).astype(np.int64), n - 1)


def is_mean_of(value: float, samples: ArrayLike) -> bool:
    """Whether ``value`` is the mean of ``samples`` up to their rounding: it may be far nearer to zero."""
    x = np.asarray(samples, np.float64)
    return len(x) > 0 and bool(abs(x.mean() - value) <= 1e-6 * np.abs(x).max())


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: adjusted p-values in the given order, each at most 1."""
    p = np.asarray(p_values, np.float64)
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError("p-values must lie between 0 and 1")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted.tolist()


@dataclass(frozen=True)
class Shift:
    """A mean difference, its standard error and degrees of freedom; ``n`` counts pairs, or the fewer side."""

    estimate: float
    error: float
    df: float
    n: int

    def bound(self, tail: float) -> float:
        """How far the true difference may lie from the estimate, but for a chance of ``tail`` on one side."""
        return float(scipy_stats.t.ppf(1 - tail, self.df)) * self.error

    def p_value(self, beyond: float = 0.0) -> float:
        """Two-sided p-value of the hypothesis that the true difference is at most ``beyond`` in size."""
        excess = abs(self.estimate) - beyond
        if self.error <= 0:
            return 0.0 if excess > 0 else 1.0
        return min(1.0, 2 * float(scipy_stats.t.sf(excess / self.error, self.df)))


def mean_shift(a: ArrayLike, b: ArrayLike, *, paired: bool) -> Shift:
    """Mean of a − b: Student's for pairs, Welch's for independent samples; two values a side at least."""
    left, right = np.asarray(a, np.float64), np.asarray(b, np.float64)
    n = min(len(left), len(right))
    if n < 2 or (paired and len(left) != len(right)):
        raise ValueError(f"a shift needs two values a side, pairs equally many: {len(left)} and {len(right)}")
    if paired:
        gaps = left - right
        return Shift(float(gaps.mean()), float(gaps.std(ddof=1)) / math.sqrt(n), n - 1, n)
    parts = [x.var(ddof=1) / len(x) for x in (left, right)]
    total = float(sum(parts))
    spread = sum(part**2 / (len(x) - 1) for part, x in zip(parts, (left, right), strict=True))
    df = total**2 / spread if spread > 0 else float(n - 1)
    return Shift(float(left.mean() - right.mean()), math.sqrt(total), df, n)
