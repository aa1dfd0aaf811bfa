"""Noise from pairs of identical code. The command itself is tried in test_gate_cli."""

import math

import numpy as np
import pytest

from bench.gate.calibrate import noise
from bench.gate.match import Side
from bench.gate.rule import Rule, detectable
from helpers.gateplace import record
from helpers.gatetoy import GateToy

RNG = np.random.default_rng(3)


def found(base, head, tolerances=None, metrics=GateToy.metrics):
    sides = (Side(name, tuple(records)) for name, records in (("a", base), ("b", head)))
    return {one.metric: one for one in noise(*sides, metrics, tolerances or {}, Rule())}


def records(metric, values, **more):
    return [record({metric: value}, repeat=i, **more) for i, value in enumerate(values)]


def test_noisy_metrics_show_the_spread_of_their_log_ratio():
    base, head = np.exp(RNG.normal(2, 0.05, 12)), np.exp(RNG.normal(2, 0.05, 12))
    one = found(records("latency", base), records("latency", head))["latency"]
    assert one.noise == one.worst == pytest.approx(np.std(np.log(head / base), ddof=1))
    assert one.detectable == pytest.approx(detectable(one.noise, 12, 1, Rule()))
    assert (one.cells, one.pairs, one.threshold) == (1, 12, 0.1)


def test_the_worst_cell_decides_and_is_named():
    quiet, loud = [10.0, 10.1, 9.9, 10.0], [10.0, 14.0, 8.0, 11.0]
    base = [*records("latency", [10.0] * 4), *records("latency", [10.0] * 4, kind="b")]
    head = [*records("latency", quiet), *records("latency", loud, kind="b")]
    one = found(base, head)["latency"]
    assert one.worst_cell == "b 8"
    assert one.cells == 2
    assert one.noise < one.worst


def test_a_threshold_below_the_noise_is_warned_of_with_a_way_out():
    base, head = records("latency", [10.0] * 6), records("latency", [10, 13, 8, 11, 9, 12])
    one = found(base, head)["latency"]
    assert "the threshold of 10 % is below the" in one.warning
    assert one.pairs_needed
    assert detectable(one.worst, one.pairs_needed, 1, Rule()) <= 0.1
    assert detectable(one.worst, one.pairs_needed - 1, 1, Rule()) > 0.1
    assert f"{one.pairs_needed} pairs would do" in one.warning
    assert found(base, head, {"latency": 5.0})["latency"].warning == ""


def test_noise_that_no_number_of_pairs_can_beat():
    base, head = records("latency", [1.0] * 4), records("latency", [1.0, 100.0, 0.01, 3.0])
    one = found(base, head)["latency"]
    assert one.pairs_needed is None
    assert "not even 1000 pairs" in one.warning
    assert math.isfinite(one.detectable)


def test_exact_and_near_metrics_must_hold_still():
    base, head = records("nll", [3.0, 3.0]), records("nll", [3.0, 3.0005])
    one = found(base, head)["nll"]
    assert (one.worst, one.warning) == (pytest.approx(0.0005), "")
    assert "may differ by 0.0001" in found(base, head, {"nll": 0.0001})["nll"].warning
    base, head = records("slots", [32, 32]), records("slots", [32, 33])
    assert "is declared exact, but identical code differed by 1" in found(base, head)["slots"].warning


def test_what_was_not_measured_is_left_out():
    assert found([record({"vram": None})], [record({"vram": None})]) == {}
    assert found([record(status="oom")], [record({"nll": 3.0})]) == {}
    assert "note" not in found(records("note", [1.0, 2.0]), records("note", [1.0, 2.0]))
