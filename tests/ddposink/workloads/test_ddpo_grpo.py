"""What a cell says of a training with the options of GRPO, and what becomes of a reward server that fails."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.suite.plan import make_plan
from bench.workload import Missing
from ddposink.ddpo.names.trainer import _told
from ddposink.ddpo.protocol import StepLog
from ddposink.rewards.http import RETRIES, TIMEOUT
from ddposink.workloads import ddpo_run
from ddposink.workloads.ddpo import DdpoParams, DdpoWorkload
from ddposink.workloads.ddpo_artifacts import maps, save_logs, times
from helpers.reward_server import serving, text
from helpers.training import Ctx, suite

SUM = "weighted:1*jpeg_compressibility+0.5*noise"
OPTIONS: dict[str, Any] = {
    "kl_beta": 0.01, "ema_decay": 0.9, "ratio_norm": True, "train_clip_range_high": 2e-4,
    "advantage_deviation": "batch", "combine_rewards": "gdpo", "samples_per_prompt": 2,
}  # fmt: skip
SAID = "kl 0.01 · clip to +0.0002 · ratio norm · batch deviation · gdpo · ema 0.9"


def measure(suite: Any, place: Path) -> Ctx:
    ctx = Ctx(place / "out")
    for work in make_plan(suite, DdpoWorkload()).passes:
        DdpoWorkload().run(work, ctx)
    return ctx


@pytest.fixture(scope="module")
def ctx(pipeline: str, tmp_path_factory: pytest.TempPathFactory) -> Ctx:
    """With the ``logs`` of the training's steps."""
    given = suite(pipeline, **OPTIONS, grid={"reward": [SUM], "steps": [0, 2, 3]})
    logs: list[StepLog] = []

    def shown(log: StepLog, show: Any = ddpo_run._shown) -> dict[str, float]:
        logs.append(log)
        return show(log)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ddpo_run, "_shown", shown)
        ctx = measure(given, tmp_path_factory.mktemp("grpo"))
    ctx.logs = logs
    return ctx


def arrays(answer: dict[str, Any], name: str) -> dict[str, np.ndarray]:
    (file,) = [path for path in answer["artifacts"] if path.name == name]
    with np.load(file) as found:
        return dict(found)


def test_everything_told_is_recorded(ctx: Ctx) -> None:
    last = ctx.answers[f"{SUM} · {SAID} · 3"]
    metrics = last["metrics"]
    assert metrics["train_kl_base"] > 0
    assert metrics["gradient_norm"] > 0
    assert metrics["ratio_std"] > 0
    assert 0 <= metrics["clipped_above"] + metrics["clipped_below"] <= 1
    assert metrics["clip_fraction"] == pytest.approx(metrics["clipped_above"] + metrics["clipped_below"])
    assert 0 < metrics["reward_share"] < metrics["sampling_share"]
    curves = arrays(last, "train-3.npz")
    parts = curves["part jpeg_compressibility"] + curves["part noise"]
    assert np.allclose(parts, curves["reward"], rtol=1e-4)
    assert np.allclose(curves["share jpeg_compressibility"] + curves["share noise"], 1)
    assert curves["training step"].tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert curves["denoising step"].tolist() == [1, 2, 3] * 3
    for name in ("ratio_mean", "ratio_std", "clipped_above", "clipped_below", "kl_base"):
        rows = curves[f"{name}_by_step"].reshape(3, 3)
        assert np.isfinite(rows).all()
        if name != "ratio_std":
            assert np.allclose(rows.mean(1), curves[name], atol=1e-6)  # every step as often
    earlier = arrays(ctx.answers[f"{SUM} · {SAID} · 2"], "train-2.npz")
    assert np.array_equal(earlier["kl_base_by_step"], curves["kl_base_by_step"][:6])
    assert {"gradient", "kl_base"} <= ctx.shown[-1][2].keys()


def test_the_declared_views_find_their_arrays(ctx: Ctx) -> None:
    curves = arrays(ctx.answers[f"{SUM} · {SAID} · 3"], "train-3.npz")
    for view in DdpoWorkload.views:
        if view.kind == "map":
            assert {view.hue, view.x, view.y} <= curves.keys()
        elif view.series == "train":
            assert view.x in curves
            assert any(fnmatch(name, view.y) for name in curves), view.name


