"""What passes tell, in TensorBoard and trackio: all of it, in its place, and never in the way of a run."""

import contextlib
import json
import sqlite3
import sys

import pytest
from typer.testing import CliRunner

from bench import registry
from bench.cli import app
from bench.results.store import RECORDS, read_records
from bench.run import tracked
from bench.run.child import End
from bench.run.tracked import FOLDER, Tracked
from helpers.passes import make_pass, make_record


class Inner:
    """An observer that counts."""

    def __init__(self):
        self.heard, self.said = [], []

    def __getattr__(self, name):
        return lambda *_: self.heard.append(name)

    def message(self, text):
        self.said.append(text)


class Kept:
    """A log that is a list."""

    def __init__(self, folder, work):
        self.lines, self.open = [], True
        made.append(self)

    def log(self, values, step):
        assert self.open
        self.lines.append((step, dict(values)))

    def close(self):
        self.open = False


made = []


@pytest.fixture
def watching(monkeypatch, tmp_path):
    made.clear()
    monkeypatch.setitem(tracked.KINDS, "kept", Kept)
    inner = Inner()
    return Tracked(inner, "kept", tmp_path, "length"), inner


def test_progress_and_answers_stand_at_their_place_in_the_pass(watching):
    watcher, inner = watching
    one, other = make_pass(), make_pass(number=1)
    for work in (one, other):  # side by side
        watcher.pass_started(work)
    watcher.progress(one, 5, 16, {"reward": 2.0, "/ratio/1": 1.0})
    null = {"value": None, "unit": "nats", "reason": "no"}
    metrics = {"total": {"value": 28, "unit": "units"}, "nll": null}
    watcher.cell_answered(make_record(pass_id=other.id, metrics=metrics))
    watcher.cell_answered(make_record(pass_id=other.id, status="oom", reason="big", metrics={}))
    assert made[0].lines == [(5, {"reward": 2.0, "ratio/1": 1.0})]
    assert made[1].lines == [(8, {"result/total": 28})]
    watcher.pass_ended(one, End())
    assert [log.open for log in made] == [False, True]
    watcher.run_ended()
    assert not made[1].open
    told = ["pass_started"] * 2 + ["progress"] + ["cell_answered"] * 2 + ["pass_ended", "run_ended"]
    assert inner.heard == told


def test_a_pass_that_begins_again_has_a_log_of_its_own(watching):
    watcher, _ = watching
    work = make_pass()
    watcher.pass_started(work)
    watcher.pass_started(work)
    watcher.progress(work, 1, 16, {"reward": 2.0})
    assert [(log.open, len(log.lines)) for log in made] == [(False, 0), (True, 1)]


def test_a_log_that_fails_is_told_once_and_the_run_goes_on(watching, monkeypatch):
    watcher, inner = watching

    def broken(*_):
        raise OSError("no room")

    monkeypatch.setattr(Kept, "log", broken)
    work = make_pass()
    watcher.pass_started(work)
    watcher.progress(work, 1, 16, {"reward": 2.0})
    watcher.progress(work, 2, 16, {"reward": 2.0})
    watcher.pass_ended(work, End())
    assert inner.said == ["kept takes no more numbers (OSError: no room)"]
    assert inner.heard == ["pass_started", "progress", "progress", "pass_ended"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The command line in a folder with a suite of two passes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(registry._registered, "toy", "helpers.toy:Toy")
    keys = {"defaults": {"speed": 0.02}, "grid": {"at": [0, 1], "length": [5, 30]}}
    (tmp_path / "toys.yaml").write_text(json.dumps({"suite": "toys", "workload": "toy", **keys}))
    return lambda *words: CliRunner().invoke(app, ["toys.yaml", "--plain", *words])


def records(folder):
    (file,) = folder.glob(f"results/toys/*/{RECORDS}")
    return file.parent, read_records(file)[0]


def test_tensorboard_shows_a_run(run, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for words in (("--only", "ok 5*"), ()):  # the rest of the same passes goes on beside it
        done = run("--log-with", "tensorboard", "--jobs", "2", *words)
        assert done.exit_code == 0, done.output
    folder, found = records(tmp_path)
    assert len(list((folder / FOLDER).iterdir())) == 2
    for name in {record.pass_id for record in found}:
        (place,) = (folder / FOLDER).glob(f"*-{name}")
        shown = EventAccumulator(str(place)).Reload()
        values = {}
        for tag in shown.Tags()["scalars"]:
            values[tag] = {event.step: event.value for event in shown.Scalars(tag)}
        answers = {r.params["length"]: r.metrics["total"].value for r in found if r.pass_id == name}
        assert values["result/total"] == answers == {5: 10, 30: 435}
        assert "result/vram" not in values  # null
        assert values["sum"][30] == 435
        assert all(total == step * (step - 1) / 2 for step, total in values["sum"].items())


def test_trackio_keeps_a_run(run, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip("trackio", reason="trackio is not installed")
    done = run("--log-with", "trackio", "--jobs", "2")
    assert done.exit_code == 0, done.output
    (file,) = (tmp_path / "trackio").glob("*.db")
    with contextlib.closing(sqlite3.connect(file)) as kept:
        lines = kept.execute("select run_name, step, metrics from metrics").fetchall()
    answers = {(name, step) for name, step, text in lines if "result/total" in json.loads(text)}
    assert len({name for name, _ in answers}) == 2
    assert {step for _, step in answers} == {5, 30}


def test_what_is_not_installed_is_said_before_anything_starts(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    done = run("--log-with", "trackio")
    assert done.exit_code == 2
    assert "trackio is not installed" in done.output
    assert "pip install trackio" in done.output
    assert not (tmp_path / "results").exists()
