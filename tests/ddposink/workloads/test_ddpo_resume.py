"""A training that was cut off goes on where its last checkpoint was, and answers what it would have."""

import json
import os
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from bench.results.store import Store
from bench.run.context import SCRATCH
from bench.run.launch import LocalLauncher
from bench.run.live import PlainView
from bench.run.loop import RunSession, remaining
from bench.run.loop import measure as measure_passes
from bench.suite.plan import make_plan
from bench.workload import Missing
from ddposink.ddpo import StepLog
from ddposink.rewards.http import RETRIES
from ddposink.workloads import ddpo_resume, ddpo_run
from ddposink.workloads.ddpo import DdpoWorkload
from ddposink.workloads.ddpo_resume import Findings, Progress, Scratch, save_points
from helpers.reward_server import serving, text
from helpers.training import Ctx, suite

STEPS = [0, 3, 12]
TIMES = {
    "step_s", "samples_per_s", "train_seconds", "seconds_per_effect", "sampling_share", "reward_share",
    "learning_share", "rss_peak_bytes",
}  # fmt: skip
# Curves that are times.
CLOCKS = {
    "sampling_s", "training_s", "reward_s", "seconds", "time sampling", "time reward", "time learning",
}  # fmt: skip


class CutOff(BaseException):
    """Ends a workload where it stands, as a kill would."""


class Watched(Ctx):
    """Keeps cells by step count; ``cut`` is the training step after which the workload is cut off."""

    def __init__(self, folder, cut=None):
        super().__init__(folder / f"out-{cut}")
        self.cut = cut

    def progress(self, done, total, **values):
        super().progress(done, total, **values)
        if done == self.cut:
            raise CutOff

    def emit(self, cell, metrics, **more):
        self.answers[cell.params["steps"]] = {"metrics": metrics, "status": "ok", **more}


def attempt(suite, folder, cut=None, answered=()):
    """One attempt at the pass of ``suite``, without the step counts that are ``answered``."""
    ctx, workload = Watched(folder, cut), DdpoWorkload()
    (work,) = make_plan(suite, workload).passes
    cells = tuple(cell for cell in work.cells if cell.params["steps"] not in answered)
    try:
        workload.run(replace(work, cells=cells), ctx)
    except CutOff:
        assert cut is not None
    return ctx


def wanted(pipeline, **changes):
    return suite(pipeline, **({"save_freq": 2, "grid": {"steps": STEPS}} | changes))


@pytest.fixture(scope="module")
def whole(pipeline, tmp_path_factory):
    return attempt(wanted(pipeline), tmp_path_factory.mktemp("whole"))


def curve(answer):
    (path,) = [p for p in answer["artifacts"] if p.name.startswith("train-")]
    with np.load(path) as found:
        return {name: found[name] for name in found}


def assert_same(answer, other):
    """Equal to the bit, but for times and memory."""
    assert set(curve(answer)) == set(curve(other)) > CLOCKS - {"reward_s", "time reward"}
    for name in set(curve(answer)) - CLOCKS:
        assert np.array_equal(curve(answer)[name], curve(other)[name], equal_nan=True), name
    for name in answer["metrics"].keys() - TIMES:
        assert answer["metrics"][name] == other["metrics"][name], name
    for facts in (answer["facts"], other["facts"]):
        facts.pop("seconds", None)
    assert answer["facts"] == other["facts"]


def test_a_pass_that_is_cut_off_answers_as_if_it_had_not_been(pipeline, tmp_path, whole):
    first = attempt(wanted(pipeline), tmp_path, cut=7)
    assert list(first.answers) == [0, 3]
    assert sorted(p.name for p in first.scratch.iterdir()) == ["measured.json", "step-6"]
    logs = json.loads((first.scratch / "step-6" / "progress.json").read_text())["content"]["logs"]
    kept = list(np.cumsum([log["sampling_s"] + log["training_s"] for log in logs]))
    rest = attempt(wanted(pipeline), tmp_path, answered=first.answers)
    assert [done for done, *_ in rest.shown] == list(range(7, 13))
    last = rest.answers[12]
    assert last["conformance"]["resumed_at_step"] == 6
    assert last["conformance"]["discarded"] is None
    seconds = curve(last)["seconds"]
    assert len(last["metrics"]["step_s"].values) == len(seconds) == 12
    assert last["facts"]["seconds"] == pytest.approx(seconds[-1], abs=1e-3)
    assert np.array_equal(seconds[:6], np.array(kept, seconds.dtype))
    assert last["metrics"]["rss_peak_bytes"] > 0
    assert_same(last, whole.answers[12])


