"""The gate against known faults, in real processes.

What hangs on times gets them from a seed: a test of the rule must not hang on what else the machine does.
"""

import contextlib
import io
import json
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest

from bench.errors import UserError
from bench.gate.baseline import read_run
from bench.gate.pairs import DRIVER, PairSession, SideProcess, Tree
from bench.gate.rule import Verdict
from bench.gate.scope import Asked
from bench.results.store import read_records
from helpers.gateplace import ROOT, Place, plug_in, tree, verdicts, write_suite


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("gate"), grid={"kind": ["a"], "tokens": [12]})
    with place.session:
        yield place


NOISY = {"SCATTER": 0.05}


@pytest.fixture
def gate(place):
    return place.gate


def test_a_slowdown_is_caught(gate):
    report = gate(NOISY, {**NOISY, "SLOWER": 1.3}, pairs=6, until_decided=True)
    assert verdicts(report.judgements, "latency") == ["regressed"]
    assert verdicts(report.judgements, "speed") == ["regressed"]
    assert report.exit_code == 4


def test_a_speed_up_is_an_improvement(gate):
    report = gate({**NOISY, "SLOWER": 1.3}, NOISY, pairs=6, until_decided=True)
    assert verdicts(report.judgements, "latency") == ["improved"]
    assert report.exit_code == 0


def test_a_memory_leak_is_caught(gate):
    report = gate(head={"LEAK": 2_000_000})
    assert verdicts(report.judgements, "rss") == ["regressed"]
    assert report.exit_code == 4


def test_a_quality_loss_of_a_hundredth_of_a_nat_is_caught(gate):
    report = gate(head={"LOSS": 0.01}, pairs=1)
    (found,) = report.of(Verdict.REGRESSED)
    assert (found.metric, found.klass) == ("nll", "near")
    assert found.difference == pytest.approx(0.01)
    assert report.exit_code == 4


def test_a_slot_too_many_is_caught(gate):
    report = gate(head={"SLOTS": 1}, pairs=1)
    (found,) = report.of(Verdict.REGRESSED)
    assert (found.metric, found.base, found.head) == ("slots", 32, 33)


@pytest.mark.parametrize("end", ["oom", "raise", "nan"])
def test_a_cell_that_fails_now_is_a_regression(gate, end):
    report = gate(head={"END": end}, pairs=2)
    (found,) = report.of(Verdict.REGRESSED)
    assert found.metric == "status"
    assert found.reason.startswith("was ok, now ")
    assert "in 2 of 2 processes" in found.reason
    assert (report.exit_code, report.head.failed_cells) == (4, 1)


def test_cells_that_failed_before_and_still_do_are_no_regression_and_no_success(gate):
    report = gate(base={"END": "raise"}, head={"END": "raise"}, pairs=1)
    assert [str(j.verdict) for j in report.judgements] == ["incomparable"]
    assert report.exit_code == 5


def test_nothing_measured_is_no_success(gate):
    report = gate(base={"END": "skip"}, head={"END": "skip"}, pairs=1)
    assert report.exit_code == 5
    assert "offline" in report.judgements[0].reason


def test_sides_take_turns(gate, place):
    first = place.session.pairs
    report = gate(pairs=4)
    lines = [line.split() for line in place.printed if line.startswith("pair")]
    turns = ["base", "head"] if first % 2 == 0 else ["head", "base"]
    assert [line[2].strip(":") for line in lines] == [*turns, *turns[::-1]] * 2
    assert [line[1] for line in lines] == [f"{first + i}/{first + 4}" for i in (1, 1, 2, 2, 3, 3, 4, 4)]
    assert report.terms.pairs == 4


def test_pairs_are_added_until_everything_is_decided(gate):
    loud, quiet = {"SCATTER": 0.5}, {"SCATTER": 0.001}
    report = gate(loud, loud, pairs=2, until_decided=True, max_pairs=7)
    assert (report.terms.looks, report.terms.pairs) == (3, 7)
    assert set(verdicts(report.judgements, "latency")) == {"inconclusive"}
    report = gate(quiet, quiet, pairs=3, until_decided=True, max_pairs=48)
    assert (report.terms.looks, report.terms.pairs) == (5, 3)


def test_twenty_gates_of_equal_code_find_no_regression(gate):
    """On a noisy machine: a process scatters by as much as the minimum effect of the toy's latency."""
    settings = [{"SCATTER": 0.1, "SEED": seed} for seed in range(20)]
    reports = [gate(one, one, pairs=5) for one in settings]
    regressed = [j for report in reports for j in report.of(Verdict.REGRESSED)]
    assert [(j.metric, j.ratio, j.p_adjusted) for j in regressed] == []
    assert all(report.exit_code == 0 for report in reports)


