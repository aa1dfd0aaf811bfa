"""From scores to the figures of a cell."""

import numpy as np
import pytest

from bench.workload import Missing, Samples
from ddposink.ddpo.protocol import StepLog
from ddposink.rewards import parse_reward
from ddposink.workloads.ddpo_scores import (
    TRAINED,
    collapse,
    cost_per_effect,
    effect,
    evaluate_step,
    kinds,
    others,
    over_optimised,
    training,
)

BASE = {"jpeg_compressibility": np.array([-2.0, -3.0, -4.0]), "brisque": np.array([1.0, 1.0, 1.0])}
SPREAD = {"jpeg_compressibility": 0.5, "brisque": 2.0}


def test_gains_are_paired_and_effects_in_spreads_of_the_base():
    scores = {"jpeg_compressibility": BASE["jpeg_compressibility"] + 1, "brisque": np.array([0.0, 1.0, 2.0])}
    found = evaluate_step(scores, BASE, SPREAD, "jpeg_compressibility")
    assert found["eval_jpeg_compressibility"] == found["trained_reward"] == -2.0
    assert found["gain_jpeg_compressibility"] == found["gain"] == Samples(1.0, (1.0, 1.0, 1.0))
    assert found["effect"] == Samples(2.0, (2.0, 2.0, 2.0))
    assert found["effect_brisque"] == Samples(0.0, (-0.5, 0.0, 0.5))
    assert found["others_effect"] == found["effect_brisque"]


def test_a_reward_outside_the_evaluation_has_no_column_of_its_own():
    base, spread = BASE | {TRAINED: np.zeros(3)}, SPREAD | {TRAINED: 1.0}
    found = evaluate_step(base | {TRAINED: np.ones(3)}, base, spread, TRAINED)
    assert (found["trained_reward"], found["effect"].value) == (1.0, 1.0)
    assert not [name for name in found if name.endswith(TRAINED)]


def test_the_contrary_of_the_trained_reward_says_nothing_new():
    base = {name: np.zeros(3) for name in ("jpeg_compressibility", "jpeg_incompressibility", "brisque")}
    scores = {"jpeg_compressibility": base["brisque"] + 1, "jpeg_incompressibility": base["brisque"] - 1}
    scores["brisque"] = base["brisque"] + 0.25
    spread = dict.fromkeys(base, 1.0)
    assert others(scores, base, spread, "jpeg_compressibility").value == 0.25
    assert others(scores, base, spread, "brisque").value == 0.0
    only = {"brisque": base["brisque"]}
    assert isinstance(others(only, only, {"brisque": 1.0}, "brisque"), Missing)


def test_the_parts_of_a_sum_and_their_contraries_are_no_side_effects():
    text = "weighted:1*alignment-2*jpeg_compressibility"
    parts = kinds(parse_reward(text))
    assert parts == {"alignment", "jpeg_compressibility"}
    gains = {"jpeg_compressibility": 8.0, "jpeg_incompressibility": -8.0, "alignment": 4.0, "brisque": 0.25}
    base = {name: np.zeros(3) for name in (*gains, TRAINED)}
    scores = {name: base[name] + gain for name, gain in gains.items()} | {TRAINED: np.ones(3)}
    spread = dict.fromkeys(base, 1.0)
    assert others(scores, base, spread, TRAINED, parts).value == 0.25
    assert evaluate_step(scores, base, spread, TRAINED, parts)["others_effect"].value == 0.25
    del scores["brisque"]
    assert isinstance(others(scores, base, spread, TRAINED, parts), Missing)


def test_a_simple_reward_is_its_only_part():
    assert kinds(parse_reward("brisque")) == {"brisque"}
    assert kinds(parse_reward("preference:synthetic")) == {"preference"}


def test_without_spread_there_is_no_effect_size():
    assert "do not differ" in effect(np.ones(3), 0.0).reason
    assert "one picture per prompt" in effect(np.ones(3), None).reason


def around(mean, n=12, seed=0):
    noise = np.random.default_rng(seed).normal(0, 0.1, n)
    return mean + noise - noise.mean()


