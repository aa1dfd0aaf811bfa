"""Runs on a real cluster of three raylets: equal to a local one, and nothing lost however it is cut off."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from bench.results.record import Status
from bench.results.store import ENV, RECORDS, read_records

pytest.importorskip("ray", reason="ray is not installed (pip install 'ddposink[ray]')")
from helpers.raycluster import RayCluster, passes_left  # noqa: E402

pytestmark = pytest.mark.timeout(240)
START = """
from bench import registry
registry.register("toy", "helpers.toy:Toy")
from bench.cli import main
main()
"""
SUITE = {
    "suite": "toys",
    "workload": "toy",
    "defaults": {"speed": 0.01},
    "grid": {"at": [0, 1, 2, 3], "length": [2, 20, 100]},  # a pass for each `at`, which changes nothing
}
CELLS = 12


@pytest.fixture(scope="module")
def cluster():
    made = RayCluster()
    try:
        yield made
    finally:
        made.close()
        assert made.family() == []


class Runs:
    """Runs of one suite in one folder, on the cluster unless told otherwise."""

    def __init__(self, folder, cluster):
        self.folder, self.cluster = folder, cluster
        self.write()

    def write(self, **more):
        (self.folder / "toys.yaml").write_text(json.dumps(SUITE | more))

    def start(self, *words, local=False, **environment):
        where = [] if local else ["--launcher", "ray", "--address", self.cluster.address]
        return subprocess.Popen(
            [sys.executable, "-c", START, "toys.yaml", *where, *words],
            cwd=self.folder,
            env=self.cluster.environment() | {"COLUMNS": "200"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *words, code=0, **rest):
        return self.end(self.start(*words, **rest), code)

    def end(self, process, code=0):
        out, err = process.communicate(timeout=150)
        assert "Traceback" not in err, err
        assert process.returncode == code, (process.returncode, out, err)
        return out + err

    def records(self):
        found = []
        for path in sorted(self.folder.glob(f"results/*/*/{RECORDS}")):
            records, damaged = read_records(path)
            assert not damaged
            found += records
        return found

    def await_records(self, count):
        assert eventually(lambda: len(self.records()) >= count, 90)

    def check_all_there_once(self):
        records = self.records()
        assert len(records) == len({record.cell for record in records}) == CELLS
        for record in records:
            assert record.status is Status.OK, record.reason
            length = record.params["length"]
            assert record.metrics["total"].value == length * (length - 1) // 2

    def check_nothing_left(self):
        assert eventually(lambda: not passes_left(self.cluster), 10), passes_left(self.cluster)


@pytest.fixture
def runs(tmp_path, cluster):
    return Runs(tmp_path, cluster)


def eventually(condition, seconds):
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def test_a_run_on_the_cluster_gives_what_a_local_one_gives(runs):
    runs.run(local=True)
    here = {record.cell: record for record in runs.records()}
    runs.run("--new")
    there = [record for record in runs.records() if record.run not in {r.run for r in here.values()}]
    assert {record.cell for record in there} == here.keys()
    for record in there:
        local = here[record.cell]
        assert (record.status, record.columns) == (local.status, local.columns)
        assert record.metrics == local.metrics
        assert [(a.sha256, a.bytes) for a in record.artifacts] == [
            (a.sha256, a.bytes) for a in local.artifacts
        ]
        assert record.conformance["preloaded"] is True
    (folder,) = {runs.folder / "results" / "toys" / record.run for record in there}
    for kept in (artifact for record in there for artifact in record.artifacts):
        assert (folder / kept.path).stat().st_size == kept.bytes
    for record in there:
        assert "toy begins" in (folder / "logs" / f"{record.pass_id}.log").read_text()
    runs.check_nothing_left()
    assert list(runs.cluster.temporary.glob("bench-agent-*")) == []


def test_every_record_says_where_it_was_measured_and_no_two_passes_shared_a_node(runs):
    runs.run()
    records = runs.records()
    assert len({record.conformance["node"] for record in records}) == 3
    (folder,) = (runs.folder / "results" / "toys").glob("2*")
    kept = json.loads((folder / ENV).read_text())
    assert {record.env for record in records} <= {kept["id"], *kept.get("earlier", {})}
    passes = {
        (r.conformance["node"], r.pass_id): (r.started, max(s.finished for s in records if s.pass_id == r.pass_id))
        for r in records
    }
    for (node, name), (started, finished) in passes.items():
        for (other, another), (begun, _) in passes.items():
            assert (node, name) == (other, another) or node != other or not started < begun < finished


def test_a_node_that_goes_away_in_the_middle_costs_only_its_pass(runs):
    added = runs.cluster.add()
    process = runs.start()
    runs.await_records(1)
    busy = eventually(lambda: agents_below(runs.cluster.raylets[added].pid), 60)
    assert busy, "the node has begun nothing"
    runs.cluster.raylet(added).kill()
    said = runs.end(process)
    assert "went away; its pass is measured again" in said
    runs.check_all_there_once()
    runs.check_nothing_left()


def test_a_worker_that_is_killed_costs_only_its_pass(runs):
    process = runs.start()
    runs.await_records(1)
    agents_below(runs.cluster.raylets[0].pid)[0].kill()
    said = runs.end(process)
    assert "its pass is measured again" in said
    runs.check_all_there_once()
    runs.check_nothing_left()


def test_a_driver_that_is_killed_leaves_nothing_and_is_gone_on_from(runs):
    process = runs.start()
    runs.await_records(2)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    runs.check_nothing_left()
    known = len(runs.records())
    assert f"({known} answered before)" in runs.run()
    runs.check_all_there_once()


def test_ctrl_c_keeps_what_is_answered_and_leaves_nothing(runs):
    process = runs.start()
    runs.await_records(2)
    process.send_signal(signal.SIGINT)
    said = runs.end(process, code=130)
    assert f"--launcher ray --address {runs.cluster.address}" in said
    runs.check_nothing_left()
    runs.run()
    runs.check_all_there_once()


@pytest.mark.parametrize(
    ("mode", "limit", "status", "reason"),
    [
        ("memory", {"memory_limit": "512MiB"}, Status.OOM, "MemoryError"),
        ("hang", {"timeout": 2}, Status.TIMEOUT, "timed out after 2 s"),
        ("segfault", {}, Status.ERROR, "crashed with SIGSEGV"),
    ],
)
def test_ends_of_a_pass_are_those_of_a_local_one(runs, mode, limit, status, reason):
    runs.write(defaults={"mode": mode, "at": 20}, grid={"length": [2, 20, 30]}, **limit)
    runs.run(code=3)
    two, twenty, thirty = sorted(runs.records(), key=lambda record: record.params["length"])
    assert two.status is Status.OK
    assert (twenty.status, twenty.reason) == (status, reason)
    assert (thirty.status, thirty.reason) == (status, f"not reached: {reason}")
    runs.check_nothing_left()


def test_needs_that_no_node_meets_are_one_sentence(runs):
    runs.write(resources={"gpus": 2})
    said = runs.run(code=2)
    assert "no node of the cluster has what a pass needs (1 CPU, 2 GPU)" in said
    assert "none has more than 1 CPU, 0 GPU" in said
    assert not (runs.folder / "results").exists()


def test_other_code_on_a_node_is_one_sentence_and_no_record(runs):
    said = runs.run(code=2, TOY_VERSION="2")
    assert "the code of the workload on node" in said
    assert "is 1, here it is 2" in said
    assert not (runs.folder / "results").exists()


def agents_below(pid):
    """Ray workers of a node that have started a fork server."""
    return [
        parent
        for process in psutil.Process(pid).children(recursive=True)
        if "multiprocessing.forkserver" in " ".join(process.cmdline())
        and (parent := process.parent()) is not None
        and "multiprocessing.forkserver" not in " ".join(parent.cmdline())
    ]
