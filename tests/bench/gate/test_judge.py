"""Verdicts on invented records: every class of metric, every way a cell can end, every way to not compare."""

from dataclasses import replace

import pytest

from bench.gate.judge import judge
from bench.gate.match import UNKNOWN, Side, blocks, keys, match
from bench.gate.rule import Verdict
from bench.gate.verdict import STATUS, exit_code
from bench.workload import Metric
from helpers.gateplace import record, verdicts
from helpers.gatetoy import GateToy

SAME = {"e1": {"id": "e1", "python": "3.11", "cpu": {"model": "A"}, "gpus": []}}
OTHER = {"e2": {"id": "e2", "python": "3.11", "cpu": {"model": "B"}, "gpus": []}}


def side(*records, env=SAME):
    return Side("side", tuple(records), env)


def judged(base, head, *, paired=True, **more):
    return judge(side(*base), side(*head), GateToy.metrics, paired=paired, **more)


def only(found, metric):
    (one,) = [j for j in found if j.metric == metric]
    return one


def pairs(metric, base, head):
    return (
        [record({metric: value}, repeat=i) for i, value in enumerate(base)],
        [record({metric: value}, repeat=i) for i, value in enumerate(head)],
    )


@pytest.mark.parametrize(
    ("metric", "base", "head", "verdict"),
    [
        ("slots", 32, 32, "pass"),
        ("slots", 32, 33, "regressed"),
        ("slots", 32, 31, "improved"),
        ("fed", 10, 10, "pass"),
        ("fed", 10, 11, "regressed"),  # no direction: any change counts
        ("fed", 10, 9, "regressed"),
        ("nll", 3.0, 3.0009, "pass"),
        ("nll", 3.0, 3.0011, "regressed"),
        ("nll", 3.0, 2.9989, "improved"),
    ],
)
def test_exact_and_near_metrics(metric, base, head, verdict):
    found = only(judged([record({metric: base})], [record({metric: head})]), metric)
    assert found.verdict == verdict
    assert (found.base, found.head) == (base, head)
    assert found.difference == pytest.approx(head - base)


def test_a_difference_of_just_the_tolerance_passes_whatever_rounding_does():
    assert only(judged([record({"nll": 0.1})], [record({"nll": 0.101})]), "nll").verdict is Verdict.PASS


def test_suites_may_tighten_and_loosen_tolerances():
    base, head = [record({"nll": 3.0, "slots": 32})], [record({"nll": 3.0005, "slots": 33})]
    found = judged(base, head, tolerances={"nll": 0.0001, "slots": 2})
    assert only(found, "nll").verdict is Verdict.REGRESSED
    assert only(found, "slots").verdict is Verdict.PASS


def test_the_worst_process_decides_an_exact_metric():
    found = only(judged(*pairs("slots", [32, 32, 32], [32, 40, 32])), "slots")
    assert found.verdict is Verdict.REGRESSED
    assert found.head == 40
    assert found.reason == "not the same in every process: 32 … 40"
    found = only(judged(*pairs("slots", [32, 31, 32], [32, 32, 32])), "slots")
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "not the same in every process of the base" in found.reason


def test_near_metrics_that_scatter_are_told_apart_from_those_that_moved():
    moved = only(judged(*pairs("nll", [3.0, 3.01, 3.02], [3.01, 3.02, 3.03])), "nll")
    assert moved.verdict is Verdict.REGRESSED
    scattered = only(judged(*pairs("nll", [3.0, 3.1, 2.9], [3.1, 2.9, 3.05])), "nll")
    assert scattered.verdict is Verdict.INCONCLUSIVE
    assert "scatters" in scattered.reason


def test_noisy_metrics_by_direction():
    base = [10.0, 10.1, 9.9, 10.05, 10.0, 9.95]
    slower, faster = [v * 1.3 for v in base], [v / 1.3 for v in base]
    assert only(judged(*pairs("latency", base, slower)), "latency").verdict is Verdict.REGRESSED
    assert only(judged(*pairs("latency", base, faster)), "latency").verdict is Verdict.IMPROVED
    found = only(judged(*pairs("speed", base, faster)), "speed")
    assert found.verdict is Verdict.REGRESSED
    assert found.ratio == pytest.approx(1 / 1.3)
    assert found.ratio_low <= found.ratio <= found.ratio_high < 1
    assert only(judged(*pairs("latency", base, base)), "latency").verdict is Verdict.PASS


def test_noisy_metrics_without_direction_are_not_compared():
    assert verdicts(judged(*pairs("note", [1.0] * 4, [9.0] * 4)), "note") == []


def test_only_repetitions_of_both_sides_are_pairs():
    base, head = pairs("latency", [10.0] * 6, [20.0] * 6)
    found = only(judged(base, head[1:4]), "latency")
    assert (found.pairs, found.verdict) == (3, "regressed")


def test_zero_on_both_sides_is_equal_and_no_ratio_is_formed():
    assert only(judged(*pairs("vram", [0.0] * 3, [0.0] * 3)), "vram").verdict is Verdict.PASS
    found = only(judged(*pairs("vram", [0.0] * 3, [5.0] * 3)), "vram")
    assert found.verdict is Verdict.INCOMPARABLE
    assert found.reason == "a ratio needs positive values"


