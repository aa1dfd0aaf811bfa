"""Rewards from choices: reading them, fitting them, judging the fit, and using the result."""

import csv
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.special import expit
from typer.testing import CliRunner

from ddposink.comparisons import decode, read_comparisons
from ddposink.errors import Unavailable
from ddposink.models.contrastive import Shape, make_towers, save_encoder
from ddposink.rewards import load_reward, parse_reward
from ddposink.rewards import preference as preference_module
from ddposink.rewards.preference import app
from ddposink.rewards.preference_fit import (
    STATISTICS,
    accuracy,
    choose_penalty,
    fit_head,
    split_by_prompt,
    statistics,
)
from ddposink.rewards.preference_synthetic import choose, judge, webp

PROMPTS = [f"thing {i}" for i in range(12)]


def picture(shade, colour, seed=0):
    pixels = np.full((16, 16, 3), 255, np.uint8)
    pixels[4:12, 4:12] = (shade, shade - colour, shade - colour)
    return (pixels - np.random.default_rng(seed).integers(0, 3, pixels.shape)).astype(np.uint8)


@pytest.fixture(scope="module", autouse=True)
def encoder(tmp_path_factory):
    """A tiny encoder of random weights stands in for the embedded one."""
    torch.manual_seed(0)
    shape = Shape(("thing", "red"), size=16, channels=(4, 8), features=6, text_width=4, dim=4)
    folder = tmp_path_factory.mktemp("encoder")
    save_encoder(shape, make_towers(shape), folder)
    patch = pytest.MonkeyPatch()
    load, hashed = preference_module.load_encoder, preference_module.encoder_sha256
    patch.setattr(preference_module, "load_encoder", lambda device="cpu": load(folder, device))
    patch.setattr(preference_module, "encoder_sha256", lambda: hashed(folder))
    yield
    patch.undo()


@pytest.fixture
def table(tmp_path):
    """Choices of somebody who likes red, always, between pictures of which one is redder."""
    rows, generator = [], np.random.default_rng(0)
    for prompt in PROMPTS:
        for i in range(4):
            reds = generator.permutation([20 + 10 * i, 120 + 10 * i])
            names = []
            for red in reds:
                names.append(f"{prompt}-{i}-{red}.webp")
                (tmp_path / names[-1]).write_bytes(webp(picture(200, int(red), i)))
            rows.append([prompt, *names, "a" if reds[0] > reds[1] else "b", "me"])
    rows[0][3] = "tie"
    file = tmp_path / "choices.csv"
    with file.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([["prompt", "image_a", "image_b", "choice", "judge"], *rows])
    return file


def test_a_reward_is_trained_and_used_by_name(table, tmp_path):
    out = tmp_path / "model"
    done = CliRunner().invoke(app, ["train", str(table), "--out", str(out), "--held-out", "0.34"])
    assert done.exit_code == 0, done.output
    card = json.loads(done.output.splitlines()[-1])
    assert (card["comparisons"], card["prompts"], card["judges"]) == (48, 12, ["me"])
    assert card["held_out"]["prompts"] == 4
    assert card["held_out"]["accuracy"] == 1.0
    assert card["held_out"]["wilson_low"] > 0.7
    assert card == json.loads((out / "preference.json").read_text())
    reward = load_reward(parse_reward(f"preference:path:{out}"))
    images = torch.stack([torch.from_numpy(picture(200, c)) for c in (10, 60, 150)]).permute(0, 3, 1, 2) / 255
    values = reward(images, ["thing new"] * 3)
    assert values[0] < values[1] < values[2]
    assert torch.allclose(reward(images[1:2], ["thing new"]), values[1:2], atol=1e-5)


