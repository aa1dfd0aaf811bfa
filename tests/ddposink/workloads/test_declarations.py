"""What the workloads declare must not contradict itself, and what a `ddpo` cell says of its prompts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from bench import registry
from bench.suite.model import Suite, load_suite
from bench.suite.plan import make_plan
from ddposink.prompts import evaluation_prompts
from ddposink.workloads.ddpo import DdpoParams, DdpoWorkload


def params(**changes):
    return DdpoParams(**{"pipeline": "emoji-sd", "reward": "brisque", "steps": 1} | changes)


@pytest.mark.parametrize("name", ["smoke", "attention", "ddpo-smoke", "generate"])
def test_no_metric_has_the_name_of_another_or_of_a_parameter_or_column(name):
    suite = load_suite(Path(f"suites/{name}.yaml"))
    workload = registry.load(suite.workload)
    metrics = Counter(metric.name for metric in workload.metrics)
    assert max(metrics.values()) == 1
    assert not metrics.keys() & workload.Params.model_fields.keys()
    for cell in make_plan(suite, workload).cells:
        columns = workload.columns(workload.Params.model_validate(dict(cell.params)))
        assert not metrics.keys() & columns.keys()


def test_divergences_say_whether_they_are_sums_or_means_over_dimensions():
    metrics = {metric.name: metric for metric in DdpoWorkload.metrics}
    assert (metrics["approx_kl"].unit, metrics["kl_per_step"].unit) == ("", "nats/denoising step")
    assert "means over latent dimensions" in metrics["approx_kl"].help
    assert "summed over latent dimensions" in metrics["kl_per_step"].help


def test_built_in_sets_are_held_out_and_say_nothing():
    cell = params()
    assert DdpoWorkload().columns(cell)["prompts_shared"] == 0
    assert DdpoWorkload().notes(cell) == []


def test_prompts_that_are_trained_on_are_no_held_out_ones(tmp_path):
    (tmp_path / "train.txt").write_text("cat\ncat\ndog\n")
    (tmp_path / "eval.txt").write_text("owl\ndog\nowl\ncat\ndog\nfox\n")
    files = {"prompts": f"file:{tmp_path}/train.txt", "eval_prompts": f"file:{tmp_path}/eval.txt"}
    cell = params(**files)
    assert DdpoWorkload().columns(cell)["prompts_shared"] == 2
    told = [
        "not held out: 2 of 4 evaluation prompts (file:eval.txt) are also trained on (file:train.txt), "
        "for example 'dog'",
        "file:eval.txt: every prompt is evaluated once: 2 repeated left out",
    ]
    assert DdpoWorkload().notes(cell) == told
    suite = {
        "suite": "t",
        "workload": "ddpo",
        "defaults": {"pipeline": "emoji-sd", "reward": "brisque"} | files,
    }
    plan = make_plan(Suite.model_validate(suite | {"grid": {"steps": [0, 1]}}), DdpoWorkload())
    assert plan.notes == tuple(told)


def test_repeated_evaluation_prompts_cost_and_mean_nothing(tmp_path):
    (tmp_path / "a.txt").write_text("owl\nfox\n")
    (tmp_path / "b.txt").write_text("owl\nfox\nowl\n")
    once, twice = (params(eval_prompts=f"file:{tmp_path}/{name}.txt") for name in "ab")
    workload = DdpoWorkload()
    assert workload.cost(once) == workload.cost(twice)
    assert workload.identity(once) == workload.identity(twice)
    assert evaluation_prompts(twice.eval_prompts).prompts == ("owl", "fox")


def test_repeated_training_prompts_are_a_weighting_and_kept(tmp_path):
    (tmp_path / "a.txt").write_text("owl\nfox\n")
    (tmp_path / "b.txt").write_text("owl\nfox\nowl\n")
    once, twice = (DdpoWorkload().identity(params(prompts=f"file:{tmp_path}/{name}.txt")) for name in "ab")
    assert once["prompts.sha256"] != twice["prompts.sha256"]


def test_a_grid_over_any_setting_gives_cells_of_different_labels():
    grid = {"train_learning_rate": [1e-3, 3e-4], "use_lora": [True, False], "steps": [0, 10]}
    suite = {"suite": "t", "workload": "ddpo", "defaults": {"pipeline": "emoji-sd", "reward": "brisque"}}
    plan = make_plan(Suite.model_validate(suite | {"grid": grid}), DdpoWorkload())
    labels = [cell.label for cell in plan.cells]
    assert len(set(labels)) == 8
    assert labels[0] == "emoji-sd · brisque · 0 (train_learning_rate=0.001, use_lora=true)"
