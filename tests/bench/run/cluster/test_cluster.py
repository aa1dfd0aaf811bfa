"""Runs on a real cluster of three raylets: equal to a local one, and nothing lost however it is cut off."""

import json
import os
import signal

import psutil
import pytest

from bench.results.record import Status
from bench.results.store import ENV

pytest.importorskip("ray", reason="ray is not installed (pip install 'ddposink[ray]')")
from helpers.raycluster import words
from helpers.toyruns import eventually

pytestmark = pytest.mark.timeout(900)


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
    check_places(folder, there)
    runs.check_nothing_left()
    assert list(runs.cluster.temporary.glob("bench-agent-*")) == []


def check_places(folder, records):
    """Every record says where it was measured, and no two passes shared a node."""
    assert len({record.conformance["node"] for record in records}) == 3
    kept = json.loads((folder / ENV).read_text())
    assert {record.env for record in records} <= {kept["id"], *kept.get("earlier", {})}
    check_never_shared(records, "node")


def check_never_shared(records, place):
    """No two passes were at one `place` at a time."""
    passes = {}
    for r in records:
        last = max(s.finished for s in records if s.pass_id == r.pass_id)
        passes[r.pass_id] = (r.conformance[place], r.started, last)
    for one in passes.values():
        for another in passes.values():
            where, started, finished = one
            assert one == another or where != another[0] or not started < another[1] < finished


def test_no_two_passes_have_one_gpu(runs):
    """There are no GPUs; but Ray hands out as many as a node says that it has."""
    added = runs.cluster.add("--num-gpus", "2", "--num-cpus", "2")
    runs.write(defaults={"speed": 0.02}, resources={"gpus": 1}, jobs=2)
    try:
        runs.run()
    finally:
        runs.cluster.end(added)
    runs.check_all_there_once()
    records = runs.records()
    assert {record.conformance["cuda_visible"] for record in records} == {"0", "1"}
    assert {record.conformance["passes_side_by_side"] for record in records} == {2}
    check_never_shared(records, "cuda_visible")
    runs.check_nothing_left()


def test_a_node_that_goes_away_in_the_middle_costs_only_its_pass(runs):
    runs.write(defaults={"speed": 0.1})
    added = runs.cluster.add()
    process = runs.start()
    busy = eventually(lambda: agents_below(runs.cluster.raylets[added].pid), 120)
    assert busy, "the node has begun nothing"
    runs.await_records(8)  # the two short cells of each of the four passes; the long ones take ten seconds
    runs.cluster.raylet(added).kill()
    said = runs.end(process)
    assert "went away; its pass is measured again" in said
    runs.check_all_there_once()
    runs.check_nothing_left()


def kept_at(folder):
    """How far each pass has come that keeps it, as the run folder has it."""
    kept = folder.glob(
        "results/*/*/scratch/*/at-*"
    )  # a killed driver may leave what was on its way as *.part
    return {path.parent.name: int(path.name[3:]) for path in kept if not path.parent.suffix}


def test_what_a_pass_keeps_outlives_its_node(runs):
    runs.write(defaults={"speed": 0.1, "mode": "keep"}, grid={"at": [0, 1, 2, 3], "length": [2, 20, 120]})
    added = runs.cluster.add()
    process = runs.start()
    assert eventually(lambda: agents_below(runs.cluster.raylets[added].pid), 120), (
        "the node has begun nothing"
    )
    runs.await_records(8)
    assert eventually(lambda: len(kept := kept_at(runs.folder)) == 4 and min(kept.values()) >= 20, 120)
    runs.cluster.raylet(added).kill()
    said = runs.end(process)
    assert said.count("went away; its pass is measured again") == 1
    runs.check_all_there_once()
    (gone_on,) = [r.conformance["resumed_at"] for r in runs.records() if r.conformance["resumed_at"]]
    assert 20 <= gone_on < 120
    assert list(runs.folder.glob("results/*/*/scratch/*")) == []
    runs.check_nothing_left()


def test_what_passes_keep_outlives_the_driver_and_a_pass_that_fails(runs):
    runs.write(defaults={"speed": 0.1, "mode": "keep"}, timeout=4)
    process = runs.start()
    assert eventually(lambda: len(kept_at(runs.folder)) == 3, 90)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    runs.check_nothing_left()
    begun = kept_at(runs.folder)
    runs.run(code=3)  # no pass is through in its time
    late = kept_at(runs.folder)
    assert all(late[name] > begun[name] for name in begun)
    assert len(late) == 4
    runs.write(defaults={"speed": 0.1, "mode": "keep"}, timeout=60)
    runs.run("--retry-failed")
    newest = {record.cell: record for record in runs.records()}.values()
    assert {record.status for record in newest} == {Status.OK}
    for record in newest:
        if record.params["length"] == 100:
            assert record.metrics["total"].value == 4950
            assert record.conformance["resumed_at"] == late[record.pass_id]
    assert list(runs.folder.glob("results/*/*/scratch/*")) == []


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


ENDS = {
    "memory": (Status.OOM, "MemoryError"),
    "hang": (Status.TIMEOUT, "timed out after 10 s"),
    "segfault": (Status.ERROR, "crashed with SIGSEGV"),
}


def test_ends_of_a_pass_are_those_of_a_local_one(runs):
    for modes, timeout in ((["memory", "segfault"], 120), (["hang"], 10)):
        grid = {"mode": modes, "length": [2, 20, 30]}
        runs.write(defaults={"at": 20}, grid=grid, timeout=timeout, memory_limit="512MiB")
        runs.run(code=3)
    found = {(record.params["mode"], record.params["length"]): record for record in runs.records()}
    assert len(found) == 9
    for mode, (status, reason) in ENDS.items():
        assert found[mode, 2].status is Status.OK
        assert (found[mode, 20].status, found[mode, 20].reason) == (status, reason)
        assert (found[mode, 30].status, found[mode, 30].reason) == (status, f"not reached: {reason}")
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


def test_other_data_on_a_node_is_no_number(runs):
    runs.run(code=3, TOY_DATA="other")
    reasons = {record.reason.removeprefix("not reached: ") for record in runs.records()}
    assert {record.status for record in runs.records()} == {Status.ERROR}
    assert all("data is toy, where the run was started it is other" in reason for reason in reasons)


def agents_below(pid):
    """Ray workers of a node that have started a fork server."""
    below = psutil.Process(pid).children(recursive=True)
    servers = [process.pid for process in below if "multiprocessing.forkserver" in words(process)]
    parents = {parent_of(pid) for pid in servers} - {None, *servers}
    return [process for process in below if process.pid in parents]


def parent_of(pid):
    try:
        return psutil.Process(pid).ppid()
    except psutil.Error:
        return None
