"""Intervals and tests: against closed forms, against scipy, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import signal
from scipy import stats as scipy_stats

from bench import stats

FINITE = st.floats(-1e3, 1e3, allow_nan=False, width=32)
SERIES = arrays.arrays(np.float64, st.integers(8, 200), elements=FINITE)


def ar1(n: int, rho: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(n + 200)
    return signal.lfilter([1.0], [1.0, -rho], noise)[200:]


def plain_resample(x: np.ndarray, block: int, rng: np.random.Generator) -> float:
    """One circular block resample, written as the textbook does."""
    taken: list[float] = []
    while len(taken) < len(x):
        start = rng.integers(0, len(x))
        taken += [x[(start + i) % len(x)] for i in range(block)]
    return float(np.mean(taken[: len(x)]))


@pytest.mark.parametrize(("rho", "least"), [(0.0, 0.90), (0.6, 0.88)])
def test_coverage_is_near_nominal_for_dependent_series(rho: float, least: float) -> None:
    runs = 250
    found = [stats.block_bootstrap_mean(ar1(1000, rho, s), resamples=400, seed=s) for s in range(runs)]
    coverage = sum(i.low <= 0 <= i.high for i in found) / runs
    assert least <= coverage <= 0.985


def test_ignoring_dependence_would_undercover() -> None:
    found = [stats.block_bootstrap_mean(ar1(1000, 0.6, s), block=1, resamples=300) for s in range(120)]
    assert sum(i.low <= 0 <= i.high for i in found) / 120 < 0.78


def test_blocks_of_one_are_the_ordinary_bootstrap() -> None:
    x = np.random.default_rng(3).gamma(2.0, 1.0, 400)
    ours = stats.block_bootstrap_mean(x, block=1, resamples=20_000)
    theirs = scipy_stats.bootstrap(
        (x,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(5)
    ).confidence_interval
    error = 0.05 * (theirs.high - theirs.low) / 2  # several times the Monte-Carlo error of a quantile
    assert abs(ours.low - theirs.low) < error
    assert abs(ours.high - theirs.high) < error
    assert ours.estimate == pytest.approx(x.mean())


@pytest.mark.parametrize("block", [1, 7, 10, 60])
def test_resampled_means_have_the_distribution_of_the_plain_algorithm(block: int) -> None:
    x = ar1(60, 0.7, 1) + 3.0
    rng = np.random.default_rng(0)
    plain = np.array([plain_resample(x, block, rng) for _ in range(4000)])
    fast = stats._resampled_means(x, block, 4000, np.random.default_rng(1))
    assert fast.mean() == pytest.approx(x.mean(), abs=5 * plain.std() / math.sqrt(4000) + 1e-9)
    assert fast.std() == pytest.approx(plain.std(), rel=0.1, abs=1e-9)
    if block < 60:
        assert scipy_stats.ks_2samp(plain, fast).pvalue > 1e-3


def test_chunking_changes_nothing_but_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    x = ar1(500, 0.5, 2)
    whole = stats.block_bootstrap_mean(x, block=9, resamples=300)
    monkeypatch.setattr(stats, "_CHUNK", 1000)
    parts = stats.block_bootstrap_mean(x, block=9, resamples=300)
    assert parts.estimate == whole.estimate
    assert (parts.high - parts.low) == pytest.approx(whole.high - whole.low, rel=0.25)


@pytest.mark.parametrize("rho", [0.3, 0.6, 0.8])
def test_block_length_is_near_the_theoretical_optimum(rho: float) -> None:
    n = 20_000
    best = (1.5 * (2 * rho / (1 - rho**2)) ** 2 * n) ** (1 / 3)
    found = np.mean([stats.block_length(ar1(n, rho, s)) for s in range(12)])
    assert found == pytest.approx(max(best, n ** (1 / 3)), rel=0.35)


def test_block_length_of_degenerate_series() -> None:
    assert stats.block_length(np.ones(1000)) == 1
    assert stats.block_length([1.0, 2.0]) == 1
    trend = stats.block_length(np.arange(900.0))
    assert 30 <= trend <= 90  # a trend asks for the longest blocks allowed


def test_very_long_series_use_few_long_blocks() -> None:
    found = stats.block_bootstrap_mean(np.random.default_rng(0).standard_normal(1_000_000), resamples=200)
    assert found.block is not None
    assert found.block >= 1_000_000 // 4096
    assert found.high - found.low == pytest.approx(2 * 1.96 / 1000, rel=0.25)


@given(SERIES, st.floats(-50, 50), st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_interval_moves_and_scales_with_the_series(x: np.ndarray, shift: float, block: int) -> None:
    base = stats.block_bootstrap_mean(x, block=block, resamples=100)
    moved = stats.block_bootstrap_mean(2 * x + shift, block=block, resamples=100)
    size = 1e-6 * (1 + np.abs(x).max())
    for name in ("estimate", "low", "high"):
        assert getattr(moved, name) == pytest.approx(2 * getattr(base, name) + shift, abs=size)
    assert x.min() - size <= base.low <= base.high <= x.max() + size


def test_a_paired_interval_forgets_what_both_share() -> None:
    text = ar1(4000, 0.7, 0) * 3
    a, b = text + 0.02 + ar1(4000, 0.0, 1) * 0.1, text + ar1(4000, 0.0, 2) * 0.1
    paired = stats.paired_block_bootstrap(a, b)
    alone = stats.block_bootstrap_mean(a)
    assert paired.excludes_zero
    assert paired.low < 0.02 < paired.high
    assert (paired.high - paired.low) < (alone.high - alone.low) / 20


def test_unscored_positions_are_left_out_of_both() -> None:
    a, b = np.arange(50.0), np.zeros(50)
    a[:10], b[40:] = np.nan, np.inf
    found = stats.paired_block_bootstrap(a, b)
    assert found.n == 30
    assert found.estimate == pytest.approx(np.arange(10, 40).mean())


@pytest.mark.parametrize(
    "bad", [([1.0, 2.0], [1.0]), ([[1.0]], [[1.0]]), ([1.0], [1.0]), ([np.nan] * 9, [1.0] * 9)]
)
def test_paired_input_is_checked(bad: tuple[list[float], list[float]]) -> None:
    with pytest.raises(ValueError, match=r"paired series|at least two"):
        stats.paired_block_bootstrap(*bad)
    with pytest.raises(ValueError, match="block length"):
        stats.block_bootstrap_mean(np.arange(9.0), block=0)


def test_log_ratio_against_the_formula() -> None:
    a, b = [2.0, 2.2, 1.9, 2.4], [1.0, 1.05, 0.98, 1.1]
    logs = np.log(np.array(a) / b)
    low, high = scipy_stats.t.interval(0.95, 3, loc=logs.mean(), scale=scipy_stats.sem(logs))
    found = stats.paired_log_ratio(a, b)
    assert (found.estimate, found.low, found.high) == pytest.approx(np.exp([logs.mean(), low, high]))
    inverse = stats.paired_log_ratio(b, a)
    assert (1 / inverse.high, 1 / inverse.low) == pytest.approx((found.low, found.high))


@pytest.mark.parametrize("bad", [([1.0], [1.0]), ([1.0, 0.0], [1.0, 1.0]), ([1.0, 2.0], [1.0])])
def test_log_ratio_input_is_checked(bad: tuple[list[float], list[float]]) -> None:
    with pytest.raises(ValueError, match=r"two values|positive|equally many"):
        stats.paired_log_ratio(*bad)


@pytest.mark.parametrize("n", [2, 5, 24, 25, 101])
def test_median_interval_equals_brute_force(n: int) -> None:
    x = np.random.default_rng(n).lognormal(0, 1, n)
    draws = np.median(np.random.default_rng(1).choice(x, (40_000, n)), axis=1)
    found = stats.bootstrap_median(x, resamples=40_000)
    ordered = np.sort(x)
    for ours, theirs in zip((found.low, found.high), np.quantile(draws, [0.025, 0.975]), strict=True):
        places = np.searchsorted(ordered, [ours, theirs])
        assert abs(int(places[0]) - int(places[1])) <= max(1, n // 50)  # Monte Carlo may hit a neighbour
    assert found.estimate == np.median(x)


def test_holm_by_hand() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    with pytest.raises(ValueError, match="between 0 and 1"):
        stats.holm([0.5, 1.5])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_keeps_order_and_bounds(p: list[float]) -> None:
    adjusted = stats.holm(p)
    assert all(raw <= new <= 1 for raw, new in zip(p, adjusted, strict=True))
    assert all(adjusted[i] <= adjusted[j] for i in range(len(p)) for j in range(len(p)) if p[i] < p[j])
    assert max(adjusted) <= min(1.0, len(p) * max(p)) + 1e-12


@pytest.mark.parametrize("between", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("replicates", [2, 3, 5])
def test_a_two_level_interval_covers_replicates_and_samples(replicates: int, between: float) -> None:
    """Means of trainings that differ; an interval over prompts alone would cover a third of that."""
    rng, hits, naive = np.random.default_rng(1), 0, 0
    for _ in range(600):
        own = rng.normal(0, between, (replicates, 1)) + rng.normal(0, 0.5, (1, 64))
        values = own + rng.normal(0, 1, (replicates, 64))
        found, flat = stats.two_level_interval(values), stats.t_interval(values.mean(axis=0))
        hits += found.low <= 0 <= found.high
        naive += flat.low <= 0 <= flat.high
    assert hits >= 0.93 * 600
    assert between < 1 or naive < 0.4 * 600


def test_a_two_level_interval_is_that_of_the_replicates_where_samples_say_nothing() -> None:
    means = np.array([0.2, 0.5, 0.9])
    found = stats.two_level_interval(np.repeat(means[:, None], 8, axis=1))
    wanted = stats.t_interval(means)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    assert found.n == 3
    with pytest.raises(ValueError, match="two rows and two columns"):
        stats.two_level_interval(np.ones((1, 8)))


@pytest.mark.parametrize("digits", [7, 17])
def test_a_mean_is_known_as_one_however_near_to_zero_it_lies(digits: int) -> None:
    samples = np.random.default_rng(0).normal(0, 1, 40)
    samples += 1e-7 - samples.mean()
    kept = [float(f"{sample:.{digits}g}") for sample in samples]
    assert stats.is_mean_of(float(samples.mean()), kept)
    assert not stats.is_mean_of(float(samples.mean()) + 1e-3, kept)
    assert not stats.is_mean_of(0.0, [])