# What a training must tell: in the record, in the live view, to a tracker, and drawn. Of a weighted reward
# the parts are words of the record, as what is called so is not known before.
TOLD: dict[str, tuple[str, str, str, str]] = {
    "mean of the ratios": ("ratio_mean", "ratio less one", "ratio_mean", "ratio_off_by_step"),
    "their deviation": ("ratio_std", "deviation", "ratio_std", "ratio_std_by_step"),
    "clipped above": ("clipped_above", "above", "clipped_above", "clipped_above_by_step"),
    "clipped below": ("clipped_below", "below", "clipped_below", "clipped_below_by_step"),
    "groups without spread": ("flat_share", "flat", "flat_share", "flat_share"),
    "a part": ("parts_while_training", "part noise", "reward/noise", "part *"),
    "its share": ("parts_while_training", "share noise", "variance_share/noise", "share *"),
    "gradient": ("gradient_norm", "gradient", "gradient_norm", "gradient_norm"),
    "KL from the base": ("train_kl_base", "kl_base", "kl_base", "kl_base"),
    "KL by denoising step": ("train_kl_base", "kl_base", "kl_base/denoising_step_1", "kl_base_by_step"),
    "time in sampling": ("sampling_share", "sampling_s", "sampling_s", "time *"),
    "time in the reward": ("reward_share", "reward_s", "reward_s", "time *"),
    "time in learning": ("learning_share", "learning_s", "training_s", "time *"),
}


@pytest.mark.parametrize("what", TOLD)
def test_what_a_training_must_tell_is_told_everywhere(ctx: Ctx, what: str) -> None:
    metric, shown, tracked, drawn = TOLD[what]
    last = ctx.answers[f"{SUM} · {SAID} · 3"]
    if metric in last["metrics"]:
        assert np.isfinite(last["metrics"][metric])
        assert metric in {one.name for one in DdpoWorkload.metrics}
    else:
        assert re.fullmatch(
            r"jpeg_compressibility \S+ \(\S+ % of the variance\); noise \S+ \(\S+ % of the variance\)",
            last["conformance"][metric],
        )
    assert np.isfinite(ctx.shown[-1][2][shown])
    curves = arrays(last, "train-3.npz")
    assert np.isfinite(_told(ctx.logs[-1])[tracked])
    assert any(view.series == "train" and view.y == drawn for view in DdpoWorkload.views)
    names = [name for name in curves if fnmatch(name, drawn)]
    assert names
    assert all(np.isfinite(curves[name]).all() for name in names)


def test_the_times_of_a_step_add_up_to_it(ctx: Ctx) -> None:
    curves = arrays(ctx.answers[f"{SUM} · {SAID} · 3"], "train-3.npz")
    spent = sum(curves[f"time {what}"] for what in ("sampling", "reward", "learning"))
    assert np.allclose(np.cumsum(spent), curves["seconds"], rtol=1e-4)
    assert min(curves[f"time {what}"].min() for what in ("sampling", "reward", "learning")) > 0


def test_a_reward_that_is_not_timed_is_in_another_time() -> None:
    logs = [StepLog(1, 0.1, 0.2, 0.3, 0.0, 0.0, 0.0, 8, 8, 2.0, 1.0)]
    assert {name: values.tolist() for name, values in times(logs).items()} == {
        "time sampling": [2.0], "time learning": [1.0],
    }  # fmt: skip


def test_kl_that_is_measured_only_is_in_the_plan_and_in_the_record(pipeline: str, tmp_path: Path) -> None:
    given = suite(pipeline, measure_kl=0.25, grid={"steps": [2]})
    assert (
        make_plan(given, DdpoWorkload())
        .notes[-1]
        .startswith(
            "measure_kl 0.25: the base model is asked on 1 of 4 samples of a training step, 6 of 102 forwards"
        )
    )
    (answer,) = measure(given, tmp_path).answers.values()
    assert answer["metrics"]["train_kl_base"] > 0
    assert answer["metrics"]["unet_forwards"] == 2 * 102
    assert "kl_base" in arrays(answer, "train-2.npz")


def test_nothing_trained_is_nothing_told(ctx: Ctx) -> None:
    metrics = ctx.answers[f"{SUM} · {SAID} · 0"]["metrics"]
    for name in ("gradient_norm", "ratio_std", "clipped_above", "train_kl_base", "reward_share"):
        assert metrics[name] == Missing("nothing has been trained yet")


