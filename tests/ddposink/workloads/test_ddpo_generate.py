"""Pictures of a tuned cell beside the base model, from a run folder."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from bench.errors import UserError
from bench.results.store import Store, read_records
from bench.run.launch import LocalLauncher
from bench.run.live import PlainView
from bench.run.loop import RunSession, measure
from bench.suite.plan import make_plan
from ddposink.prompts import load_prompts
from ddposink.rewards import load_reward, parse_reward
from ddposink.workloads import ddpo_generate
from ddposink.workloads.ddpo import DdpoWorkload
from helpers.training import suite


@pytest.fixture(scope="module", params=["lora", "full", "lora bf16", "full bf16"])
def run(request, pipeline, tmp_path_factory):
    """A run in a real child; with a record of a cell that the plan no longer has."""
    kind, *half = request.param.split()
    folder = tmp_path_factory.mktemp(kind) / "results" / "t" / "20260101-000000-abcdef"
    changes = {"use_lora": kind == "lora", "train_learning_rate": 1e-2, "grid": {"steps": [0, 1]}}
    changes |= {"negative_prompts": "dull, dark", "mixed_precision": half[0] if half else "no"}
    plan, workload = make_plan(suite(pipeline, **changes), DdpoWorkload()), DdpoWorkload()
    folder.mkdir(parents=True)
    store, watcher = Store(folder), PlainView(Console(quiet=True), ())
    session = RunSession("t", workload, "ddposink.workloads.ddpo:DdpoWorkload", folder, "e", timeout=300.0)
    measure(plan.passes, session, LocalLauncher((), folder / "logs" / "s.log"), store, watcher)
    first = next(iter(store.records.values()))
    store.append(first.model_copy(update={"cell": "stale", "label": "tiny · jpeg_compressibility · 1"}))
    (folder / "plan.json").write_text(json.dumps(plan.to_json()))
    assert {str(r.status) for r in store.records.values()} == {"ok"}, [
        r.reason for r in store.records.values()
    ]
    store.close()
    return folder


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture).astype(int)


def test_base_and_tuned_pictures_differ_and_share_their_noise(run, tmp_path):
    cell = f"{run}/tiny · jpeg_compressibility · 1"
    paths = ddpo_generate.main(cell, ["cat", "red fox!"], results=run, out=tmp_path / "out", seeds=2)
    names = [path.name for path in paths]
    assert names[:4] == ["cat-0-base.png", "cat-1-base.png", "cat-0-tuned.png", "cat-1-tuned.png"]
    assert names[4] == "red-fox-0-base.png"
    assert names[-1] == "sheet.webp"
    base, tuned = (pixels(path) for path in (paths[0], paths[2]))
    assert np.abs(base - tuned).max() > 1
    again = ddpo_generate.main(cell, ["cat"], results=run, out=tmp_path / "again", seeds=1)
    for picture, path in zip((base, tuned), again[:2], strict=True):
        assert np.abs(pixels(path) - picture).max() <= 1  # another batch size rounds differently


def test_what_is_drawn_again_is_what_was_scored(run, tmp_path):
    """In the training's precision: a training in bf16 was redrawn in fp32."""
    records = {r.params["steps"]: r for r in read_records(run / "records.jsonl")[0] if r.cell != "stale"}
    prompts = load_prompts(records[1].params["eval_prompts"]).prompts
    paths = ddpo_generate.main(
        f"{run}/{records[1].cell}", prompts, results=run, out=tmp_path / "out", seeds=2
    )
    reward = load_reward(parse_reward("jpeg_compressibility"))
    for steps, name in enumerate(ddpo_generate.NAMES):
        drawn = [torch.from_numpy(pixels(path)) for path in paths if path.stem.endswith(name)]
        found = reward(torch.stack(drawn).permute(0, 3, 1, 2) / 255, [""] * len(drawn)).mean()
        assert float(found) == pytest.approx(records[steps].metrics["trained_reward"].value, rel=1e-6)


def test_the_trainings_negative_prompts_are_used(run, tmp_path, monkeypatch):
    drawn = []
    draw = ddpo_generate.Evaluator.draw
    monkeypatch.setattr(
        ddpo_generate.Evaluator, "draw", lambda self, steps: drawn.append(self.negatives) or draw(self, steps)
    )
    ddpo_generate.main(
        f"{run}/tiny · jpeg_compressibility · 1", ["cat"], results=run, out=tmp_path / "out", seeds=1
    )
    assert drawn == [("dull", "dark")] * 2


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("tiny · jpeg_compressibility · 0", "is the base model"),
        ("*", "means 2 cells"),
        ("tiny · jpeg_compresibility · 1", "no cell"),
    ],
)
def test_what_cannot_be_drawn_says_why(run, cell, message, tmp_path):
    with pytest.raises(UserError, match=message):
        ddpo_generate.main(f"{run}/{cell}", ["cat"], results=run, out=tmp_path)
    with pytest.raises(UserError, match="RUN/CELL"):
        ddpo_generate.main("cell", ["cat"], results=run, out=tmp_path)


def test_prompts_that_would_have_one_file_have_several():
    found = ddpo_generate._file_names(["red fox", "Red fox!", "猫", "犬", "cat", "x" * 70, "x" * 80])
    assert len(set(found)) == len(found)
    assert found[0] == "red-fox-prompt1"
    assert found[4] == "cat"


def test_a_label_may_hold_a_slash(run, tmp_path):
    with pytest.raises(UserError, match=r"no cell 'http://127\.0\.0\.1:1/score · 1' in"):
        ddpo_generate.main(f"{run}/http://127.0.0.1:1/score · 1", ["cat"], results=run, out=tmp_path)