def test_an_untrained_cell_beside_a_training_that_goes_on_tells_of_none(pipeline, tmp_path, whole):
    """Left for later by --only, its row told of the steps that an interrupted training had done."""
    first = attempt(wanted(pipeline), tmp_path, cut=3, answered=[0, 3])
    assert not first.answers
    rest = attempt(wanted(pipeline), tmp_path)
    assert rest.answers[3]["conformance"]["resumed_at_step"] == 2
    found, expected = rest.answers[0], whole.answers[0]
    assert found["metrics"] == expected["metrics"]
    assert found["facts"] == expected["facts"]
    assert found["conformance"]["steps_trained"] == 0
    for steps in (3, 12):
        assert_same(rest.answers[steps], whole.answers[steps])


def test_what_was_seen_of_earlier_cells_is_known_without_any_checkpoint(pipeline, tmp_path):
    first = attempt(wanted(pipeline, save_freq=100), tmp_path, cut=4)
    assert list(first.answers) == [0, 3]
    found = Scratch(first.scratch).recall({"jpeg_compressibility", "brisque"}, 4, {12})
    assert [step for step, *_ in found.seen] == [0, 3]
    assert [step for step, *_ in Scratch(first.scratch).recall(found.base, 4, {3, 12}).seen] == [0]
    assert found.ratio_deviation < 1e-5


@pytest.mark.parametrize("save_freq", [0, 100])
def test_a_longer_training_is_compared_with_what_was_answered_before(
    pipeline, tmp_path, monkeypatch, save_freq
):
    asked = []
    monkeypatch.setattr(ddpo_run, "over_optimised", lambda *seen: asked.append(seen))
    changed = wanted(pipeline, save_freq=save_freq, grid={"steps": [0, 2, 4]})
    attempt(changed, tmp_path / "whole")
    whole = asked[-1]
    rest = attempt(changed, tmp_path / "longer", answered=[0, 2])
    assert list(rest.answers) == [4]
    assert list(asked[-1][0]) == list(whole[0]) == [0, 2, 4]
    for found, expected in zip(asked[-1][1:], whole[1:], strict=True):
        assert np.array_equal(found, expected)


def test_a_training_beyond_what_is_remembered_begins_again(pipeline, tmp_path, whole, monkeypatch):
    """What earlier cells had shown was lost with a damaged file, and said not to be there."""
    asked, real = [], ddpo_run.over_optimised
    monkeypatch.setattr(ddpo_run, "over_optimised", lambda *seen: asked.append(seen[0]) or real(*seen))
    first = attempt(wanted(pipeline), tmp_path, cut=7)
    (first.scratch / "measured.json").write_text("torn")
    last = attempt(wanted(pipeline), tmp_path, answered=first.answers).answers[12]
    assert list(asked[-1]) == [0, 3, 12]
    assert "step-6 of an earlier attempt was discarded" in last["conformance"]["discarded"]
    assert last["facts"]["over_optimised_at"] == whole.answers[12]["facts"]["over_optimised_at"]
    assert np.array_equal(curve(last)["reward"], curve(whole.answers[12])["reward"])


def test_no_checkpoints_are_written_where_none_are_wanted(pipeline, tmp_path):
    ctx = attempt(wanted(pipeline, save_freq=0, grid={"steps": [0, 2]}), tmp_path)
    assert not ctx.scratch.exists()


def test_trls_engine_goes_on_too(pipeline, tmp_path):
    changes = {"engine": "trl", "grid": {"steps": [3]}, "save_freq": 1}
    reference = attempt(wanted(pipeline, **changes), tmp_path / "whole")
    attempt(wanted(pipeline, **changes), tmp_path / "cut", cut=2)
    rest = attempt(wanted(pipeline, **changes), tmp_path / "cut")
    assert [done for done, *_ in rest.shown] == [2, 3]  # step 2 was reported, but not yet on the disk
    assert_same(rest.answers[3], reference.answers[3])