def test_a_side_is_left_as_a_run_that_can_be_a_baseline(gate, place):
    gate(pairs=2)
    stored = read_run(place.folder / "gate" / "head", "toys", "gatetoy")
    assert stored.notes == ()
    records, damaged = read_records(place.folder / "gate" / "head" / "records.jsonl")
    assert not damaged
    assert sorted(r.repeat for r in records) == list(range(place.session.pairs))
    assert len({r.pass_id for r in records}) == place.session.pairs


def test_a_side_that_cannot_be_imported_is_told_by_its_last_line(tmp_path):
    suite, broken = write_suite(tmp_path), tmp_path / "broken"
    broken.mkdir()
    (broken / "helpers").mkdir()
    (broken / "helpers" / "__init__.py").write_text("")
    (broken / "helpers" / "gatetoy.py").write_text("def f(:\n")
    plugs = plug_in(tmp_path / "plugs")
    side = Tree("old", broken, env={"PYTHONPATH": f"{plugs}:{ROOT}"})
    with pytest.raises(UserError, match="old cannot be measured: SyntaxError"):
        PairSession.start(side, tree(plugs, "new"), Asked(suite), tmp_path / "gate")


def test_a_suite_that_a_side_does_not_understand_is_told(tmp_path):
    suite = write_suite(tmp_path, grid={"kind": ["a"], "heads": [8]})
    plugs = plug_in(tmp_path / "plugs")
    with pytest.raises(UserError, match=r"base cannot be measured: .*has no parameter 'heads'"):
        PairSession.start(tree(plugs, "base"), tree(plugs, "head"), Asked(suite), tmp_path / "gate")


def test_a_driver_that_dies_is_told(tmp_path):
    suite, plugs = write_suite(tmp_path), plug_in(tmp_path / "plugs")
    sides = tree(plugs, "base"), tree(plugs, "head")
    with PairSession.start(*sides, Asked(suite, repeats=1), tmp_path / "gate") as session:
        session.head._process.kill()
        with pytest.raises(UserError, match="head cannot be measured: its process ended with code -9"):
            session.measure(1)


def test_what_a_side_says_becomes_one_line(tmp_path):
    def answered(event, ask):
        side = SideProcess.__new__(SideProcess)
        side.tree, side.log, side.records = Tree("old"), tmp_path / "driver.log", []
        side._process = SimpleNamespace(stdin=io.StringIO(), stdout=io.StringIO(json.dumps(event)))
        with pytest.raises(UserError) as caught:
            ask(side)
        return caught.value

    failed = {"event": "failed", "reason": "RuntimeError: first\nsecond\x1b[31m", "hint": None}
    error = answered(failed, SideProcess.await_ready)
    assert error.message == "old cannot be measured: RuntimeError: first second [31m"
    newer = {"event": "measured", "records": ['{"schema_version": 99, "surprise": 1}']}
    error = answered(newer, lambda side: side.measure(0, 0))
    assert error.message == "old writes records that this version of bench cannot read"


def test_no_driver_outlives_its_session(tmp_path):
    suite, plugs = write_suite(tmp_path), plug_in(tmp_path / "plugs")
    (plugs / "head.json").write_text('{"SLEEP": 100}')
    sides = tree(plugs, "base"), tree(plugs, "head")
    session = PairSession.start(*sides, Asked(suite, repeats=1), tmp_path / "gate")
    with contextlib.suppress(KeyboardInterrupt), session:
        session.head._send(number=0, repeat=0)
        raise KeyboardInterrupt
    assert all(side._process.returncode is not None for side in (session.base, session.head))


def test_sides_with_different_plans_are_measured_as_a_whole(tmp_path):
    place = Place(tmp_path)
    with place.session:
        (one, other) = place.session.base.ready["cells"]
        place.session.base.ready["cells"] = [[one[0], other[0]], [one[1], other[1]]]
        report = place.gate(pairs=2)
    assert any("plan the suite differently" in note for note in report.notes)
    assert verdicts(report.judgements, "slots") == ["pass"] * 4


@pytest.mark.parametrize(
    ("file", "home"), [("results/store.py", "bench.results.store"), ("store.py", "bench.store")]
)
def test_a_side_finds_its_parts_in_trees_of_either_age(tmp_path, file, home):
    module = tmp_path / "bench" / file
    module.parent.mkdir(parents=True)
    for folder in {module.parent, tmp_path / "bench"}:
        (folder / "__init__.py").write_text("")
    module.write_text("import json\n")
    code = f"import sys; sys.path += [{str(DRIVER.parent)!r}]; import side; print(side.part('store'))"
    command, env = [sys.executable, "-P", "-c", code], {"PYTHONPATH": str(tmp_path)}
    run = partial(subprocess.run, command, env=env, text=True)
    assert run(capture_output=True, check=True).stdout == f"<module {home!r} from {str(module)!r}>\n"
    module.write_text("import no_such_module\n")
    assert "No module named 'no_such_module'" in run(capture_output=True, check=False).stderr
