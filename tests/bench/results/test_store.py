import errno
import json
import os
import re
import subprocess
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import UserError
from bench.results.digest import Integrity, digest, integrity_of, with_digest
from bench.results.folder import choose_run, locked, name_after, run_folders
from bench.results.record import SCHEMA_VERSION, Record, Status
from bench.results.store import DAMAGED, ENV, PLAN, RECORDS, Store, read, read_records, write_atomic
from helpers.passes import make_record


def filled(folder, *cells):
    store = Store(folder)
    for cell in cells:
        store.append(make_record(cell))
    store.close()
    return folder / RECORDS


def test_what_was_appended_is_read_back(tmp_path):
    filled(tmp_path, "a", "b")
    store = Store(tmp_path)
    assert list(store.records) == ["a", "b"]
    assert store.records["a"] == with_digest(make_record("a"))
    assert store.damaged == 0
    assert not (tmp_path / DAMAGED).exists()


def test_a_later_record_of_a_cell_replaces_the_earlier(tmp_path):
    filled(tmp_path, "a", "b")
    store = Store(tmp_path)
    store.append(make_record("a", status=Status.ERROR, reason="again", metrics={}))
    assert Store(tmp_path).records["a"].reason == "again"
    assert len(read_records(tmp_path / RECORDS)[0]) == 3


@pytest.mark.parametrize("cut", [1, 2, 20, 200])
def test_a_torn_last_line_is_set_aside(tmp_path, cut):
    path = filled(tmp_path, "a", "b")
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    store = Store(tmp_path)
    if cut == 1:  # only the newline is gone: the record is whole
        assert list(store.records) == ["a", "b"]
        assert store.damaged == 0
    else:
        assert list(store.records) == ["a"]
        assert store.damaged == 1
        assert (tmp_path / DAMAGED).read_bytes() == whole.splitlines(keepends=True)[1][:-cut] + b"\n"
    store.append(make_record("c"))
    assert "c" in Store(tmp_path).records
    assert Store(tmp_path).damaged == 0


def test_binary_garbage_between_records_is_set_aside(tmp_path):
    path = filled(tmp_path, "a", "b")
    first, second = path.read_bytes().splitlines(keepends=True)
    garbage = bytes(range(256)).replace(b"\n", b"")
    path.write_bytes(first + garbage + b"\n" + second + b'{"valid": "json"}\n[1]\n')
    store = Store(tmp_path)
    assert list(store.records) == ["a", "b"]
    assert store.damaged == 3
    assert garbage in (tmp_path / DAMAGED).read_bytes()
    assert path.read_bytes() == first + second


def test_reading_changes_nothing(tmp_path):
    path = filled(tmp_path, "a")
    path.write_bytes(path.read_bytes() + b"garbage")
    before = path.read_bytes()
    records, damaged = read_records(path)
    assert [record.cell for record in records] == ["a"]
    assert damaged == [b"garbage"]
    assert path.read_bytes() == before


def test_records_of_a_newer_schema_are_left_alone(tmp_path):
    path = filled(tmp_path, "a")
    newer = json.loads(path.read_text()) | {"schema_version": 99, "novelty": 1}
    path.write_text(json.dumps(newer) + "\n")
    with pytest.raises(UserError, match="newer version"):
        Store(tmp_path)
    assert json.loads(path.read_text()) == newer


def edit(path, line, old, new):
    """Change one line of a file, as an editor would."""
    lines = path.read_text().splitlines(keepends=True)
    assert old in lines[line]
    lines[line] = lines[line].replace(old, new)
    path.write_text("".join(lines))


def test_every_record_is_written_with_its_digest(tmp_path):
    path = filled(tmp_path, "a", "b")
    for line in path.read_text().splitlines():
        data = json.loads(line)
        assert data["schema_version"] == SCHEMA_VERSION == 2
        assert data["digest"] == digest(data)
    assert read(path).edited == []
    assert read(path).undigested == 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"value":28', '"value":27'),
        ('"value":28', '"value":28.0'),
        ('"status":"ok","reason":null', '"status":"oom","reason":"none"'),
        ('"length":8', '"length":9'),
        ('"label":"label b"', '"label":"label c"'),
        ('"duration_s":1.0', '"duration_s":1.5'),
        ('"digest":"', '"digest":"0'),
        ("digest", ""),
    ],
)
def test_a_record_edited_by_hand_is_found_with_file_line_and_cell(tmp_path, old, new):
    path = filled(tmp_path, "a", "b", "c")
    if not new:  # the digest is taken away altogether
        old = f',"digest":"{json.loads(path.read_text().splitlines()[1])["digest"]}"'
    edit(path, 1, old, new)
    found = read(path)
    assert [record.cell for record in found.records] == ["a", "b", "c"]  # shown, not hidden
    (one,) = found.edited
    assert one.where == f"{path}:2"
    assert "(cell b) was edited after it was measured" in str(one)
    assert str(one).endswith("its digest is gone" if not new else "it does not match its digest")