def test_the_average_is_what_is_evaluated(pipeline: str, ctx: Ctx, tmp_path: Path) -> None:
    """The training is the same to the bit; pictures, distance and weights are of the average."""
    given = suite(pipeline, **OPTIONS | {"ema_decay": 0.0}, grid={"reward": [SUM], "steps": [3]})
    (plain,) = measure(given, tmp_path).answers.values()
    mean = ctx.answers[f"{SUM} · {SAID} · 3"]
    assert plain["metrics"]["train_reward"] == mean["metrics"]["train_reward"]
    assert 0 < mean["metrics"]["weight_change"] < plain["metrics"]["weight_change"]
    assert mean["metrics"]["kl_per_step"] != plain["metrics"]["kl_per_step"]
    files = [
        next(path for path in answer["artifacts"] if path.suffix == ".safetensors")
        for answer in (plain, mean)
    ]
    assert files[0].read_bytes() != files[1].read_bytes()


def test_a_training_without_kl_says_why_there_is_none(pipeline: str, tmp_path: Path) -> None:
    (answer,) = measure(suite(pipeline, grid={"steps": [1]}), tmp_path).answers.values()
    assert answer["metrics"]["train_kl_base"] == Missing(
        "kl_beta and measure_kl are 0: the base model is not asked while training"
    )


def test_what_trls_engine_does_not_tell_is_left_out(tmp_path: Path) -> None:
    logs = [StepLog(n, 0.1, 0.2, 1 / 3, 0.0, 0.0, 0.0, n, n, 0.1, 0.2) for n in (1, 2)]
    assert maps(logs) == {}
    with np.load(save_logs(tmp_path / "a.npz", logs)) as found:
        assert "gradient_norm" not in found
        assert "reward" in found


FAILURES = {
    "few": (text('{"rewards": [1]}'), "answered 1 numbers for 4 pictures"),
    "text": (text("hello"), "answered text"),
    "nan": (text('{"rewards": [1, 2, NaN, 4]}'), "answered 'nan' for picture 3"),
    "late": (None, "is late: no answer within 0.3 s"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_reward_server_that_fails_is_an_error_that_names_it(
    kind: str, pipeline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers the first evaluation and fails in training: step 0 keeps its numbers."""
    import time

    answer, why = FAILURES[kind]
    monkeypatch.setenv(TIMEOUT, "0.3")
    monkeypatch.setenv(RETRIES, "0")
    with serving() as server:

        def sometimes(to: Any, content: dict[str, Any]) -> None:
            count = len(content["prompts"])
            if count == 8:  # the held-out pictures at once
                text(json.dumps({"rewards": [0.5 + n for n in range(count)]}))(to, content)
            elif answer is None:
                time.sleep(0.8)
            else:
                answer(to, content)

        server.answer = sometimes
        found = measure(
            suite(pipeline, grid={"reward": [f"{server.url}/score"], "steps": [0, 1, 2]}), tmp_path
        )
        base, first, second = found.answers.values()
    assert base["status"] == "ok"
    assert first["status"] == second["status"] == "error"
    assert f"the reward server 127.0.0.1:{server.server_port} {why}" in first["reason"]
    assert second["reason"].startswith("not reached: ")
    assert [path.name for path in first["artifacts"]] == ["reward-error.npz"]


def test_a_rule_that_has_no_answer_for_the_prompts_is_null_with_the_reason(
    pipeline: str, tmp_path: Path
) -> None:
    given = suite(pipeline, evaluate=["jpeg_compressibility", "named_colour"], grid={"steps": [0]})
    (answer,) = measure(given, tmp_path).answers.values()
    assert answer["metrics"]["eval_named_colour"] == Missing(
        "3 of 4 prompts do not name exactly one colour of red, orange, yellow, green, blue, purple, pink, "
        "brown: for example 'cat'"
    )


def test_the_base_model_is_counted() -> None:
    cell = {"pipeline": "emoji-sd", "reward": "noise", "steps": 1, "sample_num_steps": 4}
    plain, asked = (DdpoWorkload().cost(DdpoParams(**cell, kl_beta=beta)).amount for beta in (0.0, 0.1))
    assert asked - plain == 2 * 2 * 4  # two samples, guided, four denoising steps
