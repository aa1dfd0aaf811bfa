"""Stored runs that are not what they should be: each gets one clear line."""

import hashlib
import json

import pytest

from bench.errors import UserError
from bench.gate.baseline import open_run, read_run
from bench.results.digest import digest
from bench.results.environment import fingerprint_id
from helpers.gateplace import record


def env(**more):
    data = {"python": "3.11", "cpu": {"model": "A"}, "gpus": [], "git": {"commit": "c" * 40, "dirty": False}}
    data |= more
    return {"id": fingerprint_id(data), **data}


@pytest.fixture
def run(tmp_path):
    """A finished run of two cells, one with an artifact; ``change`` may edit it before it is written, and
    ``after`` its records behind their digests' back."""

    def run(change=lambda records, plan, fingerprint: None, name="20260101-000000-abcdef", after=None):
        folder = tmp_path / "results" / "toys" / name
        (folder / "artifacts").mkdir(parents=True)
        (folder / "artifacts" / "a.txt").write_text("hello")
        fingerprint = env()
        records = [
            record({"slots": 32, "latency": 5.0}, tokens=t, env=fingerprint["id"]).model_dump(mode="json")
            for t in (8, 16)
        ]
        records[0]["metrics"]["latency"]["samples"] = [4.0, 5.0, 7.0]
        sha = hashlib.sha256(b"hello").hexdigest()
        records[0]["artifacts"] = [{"path": "artifacts/a.txt", "sha256": sha, "bytes": 5}]
        cells = [{"id": r["cell"], "params": dict(r["params"]), "seed": 0, "repeat": 0} for r in records]
        plan = {"version": "v1", "passes": [{"id": "p", "cells": cells}]}
        if after is not None:
            records = [r | {"digest": digest(r)} for r in records]
            after(records)
        lines = change(records, plan, fingerprint) or []
        if after is None:  # with digests to match, the other checks are on their own
            records = [r | {"digest": digest(r)} for r in records]
        text = "".join(json.dumps(r) + "\n" for r in records) + "".join(f"{line}\n" for line in lines)
        (folder / "records.jsonl").write_text(text)
        (folder / "plan.json").write_text(json.dumps(plan))
        (folder / "env.json").write_text(json.dumps(fingerprint))
        return folder

    return run


def test_a_run_as_it_was_written_is_accepted(run):
    stored = read_run(run(), "toys", "gatetoy")
    assert stored.notes == ()
    assert len(stored.side.records) == 2
    assert (stored.info.commit, stored.info.version, stored.info.failed_cells) == ("c" * 40, "v1", 0)
    assert set(stored.side.environments) == {stored.side.records[0].env}


def refused(folder, suite="toys", workload="gatetoy"):
    with pytest.raises(UserError) as caught:
        read_run(folder, suite, workload)
    return caught.value.message


def test_runs_of_another_suite_or_workload_are_refused(run):
    folder = run()
    assert refused(folder, suite="smoke").endswith("is a run of suite 'toys', not of 'smoke'")
    assert refused(folder, workload="stream").endswith("is a run of workload 'gatetoy', not of 'stream'")


def test_an_unfinished_run_is_used_and_told_of(run):
    stored = read_run(run(lambda r, p, e: r.pop() and None), "toys", "gatetoy")
    assert stored.notes == ("20260101-000000-abcdef is unfinished: 1 of 2 cells have no record",)


def test_damaged_lines_are_told_of(run):
    stored = read_run(run(lambda records, plan, fingerprint: ['{"half": ']), "toys", "gatetoy")
    assert "1 line of records.jsonl cannot be read" in stored.notes[0]


def test_a_run_without_any_measured_cell_is_told_of(run):
    def fail(records, plan, fingerprint):
        for r in records:
            r |= {"status": "oom", "reason": "too big", "metrics": {}, "artifacts": []}

    stored = read_run(run(fail), "toys", "gatetoy")
    assert stored.notes == ("20260101-000000-abcdef: no cell of it was measured",)
    assert stored.info.failed_cells == 2


def test_a_newer_schema_is_refused(run):
    def newer(records, plan, fingerprint):
        records[1] |= {"schema_version": 99, "surprise": 1}

    with pytest.raises(UserError, match="was written by a newer version of ddposink") as caught:
        read_run(run(newer), "toys", "gatetoy")
    assert caught.value.hint == "update ddposink, or measure that run again with this version"


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda r, p, e: e["cpu"].update(model="B"), "env.json does not match its id"),
        (lambda r, p, e: r[1]["params"].update(tokens=4), "a 16 is not the cell that plan.json names"),
        (lambda r, p, e: r[1].update(seed=4), "a 16 is not the cell that plan.json names"),
        (lambda r, p, e: r[0]["metrics"]["latency"].update(value=2.0), "lies outside its own samples"),
        (lambda r, p, e: r[0]["artifacts"][0].update(sha256="0" * 64), "artifacts/a.txt has another hash"),
    ],
)
def test_what_was_edited_by_hand_is_refused(run, edit, told):
    message = refused(run(lambda r, p, e: edit(r, p, e) and None))
    assert "was changed after it was measured" in message
    assert told in message