def corrupt(path):
    path.write_bytes(path.read_bytes()[:-7] + b"0000000")


@pytest.mark.parametrize(
    ("damage", "note"),
    [
        (lambda s: corrupt(next(s.glob("step-2/engine/state-*"))), "not the file that was written"),
        (lambda s: (s / "step-2/engine/checkpoint.json").write_text("{}"), "damaged checkpoint"),
        (lambda s: (s / "step-2/progress.json").write_text("["), "Expecting"),
        (lambda s: (s / "step-2/progress.json").unlink(), "No such file"),
        (lambda s: (s / "step-2").rename(s / "step-1"), "not that of 1 steps"),
        (lambda s: (s / "step-2").rename(s / "step-9"), "beyond step 3"),
    ],
    ids=["tensors", "checkpoint", "progress", "gone", "renamed", "beyond"],
)
def test_a_damaged_checkpoint_costs_its_steps_and_nothing_else(pipeline, tmp_path, damage, note, whole):
    changed = wanted(pipeline, grid={"steps": [0, 3]})
    first = attempt(changed, tmp_path, cut=3)
    damage(first.scratch)
    rest = attempt(changed, tmp_path, answered=first.answers)
    assert [done for done, *_ in rest.shown] == [1, 2, 3]
    conformance = rest.answers[3]["conformance"]
    assert conformance["resumed_at_step"] is None
    assert note in conformance["discarded"]
    assert_same(rest.answers[3], whole.answers[3])


def test_a_checkpoint_of_another_configuration_is_discarded(pipeline, tmp_path):
    one, other = (wanted(pipeline, grid={"steps": [0, 3]}, train_learning_rate=rate) for rate in (1e-3, 1e-4))
    first = attempt(one, tmp_path, cut=3)
    rest = attempt(other, tmp_path, answered=first.answers)
    assert [done for done, *_ in rest.shown] == [1, 2, 3]
    assert "train_learning_rate 0.001" in rest.answers[3]["conformance"]["discarded"]


@pytest.mark.parametrize("text", ["", "{}", '{"sha256": "0", "content": {}}', "[1]"])
def test_damaged_findings_are_measured_again(tmp_path, text):
    scratch = Scratch(tmp_path)
    scratch.remember(Findings({"a": np.array([0.1, 1 / 3])}, {"a": None}))
    assert scratch.recall({"a"}, 2, ()).base["a"].tolist() == [0.1, 1 / 3]
    assert scratch.recall({"a", "b"}, 2, ()) is None  # another reward can be had now
    scratch.remember(Findings())
    (tmp_path / "measured.json").write_text(text)
    assert scratch.recall((), 2, ()) is None
    assert scratch.recall((), 2, ()) is None
    assert len(scratch.discarded) == 2


class Saving:
    """An engine that only saves."""

    step = 2

    def save(self, folder):
        folder.mkdir()

    def load(self, folder):
        assert folder.is_dir()


def test_reasons_survive_and_a_full_disk_keeps_the_older_checkpoint(tmp_path, monkeypatch):
    logs = [StepLog(n, 0.1, 0.2, 1 / 3, 0.0, 0.0, 0.0, n, n, 0.1, 0.2) for n in (1, 2, 3)]
    engine, scratch = Saving(), Scratch(tmp_path)
    peaks = {"rss_peak_bytes": 7, "alloc_peak_bytes": Missing("no device")}
    scratch.save(engine, Progress(logs[:2], peaks, Missing("no meter")))
    assert scratch.load(engine, 2) == Progress(logs[:2], peaks, Missing("no meter"))

    def full(*_):
        raise OSError("no space left")

    engine.step = 3
    monkeypatch.setattr(ddpo_resume, "_write", full)
    scratch.save(engine, Progress(logs))
    assert [p.name for p in tmp_path.iterdir()] == ["step-2"]


