"""The `ddpo` workload end to end on a tiny random pipeline, and what it makes of failures."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from bench import registry
from bench.errors import UserError
from bench.suite.plan import make_plan
from bench.workload import ALLOW_CODE, Missing, Skip
from ddposink.evaluation.scores import Evaluator
from ddposink.workloads import ddpo_prepare, ddpo_run
from ddposink.workloads.ddpo import DdpoParams, DdpoWorkload
from ddposink.workloads.ddpo_tables import EVALUATED
from helpers.tiny import tiny_pipeline
from helpers.training import Ctx, suite


def measure(suite, tmp_path):
    ctx = Ctx(tmp_path / "out")
    workload = DdpoWorkload()
    for work in make_plan(suite, workload).passes:
        workload.run(work, ctx)
    return ctx


@pytest.fixture(scope="module")
def whole(pipeline, tmp_path_factory):
    return measure(suite(pipeline, eval_denoising_steps=[2]), tmp_path_factory.mktemp("whole"))


def test_step_counts_are_one_pass_and_cost_the_longest(pipeline):
    plan = make_plan(suite(pipeline), DdpoWorkload())
    assert [len(work.cells) for work in plan.passes] == [3]
    # guided: 2 × 3 forwards drawn, 3 × 2 × 3 learnt per sample; 4 prompts × 2 seeds evaluated
    assert plan.passes[0].cost.amount == 2 * 4 * (6 + 18) + 8 * 6


def test_every_cell_is_scored_on_all_rewards_with_paired_samples(whole):
    last = whole.answers["jpeg_compressibility · 2"]["metrics"]
    for name in ("jpeg_compressibility", "brisque"):
        gain = last[f"gain_{name}"]
        assert len(gain.values) == 4
        assert gain.value == pytest.approx(np.mean(gain.values))
        base = whole.answers["jpeg_compressibility · 0"]["metrics"][f"eval_{name}"]
        assert last[f"eval_{name}"] == pytest.approx(base + gain.value, rel=1e-5)
    assert last["reward_queries"] == 8
    assert last["unet_forwards"] == 8 * 24
    assert last["kl_per_step"] > 0
    assert 1 <= last["vendi"] <= 8


def test_the_base_has_gained_nothing_and_trained_nothing(whole):
    base = whole.answers["jpeg_compressibility · 0"]["metrics"]
    assert base["gain"].value == base["effect"].value == base["kl_per_step"] == base["weight_change"] == 0
    assert isinstance(base["samples_per_s"], Missing)


def test_progress_shows_reward_divergence_and_clipping(whole):
    done, total, values = whole.shown[-1]
    assert (done, total) == (2, 2)
    each = {name for name in values if name.startswith("/")}
    assert values.keys() - each == {
        "reward", "kl", "ratio less one", "deviation", "clipped", "above", "below", "flat", "gradient",
        "sampling_s", "reward_s", "learning_s",
    }  # fmt: skip
    told = ("ratio_mean", "ratio_std", "clipped_above", "clipped_below")
    assert each == {f"/{name}/{step}" for name in told for step in (1, 2, 3)}  # for trackers


def test_artifacts_scores_curves_pictures_and_weights(whole):
    kept = {p.name: p for p in whole.answers["jpeg_compressibility · 2"]["artifacts"]}
    with np.load(kept["scores-2.npz"]) as scores:
        assert scores["brisque"].shape == (8,)
    with np.load(kept["train-2.npz"]) as curve:
        assert list(curve["step"]) == [1, 2]
        assert (np.diff(curve["seconds"]) > 0).all()
    with np.load(kept["denoising-2.npz"]) as other:
        assert list(other["denoising_steps"]) == [2, 3]
    assert Image.open(kept["pictures-2.webp"]).width > 4 * 128
    assert kept["pytorch_lora_weights.safetensors"].parent.name == "weights-2"


def test_another_run_of_the_same_cell_gives_the_same_numbers(pipeline, whole, tmp_path):
    again = measure(suite(pipeline, grid={"steps": [2]}), tmp_path).answers["jpeg_compressibility · 2"]
    before = whole.answers["jpeg_compressibility · 2"]
    for name in ("trained_reward", "train_reward", "train_loss", "kl_per_step"):
        assert again["metrics"][name] == pytest.approx(before["metrics"][name], rel=1e-5)


def test_a_reward_that_returns_nan_ends_the_cell_and_keeps_the_batch(pipeline, tmp_path, monkeypatch):
    class Broken:
        def __init__(self, inner):
            self.inner, self.calls = inner, 0

        def __call__(self, images, prompts):
            self.calls += 1
            found = self.inner(images, prompts)
            return found * float("nan") if self.calls > 1 else found

    from ddposink.rewards import checked

    load = ddpo_prepare.load_reward

    def broken(ref, device):
        reward = load(ref, device=device)
        return checked(reward.name, reward.info, Broken(reward)) if ref.kind == "brisque" else reward

    monkeypatch.setattr(ddpo_prepare, "load_reward", broken)
    changed = suite(pipeline, evaluate=["jpeg_compressibility"], grid={"reward": ["brisque"]})
    found = measure(changed, tmp_path).answers
    assert [(found[f"brisque · {n}"]["status"]) for n in (0, 1, 2)] == ["nan", "nan", "nan"] or [
        (found[f"brisque · {n}"]["status"]) for n in (0, 1, 2)
    ] == ["ok", "nan", "nan"]
    bad = next(found[f"brisque · {n}"] for n in (0, 1) if found[f"brisque · {n}"]["status"] == "nan")
    assert "not finite" in bad["reason"]
    with np.load(bad["artifacts"][0]) as batch:
        assert batch["images"].shape[1:] == (3, 16, 16)


def test_a_learning_rate_that_diverges_is_nan_and_the_base_stays_measured(pipeline, tmp_path):
    found = measure(suite(pipeline, train_learning_rate=1e8), tmp_path).answers
    assert found["jpeg_compressibility · 0"]["status"] == "ok"
    late = [found[f"jpeg_compressibility · {n}"] for n in (1, 2)]
    assert late[-1]["status"] == "nan"
    assert "diverged" in late[-1]["reason"]


@pytest.mark.parametrize(("training", "status"), [(False, "error"), (True, "nan")])
def test_pictures_that_are_not_finite_are_divergence_only_after_training(
    pipeline, tmp_path, monkeypatch, training, status
):
    draw = Evaluator.draw

    def ruined(self, *arguments):
        pictures = draw(self, *arguments)
        trained = any(p.abs().sum() > 0 for n, p in self.pipeline.unet.named_parameters() if "lora_B" in n)
        if trained == training:
            pictures.images[1, 0, 0, 0] = float("nan")
        return pictures

    monkeypatch.setattr(Evaluator, "draw", ruined)
    # What follows would end in an error of linear algebra: none of the rewards looks at the pictures.
    monkeypatch.setattr(ddpo_run, "score", lambda pictures, scorers: {n: np.zeros(8) for n in scorers})
    if status == "error":
        with pytest.raises(RuntimeError, match="1 of 8 pictures drawn are not finite before any training"):
            measure(suite(pipeline), tmp_path)
        return
    found = measure(suite(pipeline), tmp_path).answers
    assert [found[f"jpeg_compressibility · {n}"]["status"] for n in (0, 1, 2)] == ["ok", "nan", "nan"]
    reason = found["jpeg_compressibility · 1"]["reason"]
    assert "diverged in step 1: 1 of 8 pictures drawn are not finite" in reason


def test_negative_prompts_are_used_in_the_evaluation_too(pipeline, tmp_path, monkeypatch):
    asked = []
    draw = Evaluator.draw

    def watched(self, *arguments):
        asked.append(self.negatives)
        return draw(self, *arguments)

    monkeypatch.setattr(Evaluator, "draw", watched)
    changed = suite(pipeline, negative_prompts="dull, dark", grid={"steps": [0, 1]})
    assert measure(changed, tmp_path).answers["jpeg_compressibility · 1"]["status"] == "ok"
    assert set(asked) == {("dull", "dark")}


def test_weights_that_are_not_here_skip_the_pass(pipeline, tmp_path, monkeypatch):
    from ddposink.errors import Unavailable

    def absent(ref, device):
        raise Unavailable(f"{ref} cannot be had offline")

    monkeypatch.setattr(ddpo_prepare, "load_reward", absent)
    with pytest.raises(Skip, match="cannot be had offline"):
        measure(suite(pipeline), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_eta": 0.0}, "log-probability of a deterministic step"),
        ({"sample_num_steps": 1}, "at least 2"),
        ({"sample_num_steps": 0}, "at least 2"),
        ({"train_batch_size": 3}, "does not divide sample_batch_size 4"),
        ({"train_gradient_accumulation_steps": 3}, "nearest valid accumulation"),
        ({"train_learning_rate": -1}, "positive number"),
        ({"evaluate": ["brisque", "brisque"]}, "two rewards named 'brisque'"),
        ({"evaluate": ["briske"]}, "did you mean 'brisque'"),
        ({"prompts": "file:/no/such"}, "cannot be read"),
        ({"pipeline": "org/name"}, "commit is missing"),
        ({"engine": "tlr"}, "did you mean 'trl'"),
        ({"learning_rate": 1}, "train_learning_rate"),
        ({"grid": {"reward": ["python:os:getcwd"]}}, "--allow-code"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_parameters_name_file_line_and_what_would_be_right(pipeline, changes, message, monkeypatch):
    monkeypatch.delenv(ALLOW_CODE, raising=False)
    with pytest.raises(UserError, match=r"t\.yaml:1:\d+: ") as error:
        make_plan(suite(pipeline, **changes), DdpoWorkload())
    assert message in str(error.value)


def test_settings_keep_their_types_whoever_has_parsed_the_configuration():
    code = (
        "from transformers import HfArgumentParser\n"
        "from ddposink.ddpo import DDPOConfig\n"
        "HfArgumentParser(DDPOConfig)\n"
        "from ddposink.workloads.ddpo import DdpoParams\n"
        "cell = {'pipeline': 'emoji-sd', 'reward': 'brisque', 'steps': 1}\n"
        "made = DdpoParams(**cell, rows_per_forward=16, merge_lora=False)\n"
        "print(made.rows_per_forward, made.merge_lora)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split()[-2:] == ["16", "False"], done.stderr


def test_every_registered_reward_has_its_columns():
    from ddposink.rewards import REWARDS

    free = {"weighted", "noise"}  # no name of their own, or nothing to say about a picture
    assert set(EVALUATED) == set(REWARDS) - free


def test_the_workload_is_known_by_name_and_declared_without_torch():
    assert isinstance(registry.load("ddpo"), DdpoWorkload)
    assert DdpoParams.model_fields["sample_num_steps"].default == 50  # TRL's default
    assert torch.__version__  # imported by the tests, not by the declaration: see tests/bench/test_cli.py


def test_a_weighted_reward_shows_what_its_parts_do(pipeline, tmp_path):
    reward = "weighted:1*jpeg_compressibility+1*brisque"
    found = measure(suite(pipeline, grid={"reward": [reward], "steps": [0, 2]}), tmp_path)
    last = found.answers[f"{reward} · 2"]
    shares = last["conformance"]["note"]
    assert "jpeg_compressibility" in shares
    assert "brisque" in shares
    (curve,) = [path for path in last["artifacts"] if path.name == "train-2.npz"]
    with np.load(curve) as arrays:
        parts = arrays["part jpeg_compressibility"] + arrays["part brisque"]
        assert np.allclose(parts, arrays["reward"], rtol=1e-5)


def test_the_plan_says_which_settings_have_no_part_in_an_algorithm(pipeline):
    cell = {"pipeline": pipeline, "reward": "brisque", "steps": 2, "draft_steps": 2}
    found = {}
    for algorithm in ("ddpo", "draft"):
        notes = DdpoWorkload().notes(DdpoParams(**cell | {"algorithm": algorithm}))
        found[algorithm] = [note for note in notes if "have no part" in note]
    assert found["draft"] == []
    assert found["ddpo"][0].startswith("algorithm 'ddpo': draft_steps have no part in it: cells that differ")


def test_the_plan_says_what_the_parts_of_a_weighted_reward_will_weigh(pipeline):
    cell = {"pipeline": "emoji-sd", "reward": "weighted:1*jpeg_compressibility+1*alignment", "steps": 1}
    (note,) = [n for n in DdpoWorkload().notes(DdpoParams(**cell)) if n.startswith("weighted")]
    assert "jpeg_compressibility 0.00709 %" in note
    assert "has hardly a say" in note
    notes = DdpoWorkload().notes(DdpoParams(**cell | {"pipeline": pipeline}))
    (other,) = [note for note in notes if "variance" in note]
    assert other.endswith("is measured in the run")


def test_an_own_reward_is_evaluated_and_cannot_harm_the_others(pipeline, tmp_path, monkeypatch):
    (tmp_path / "ownreward.py").write_text(
        "def dark(images, prompts):\n    return images.zero_().mean((1, 2, 3))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(ALLOW_CODE, "1")
    own, rest = "python:ownreward:dark", ["jpeg_compressibility", "brisque"]
    alone = measure(suite(pipeline), tmp_path / "alone")
    beside = measure(suite(pipeline, evaluate=[own, *rest]), tmp_path / "beside")
    for label, answer in alone.answers.items():
        found = beside.answers[label]["metrics"]
        assert found["eval_python"] == 0
        for name in ("vendi", "eval_jpeg_compressibility", "eval_brisque"):
            assert found[name] == answer["metrics"][name]


def test_learning_without_the_guidance_of_sampling_is_refused_by_the_plan(pipeline):
    with pytest.raises(UserError, match="learns from another policy than the one that drew the samples"):
        make_plan(suite(pipeline, train_cfg=False), DdpoWorkload())


def test_pictures_that_become_one_are_a_named_collapse(pipeline, tmp_path, monkeypatch):
    """All pictures of the tuned model are its first: what ruins them differs from processor to processor."""
    drawn, real = [], Evaluator.draw

    def draw(self, *given):
        found = real(self, *given)
        drawn.append(found)
        one = found.images[:1].expand_as(found.images).clone()
        return found if len(drawn) == 1 else dataclasses.replace(found, images=one)

    monkeypatch.setattr(Evaluator, "draw", draw)
    grid = {"reward": ["jpeg_compressibility"], "steps": [1]}
    found = measure(suite(pipeline, grid=grid), tmp_path)
    (answer,) = found.answers.values()
    assert len(drawn) == 2
    assert answer["status"] == "ok"
    assert answer["conformance"]["warning"].startswith("collapse: the pictures are nearly one (1")


def test_a_pipeline_with_zero_terminal_snr_is_measured(tmp_path):
    """At three denoising steps float32 puts 1 − ᾱ − σ² of the first below zero."""
    zero = tiny_pipeline(prediction="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    zero.save_pretrained(tmp_path / "tiny")
    (tmp_path / "prompts.txt").write_text("cat\ndog\nred fox\nowl\n")
    found = measure(suite(f"path:{tmp_path / 'tiny'}", grid={"steps": [1]}), tmp_path)
    (answer,) = found.answers.values()
    assert answer["status"] == "ok"
    assert np.isfinite(answer["metrics"]["kl_per_step"])