def test_reformatting_a_line_is_no_edit(tmp_path):
    path = filled(tmp_path, "a")
    data = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(data.items())), separators=(" ,", " : ")) + "\n")
    assert read(path).edited == []
    assert list(Store(tmp_path).records) == ["a"]


def test_records_from_before_there_were_digests_still_load(tmp_path):
    path = filled(tmp_path, "a")
    data = {k: v for k, v in json.loads(path.read_text()).items() if k != "digest"} | {"schema_version": 1}
    path.write_text(json.dumps(data) + "\n")
    found = read(path)
    assert (len(found.records), found.edited, found.undigested) == (1, [], 1)
    store = Store(tmp_path)
    store.append(make_record("b"))
    assert list(Store(tmp_path).records) == ["a", "b"]
    assert json.loads(path.read_text().splitlines()[0]) == data  # left as it is


def test_a_record_that_was_edited_is_set_aside_and_its_cell_measured_again(tmp_path):
    path = filled(tmp_path, "a", "b")
    before = path.read_bytes().splitlines(keepends=True)
    edit(path, 1, '"value":28', '"value":3')
    store = Store(tmp_path)
    assert list(store.records) == ["a"]
    assert [one.record.cell for one in store.edited] == ["b"]
    assert b'"value":3,' in (tmp_path / DAMAGED).read_bytes()
    assert path.read_bytes() == before[0]
    assert Store(tmp_path).edited == []


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@given(st.dictionaries(st.text(), scalars, max_size=5))
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_always_whole(columns):
    line = with_digest(make_record(columns=columns)).model_dump_json()
    assert integrity_of(json.loads(line)) is Integrity.WHOLE
    assert Record.model_validate_json(line).digest == json.loads(line)["digest"]