@pytest.mark.parametrize("status", ["oom", "error", "nan", "timeout"])
def test_a_cell_that_was_ok_and_now_fails_has_regressed(status):
    found = judged([record({"nll": 3.0})], [record(status=status, reason="no more")])
    assert [(j.metric, j.verdict, j.reason) for j in found] == [
        (STATUS, "regressed", f"was ok, now {status}: no more")
    ]
    back = judged([record(status=status)], [record({"nll": 3.0})])
    assert [(j.metric, j.verdict) for j in back] == [(STATUS, "improved")]


def test_a_failure_now_and_then_counts_as_one():
    base = [record({"nll": 3.0}, repeat=i) for i in range(4)]
    head = [*base[:3], record(status="oom", repeat=3)]
    found = judged(base, head)
    assert only(found, STATUS).reason == "was ok, now oom in 1 of 4 processes: it broke"
    assert only(found, STATUS).verdict is Verdict.REGRESSED
    assert (
        only(found, "nll").verdict is Verdict.PASS
    )  # the pairs that were measured are compared all the same
    flaky = [record({"nll": 3.0}), record(status="oom", repeat=1)]
    assert only(judged(flaky, flaky), STATUS).verdict is Verdict.INCOMPARABLE
    dead = [record(status="oom"), record(status="oom", repeat=1)]
    assert only(judged(flaky, dead), STATUS).verdict is Verdict.REGRESSED


def test_what_is_skipped_missing_or_failed_on_both_sides_is_not_compared():
    ok, skipped = record({"nll": 3.0}), record(status="skipped", reason="offline")
    assert only(judged([ok], [skipped]), STATUS).reason == "base ok; head skipped: offline"
    assert only(judged([ok], []), STATUS).reason == "not measured any more"
    assert only(judged([], [ok]), STATUS).reason == "not measured in the base"
    broken = record(status="error")
    for base, head in (([ok], [skipped]), ([ok], []), ([], [ok]), ([broken], [broken])):
        (found,) = judged(base, head)
        assert found.verdict is Verdict.INCOMPARABLE


def test_a_metric_that_is_not_measured_any_more_is_not_compared():
    found = judged([record({"nll": 3.0, "vram": None})], [record({"nll": None, "vram": None})])
    assert only(found, "nll").reason == "no value in head: no GPU"
    assert verdicts(found, "vram") == []  # measured on neither side: nothing to say
    assert only(judged([record({})], [record({"nll": 3.0})]), "nll").reason == (
        "no value in base: not reported"
    )


def test_other_machines_are_named_and_not_compared():
    base, head = record({"slots": 32, "nll": 3.0, "fed": 8}), record({"slots": 32, "nll": 3.0, "fed": 9})
    head = head.model_copy(update={"env": "e2"})
    sides = side(base), side(head, env=OTHER)
    found = judge(*sides, GateToy.metrics, paired=False)
    assert only(found, "nll").verdict is Verdict.INCOMPARABLE
    assert only(found, "nll").reason == "cpu.model differs"
    assert only(found, "slots").verdict is Verdict.PASS  # equal is equal …
    assert only(found, "fed").verdict is Verdict.INCOMPARABLE  # … but a change may be the machine's
    assert exit_code(found, 0) == 5  # and equality on another machine is no success
    found = judge(*sides, GateToy.metrics, paired=False, accept=("cpu.*",))
    assert only(found, "nll").verdict is Verdict.PASS
    assert only(found, "fed").verdict is Verdict.REGRESSED


def test_a_record_whose_fingerprint_is_lost_is_not_compared():
    found = judge(
        side(record({"nll": 3.0})), side(record({"nll": 3.0}), env={}), GateToy.metrics, paired=False
    )
    assert only(found, "nll").fields == [UNKNOWN]


def test_cells_are_matched_by_what_was_asked_not_by_their_id():
    base = record({"nll": 3.0}, cell="old", label="old name")
    newer = record({"nll": 3.0}, cell="new")
    newer = newer.model_copy(update={"params": newer.params | {"fused": False}})
    (cell,) = match(side(base), side(newer))
    assert cell.name == "a 8"
    assert cell.base
    assert cell.head


def test_a_new_parameter_that_tells_cells_apart_is_no_match():
    fused = [
        r.model_copy(update={"params": r.params | {"fused": on}, "cell": f"c{on}"})
        for on in (False, True)
        for r in [record({"nll": 3.0})]
    ]
    cells = match(side(record({"nll": 3.0})), side(*fused))
    assert [bool(c.base and c.head) for c in cells] == [False, False, False]
    assert {c.name for c in cells} >= {"a 8, fused False", "a 8, fused True"}


def test_cells_of_one_label_get_names_of_their_own():
    records = [record({"nll": 3.0}, seed=seed, cell=f"s{seed}") for seed in (0, 1)]
    assert [c.name for c in match(side(*records), side(*records))] == ["a 8, seed 0", "a 8, seed 1"]


