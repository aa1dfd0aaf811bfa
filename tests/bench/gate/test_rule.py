"""The decision on noisy metrics: against scipy, against brute force, and in a small simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bench.gate.against import schedule
from bench.gate.rule import MOST_PAIRS, Evidence, Rule, Verdict, decide, detectable, pairs_needed
from bench.stats import holm, mean_shift
from tools import gate_simulation

RNG = np.random.default_rng(7)


def evidence(shift, *, scatter=0.01, pairs=6, effect=0.05, paired=True, seed=0):
    rng = np.random.default_rng(seed)
    base = rng.normal(1, 0.1, pairs)
    head = base + rng.normal(shift, scatter, pairs) if paired else rng.normal(1 + shift, scatter, pairs)
    base = base if paired else rng.normal(1, scatter, pairs)
    return Evidence(tuple(base), tuple(head), effect, paired)


def with_t(t, shift=0.08, pairs=6):
    """Pairs whose mean difference is ``shift`` and whose t statistic is exactly ``t``."""
    gaps = np.array([-1.0, 1.0] * (pairs // 2))
    gaps = shift + gaps / gaps.std(ddof=1) * shift * math.sqrt(pairs) / t
    return Evidence((0.0,) * pairs, tuple(gaps), 0.05)


def one(*args, rule=None, **keys):
    (found,) = decide([evidence(*args, **keys)], rule or Rule())
    return found


def test_shifts_are_those_of_scipy():
    a, b = RNG.normal(1, 0.1, 9), RNG.normal(1.1, 0.2, 9)
    paired, welch = mean_shift(a, b, paired=True), mean_shift(a, b[:7], paired=False)
    assert paired.p_value() == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert welch.p_value() == pytest.approx(stats.ttest_ind(a, b[:7], equal_var=False).pvalue)
    low, high = stats.ttest_rel(a, b).confidence_interval(0.9)
    assert paired.estimate - paired.bound(0.05) == pytest.approx(low)
    assert paired.estimate + paired.bound(0.05) == pytest.approx(high)


def test_a_shift_needs_two_values_a_side_and_as_many_for_pairs():
    for a, b, paired in (([1], [1], True), ([1, 2, 3], [1, 2], True), ([1, 2], [1], False)):
        with pytest.raises(ValueError, match="two values a side"):
            mean_shift(a, b, paired=paired)


def test_clear_changes_are_called_by_their_direction():
    assert one(math.log(1.2)).verdict is Verdict.REGRESSED
    assert one(-math.log(1.2)).verdict is Verdict.IMPROVED
    assert one(0.0).verdict is Verdict.PASS


def test_a_sure_but_small_change_passes():
    found = one(0.02, scatter=0.002)
    assert found.p_adjusted < 0.001
    assert found.verdict is Verdict.PASS


def test_noise_that_hides_an_effect_is_inconclusive_and_says_how_many_pairs_would_do():
    found = one(0.0, scatter=0.1, seed=3)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.more_pairs
    assert found.reason == ""
    (hopeless,) = decide([evidence(0.0, scatter=9.0, seed=3)], Rule())
    assert (hopeless.more_pairs, hopeless.reason) == (None, "not even 1000 pairs would settle it")


def test_the_significance_is_shared_by_the_family():
    borderline = with_t(5.0)  # p = 0.004
    (alone,) = decide([borderline], Rule())
    assert alone.verdict is Verdict.REGRESSED
    many = decide([borderline, *(evidence(0.0, scatter=0.2, seed=i) for i in range(2, 22))], Rule())
    assert many[0].verdict is Verdict.INCONCLUSIVE
    assert [d.p_adjusted for d in many] == pytest.approx(holm([d.p_value for d in many]))


def test_more_looks_cost_significance():
    borderline = with_t(5.0)
    (once,), (thrice,) = decide([borderline], Rule()), decide([borderline], Rule(looks=8))
    assert once.verdict is Verdict.REGRESSED
    assert thrice.verdict is Verdict.INCONCLUSIVE


def test_values_without_scatter_are_decided_by_the_effect_alone():
    for shift, verdict in ((0.0, "pass"), (0.04, "pass"), (0.06, "regressed"), (-0.06, "improved")):
        (found,) = decide([Evidence((1.0,) * 3, (1.0 + shift,) * 3, 0.05)], Rule())
        assert found.verdict == verdict


def test_too_few_pairs_decide_nothing():
    (found,) = decide([Evidence((1.0, 1.1), (2.0, 2.1), 0.05)], Rule())
    assert (found.verdict, found.more_pairs, found.reason) == ("inconclusive", 1, "only 2 pairs of processes")
    (found,) = decide([Evidence((1.0,), (2.0,), 0.05, paired=False)], Rule())
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "repeat:" in found.reason


def test_sessions_are_granted_their_allowance():
    assert one(math.log(1.15), paired=False).verdict is Verdict.PASS
    assert one(math.log(1.5), paired=False).verdict is Verdict.REGRESSED
    assert one(-math.log(1.5), paired=False).verdict is Verdict.IMPROVED
    near = one(math.log(1.25), paired=False)
    assert near.verdict is Verdict.INCONCLUSIVE
    assert "25 % that separate sessions" in near.reason
    assert near.more_pairs is None  # more runs of either session would not help


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-0.3, 0.3), min_size=3, max_size=9), st.floats(0.01, 0.2))
def test_turning_the_sides_round_turns_the_verdict_round(gaps, effect):
    zeros = (0.0,) * len(gaps)
    (there,) = decide([Evidence(zeros, tuple(gaps), effect)], Rule())
    (back,) = decide([Evidence(tuple(gaps), zeros, effect)], Rule())
    turned = {"regressed": "improved", "improved": "regressed"}
    if there.verdict in turned or back.verdict in turned:
        assert back.verdict == turned.get(there.verdict, back.verdict)
        assert there.p_value == pytest.approx(back.p_value)


@pytest.mark.parametrize(("shift", "scatter"), [(0.2, 0.12), (0.07, 0.05), (0.01, 0.08), (-0.3, 0.1)])
def test_the_promised_number_of_pairs_is_the_first_that_decides(shift, scatter):
    """Brute force: the same mean and spread with more and more pairs, until the rule decides."""
    rule, family = Rule(), 5

    def decided(n):
        gaps = np.resize([1.0, -1.0], n) if n % 2 == 0 else np.append(np.resize([1.0, -1.0], n - 1), 0.0)
        gaps = shift + scatter * gaps / gaps.std(ddof=1)
        clear = [Evidence((0.0,) * 3, (0.0, 1e-9, -1e-9), 0.05)] * (family - 1)
        return decide([Evidence((0.0,) * n, tuple(gaps), 0.05), *clear], rule)[0].verdict != "inconclusive"

    start = mean_shift([shift + scatter, shift, shift - scatter], [0.0] * 3, paired=True)
    promised = pairs_needed(start, 0.05, family, rule)
    assert promised
    tried = [n for n in range(4, promised + 30) if decided(n)]
    assert abs(tried[0] - promised) <= 1  # the bootstrap may want one more


def test_an_effect_on_the_very_threshold_is_out_of_reach():
    limit = math.log1p(0.05)
    at = mean_shift([limit - 0.5, limit - 1e-6, limit + 0.5], [0.0] * 3, paired=True)
    assert pairs_needed(at, 0.05, 1, Rule()) is None


def test_the_detectable_effect_is_found_with_the_stated_power():
    pairs, scatter = 10, 0.05
    rule = Rule(effect=0.0)
    effect = math.log1p(detectable(scatter, pairs, 1, rule))
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(400):
        gaps = rng.normal(effect, scatter, pairs)
        (found,) = decide([Evidence((0.0,) * pairs, tuple(gaps), 0.001)], rule)
        hits += found.verdict is Verdict.REGRESSED
    assert 0.72 < hits / 400 < 0.9
    assert detectable(scatter, MOST_PAIRS, 1, rule) < 0.02
    assert detectable(scatter, 1, 1, rule) == math.inf


def test_looks_are_planned_beforehand():
    assert schedule(6, 6) == [6]
    assert schedule(6, 24) == [6, 12, 24]
    assert schedule(5, 12) == [5, 10, 12]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, -1.0])
def test_a_senseless_level_is_refused(alpha):
    with pytest.raises(ValueError, match="between 0 and"):
        Rule(alpha=alpha)


def test_simulated_gates_rarely_cry_wolf_and_find_what_is_there():
    """A small version of the table in docs/explanation/gate.md; the seed is fixed."""
    quiet, shared, _ = gate_simulation.MACHINES
    calm = gate_simulation.rates(gate_simulation.ours, quiet, 60)
    assert calm.false_alarms <= 0.02
    assert calm.detected_10 > 0.95
    rough = gate_simulation.rates(gate_simulation.until_decided, shared, 30)
    assert rough.false_alarms <= 1 / 30
    assert rough.detected_20 > 0.9
    usual = gate_simulation.rates(gate_simulation.one_run, shared, 60)
    assert usual.false_alarms > 0.5
