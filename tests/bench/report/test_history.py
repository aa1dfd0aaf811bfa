"""Runs over time: steps where there are any, none where there is noise, and the environment's share."""

import csv
import io
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from bench import registry
from bench.cli import app
from bench.errors import UserError
from bench.report import timeline
from bench.report.history import follow, read_runs, table_csv
from bench.results.digest import with_digest
from helpers.gateplace import record
from helpers.gatetoy import GateToy

ENV = {"id": "e1", "git": {"commit": "a" * 40}, "python": "3.11", "cpu": {"model": "A"}}


def runs(metric, values, env=lambda i: ENV, **more):
    """One run per value, a day apart."""
    made = []
    for i, value in enumerate(values):
        day = f"2026-01-{i + 1:02d}T00:00:00.000+00:00"
        made.append(([record({metric: value}, started=day, run=f"run{i}", **more)], env(i)))
    return made


def steps(metric, values, **more):
    (track,) = follow(runs(metric, values, **more), GateToy.metrics)
    return [(step.at, step.worse) for step in track.steps]


def noisy(*levels, scatter=0.02, seed=0):
    rng = np.random.default_rng(seed)
    return np.concatenate([level * np.exp(rng.normal(0, scatter, n)) for level, n in levels]).tolist()


def test_a_step_is_found_where_it_is_and_told_by_its_direction():
    assert steps("latency", noisy((10, 12), (13, 9))) == [(12, True)]
    assert steps("latency", noisy((10, 12), (7, 9))) == [(12, False)]
    assert steps("speed", noisy((10, 12), (7, 9))) == [(12, True)]
    assert steps("latency", noisy((10, 8), (14, 8), (9.9, 8))) == [(8, True), (16, False)]


@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_has_no_steps(seed):
    assert steps("latency", noisy((10, 25), seed=seed)) == []


def test_cells_of_other_runs_are_not_called_the_same():
    """Each run has one cell of this label; which one, no run could know."""
    found = []
    for i, (size, seed) in enumerate([(1, 0), (2, 0), (1, 7), (2, 7)] * 2):
        label = "cell · seed 7" if seed and size == 1 else "cell"
        made = record({"latency": 10.0}, started=f"2026-01-{i + 1:02d}T00:00:00.000+00:00", run=f"run{i}")
        found.append(
            ([made.model_copy(update={"label": label, "seed": seed, "params": {"size": size}})], ENV)
        )
    named = [track.cell for track in follow(found, GateToy.metrics)]
    assert named == ["cell (size=1)", "cell (size=2)", "cell · seed 7", "cell, seed 7"]


def test_one_outlier_is_no_step():
    values = noisy((10, 20))
    values[9] *= 3
    assert steps("latency", values) == []
    values[-1] *= 3
    assert steps("latency", values) == []


def test_small_steps_below_the_tolerance_are_not_told():
    assert steps("latency", noisy((10, 12), (10.5, 12), scatter=0.001)) == []  # 5 %, the toy grants 10 %


def test_exact_metrics_step_at_once_even_in_the_newest_run():
    assert steps("slots", [32] * 5 + [33]) == [(5, True)]
    assert steps("slots", [32, 31]) == [(1, False)]
    assert steps("fed", [8, 8, 9, 9]) == [(2, None)]
    assert steps("slots", [32] * 6) == []


def test_near_metrics_use_their_absolute_tolerance():
    assert steps("nll", [3.0, 3.0001, 2.9999, 3.0, 3.01, 3.0101, 3.0099, 3.01]) == [(4, True)]
    assert steps("nll", [3.0, 3.0004, 2.9996, 3.0, 3.0004, 3.0001, 3.0, 3.0002]) == []


def test_a_step_that_came_with_another_machine_says_so():
    other = ENV | {"cpu": {"model": "B"}}
    made = runs("latency", noisy((10, 6), (20, 6)), env=lambda i: other if i >= 6 else ENV)
    (track,) = follow(made, GateToy.metrics)
    assert [step.environment for step in track.steps] == [["cpu.model"]]