def test_over_optimisation_needs_a_rising_reward_and_falling_others():
    steps = [0, 10, 25, 50]
    rising = [around(m) for m in (0, 1, 2, 3)]
    assert over_optimised(steps, rising, [around(m) for m in (0, 0.5, 0.2, -0.5)]) == 10
    assert over_optimised(steps, rising, [around(m) for m in (0, 0.1, 0.2, 0.3)]) is None
    assert over_optimised(steps, rising[::-1], [around(m) for m in (0, -1, -2, -3)]) is None
    noisy = [np.random.default_rng(i).normal(0, 2, 12) for i in range(4)]
    assert over_optimised(steps[:2], rising[:2], [noisy[0] + 0.1, noisy[1]]) is None
    assert over_optimised([0], rising[:1], rising[:1]) is None
    assert over_optimised([], [], []) is None


def test_a_rise_that_its_interval_does_not_tell_from_zero_is_none():
    steps, falling = [0, 10, 25], [around(m, seed=n) for n, m in enumerate((0.5, 0, -0.5))]
    flat = 10 * around(0.01)  # mean 0.1, standard deviation about 1
    assert flat.mean() > 0
    assert over_optimised(steps, [np.zeros(12), np.zeros(12), flat], falling) is None
    assert over_optimised(steps, [np.zeros(12), np.zeros(12), around(0.5)], falling) == 0


def test_more_step_counts_to_choose_from_ask_for_clearer_falls():
    noise = np.random.default_rng(7).normal(0, 1, 12)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    fall = noise - 2.4 / np.sqrt(12)  # t = -2.4: beyond 2.20 for one comparison, not 3.30 for ten
    last, worse = around(9), np.full(12, -5.0)
    assert over_optimised([0, 10], [np.zeros(12), last], [np.zeros(12), fall]) == 0
    many = [np.zeros(12), *[worse] * 9, fall]
    assert over_optimised(range(11), [*[np.zeros(12)] * 10, last], many) is None


def test_where_nothing_changes_over_optimisation_is_seldom_claimed():
    rng, claimed = np.random.default_rng(0), 0
    rising = [around(m) for m in range(8)]
    for _ in range(400):
        claimed += over_optimised(range(8), rising, list(rng.normal(0, 1, (8, 12)))) is not None
    assert claimed <= 400 * 0.05  # without the correction 10 %


def test_a_collapse_is_named_whatever_the_score_says():
    base, wide = (0.0, 2.0), np.array([0.5, 1.5])
    assert collapse(8.0, 9.0, wide, base) == []
    assert collapse(1.02, 9.0, wide, base) == [
        "collapse: the pictures are nearly one (1.02 different ones, 9 before)"
    ]
    (found,) = collapse(8.0, 9.0, wide + 3, base)
    assert found.startswith("beyond the base model: the mean score of 4 is none that a picture")
    assert len(collapse(1.0, 9.0, wide + 3, base)) == 2


def log(step, **changes):
    fields = {
        "step": step, "reward_mean": float(step), "reward_std": 1.0, "loss": 0.1, "approx_kl": 0.2,
        "clip_fraction": 0.3, "flat_share": 0.0, "samples": step * 32, "unet_forwards": step * 100,
        "sampling_s": 1.0, "training_s": 3.0,
    }  # fmt: skip
    return StepLog(**(fields | changes))


def test_training_figures_are_of_the_last_five_steps_and_costs_of_all():
    logs = [log(1, loss=99.0), *(log(n, loss=float(n)) for n in range(2, 7))]
    found = training(logs, energy=192.0)
    assert found["train_loss"] == 4.0
    assert found["train_reward"] == 6.0
    assert (found["reward_queries"], found["unet_forwards"], found["train_seconds"]) == (192, 600, 24.0)
    assert found["samples_per_s"] == 8.0
    assert found["sampling_share"] == 0.25
    assert found["energy_per_sample_j"] == 1.0
    assert training(logs, Missing("no GPU"))["energy_per_sample_j"] == Missing("no GPU")


def test_nothing_trained_is_no_zero_speed():
    found = training([], 0.0)
    assert isinstance(found["samples_per_s"], Missing)
    assert found["reward_queries"] == 0


@pytest.mark.parametrize(("gains", "certain"), [((1.0, 1.1, 0.9), True), ((1.0, -1.1, 0.9), False)])
def test_a_cost_per_effect_only_where_there_is_an_effect(gains, certain):
    found = cost_per_effect(
        {"effect": Samples(float(np.mean(gains)), gains), "train_seconds": 30.0, "reward_queries": 300}
    )
    assert (
        (found["seconds_per_effect"] == pytest.approx(30.0))
        if certain
        else isinstance(found["queries_per_effect"], Missing)
    )