def test_the_same_choices_give_the_same_reward(table, tmp_path):
    for name in ("one", "two"):
        assert CliRunner().invoke(app, ["train", str(table), "--out", str(tmp_path / name)]).exit_code == 0
    one, two = ((tmp_path / name / "head.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_another_encoder_is_noticed(table, tmp_path, monkeypatch):
    CliRunner().invoke(app, ["train", str(table), "--out", str(tmp_path / "model")])
    monkeypatch.setattr(preference_module, "encoder_sha256", lambda: "other")
    with pytest.raises(Unavailable, match="was trained on another encoder: train it again"):
        load_reward(parse_reward(f"preference:path:{tmp_path / 'model'}"))


def test_names_that_cannot_be_are_told(tmp_path):
    with pytest.raises(ValueError, match="unknown preference model 'syntetic'"):
        parse_reward("preference:syntetic")
    with pytest.raises(ValueError, match=r"holds no preference model: head.safetensors is missing"):
        parse_reward(f"preference:path:{tmp_path}")


def test_a_fit_recovers_the_taste_that_made_the_choices():
    generator = np.random.default_rng(0)
    taste = np.array([2.0, -1.0, 0.0])
    a, b = generator.normal(size=(2, 4000, 3))
    choices = (generator.random(4000) < expit((a - b) @ taste)).astype(float)
    head = fit_head(a, b, choices, penalty=1e-4)
    assert head.weights / head.scale == pytest.approx(taste, abs=0.2)
    margin = (a - b) @ taste
    gradient = ((a - b) / head.scale).T @ (expit(head(a) - head(b)) - choices) / 4000 + 1e-4 * head.weights
    assert np.abs(gradient).max() < 1e-4
    assert accuracy(head(a) - head(b), choices, ["x"] * 4000, 0)["accuracy"] == pytest.approx(
        np.mean((margin > 0) == choices), abs=0.01
    )


def test_swapping_sides_changes_nothing():
    generator = np.random.default_rng(1)
    a, b = generator.normal(size=(2, 50, 4))
    choices = generator.choice([0.0, 0.5, 1.0], 50)
    one, two = fit_head(a, b, choices, 0.1), fit_head(b, a, 1 - choices, 0.1)
    assert one.weights == pytest.approx(two.weights, abs=1e-4)


def test_noise_asks_for_the_strongest_ridge():
    generator = np.random.default_rng(2)
    a, b = generator.normal(size=(2, 100, 20))
    choices, prompts = (
        generator.integers(0, 2, 100).astype(float),
        np.array([f"{i % 10}" for i in range(100)]),
    )
    assert choose_penalty(a, b, choices, prompts, seed=0) == 1.0


def test_held_out_prompts_are_held_out_whole():
    prompts = [p for p in PROMPTS for _ in range(5)]
    apart = split_by_prompt(prompts, 0.25, seed=0)
    assert len({p for p, out in zip(prompts, apart, strict=True) if out}) == 3
    assert all(len(set(apart[5 * i : 5 * i + 5])) == 1 for i in range(12))
    with pytest.raises(ValueError, match="all comparisons are about one prompt"):
        split_by_prompt(["x"] * 9, 0.2, 0)


def test_accuracy_and_its_intervals():
    choices = np.array([1.0, 1.0, 0.0, 0.5, 1.0])
    found = accuracy(np.array([2.0, -1.0, -3.0, 9.0, 0.0]), choices, list("aabbc"), seed=0)
    assert (found["accuracy"], found["comparisons"], found["prompts"]) == (0.625, 4, 3)
    # Wilson 1927 for 2 of 4 (half a success is none)
    assert (found["wilson_low"], found["wilson_high"]) == pytest.approx((0.15, 0.85), abs=0.005)
    assert found["bootstrap_low"] < 0.625 < found["bootstrap_high"]
    with pytest.raises(ValueError, match="only ties"):
        accuracy(np.ones(2), np.full(2, 0.5), ["a", "b"], 0)


@pytest.mark.parametrize("prompts", ["a" * 8, "aabbccdd"])
def test_few_prompts_leave_an_interval_of_some_width(prompts):
    found = accuracy(np.ones(8), np.ones(8), list(prompts), seed=0)
    assert found["accuracy"] == 1
    # Wilson 1927 for 8 of 8: 1 / (1 + z²/n)
    assert (found["bootstrap_low"], found["bootstrap_high"]) == pytest.approx(
        (8 / (8 + 1.96**2), 1), abs=1e-4
    )


def test_many_prompts_are_drawn_whole():
    right = np.repeat([1.0, 0.0, 1.0, 1.0, 0.0, 1.0], 50) * 2 - 1
    found = accuracy(right, np.ones(300), list(np.repeat(list("abcdef"), 50)), seed=0)
    assert found["bootstrap_high"] - found["bootstrap_low"] > 2 * (found["wilson_high"] - found["wilson_low"])


def test_statistics_say_what_their_names_say():
    images = torch.ones(3, 3, 16, 16)
    images[1, :, 4:12, 4:12] = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)
    images[2, :, :2] = 0.5
    found = dict(zip(STATISTICS, statistics(images).T, strict=True))
    assert found["coverage"].tolist() == [0, 0.25, 0.125]
    assert found["centre"].tolist() == [0, 1, 0]
    assert found["saturation"].tolist() == [0, 0.25, 0]
    assert found["red"].tolist() == pytest.approx([1, 1, 0.9375])
    assert found["contrast"][0] == found["edges"][0] == 0


def test_parquet_and_pick_a_pic_are_read(tmp_path):
    one, two = webp(picture(200, 10)), webp(picture(200, 90))
    own = [{"prompt": "p", "image_a": {"bytes": one}, "image_b": {"bytes": two}, "choice": "b"}]
    theirs = [
        {
            "caption": "p",
            "jpg_0": one,
            "jpg_1": two,
            "label_0": label,
            "label_1": 1 - label,
            "has_label": True,
        }
        for label in (1.0, 0.0, 0.5)
    ]
    for name, rows in (("own", own), ("theirs", theirs)):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    (c,) = read_comparisons(str(tmp_path / "own.parquet"))
    assert (c.prompt, c.choice) == ("p", 0.0)
    assert np.abs(decode(c.a).astype(int) - picture(200, 10)).max() <= 8  # 64 colours
    assert [c.choice for c in read_comparisons(str(tmp_path / "theirs.parquet"))] == [1, 0, 0.5]
    assert len(list(read_comparisons(str(tmp_path / "theirs.parquet"), limit=2))) == 2


def test_a_hub_set_is_streamed(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    one, two = webp(picture(200, 10)), webp(picture(200, 90))
    row = {"caption": "p", "jpg_0": one, "jpg_1": two, "label_0": 1.0}
    pq.write_table(pa.Table.from_pylist([row] * 3), tmp_path / "x.parquet")
    asked, load = [], datasets.load_dataset

    def local(name, revision, split, streaming):
        asked.append((name, revision, split, streaming))
        return load("parquet", data_files=str(tmp_path / "x.parquet"), split=split, streaming=streaming)

    monkeypatch.setattr(datasets, "load_dataset", local)
    monkeypatch.setattr("ddposink.assets.hub.unreachable", lambda: None)
    name, revision = "yuvalkirstain/pickapic_v2", "a" * 40
    found = list(read_comparisons(f"{name}@{revision}", limit=2))
    assert [(c.prompt, c.choice, c.b) for c in found] == [("p", 1.0, two)] * 2
    assert asked == [(name, revision, "train", True)]
    monkeypatch.setattr("ddposink.assets.hub.unreachable", lambda: "there is no hub")
    with pytest.raises(Unavailable, match="not available offline: there is no hub"):
        next(read_comparisons(f"{name}@{revision}"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prompt,image_a,image_b\nx,a.png,a.png\n", "row 1: no column 'choice'"),
        ("promt,image_a,image_b,choice\nx,a.png,a.png,a\n", r"no column 'prompt' \(did you mean 'promt'\?\)"),
        ("prompt,image_a,image_b,choice\nx,a.png,a.png,left\n", "row 1: choice 'left' is none of a, b, tie"),
        ("prompt,image_a,image_b,choice\nx,a.png,b.png,a\n", "row 1: there is no picture '.*b.png'"),
        ("prompt,image_a,image_b,choice\nx,a.png,bad.png,a\n", "row 1: picture bad.png cannot be read"),
        ("prompt,image_a,image_b,choice\n", "has no comparisons"),
    ],
)
def test_a_faulty_file_ends_in_one_line(tmp_path, text, words):
    (tmp_path / "a.png").write_bytes(webp(picture(200, 10)))
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    (tmp_path / "x.csv").write_text(text)
    done = CliRunner().invoke(app, ["train", str(tmp_path / "x.csv"), "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert re.search(words, done.stderr)
    assert not (tmp_path / "out").exists()


def test_what_is_no_source_is_told(tmp_path):
    (tmp_path / "x.txt").write_text("")
    (tmp_path / "x.parquet").write_text("no")
    for source, words in [
        ("yuvalkirstain/pickapic_v2", "ORG/NAME@COMMIT"),
        (str(tmp_path / "x.txt"), "expected a .csv or .parquet"),
        (str(tmp_path / "x.parquet"), "no readable Parquet"),
    ]:
        with pytest.raises(ValueError, match=words):
            next(read_comparisons(source))


def test_the_made_up_judge_likes_what_it_says_it_likes():
    plain, vivid, small = picture(200, 20), picture(200, 180), picture(200, 180)
    small[4:12, 4:12] = 255
    small[7:9, 7:9] = (200, 20, 20)
    likes = judge(np.stack([plain, vivid, small]))
    assert likes[1] > likes[0]
    assert likes[1] > likes[2]


def test_the_made_up_judge_errs_as_often_as_bradley_and_terry_say():
    generator = np.random.default_rng(0)
    chosen = [choose(1.0, 0.0, generator) for _ in range(4000)]
    assert chosen.count("a") / 4000 == pytest.approx(expit(1.0), abs=0.03)
    assert choose(0.1, 0.0, generator) == "tie"
