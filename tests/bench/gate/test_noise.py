"""What is said before a gate measures, and thresholds from a calibration. The command is in test_gate_cli."""

import json
import math

import pytest

from bench.errors import UserError
from bench.gate.noise import (
    read_noise,
    resolvable_tolerances,
    sharpness_warning,
    tolerance_note,
    undecidable,
    with_tolerances,
)
from bench.gate.rule import Rule, detectable
from bench.results import environment
from helpers.gateplace import request, write_suite


@pytest.fixture
def asked(tmp_path):
    return request(write_suite(tmp_path))  # 4 cells of 4 noisy metrics with a direction


def calibration(tmp_path, *metrics, **changes):
    path = tmp_path / "calibration.json"
    keys = ("metric", "klass", "worst", "worst_cell")
    listed = [dict(zip(keys, (*one, "a 8"), strict=True)) for one in metrics]
    data = {"suite": "toys", "environment": environment.fingerprint(), "metrics": listed}
    path.write_text(json.dumps(data | changes))
    return path


def test_pairs_that_can_decide_nothing_are_warned_of(asked):
    (warning,) = undecidable(asked, Rule(), 2)
    assert "2 pairs cannot decide any noisy metric (quickest token, speed, peak RSS and 1 more)" in warning
    assert warning.endswith("give at least --pairs 3")
    assert undecidable(asked, Rule(), 3) == []
    (warning,) = undecidable(asked, Rule(), 1, paired=False)
    assert warning.endswith("give at least --set repeat=2")
    assert undecidable(asked, Rule(), 2, paired=False) == []


def test_pairs_that_find_only_the_largest_changes_are_warned_of(asked):
    (warning,) = sharpness_warning(asked, Rule(), 3)
    assert f"only beyond × {1 + detectable(0.05, 3, 16, Rule()):.3g} (16 comparisons" in warning
    assert sharpness_warning(asked, Rule(), 2) == []  # the other warning says it
    assert sharpness_warning(asked, Rule(), 6) == []


def test_thresholds_below_the_noise_of_this_machine_are_raised_and_told(asked, tmp_path):
    noisy = [("latency", "noisy", 0.2), ("speed", "noisy", 0.001)]
    still = [("nll", "near", 0.5), ("slots", "exact", 3.0)]
    noise = read_noise(calibration(tmp_path, *noisy, *still), "toys")
    found = resolvable_tolerances(noise, asked, Rule(), 6)
    assert found == {"latency": detectable(0.2, 6, 8, Rule()), "nll": 0.5}
    assert resolvable_tolerances(noise, asked, Rule(), 2).keys() == {"nll"}  # two pairs find nothing at all
    assert with_tolerances(asked, found).suite.tolerances == found
    (note,) = tolerance_note(found, asked, Rule())
    assert (
        "raised to what this machine can resolve: NLL 0.001 nats → 0.5 nats, quickest token 10 % → " in note
    )
    assert tolerance_note({}, asked, Rule()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suite": "others"}, "of suite 'others', not of 'toys'"),
        ({"environment": {"cpu": {"model": "Another CPU"}}}, "measured with another "),
        ({"metrics": [{"metric": "latency"}]}, "is no calibration: metrics.0.klass: Field required"),
        ({"environment": None}, "is no calibration: environment: Input should be"),
        (
            {"metrics": [{"metric": "nll", "klass": "near", "worst": math.inf, "worst_cell": "a"}]},
            "is no calibration: metrics.0.worst: Input should be a finite number",
        ),
    ],
)
def test_a_file_of_anything_else_is_refused(tmp_path, changes, message):
    with pytest.raises(UserError) as caught:
        read_noise(calibration(tmp_path, **changes), "toys")
    assert message in caught.value.message
    assert caught.value.hint == "calibrate here: python -m bench calibrate toys"


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no\.json: No such file"):
        read_noise(tmp_path / "no.json", "toys")