def test_a_disk_that_fills_up_in_the_middle_of_a_line_keeps_the_records_before(tmp_path):
    """RLIMIT_FSIZE lets the kernel refuse, in a process of its own, what a full disk would refuse."""
    path = filled(tmp_path, "a")
    size = path.stat().st_size
    code = f"""
import resource, sys
sys.path[:0] = {sys.path!r}
from helpers.passes import make_record
from bench.results.store import Store
from bench.errors import UserError
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, ({size + 100}, resource.RLIM_INFINITY))
store = Store(Path({str(tmp_path)!r}))
try:
    store.append(make_record("b"))
except UserError as error:
    print(error.message, "|", error.hint)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
store.append(make_record("c"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cannot write to" in done.stdout
    assert "1 records are kept" in done.stdout
    assert list(Store(tmp_path).records) == ["a", "c"]
    assert Store(tmp_path).damaged == 0


def test_a_full_disk_is_a_clear_error_and_leaves_no_half_line(tmp_path, monkeypatch):
    path = filled(tmp_path, "a")
    store, before = Store(tmp_path), path.read_bytes()

    def no_space(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(UserError, match="No space left on device"):
        store.append(make_record("b"))
    assert path.read_bytes() == before
    assert "b" not in store.records


def test_a_passing_shortage_is_survived(tmp_path, monkeypatch):
    store, real, calls = Store(tmp_path), os.fsync, []

    def once(fd):
        calls.append(fd)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd)

    monkeypatch.setattr(os, "fsync", once)
    store.append(make_record("b"))
    assert list(Store(tmp_path).records) == ["b"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "file.json"
    write_atomic(target, "old")

    def refuse(*arguments):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match="Read-only file system"):
        write_atomic(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


FINGERPRINT = {"id": "f1", "python": "3.11.7", "packages": {"torch": "2.13.0"}, "git": {"commit": "a"}}


def test_the_newest_comparable_run_is_resumed(tmp_path):
    first = choose_run(tmp_path, "s", FINGERPRINT, {}, "v1")
    assert not first.resumed
    assert (first.folder / "artifacts").is_dir()
    assert (first.folder / "logs").is_dir()
    second = choose_run(tmp_path, "s", FINGERPRINT, {}, "v1", new=True)
    assert second.folder != first.folder
    assert run_folders(tmp_path, "s") == [second.folder, first.folder]
    third = choose_run(tmp_path, "s", FINGERPRINT, {}, "v1")
    assert third.resumed
    assert third.folder == second.folder


def test_another_machine_starts_a_new_run_and_says_why(tmp_path):
    first = choose_run(tmp_path, "s", FINGERPRINT, {}, "v1")
    other = {**FINGERPRINT, "id": "f2", "packages": {"torch": "9"}}
    choice = choose_run(tmp_path, "s", other, {}, "v1")
    assert not choice.resumed
    assert choice.folder != first.folder
    assert "packages.torch" in choice.why


def test_another_commit_resumes_and_both_fingerprints_are_kept(tmp_path):
    first = choose_run(tmp_path, "s", FINGERPRINT, {}, "v1")
    other = {**FINGERPRINT, "id": "f2", "git": {"commit": "b"}}
    assert choose_run(tmp_path, "s", other, {}, "v1").resumed
    kept = json.loads((first.folder / ENV).read_text())
    assert kept["id"] == "f2"
    assert kept["earlier"]["f1"]["git"] == {"commit": "a"}
    assert choose_run(tmp_path, "s", FINGERPRINT, {}, "v1").resumed
    kept = json.loads((first.folder / ENV).read_text())
    assert (kept["id"], set(kept["earlier"])) == ("f1", {"f2"})


def test_runs_with_other_overrides_are_kept_apart(tmp_path):
    plain = choose_run(tmp_path, "s", FINGERPRINT, {}, "v1")
    special = choose_run(tmp_path, "s", FINGERPRINT, {"dtype": "bfloat16"}, "v1")
    assert special.folder != plain.folder
    write_atomic(special.folder / PLAN, json.dumps({"overrides": {"dtype": "bfloat16"}}))
    assert choose_run(tmp_path, "s", FINGERPRINT, {}, "v1").folder == plain.folder
    assert choose_run(tmp_path, "s", FINGERPRINT, {"dtype": "bfloat16"}, "v1").folder == special.folder


def test_changed_workload_code_starts_a_new_run_and_leaves_the_old_page_alone(tmp_path):
    first = choose_run(tmp_path, "s", FINGERPRINT, {}, "v1")
    (first.folder / PLAN).write_text(json.dumps({"version": "v1"}))
    assert choose_run(tmp_path, "s", FINGERPRINT, {}, "v1").resumed
    choice = choose_run(tmp_path, "s", FINGERPRINT, {}, "v2")
    assert not choice.resumed
    assert "code" in choice.why


def test_a_damaged_environment_file_starts_a_new_run(tmp_path):
    first = choose_run(tmp_path, "s", FINGERPRINT, {}, "v1")
    (first.folder / ENV).write_text('{"id": ')
    choice = choose_run(tmp_path, "s", FINGERPRINT, {}, "v1")
    assert choice.folder != first.folder
    assert "env.json cannot be read" in choice.why


def test_folders_that_are_no_runs_are_not_taken_for_one(tmp_path):
    stranger = tmp_path / "s" / "my-notes"
    stranger.mkdir(parents=True)
    (stranger / ENV).write_text("{}")
    (tmp_path / "s" / "20990101-000000-abcdef").mkdir()  # began and died at once
    assert run_folders(tmp_path, "s") == []


def test_a_file_in_place_of_the_results_folder_is_a_clear_error(tmp_path):
    blocker = tmp_path / "results"
    blocker.write_text("I am a file")
    with pytest.raises(UserError, match=r"cannot use .*results.* for results"), locked(blocker / "s"):
        pass


def test_a_second_run_is_refused_and_told_who_is_there(tmp_path):
    with (
        locked(tmp_path / "s"),
        pytest.raises(UserError, match=f"in use by process {os.getpid()}") as caught,
        locked(tmp_path / "s"),
    ):
        pass
    assert "--wait" in caught.value.hint
    with locked(tmp_path / "s"):  # free again
        pass


def test_a_second_run_waits_on_request(tmp_path):
    order, held, told = [], threading.Event(), threading.Event()

    def second():
        held.wait()
        with locked(tmp_path / "s", wait=True, on_wait=lambda who: told.set()):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with locked(tmp_path / "s"):
        held.set()
        assert told.wait(10)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_records_hold_no_nan(tmp_path):
    store = Store(tmp_path)
    store.append(make_record("a", columns={"x": float("nan")}, status="nan", reason="nll is nan"))
    text = (tmp_path / RECORDS).read_text()
    assert "NaN" not in text
    assert Store(tmp_path).damaged == 0


def test_a_number_that_no_float_holds_is_null_with_a_reason():
    for value in (10**320, -(10**5000)):
        found = make_record(metrics={"total": {"value": value, "unit": "units"}}).metrics["total"]
        assert found.value is None
        assert found.reason == "measured more than a float holds"


def test_parameters_that_are_no_json_make_a_damaged_line(tmp_path):
    path = tmp_path / RECORDS
    line = make_record().model_dump_json().replace('"length":8}', '"length":NaN}', 1)
    path.write_text(line + "\n")
    assert read_records(path) == ([], [line.encode()])


def test_a_folder_of_the_last_year_is_none_of_ours(tmp_path):
    (tmp_path / "s" / "99991231-235959-aaaaaa").mkdir(parents=True)
    assert choose_run(tmp_path, "s", FINGERPRINT, {}, "v1").folder.name < "9999"


def test_names_sort_as_what_they_name_began_within_a_second_too(tmp_path):
    names = [tmp_path / name_after(None)]
    for _ in range(5):
        names.append(tmp_path / name_after(names[-1]))
    assert names == sorted(names)
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{6}", name_after(tmp_path / "notes.txt"))