def test_runs_are_put_in_order_and_repetitions_become_one_value():
    made = runs("latency", [10.0, 11.0, 12.0])
    made[1][0].append(record({"latency": 44.0}, started=made[1][0][0].started, run="run1", repeat=1))
    (track,) = follow(made[::-1], GateToy.metrics)
    assert [point.run for point in track.points] == ["run0", "run1", "run2"]
    assert track.points[1].value == pytest.approx((11 * 44) ** 0.5)


def test_cells_that_failed_or_were_measured_once_have_no_track():
    made = [*runs("latency", [10.0]), ([record(status="oom")], ENV)]
    assert follow(made, GateToy.metrics) == []


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setitem(registry._registered, "gatetoy", "helpers.gatetoy:GateToy")
    monkeypatch.setenv("COLUMNS", "160")
    for i, (records, env) in enumerate(runs("latency", noisy((10, 6), (14, 6)), label="=cmd() <b>x</b>")):
        place = tmp_path / "toys" / f"run{i:02d}"
        place.mkdir(parents=True)
        (place / "records.jsonl").write_text(
            "".join(with_digest(r).model_dump_json() + "\n" for r in records)
        )
        (place / "env.json").write_text(json.dumps(env))
    return tmp_path / "toys"


def test_the_command_writes_a_table_and_a_picture(folder):
    done = CliRunner().invoke(app, ["history", str(folder)])
    assert done.exit_code == 0, done.output
    assert "1 track over 12 runs, 1 with a step" in done.stdout
    assert "worse" in done.stdout
    rows = list(csv.DictReader(io.StringIO((folder / "history.csv").read_text())))
    assert len(rows) == 12
    assert [row["step"] for row in rows] == [*[""] * 6, "worse", *[""] * 5]
    assert rows[0]["cell"].startswith("'=cmd")  # no formula for a spreadsheet
    assert (folder / "history.png").stat().st_size > 10_000
    assert "<b>" not in (folder / "history.svg").read_text()


def test_the_command_takes_metrics_by_name(folder):
    assert CliRunner().invoke(app, ["history", str(folder), "--metric", "speed"]).exit_code == 0
    done = CliRunner().invoke(app, ["history", str(folder), "--metric", "latencyy"])
    assert done.exit_code == 2
    assert "did you mean 'latency'?" in done.stderr


def test_folders_without_runs_or_of_several_suites_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match="there is no run in"):
        read_runs(tmp_path / "nowhere")
    other = tmp_path / "others" / "run"
    other.mkdir(parents=True)
    text = (folder / "run00" / "records.jsonl").read_text().replace('"suite":"toys"', '"suite":"others"')
    (other / "records.jsonl").write_text(text)
    with pytest.raises(UserError, match="runs of several suites: others, toys"):
        read_runs(tmp_path)
    assert read_runs(folder)[1] == "gatetoy"


def test_the_table_of_nothing_has_only_a_head():
    assert table_csv([]) == "cell,metric,unit,run,started,commit,value,step\n"


def test_memory_of_children_that_were_not_preloaded_is_no_step():
    made = runs("rss", [1e8] * 8)
    made += [
        (
            [one.model_copy(update={"conformance": {"preloaded": False}, "started": f"2026-02-{i + 1:02d}"})],
            ENV,
        )
        for i, one in enumerate(record({"rss": 1.3e8}, run=f"late{i}") for i in range(8))
    ]
    (track,) = follow(made, [metric for metric in GateToy.metrics if metric.name == "rss"])
    assert len(track.points) == 8
    assert track.steps == []


def test_of_a_run_only_the_cells_of_its_plan_are_followed(folder):
    place = folder / "run00"
    old = record({"latency": 99.0, "speed": 99.0}, cell="of another time", run="run00")
    with open(place / "records.jsonl", "a") as file:
        file.write(with_digest(old).model_dump_json() + "\n")
    kept = json.loads((place / "records.jsonl").read_text().splitlines()[0])
    (place / "plan.json").write_text(json.dumps({"passes": [{"cells": [{"id": kept["cell"]}]}]}))
    assert [len(records) for records, _ in read_runs(folder)[0]] == [1] * 12