def test_a_number_that_was_edited_consistently_is_refused_with_its_line(run):
    def edit(records):
        records[1]["metrics"]["latency"]["value"] = 4.0  # has no samples to contradict it

    folder = run(after=edit)
    with pytest.raises(UserError) as caught:
        read_run(folder, "toys", "gatetoy")
    assert caught.value.where == f"{folder / 'records.jsonl'}:2"
    assert "'a 16' (cell a-16-0) was edited after it was measured" in caught.value.message


def test_records_without_digests_are_used_and_told_of(run):
    def older(records, plan, fingerprint):
        for r in records:
            r["schema_version"] = 1
            r.pop("digest", None)

    def strip(folder):
        lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
        text = "".join(json.dumps({k: v for k, v in r.items() if k != "digest"}) + "\n" for r in lines)
        (folder / "records.jsonl").write_text(text)
        return folder

    notes = read_run(strip(run(older)), "toys", "gatetoy").notes
    assert notes == (
        "20260101-000000-abcdef: 2 records of an older version, without a digest that would show later edits",
    )


def test_an_artifact_outside_of_the_run_is_never_opened(run, tmp_path):
    (tmp_path / "secret").write_text("x")

    def escape(records, plan, fingerprint):
        records[0]["artifacts"][0]["path"] = "../../../secret"

    assert read_run(run(escape), "toys", "gatetoy").notes == ()


def test_folders_that_are_no_run(tmp_path, run):
    other = tmp_path / "other"
    other.mkdir()
    (other / "records.jsonl").write_text('{"name": "bench", "value": 3}\n')
    assert refused(other) == f"{other} holds no record: none of its 1 line is one"
    (other / "records.jsonl").write_text("")
    assert refused(other) == f"{other} holds no record"
    (other / "records.jsonl").unlink()
    (other / "junk.txt").write_text("x")
    with pytest.raises(UserError, match="no run of 'other'"):
        open_run(str(other), tmp_path / "results", "toys", "gatetoy")
    with pytest.raises(UserError, match="no run of 'nowhere'"):
        open_run("nowhere", tmp_path / "results", "toys", "gatetoy")


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("plan.json", '{"passes": 3}', "passes of plan.json is no list"),
        ("plan.json", '{"version": 7}', "version of plan.json is no str"),
        ("plan.json", "[1]", "plan.json is not an object"),
        ("env.json", '{"id": 3}', "id of env.json is no str"),
        ("env.json", '{"id": "x", "earlier": [1]}', "earlier of env.json is no dict"),
        ("env.json", '{"earlier": {"x": {"id": "x"}}}', "env.json does not match its id x"),
    ],
)
def test_files_of_another_shape_are_refused(run, file, text, told):
    folder = run()
    (folder / file).write_text(text)
    assert refused(folder) == f"{folder} was changed after it was measured: {told}"


@pytest.mark.parametrize("passes", [[1, None], [{"cells": 3}], [{"cells": [4, {"no": "id"}]}]])
def test_a_plan_that_names_no_cell_leaves_none_open(run, passes):
    folder = run()
    (folder / "plan.json").write_text(json.dumps({"passes": passes}))
    assert read_run(folder, "toys", "gatetoy").notes == ()


def test_records_that_cannot_be_opened_are_refused(run):
    folder = run()
    (folder / "records.jsonl").unlink()
    (folder / "records.jsonl").mkdir()
    assert refused(folder) == f"{folder / 'records.jsonl'} cannot be read: Is a directory"


def test_half_a_plan_is_told_by_its_name(run):
    folder = run()
    (folder / "plan.json").write_text('{"passes": [')
    assert "plan.json cannot be read" in refused(folder)


def test_earlier_fingerprints_of_a_resumed_run_are_known(run):
    earlier = env(python="3.10")

    def resumed(records, plan, fingerprint):
        records[0]["env"] = earlier["id"]
        fingerprint["earlier"] = {earlier["id"]: earlier}

    assert len(read_run(run(resumed), "toys", "gatetoy").side.environments) == 2


def test_records_of_cells_that_the_plan_no_longer_has_are_left_out(run):
    def add(records, plan, fingerprint):
        records.append(records[0] | {"cell": "of another time"})

    stored = read_run(run(add), "toys", "gatetoy")
    assert len(stored.side.records) == 2
    assert stored.notes == (
        "20260101-000000-abcdef: 1 record left out of cells that its suite no longer has",
    )


@pytest.mark.parametrize("path", ["artifacts/a\0b", "artifacts/loop", "a" * 5000])
def test_a_path_of_an_artifact_that_cannot_be_one(run, path):
    folder = run(lambda r, p, e: r[0]["artifacts"][0].update(path=path))
    (folder / "artifacts" / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="has another hash"):
        read_run(folder, "toys", "gatetoy")