def test_save_points_are_the_multiples_on_the_way_and_the_end():
    assert list(save_points(0, 12, 5)) == [5, 10, 12]
    assert list(save_points(5, 10, 5)) == [10]
    assert list(save_points(6, 7, 5)) == [7]
    assert list(save_points(0, 12, 0)) == [12]


class Killer(LocalLauncher):
    """Kills the child as soon as it has written a checkpoint."""

    def launch(self, job):
        running = super().launch(job)
        place = job.root / SCRATCH / job.work.id

        def kill():
            while not any(place.glob("step-[0-9]")) and running.end is None:
                time.sleep(0.002)
            if running.end is None:
                os.kill(running._child.pid, signal.SIGKILL)

        threading.Thread(target=kill, daemon=True).start()
        return running


class Progressing(PlainView):
    """Keeps the steps that a run reports."""

    def __init__(self):
        super().__init__(Console(quiet=True), ())
        self.steps = []

    def progress(self, work, done, total, values):
        self.steps.append(done)


def test_a_killed_child_is_resumed_by_the_next_run(pipeline, tmp_path, whole):
    plan, workload = make_plan(wanted(pipeline), DdpoWorkload()), DdpoWorkload()
    session = RunSession("t", workload, "ddposink.workloads.ddpo:DdpoWorkload", tmp_path, "e", timeout=120.0)
    store, log = Store(tmp_path), tmp_path / "logs" / "server.log"
    measure_passes(plan.passes, session, Killer((), log), store, Progressing())
    by_steps = {record.params["steps"]: record for record in store.records.values()}
    assert by_steps[0].status == "ok"
    assert by_steps[12].status == "error"
    assert "SIGKILL" in by_steps[12].reason
    assert any(tmp_path.glob(f"{SCRATCH}/*/step-*"))

    left, seen = remaining(plan.passes, store, retry_failed=True), Progressing()
    measure_passes(left, session, LocalLauncher((), log), store, seen)
    last = {record.params["steps"]: record for record in store.records.values()}[12]
    store.close()
    assert last.status == "ok", last.reason
    resumed_at = last.conformance["resumed_at_step"]
    assert 2 <= resumed_at < 12
    assert seen.steps[0] == resumed_at + 1  # fewer steps were trained
    assert not any(tmp_path.glob(f"{SCRATCH}/*"))
    (path,) = [tmp_path / a.path for a in last.artifacts if a.path.endswith("train-12.npz")]
    with np.load(path) as found:
        for name in set(found) - CLOCKS:
            assert np.array_equal(found[name], curve(whole.answers[12])[name]), name


def test_a_reward_server_that_is_away_for_a_moment_costs_no_steps(pipeline, tmp_path, monkeypatch):
    """The cell is an error; what the training had kept was thrown away with it."""
    monkeypatch.setenv(RETRIES, "0")
    trained = []

    def answer(to, content):
        count = len(content["images"])
        trained.extend([count] if count == 4 else [])  # evaluations ask of eight
        away = count == 4 and len(trained) == 4
        text("" if away else json.dumps({"rewards": [*range(count)]}), 500 if away else 200)(to, content)

    with serving() as server:
        server.answer = answer
        grid = {"reward": [f"{server.url}/score"], "steps": [0, 6]}
        plan, workload = make_plan(wanted(pipeline, grid=grid), DdpoWorkload()), DdpoWorkload()
        session = RunSession("t", workload, "ddposink.workloads.ddpo:DdpoWorkload", tmp_path, "e", 120.0)
        store, launcher, found = Store(tmp_path), LocalLauncher((), tmp_path / "logs" / "server.log"), []
        for seen in (Progressing(), Progressing()):
            left = remaining(plan.passes, store, retry_failed=True)
            measure_passes(left, session, launcher, store, seen)
            found.append({record.params["steps"]: record for record in store.records.values()})
            store.close()
            store = Store(tmp_path)
    store.close()
    assert (found[0][0].status, found[0][6].status) == ("ok", "error")
    assert "answered 500" in found[0][6].reason
    assert found[1][6].status == "ok", found[1][6].reason
    assert found[1][6].conformance["resumed_at_step"] == 2
    assert seen.steps[0] == 3
    assert not any(tmp_path.glob(f"{SCRATCH}/*"))