def test_an_edited_record_is_told(folder):
    file = folder / "run03" / "records.jsonl"
    file.write_text(file.read_text().replace('"kind":"a"', '"kind":"b"', 1))
    done = CliRunner().invoke(app, ["history", str(folder)])
    assert "was edited after" in done.output.replace("\n", " ")


@pytest.mark.parametrize("below", ["", "x"])
def test_a_file_is_no_folder_to_write_to(folder, tmp_path, below):
    (tmp_path / "file").touch()
    done = CliRunner().invoke(app, ["history", str(folder), "--out", str(tmp_path / "file" / below)])
    assert done.exit_code == 2
    assert "error: " in done.output


def test_no_cell_of_the_table_is_a_formula(folder):
    made = [(r, {"git": {"commit": "=1+1"}}) for r, _ in runs("latency", [1.0] * 8)]
    made = [([r.model_copy(update={"run": "=2+2"}) for r in records], env) for records, env in made]
    rows = csv.DictReader(io.StringIO(table_csv(follow(made, GateToy.metrics))))
    assert {(row["run"], row["commit"]) for row in rows} == {("'=2+2", "'=1+1")}


def test_what_is_empty_stays_empty_in_the_table(folder):
    made = [(r, {}) for r, _ in runs("latency", [1.0] * 8)]  # no commit is known, and no step is there
    rows = csv.DictReader(io.StringIO(table_csv(follow(made, GateToy.metrics))))
    assert {(row["commit"], row["step"]) for row in rows} == {("", "")}


@pytest.mark.parametrize(
    ("values", "label", "last"),
    [
        ([2.0, 3.0], "change since the first run (%)", 50.0),
        ([-0.2, -0.1], "change since the first run (ms)", 0.1),
    ],
)
def test_the_picture_of_what_is_not_positive_shows_differences(monkeypatch, tmp_path, values, label, last):
    """A score that rose from -0.2 to -0.1 was drawn as minus 50 per cent, and one of zero in "per cent"."""
    kept = []
    monkeypatch.setattr(timeline, "save", lambda figure, base: kept.append(figure) or [])
    timeline.draw(follow(runs("latency", values), GateToy.metrics), tmp_path / "history")
    (axis,) = kept[0].axes
    assert axis.get_ylabel() == label
    assert axis.lines[0].get_ydata()[-1] == pytest.approx(last)


def test_the_picture_counts_runs_and_not_their_passes(monkeypatch, tmp_path):
    """Each pass of a run begins at another time, and every one had a place of its own on the axis of runs."""
    made = runs("nll", [3.0, 3.1, 3.2])
    for i, (records, _) in enumerate(made):
        later = record(
            {"nll": 2.0}, kind="b", started=f"2026-01-{i + 1:02d}T01:00:00.000+00:00", run=f"run{i}"
        )
        records.append(later)
    kept = []
    monkeypatch.setattr(timeline, "save", lambda figure, base: kept.append(figure) or [])
    timeline.draw(follow(made, GateToy.metrics), tmp_path / "history")
    assert [list(line.get_xdata()) for line in kept[0].axes[0].lines[:2]] == [[1, 2, 3]] * 2


def test_a_cell_is_of_the_machine_that_measured_it_also_where_its_run_went_on_elsewhere():
    """The step of such a cell was told as one of the code: its run's newest fingerprint stood for all."""
    old, new = ENV | {"git": {"commit": "b" * 40}}, ENV | {"id": "e2", "cpu": {"model": "B"}}
    made = runs("slots", [4, 4, 5], env=lambda i: (ENV, new | {"earlier": {"e1": old}}, new)[i])
    last = [record({"slots": 5}, started="2026-01-03T00:00:00.000+00:00", run="run2", env="e2")]
    (track,) = follow([*made[:2], (last, new)], GateToy.metrics)
    assert [point.commit for point in track.points] == ["a" * 40, "b" * 40, "a" * 40]
    assert track.steps[0].environment == ["cpu.model"]
