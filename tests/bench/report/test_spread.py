"""One rule for all pictures and tables: what the samples of a metric say of its value."""

import numpy as np
import pytest

from bench.report.spread import MEAN, MEDIAN, spread_of
from bench.results.record import Value
from bench.stats import bootstrap_median, t_interval


def value(number, samples):
    return Value(value=number, unit="ms", samples=samples)


def test_a_mean_has_its_t_interval():
    samples = [1.0, 2.0, 4.0, 5.0]
    found, wanted = spread_of(value(3.0, samples)), t_interval(samples)
    assert (found.low, found.high, found.what) == (wanted.low, wanted.high, MEAN)
    assert not spread_of(value(0.0, [s - 3.0 for s in samples])).excludes_zero
    assert spread_of(value(103.0, [100.0 + s for s in samples])).excludes_zero
    assert spread_of(value(-103.0, [-100.0 - s for s in samples])).excludes_zero


def test_a_median_has_its_bootstrap_interval():
    samples = [1.0, 2.0, 9.0, 10.0, 11.0]
    found, wanted = spread_of(value(9.0, samples)), bootstrap_median(np.array(samples))
    assert (found.low, found.high, found.what) == (wanted.low, wanted.high, MEDIAN)


@pytest.mark.parametrize(
    "samples",
    [None, [], [3.0], [3.0, 3.0, 3.0, 3.0], [10.0, 20.0, 30.0]],
    ids=["none", "empty", "one", "all the same", "neither mean nor median"],
)
def test_samples_that_say_nothing_give_no_interval(samples):
    assert spread_of(value(3.0, samples)) is None


def test_a_metric_without_a_value_has_none():
    assert spread_of(None) is None
    assert spread_of(Value(value=None, unit="", reason="no GPU", samples=[1.0, 2.0, 3.0])) is None


def test_a_median_of_small_numbers_is_taken_for_one_only_if_it_is():
    samples = [float(n) * 1e-9 for n in range(1, 10)]
    assert spread_of(Value(value=9e-9, unit="s", samples=samples)) is None
    assert spread_of(Value(value=5e-9, unit="s", samples=[*samples[:8], 2e-8])).what == MEDIAN
