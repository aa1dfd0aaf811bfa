"""The loop with real children: what is recorded for every way a pass can end, and what a rerun does."""

import dataclasses
import hashlib

import pytest

from bench.errors import UserError
from bench.results.record import Status
from bench.results.store import Store
from bench.run.child import End, Place
from bench.run.launch import LocalLauncher, Refused
from bench.run.loop import RunSession, exit_code, found_no_room, measure, remaining, tally
from helpers.passes import make_pass
from helpers.toy import Toy


@pytest.fixture(scope="module")
def launcher(tmp_path_factory):
    return LocalLauncher(("json",), tmp_path_factory.mktemp("server") / "server.log")


class Witness:
    """An observer that remembers."""

    def __init__(self):
        self.seen = []

    def __getattr__(self, name):
        return lambda *arguments: self.seen.append((name, *arguments))

    def of(self, name):
        return [entry[1:] for entry in self.seen if entry[0] == name]


@pytest.fixture
def run(tmp_path, launcher):
    def run(*passes, store=None, watched_by=None, starts=launcher, **session):
        store = store or Store(tmp_path)
        workload = session.pop("workload", None) or Toy()
        session = RunSession(
            "s", workload, "helpers.toy:Toy", tmp_path, "env1", **({"timeout": 60.0} | session)
        )
        measure(passes, session, starts, store, watched_by or Witness())
        return store.records

    return run


def statuses(records):
    return [(r.label, str(r.status), r.reason) for r in records.values()]


def test_every_cell_of_a_pass_is_recorded_and_shares_its_prefix(run, tmp_path):
    records = run(make_pass())
    assert statuses(records) == [("ok 4", "ok", None), ("ok 8", "ok", None), ("ok 16", "ok", None)]
    record = records["0-ok-16"]
    assert record.metrics["total"].value == 120
    assert record.metrics["vram"].reason == "no GPU"
    assert record.columns == {"mode": "ok", "length": 16, "seen": 16}
    assert record.conformance["calls"] == 16
    assert record.conformance["child_startup_s"] > 0
    assert (record.suite, record.workload, record.run, record.env) == ("s", "toy", tmp_path.name, "env1")
    assert record.started <= record.finished
    (artifact,) = record.artifacts
    data = (tmp_path / artifact.path).read_bytes()
    assert hashlib.sha256(data).hexdigest() == artifact.sha256
    assert Store(tmp_path).records == records