def test_the_newest_record_of_a_repetition_counts():
    found = judged([record({"slots": 32})], [record({"slots": 40}), record({"slots": 32})])
    assert only(found, "slots").verdict is Verdict.PASS


def test_exit_codes():
    ok = only(judged([record({"slots": 32})], [record({"slots": 32})]), "slots")
    assert exit_code([ok], 0) == 0
    assert exit_code([ok], 2) == 3
    assert exit_code([], 0) == 5
    undecided = ok.model_copy(update={"verdict": Verdict.INCONCLUSIVE})
    assert exit_code([undecided], 0) == 5  # asked, but nothing answered: never a success
    assert exit_code([undecided, ok], 0) == 0
    worse = ok.model_copy(update={"verdict": Verdict.REGRESSED})
    assert exit_code([ok, worse], 3) == 4
    (mended,) = judged([record(status="error", reason="x")], [record({"slots": 32})])
    assert mended.verdict is Verdict.IMPROVED
    assert exit_code([mended], 0) == 5  # no number of it was compared with anything
    assert exit_code([mended, ok], 0) == 0


def test_metrics_that_nobody_declares_any_more_are_left_alone():
    declared = tuple(m for m in GateToy.metrics if m.name != "slots")
    records = side(record({"slots": 32, "nll": 3.0}))
    assert verdicts(judge(records, records, declared, paired=False), "slots") == []


def test_a_family_shares_its_significance_over_cells_and_metrics():
    base, head = [], []
    for tokens in (8, 16):
        for i, value in enumerate([10.0, 10.1, 9.9, 10.2, 9.8, 10.0]):
            base.append(record({"latency": value, "speed": value}, tokens=tokens, repeat=i))
            head.append(record({"latency": value * (1 + i / 100), "speed": value}, tokens=tokens, repeat=i))
    found = judged(base, head)
    assert only([j for j in found if j.cell == "a 8"], "latency").p_adjusted == pytest.approx(
        4 * only([j for j in found if j.cell == "a 8"], "latency").p_value, rel=1e-6
    )


def test_a_noisy_metric_that_declares_no_effect_gets_the_rules_own():
    metric = Metric("vram", "VRAM", "B", "lower", "noisy")
    base, head = pairs("vram", [100.0, 100.1, 99.9], [103.0, 103.1, 102.9])
    (found,) = judge(side(*base), side(*head), (metric,), paired=True)
    assert (found.tolerance, found.verdict) == (0.05, "pass")
    (found,) = judge(side(*base), side(*head), (replace(metric, tolerance=0.01),), paired=True)
    assert found.verdict is Verdict.REGRESSED


def test_a_side_that_does_not_know_a_parameter_has_its_default():
    base, head = [({"kind": "a"}, 0)], [({"kind": "a", "level": 0}, 0), ({"kind": "a", "level": 5}, 0)]
    (known,), (same, new) = keys(base, head, {"level": 0})
    assert known == same != new
    (known,), (new,) = keys(base, head[1:], {"level": 0})
    assert known != new
    (known,), (same,) = keys(base, head[1:], {})  # no default, and told apart without it: left out
    assert known == same


def test_passes_are_measured_side_by_side_if_they_answer_the_same_cells():
    assert blocks([["a", "b"], ["c"]], [["c", "new"], ["a"], ["newer"]]) == [
        ([1], [0]),
        ([0], [1]),
        ([], [2]),
    ]
    assert blocks([["a"], ["old"]], [["a"]]) == [([0], [0]), ([1], [])]
    assert blocks([["a", "b"]], [["a"], ["b"]]) is None
    assert blocks([["a"], ["b"]], [["a", "b"]]) is None


def test_memory_of_a_child_that_was_not_preloaded_is_not_held_against_others():
    def repeats(value, preloaded):
        told = {} if preloaded is None else {"preloaded": preloaded}
        metrics = {"rss": value, "latency": 5.0}
        return [record(metrics, repeat=i, conformance=told) for i in range(6)]

    for head, verdict in ((False, "incomparable"), (True, "pass"), (None, "pass")):
        found = judged(repeats(1e8, True), repeats(1e8 if head is not False else 1.2e8, head))
        assert verdicts(found, "rss") == [verdict]
        assert verdicts(found, "latency") == ["pass"]
    assert verdicts(judged(repeats(1e8, False), repeats(1e8, False)), "rss") == ["pass"]


def test_an_exact_metric_that_scatters_in_the_base_blames_nobody():
    (found,) = judged(*pairs("slots", [4e9, 4e9 + 1, 4e9], [4e9 + 1, 4e9, 4e9]), paired=False)
    assert found.verdict == "inconclusive"
    assert "not the same in every process of the base" in found.reason


def test_numbers_at_the_end_of_floats_are_judged():
    (found,) = judged(*pairs("nll", [1.7e308] * 3, [-1.7e308] * 3), paired=False)
    assert (found.base, found.head) == pytest.approx((1.7e308, -1.7e308))
    assert found.verdict == "improved"
