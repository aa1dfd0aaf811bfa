"""The `ddpo` workload by other algorithms: what a cell says, measures, counts and refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.run.meaning import OtherDataError, check_planned
from bench.suite.plan import make_plan
from bench.workload import Missing, Samples
from ddposink.ddpo.pairs import read_pairs
from ddposink.workloads.ddpo import DdpoParams, DdpoWorkload
from helpers.pairs import write_choices
from helpers.tiny import tiny_pipeline
from helpers.tiny_flow import tiny_sd3
from helpers.training import Ctx, suite

COMMON: dict[str, Any] = {
    "samples_per_prompt": 2, "train_learning_rate": 1e-2, "sample_guidance_scale": 1.0,
    "evaluate": ["jpeg_compressibility", "alignment"],
}  # fmt: skip


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pipelines")
    tiny_sd3(shift=3.0).save_pretrained(folder / "sd3")
    tiny_pipeline(0).save_pretrained(folder / "sd")
    (folder / "prompts.txt").write_text("cat\ndog\nred fox\nowl\n")
    return {name: f"path:{folder / name}" for name in ("sd", "sd3")}


def measure(pipeline: str, folder: Path, **values: Any) -> dict[str, Any]:
    grid = {"reward": ["alignment"], "steps": [0, 2]}
    changed, ctx = suite(pipeline, **COMMON, **values, grid=grid), Ctx(folder / "out")
    for work in make_plan(changed, DdpoWorkload()).passes:
        DdpoWorkload().run(work, ctx)
    return ctx.answers


@pytest.mark.parametrize(
    ("algorithm", "forwards"),
    [("nft", 3 + 4 * 3), ("dpo", 3 + 4 * 3), ("draft", 3 + 2 * 2)],
)
@pytest.mark.parametrize("pipeline", ["sd", "sd3"])
def test_a_cell_is_measured_where_sampling_is_deterministic(
    pipelines: dict[str, str], algorithm: str, forwards: int, pipeline: str, tmp_path: Path
) -> None:
    sampling = {"sample_kernel": "ode"} if pipeline == "sd3" else {"sample_eta": 0.0}
    answers = measure(pipelines[pipeline], tmp_path, algorithm=algorithm, draft_steps=2, **sampling)
    (last,) = (answer for label, answer in answers.items() if label.endswith("2"))
    assert any(algorithm in label for label in answers)
    metrics = last["metrics"]
    assert (metrics["reward_queries"], metrics["unet_forwards"]) == (8, 8 * forwards)
    assert metrics["kl_per_step"] > 0
    assert metrics["weight_change"] > 0
    assert all(isinstance(metrics[name], Missing) for name in ("approx_kl", "clip_fraction"))
    assert isinstance(metrics["flat_share"], Missing) == (algorithm == "draft")
    assert "off by" in last["conformance"]["invariant_before_training"]
    (logs,) = tmp_path.rglob("train-2.npz")
    with np.load(logs, allow_pickle=False) as arrays:
        assert arrays["forwards"].tolist() == [4 * forwards, 8 * forwards]
        assert "approx_kl" not in arrays


def test_the_plan_knows_the_cost(pipelines: dict[str, str]) -> None:
    """That of one training step, beside what `test_algorithms` counts."""
    shape: dict[str, Any] = {
        "sample_num_steps": 3, "sample_batch_size": 4, "sample_num_batches_per_epoch": 1,
        "train_batch_size": 4, "samples_per_prompt": 2,
    }  # fmt: skip
    costs = {}
    for algorithm in ("ddpo", "nft", "dpo", "draft"):
        cells = [
            DdpoParams(pipeline=pipelines["sd"], reward="noise", steps=n, algorithm=algorithm, **shape)
            for n in (0, 1)
        ]
        base, one = (DdpoWorkload().cost(cell).amount for cell in cells)
        costs[algorithm] = (one - base) / 4
    assert costs == {"ddpo": 6 + 18, "nft": 6 + 12, "dpo": 6 + 12, "draft": 6 + 4}


def test_draft_needs_a_reward_with_a_gradient(pipelines: dict[str, str]) -> None:
    with pytest.raises(
        ValueError, match=r"'jpeg_compressibility' has none; these have one: .*alignment"
    ) as caught:
        DdpoParams(pipeline=pipelines["sd"], reward="jpeg_compressibility", steps=1, algorithm="draft")
    assert "ddpo, nft or dpo" in str(caught.value)
    DdpoParams(pipeline=pipelines["sd"], reward="weighted:1*alignment+1*brisque", steps=1, algorithm="draft")


def test_the_algorithm_is_part_of_what_a_cell_is_called(pipelines: dict[str, str]) -> None:
    params = DdpoParams(pipeline=pipelines["sd"], reward="noise", steps=1, algorithm="nft")
    assert DdpoWorkload().label(params) == "sd · noise · nft · 1"
    assert DdpoWorkload().columns(params)["algorithm"] == "nft"


@pytest.mark.parametrize("pipeline", ["sd", "sd3"])
def test_a_cell_learns_from_a_file_of_pairs(pipelines: dict[str, str], pipeline: str, tmp_path: Path) -> None:
    file = write_choices(tmp_path / "pictures")
    sampling = {"sample_kernel": "ode"} if pipeline == "sd3" else {"sample_eta": 0.0}
    values = COMMON | {"algorithm": "dpo", "dpo_pairs": str(file)} | sampling
    changed = suite(pipelines[pipeline], **values, grid={"reward": ["alignment"], "steps": [0, 2]})
    plan, ctx = make_plan(changed, DdpoWorkload()), Ctx(tmp_path / "out")
    assert any(
        "dpo learns from choices.csv: 6 pairs (2 ties left out), sha256 " in note
        and "no sample is drawn and no reward asked while it trains: 'alignment' only judges" in note
        for note in plan.notes
    )
    assert any(
        "not held out: 2 of 4 evaluation prompts" in note and "choices.csv" in note for note in plan.notes
    )
    for work in plan.passes:
        DdpoWorkload().run(work, ctx)
    (last,) = (answer for label, answer in ctx.answers.items() if label.endswith("2"))
    assert any("pairs choices.csv" in label for label in ctx.answers)
    metrics, conformance = last["metrics"], last["conformance"]
    assert (metrics["reward_queries"], metrics["unet_forwards"]) == (0, 2 * 4 * 8 * 3)
    assert metrics["weight_change"] > 0
    for name in ("train_reward", "samples_per_s", "energy_per_sample_j", "reward_share", "flat_share"):
        assert isinstance(metrics[name], Missing), name
    assert isinstance(metrics["effect"], Samples)
    assert conformance["pairs"].startswith("choices.csv: 6 pairs (2 ties left out), sha256 ")
    assert len(conformance["pairs_sha256"]) == 64
    shown = {"loss", "gradient", "sampling_s", "learning_s"}
    assert [set(values) for _, _, values in ctx.shown] == [shown] * 2
    with np.load(tmp_path / "out" / "train-2.npz", allow_pickle=False) as arrays:
        assert "reward" not in arrays
        assert arrays["queries"].tolist() == [0, 0]


def offline(pipelines: dict[str, str], file: Path, **grid: Any) -> Any:
    values = COMMON | {"algorithm": "dpo", "dpo_pairs": str(file), "sample_eta": 0.0}
    return make_plan(
        suite(pipelines["sd"], **values, grid={"reward": ["alignment"], **grid}), DdpoWorkload()
    ).passes


def test_records_name_the_pairs_that_were_trained_on(pipelines: dict[str, str], tmp_path: Path) -> None:
    """Also where `bench label` goes on meanwhile, and where a row comes that could not be read."""
    file = write_choices(tmp_path / "pictures")
    (work,) = offline(pipelines, file, steps=[1, 2])
    rows = ["cat,cat/3-dark.png,cat/3-bright.png,b,me\n", "cat,cat/not-there.png,cat/3-bright.png,b,me\n"]

    class Labelling(Ctx):
        def progress(self, done: int, total: int, **values: float) -> None:
            super().progress(done, total, **values)
            with file.open("a") as open_file:
                open_file.write(rows[done - 1])

    ctx, known = Labelling(tmp_path / "out"), read_pairs(str(file))
    DdpoWorkload().run(work, ctx)
    assert len(ctx.answers) == 2
    for answer in ctx.answers.values():
        assert answer["conformance"]["pairs"] == str(known)
        assert answer["conformance"]["pairs_sha256"] == known.sha256
    with pytest.raises(ValueError, match=r"there is no picture '.*not-there.png'"):
        read_pairs(str(file))


def test_pairs_are_the_planned_ones_or_nothing_is_trained(
    pipelines: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_choices(tmp_path / "pictures")
    one, other = offline(pipelines, file, steps=[1]), Ctx(tmp_path / "out")
    known, text = read_pairs(str(file)), file.read_text()
    file.write_text(text + "cat,cat/3-dark.png,cat/3-bright.png,b,me\n")
    with pytest.raises(ValueError, match=r"'.*choices\.csv' changed while it was read"):
        DdpoWorkload().run(one[0], other)
    file.write_text(text)
    more = dataclasses.replace(known, sha256="0" * 64)
    monkeypatch.setattr("ddposink.ddpo.algorithms.offline.read_pairs", lambda _: more)  # by the engine alone
    with pytest.raises(ValueError, match=r"'.*choices\.csv' changed while it was read"):
        DdpoWorkload().run(one[0], other)
    assert not other.answers


def test_a_later_pass_does_not_train_on_another_file(pipelines: dict[str, str], tmp_path: Path) -> None:
    file = write_choices(tmp_path / "pictures")
    (work,) = offline(pipelines, file, steps=[1])
    check_planned(DdpoWorkload(), work)
    with file.open("a") as open_file:
        open_file.write("cat,cat/3-dark.png,cat/3-bright.png,b,me\n")
    with pytest.raises(OtherDataError, match=r"since the run was planned: pairs\.sha256 was \w+ and is \w+"):
        check_planned(DdpoWorkload(), work)


def test_there_is_no_control_of_a_training_that_asks_no_reward(
    pipelines: dict[str, str], tmp_path: Path
) -> None:
    values = {"pipeline": pipelines["sd"], "steps": 1, "algorithm": "dpo"}
    groups = {"samples_per_prompt": 2, "sample_batch_size": 2, "train_batch_size": 2}
    DdpoParams(**values, **groups, reward="noise")
    with pytest.raises(ValueError, match="reward 'noise' is the control of trainings that ask a reward"):
        DdpoParams(**values, reward="noise", dpo_pairs=str(write_choices(tmp_path)))


def test_what_pairs_hold_is_part_of_a_cells_identity(pipelines: dict[str, str], tmp_path: Path) -> None:
    files = [write_choices(tmp_path / name, pairs=count) for name, count in (("a", 2), ("b", 2), ("c", 3))]
    cells = [
        DdpoParams(pipeline=pipelines["sd"], reward="brisque", steps=1, algorithm="dpo", dpo_pairs=str(file))
        for file in files
    ]
    one, same, other = (DdpoWorkload().identity(cell) for cell in cells)
    assert one == same != other
    assert "prompts.sha256" not in one
    columns = DdpoWorkload().columns(cells[0])
    assert (columns["pairs"], columns["pairs_per_step"], columns["samples_per_step"]) == (4, 2, 0)


def test_pairs_are_refused_before_anything_is_loaded(pipelines: dict[str, str], tmp_path: Path) -> None:
    def cell(**values: Any) -> Any:
        shared = {"reward": "brisque", "steps": 1, "algorithm": "dpo"}
        return DdpoParams(**shared | {"pipeline": pipelines["sd"]} | values)

    file = str(write_choices(tmp_path / "large", side=24))
    with pytest.raises(ValueError, match=r"row 1: pictures are 24x24 pixels, .* 'path:.*draws 16x16"):
        cell(dpo_pairs=file)
    with pytest.raises(ValueError, match=r"row 1: pictures are 24x24 .* 'emoji-sd3' draws 64x64"):
        cell(dpo_pairs=file, pipeline="emoji-sd3", sample_kernel="ode")
    with pytest.raises(ValueError, match=r"dpo_pairs 'missing\.csv' is no \.csv or \.parquet file"):
        cell(dpo_pairs="missing.csv")
    with pytest.raises(ValueError, match="is a file that algorithm 'dpo' learns from"):
        cell(dpo_pairs=file, algorithm="nft")