@pytest.mark.parametrize(
    ("mode", "status", "reason"),
    [
        ("raise", "error", "ValueError: something went wrong"),
        ("segfault", "error", "crashed with SIGSEGV"),
        ("alloc_error", "oom", "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_a_pass_that_dies_has_answered_the_cells_before(run, mode, status, reason):
    records = run(make_pass(mode, (4, 8, 16, 32), at=8), make_pass(number=1))
    assert statuses(records)[:4] == [
        (f"{mode} 4", "ok", None),
        (f"{mode} 8", status, reason),
        (f"{mode} 16", status, f"not reached: {reason}"),
        (f"{mode} 32", status, f"not reached: {reason}"),
    ]
    assert [r.status for r in list(records.values())[4:]] == [Status.OK] * 3  # the run went on


def test_what_a_record_shows_is_asked_before_its_child_starts(run):
    """A file that the columns are told from may have changed, or be refused, once the child has answered."""

    class Told(Toy):
        asked = 0

        def columns(self, params):
            self.asked += 1
            if self.asked > 2:
                raise ValueError("there is no picture 'x.png'")
            return super().columns(params)

    records = run(make_pass(lengths=(4, 8)), make_pass("raise", (4,), number=1), workload=Told())
    assert statuses(records)[:2] == [("ok 4", "ok", None), ("ok 8", "ok", None)]
    assert records["0-ok-8"].columns == {"mode": "ok", "length": 8, "seen": 8}
    failed = records["1-raise-4"]  # refused from the beginning: as its parameters are written
    assert (failed.status, failed.columns["length"]) == (Status.ERROR, 4)


def test_a_timeout_is_an_outcome(run):
    records = run(make_pass("hang", (4, 8), at=8), timeout=1.0)
    assert statuses(records)[1] == ("hang 8", "timeout", "timed out after 1 s")


def test_memory_beyond_the_limit_is_an_outcome(run):
    records = run(make_pass("memory", (4, 8), at=8), memory_limit=512 * 2**20)
    assert statuses(records) == [("memory 4", "ok", None), ("memory 8", "oom", "MemoryError")]


def test_a_need_that_is_missing_skips_every_cell_with_the_same_reason(run):
    records = run(make_pass("skip", (4, 8)))
    reason = "weights not available offline"
    assert statuses(records) == [("skip 4", "skipped", reason), ("skip 8", "skipped", reason)]


def test_a_nan_is_recorded_as_such_and_the_pass_goes_on(run):
    records = run(make_pass("nan", (4, 8), at=8))
    assert statuses(records)[0] == ("nan 4", "ok", None)
    assert statuses(records)[1] == ("nan 8", "nan", "nll is nan, ms is inf")
    assert records["0-nan-8"].metrics["nll"].value is None
    assert records["0-nan-8"].metrics["total"].value == 1


def test_a_cell_that_the_workload_forgets_is_an_error_of_that_cell(run):
    records = run(make_pass("silent", (4, 8)))
    assert {r.reason for r in records.values()} == {"the workload ended without answering this cell"}
    assert {r.status for r in records.values()} == {Status.ERROR}


def test_an_answer_that_is_no_valid_record_is_an_error_of_that_cell(run):
    records = run(make_pass("bad_facts", (4,)))
    (record,) = records.values()
    assert record.status is Status.ERROR
    assert record.reason.startswith("the workload's answer is no valid record: columns.nested")


def test_only_what_is_missing_is_measured_again(run, tmp_path):
    work = make_pass()
    run(work)
    store = Store(tmp_path)
    assert remaining([work], store) == []
    longer = make_pass(lengths=(4, 8, 16, 32))
    (left,) = remaining([longer], store)
    assert [cell.label for cell in left.cells] == ["ok 32"]


def test_failed_cells_are_measured_again_only_on_request(run, tmp_path):
    work = make_pass("raise", at=8)
    nan = make_pass("nan", (4,), number=1)
    run(work, nan)
    store = Store(tmp_path)
    assert remaining([work, nan], store) == []
    (left,) = remaining([work, nan], store, retry_failed=True)
    assert [cell.label for cell in left.cells] == ["raise 8", "raise 16"]
    healed = dataclasses.replace(
        left, cells=tuple(dataclasses.replace(c, params={**c.params, "mode": "ok"}) for c in left.cells)
    )
    records = run(healed, store=store)
    assert [r.status for r in records.values()][:3] == [Status.OK] * 3
    assert Store(tmp_path).records == records


def test_a_cell_that_found_the_disk_full_is_measured_next_time(run, tmp_path):
    work = make_pass("full", at=8)
    records = run(work)
    reason = "the disk is full: SafetensorError: No space left on device (os error 28)"
    assert statuses(records)[1:] == [
        ("full 8", "error", reason),
        ("full 16", "error", f"not reached: {reason}"),
    ]
    (left,) = remaining([work], Store(tmp_path))
    assert [cell.label for cell in left.cells] == ["full 8", "full 16"]


def test_records_say_whether_the_child_was_preloaded(run, monkeypatch):
    assert run(make_pass())["0-ok-4"].conformance["preloaded"] is True
    monkeypatch.setattr(Toy, "preload", ("json", "no_such_module"))
    assert run(make_pass(number=1))["1-ok-4"].conformance["preloaded"] is False


def test_another_attempt_leaves_the_artifacts_of_the_first_alone(run, tmp_path):
    first = run(make_pass(lengths=(4, 8)))["0-ok-8"].artifacts[0]
    (left,) = remaining([make_pass(lengths=(4, 8, 16))], Store(tmp_path))
    second = run(left, store=Store(tmp_path))["0-ok-16"].artifacts[0]
    assert first.path != second.path
    for artifact in (first, second):
        assert hashlib.sha256((tmp_path / artifact.path).read_bytes()).hexdigest() == artifact.sha256


def test_leftovers_of_an_attempt_without_records_are_not_mixed_in(run, tmp_path):
    stale = tmp_path / "artifacts" / "0-ok" / "series.txt"
    stale.parent.mkdir(parents=True)
    stale.write_text("left over from a killed run\n")
    artifact = run(make_pass())["0-ok-16"].artifacts[0]
    assert (tmp_path / artifact.path).read_text() == "6\n28\n120\n"


def test_the_observer_hears_of_everything_in_order(run):
    witness, work = Witness(), make_pass()
    run(work, watched_by=witness)
    names = [entry[0] for entry in witness.seen if entry[0] not in ("usage", "progress")]
    assert names == ["pass_started", *["cell_answered"] * 3, "pass_ended"]
    assert witness.of("pass_ended") == [(work, End())]
    assert witness.of("progress")[-1][1:] == (16, 16, {"sum": 120.0})


class Dead:
    """A store whose disk is full."""

    def __init__(self, store):
        self.records = store.records

    def append(self, record):
        raise UserError("cannot write: the disk is full")


class Spy:
    """A launcher that keeps what it has started."""

    def __init__(self, launcher):
        self.inner, self.started = launcher, []

    def await_ready(self):
        self.inner.await_ready()

    def places(self):
        return self.inner.places()

    def launch(self, job):
        self.started.append(self.inner.launch(job))
        return self.started[-1]


def test_a_full_disk_stops_the_run_and_its_child(run, tmp_path, launcher):
    spy = Spy(launcher)
    with pytest.raises(UserError, match="disk is full"):
        run(
            make_pass(lengths=(4, 10**6), speed=0.01),
            make_pass(number=1),
            store=Dead(Store(tmp_path)),
            starts=spy,
        )
    assert len(spy.started) == 1
    assert spy.started[0].end is not None


def test_an_interruption_stops_the_child_and_keeps_its_answers(run, tmp_path, launcher):
    class Impatient(Witness):
        def cell_answered(self, record):
            raise KeyboardInterrupt

    spy = Spy(launcher)
    with pytest.raises(KeyboardInterrupt):
        run(make_pass(lengths=(4, 10**6), speed=0.01), watched_by=Impatient(), starts=spy)
    assert spy.started[0].end is not None
    assert list(Store(tmp_path).records) == ["0-ok-4"]


def test_a_preload_that_failed_is_mentioned(run, monkeypatch):
    monkeypatch.setattr(Toy, "preload", ("json", "no_such_module"))
    witness = Witness()
    run(make_pass(), watched_by=witness)
    ((message,),) = witness.of("message")
    assert message.startswith("no_such_module could not be imported ahead")


@pytest.mark.parametrize(
    ("counts", "code"),
    [
        ({Status.OK: 3}, 0),
        ({Status.OK: 3, Status.SKIPPED: 2}, 0),
        ({Status.SKIPPED: 2}, 3),
        ({}, 3),
        ({Status.OK: 3, Status.ERROR: 1}, 3),
        ({Status.OK: 3, Status.OOM: 1}, 3),
        ({Status.OK: 3, Status.TIMEOUT: 1}, 3),
        ({Status.OK: 3, Status.NAN: 1}, 3),
    ],
)
def test_exit_codes(counts, code):
    assert exit_code(counts) == code


def test_tally_counts_only_the_given_cells(run, tmp_path):
    work = make_pass("raise", at=8)
    run(work, make_pass(number=1))
    assert tally(work.cells, Store(tmp_path)) == {Status.OK: 1, Status.ERROR: 2}


def test_passes_run_side_by_side_and_each_keeps_its_own_outcome(run, tmp_path):
    two = LocalLauncher(("json",), tmp_path / "server.log", jobs=2)
    watched = Witness()
    passes = [make_pass(number=0), make_pass("segfault", number=1), make_pass(number=2)]
    records = run(*passes, watched_by=watched, jobs=2, starts=two)
    assert [entry[0] for entry in watched.seen if entry[0] in ("pass_started", "pass_ended")][:2] == [
        "pass_started",
        "pass_started",
    ]
    assert [len(watched.of(name)) for name in ("pass_started", "pass_ended")] == [3, 3]
    assert [str(records[f"{n}-ok-16"].status) for n in (0, 2)] == ["ok", "ok"]
    assert records["1-segfault-16"].reason.endswith("crashed with SIGSEGV")
    assert records["0-ok-4"].conformance["passes_side_by_side"] == 2


class Leaving(Spy):
    """A launcher under whose first ``times`` passes the machine goes away once a cell is answered."""

    def __init__(self, launcher, times, begun=True, counts=False):
        super().__init__(launcher)
        self.times, self.begun, self.counts = times, begun, counts

    def launch(self, job):
        running = super().launch(job)
        if len(self.started) > self.times:
            return running
        poll = running.poll

        def leave(timeout):
            events = poll(timeout)
            told = [n for n, event in enumerate(events) if event["event"] == "cell"]
            if not told and self.begun:
                return events
            running.stop()
            running.end = End(Status.ERROR, "the machine went away", lost=True, counts=self.counts)
            return events[: told[0] + 1] if self.begun else []

        running.poll = leave
        running.place = Place("env2", {"node": "n1"}) if self.begun else None
        return running


def test_a_pass_whose_machine_goes_away_is_measured_again_for_what_is_left(run, launcher, tmp_path):
    leaving, witness = Leaving(launcher, 1), Witness()
    records = run(make_pass(speed=0.01), make_pass(number=1), starts=leaving, watched_by=witness)
    assert [str(record.status) for record in records.values()] == ["ok"] * 6
    assert witness.of("message") == [("the machine went away; its pass is measured again",)]
    first, later = records["0-ok-4"], records["0-ok-16"]
    assert (first.env, first.conformance["node"]) == ("env2", "n1")
    assert (later.env, "node" in later.conformance) == ("env1", False)
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 6  # nothing twice
    assert [len(witness.of(name)) for name in ("pass_started", "pass_ended")] == [3, 2]


def test_a_job_lost_before_it_began_counts_where_its_end_says_so(run, launcher):
    leaving = Leaving(launcher, 100, begun=False, counts=True)
    records = run(make_pass(), starts=leaving)
    assert len(leaving.started) == 3
    assert {record.reason for record in records.values()} >= {"the machine went away"}


class Reading(Toy):
    """Its parameters are valid while a file is there."""

    def __init__(self, path):
        self.path = path

    def columns(self, params):
        self.path.read_text()
        return super().columns(params) | {"read": True}


def test_a_file_that_goes_away_while_a_pass_runs_costs_no_record(run, tmp_path):
    """The columns are those of its start; of a pass that begins later, plain parameters."""
    path = tmp_path / "text.txt"
    path.write_text("x")

    class Removing(Witness):
        def cell_answered(self, record):
            path.unlink(missing_ok=True)

    records = run(make_pass(), make_pass(number=1), workload=Reading(path), watched_by=Removing())
    assert [str(record.status) for record in records.values()] == ["ok"] * 6
    assert [record.columns.get("read") for record in records.values()] == [True] * 3 + [None] * 3
    assert records["1-ok-8"].columns["length"] == 8


def test_a_pass_that_is_refused_is_an_outcome(run):
    class Refusing:
        def await_ready(self):
            pass

        def places(self):
            return 1

        def launch(self, job):
            return Refused("no such file")

    records = run(make_pass(), starts=Refusing())
    assert statuses(records)[0][1:] == ("error", "no such file")
    assert {str(record.status) for record in records.values()} == {"error"}


def test_a_pass_that_loses_every_machine_is_given_an_outcome(run, launcher):
    leaving = Leaving(launcher, 100)
    records = run(make_pass(lengths=(2, 20, 40, 60, 80), speed=0.01), starts=leaving)
    assert len(leaving.started) == 3
    assert [str(record.status) for record in records.values()] == ["ok"] * 3 + ["error"] * 2
    assert records["0-ok-60"].reason == "the machine went away"


def test_a_machine_that_goes_away_before_the_pass_has_begun_does_not_count(run, launcher):
    leaving = Leaving(launcher, 5, begun=False)
    records = run(make_pass(), starts=leaving)
    assert len(leaving.started) == 6
    assert [str(record.status) for record in records.values()] == ["ok"] * 3


def test_what_went_well_is_not_asked_for_its_reason():
    """Of a million records in an index that would be a million that are read from the file."""

    class Stored:
        status = Status.OK

        @property
        def reason(self):
            raise AssertionError("read from the file")

    assert not found_no_room(Stored())
