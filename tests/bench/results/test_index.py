"""The index of a records.jsonl: it agrees with the file whatever happens to either."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import UserError
from bench.results import build, index, line
from bench.results.digest import Integrity, digest, with_digest
from bench.results.index import open_index
from bench.results.outline import DAMAGED_LINE, Outline
from bench.results.record import Record
from bench.results.segment import INDEX, VERSION
from bench.results.store import DAMAGED, RECORDS, Store, read
from bench.results.stored import StoredRecord, stored
from helpers.large import large_lines, large_run
from helpers.passes import make_record

SMALL = 3000  # bytes of a block in these tests: about four records of the toy


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(index, "BLOCK", SMALL)


@pytest.fixture
def parses(monkeypatch):
    """How many lines have been parsed and held against their digest."""
    count, real = [0], line.parse_line

    def counted(path, text):
        count[0] += 1
        return real(path, text)

    monkeypatch.setattr(build, "parse_line", counted)
    return count


def toy_line(number, run="r"):
    record = make_record(f"c{number % 7}", label=f"n {number}", seed=number, run=run)
    return with_digest(record).model_dump_json().encode() + b"\n"


def plainly(path):
    """What `read`, which knows no index, finds: seal, offset and cell of every line."""
    data, found, offset = path.read_bytes(), [], 0
    plain = read(path)
    edited = {int(one.where.rpartition(":")[2]) for one in plain.edited}
    records = iter(plain.records)
    for number, text in enumerate(data.split(b"\n"), start=1):
        if text.strip() in plain.damaged or text in plain.damaged:
            found.append((offset, number - 1, DAMAGED_LINE, None))
        elif text.strip():
            record = next(records)
            seal = "broken" if number in edited else "whole" if record.digest else "none"
            found.append((offset, number - 1, seal, record))
        offset += len(text) + 1
    return found


def indexed(path):
    one = open_index(path, Outline._fields)
    rows = zip(one.columns["offset"], one.columns["line"], one.columns["seal"], strict=True)
    return [
        (offset, number, seal, None if seal == DAMAGED_LINE else one.record(row))
        for row, (offset, number, seal) in enumerate(rows)
    ]


def files(folder):
    return sorted(path.name for path in (folder / INDEX).iterdir()) if (folder / INDEX).exists() else []


# What may happen to the file, or to the index, between two openings.
numbers = st.integers(0, 10**6)
EVENTS = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 12)),
    st.tuples(st.just("truncate"), numbers),
    st.tuples(st.just("flip"), numbers),
    st.tuples(st.just("replace"), st.integers(0, 20)),
    st.tuples(st.just("insert"), numbers),
    st.tuples(st.just("write"), st.integers(1, 12)),
    st.tuples(st.just("half a line"), numbers),
    st.tuples(st.just("open"), st.just(0)),
    st.tuples(st.just("index: flip"), numbers),
    st.tuples(st.just("index: cut"), numbers),
    st.tuples(st.just("index: lose"), numbers),
    st.tuples(st.just("index: rename"), numbers),
)


def happen(folder, event, number, count):
    path = folder / RECORDS
    data = bytearray(path.read_bytes())
    own = [folder / INDEX / name for name in files(folder)]
    match event:
        case "append":
            data += b"".join(toy_line(count + i) for i in range(number))
        case "truncate":
            del data[number % (len(data) + 1) :]
        case "flip" if data:
            data[number % len(data)] ^= 1 << number % 8
        case "replace":
            data = bytearray(b"".join(toy_line(i, "other") for i in range(number)))
        case "insert":
            data[number % (len(data) + 1) : 0] = b"\n \n"
        case "half a line":
            data += toy_line(number)[: number % 300]
        case "open":
            open_index(path)
        case "write":
            store = Store(folder)
            for i in range(number):
                store.append(make_record(f"c{i}", label=f"w {count + i}"))
            store.close()
            return
        case "index: flip" if own:
            text = bytearray(own[number % len(own)].read_bytes()) or bytearray(1)  # one may be cut to nothing
            text[number % len(text)] ^= 1 << number % 8
            own[number % len(own)].write_bytes(text)
        case "index: cut" if own:
            os.truncate(own[number % len(own)], number % max(own[number % len(own)].stat().st_size, 1))
        case "index: lose" if own:
            own[number % len(own)].unlink()
        case "index: rename" if own:
            one = own[number % len(own)]
            one.rename(one.with_name(f"{number % (len(data) + 1):015d}{one.name[15:]}"))
    path.write_bytes(data)


@given(st.lists(EVENTS, min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_index_and_file_agree_whatever_happens(tmp_path_factory, events):
    folder = tmp_path_factory.mktemp("run")
    (folder / RECORDS).write_bytes(b"".join(toy_line(i) for i in range(20)))
    before, index.BLOCK = index.BLOCK, SMALL
    try:
        open_index(folder / RECORDS)
        for count, (event, number) in enumerate(events):
            if not survives(folder, event, number, 100 * count):
                with pytest.raises(UserError, match="newer version"):
                    indexed(folder / RECORDS)
                return
            plain = plainly(folder / RECORDS)
            assert indexed(folder / RECORDS) == plain  # some of it made anew
            assert indexed(folder / RECORDS) == plain  # all of it from the index
    finally:
        index.BLOCK = before
        shutil.rmtree(folder)


def survives(folder, *event):
    """Let something happen; False if a flipped bit has made a record one of a newer schema."""
    try:
        happen(folder, *event)
        read(folder / RECORDS)
    except UserError:
        return False
    return True


def test_a_line_with_a_number_that_is_none_is_read_as_a_record(tmp_path):
    """Whoever has written it has sealed it, too."""
    data = json.loads(make_record().model_dump_json())
    data["metrics"]["total"]["value"] = float("nan")
    (tmp_path / RECORDS).write_text(json.dumps(data | {"digest": digest(data)}) + "\n")
    found = open_index(tmp_path / RECORDS)
    assert found.columns["seal"][0] == Integrity.WHOLE
    assert found.plain(0)["metrics"]["total"]["value"] is None
    assert found.plain(0) == found.record(0).model_dump(mode="json")


def test_what_the_index_knows_is_not_parsed_again(tmp_path, small_blocks, parses):
    path = tmp_path / RECORDS
    path.write_bytes(b"".join(toy_line(i) for i in range(40)))
    first = open_index(path)
    assert (len(first), parses[0]) == (40, 40)
    again = open_index(path)
    assert len(again) == 40
    assert parses[0] - 40 == len(again.tail.rows) < 10
    assert again.parsed == 0
    assert again.record(3) == Record.model_validate_json(toy_line(3))
    assert again.parsed == 1


def test_one_flipped_bit_costs_one_block(tmp_path, small_blocks, parses):
    path = tmp_path / RECORDS
    path.write_bytes(b"".join(toy_line(i) for i in range(40)))
    tail = len(open_index(path).tail.rows)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    stamp = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # neither size nor time tell
    parses[0] = 0
    assert indexed(path) == plainly(path)
    assert parses[0] - tail <= 10


def test_who_writes_the_records_never_parses_them_to_index_them(tmp_path, small_blocks, parses):
    store = Store(tmp_path)
    for i in range(40):
        store.append(make_record(f"c{i}"))
    store.close()
    assert len(files(tmp_path)) >= 5
    parses[0] = 0
    store = Store(tmp_path)
    assert list(store.records) == [f"c{i}" for i in range(40)]
    assert all(record.status == "ok" for record in store.records.values())
    assert parses[0] < 10
    store.close()


def test_a_writer_goes_on_in_the_block_that_another_began(tmp_path, small_blocks, parses):
    for i in range(40):  # one record a process, as it were
        store = Store(tmp_path)
        store.append(make_record(f"c{i}"))
        store.close()
    assert len(files(tmp_path)) >= 5
    parses[0] = 0
    assert len(open_index(tmp_path / RECORDS)) == 40
    assert parses[0] < 10


def test_setting_a_line_aside_keeps_the_segments_of_the_others(tmp_path, small_blocks, parses):
    lines = [toy_line(i) for i in range(40)]
    (tmp_path / RECORDS).write_bytes(b"".join(lines))
    open_index(tmp_path / RECORDS)
    lines[20] = lines[20].replace(b'"value":28', b'"value":29')
    lines[21] = b"x" * (len(lines[21]) - 1) + b"\n"  # as long: what lies behind stays where it is
    (tmp_path / RECORDS).write_bytes(b"".join(lines))
    parses[0] = 0
    store = Store(tmp_path)
    assert ([one.line for one in store.edited], store.damaged) == ([21], 1)
    assert (tmp_path / RECORDS).read_bytes() == b"".join(lines[:20] + lines[22:])
    assert (tmp_path / DAMAGED).read_bytes() == lines[21] + lines[20]
    assert parses[0] < 40
    parses[0] = 0
    assert indexed(tmp_path / RECORDS) == plainly(tmp_path / RECORDS)
    assert parses[0] < 10
    store.close()


def test_a_folder_that_cannot_be_written_to_is_read_all_the_same(tmp_path, small_blocks, monkeypatch):
    path = tmp_path / RECORDS
    path.write_bytes(b"".join(toy_line(i) for i in range(40)))

    def refuse(*arguments, **options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert indexed(path) == plainly(path)
    assert files(tmp_path) == []


def test_helpers_give_the_same_segments(tmp_path, small_blocks, monkeypatch):
    path = tmp_path / RECORDS
    path.write_bytes(b"".join(toy_line(i) for i in range(40)))
    open_index(path)
    alone = files(tmp_path)
    shutil.rmtree(tmp_path / INDEX)
    monkeypatch.setattr(build, "HELPED", 0)
    assert indexed(path) == plainly(path)
    assert files(tmp_path) == alone


def test_helpers_that_die_leave_the_work_to_this_process(tmp_path, small_blocks, monkeypatch):
    path = tmp_path / RECORDS
    path.write_bytes(b"".join(toy_line(i) for i in range(40)))
    monkeypatch.setattr(build, "HELPED", 0)
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    assert indexed(path) == plainly(path)


def test_a_record_of_a_newer_schema_is_refused_by_helpers_too(tmp_path, small_blocks, monkeypatch):
    path = tmp_path / RECORDS
    newer = json.loads(toy_line(0)) | {"schema_version": 99}
    path.write_bytes(b"".join([*map(toy_line, range(20)), json.dumps(newer).encode() + b"\n"] * 2))
    monkeypatch.setattr(build, "HELPED", 0)
    with pytest.raises(UserError, match="newer version"):
        open_index(path)


def test_a_file_that_changes_under_the_reader_is_told(tmp_path, small_blocks):
    path = tmp_path / RECORDS
    path.write_bytes(b"".join(toy_line(i) for i in range(40)))
    opened = open_index(path)
    path.write_bytes(b"".join(toy_line(i + 1) for i in range(39)))
    with pytest.raises(UserError, match="was changed while it was read"):
        opened.record(2)


def test_a_writer_killed_at_any_moment_leaves_an_index_that_agrees(tmp_path):
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from bench.results import index
from bench.results.store import Store
from helpers.passes import make_record
index.BLOCK = {SMALL}
store = Store(Path({str(tmp_path)!r}))
for i in range(10**6):
    store.append(make_record(f"c{{i}}"))
    print(i, flush=True)
"""
    for round_ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        for _ in range(9 + 7 * round_):
            writer.stdout.readline()
        writer.kill()
        writer.communicate()
        assert indexed(tmp_path / RECORDS) == plainly(tmp_path / RECORDS)


ODD = [
    {"params": {"x": float("nan")}},
    {"params": {"a": {"b": [1, 2.5, None, "ü\x00"]}}, "seed": 10**30, "repeat": -(10**25)},
    {"label": "", "reason": "", "columns": {}},
    {"status": "oom", "reason": "a\nb", "metrics": {}},
    {"artifacts": [{"path": "artifacts/p/x.npz", "sha256": "0" * 64, "bytes": 3}]},
]
FIELDS = (*Record.model_fields, "question", "parameter_names", "column_names", "units")


@pytest.mark.parametrize("changes", ODD)
def test_a_stored_record_answers_as_the_record(tmp_path, small_blocks, changes):
    data = make_record("odd", **changes)
    (tmp_path / RECORDS).write_bytes(
        b"".join([with_digest(data).model_dump_json().encode() + b"\n", *map(toy_line, range(30))])
    )
    open_index(tmp_path / RECORDS)
    for names in ((), Outline._fields):
        opened = open_index(tmp_path / RECORDS, names)
        one = stored(opened, [0])[0]
        assert isinstance(one, StoredRecord)
        for name in FIELDS:
            try:
                wanted = repr(getattr(one.whole, name))
            except ValueError:  # of parameters that are no JSON
                with pytest.raises(ValueError, match="JSON"):
                    getattr(one, name)
            else:
                assert repr(getattr(one, name)) == wanted


def test_the_version_of_the_index_changes_with_what_a_record_is():
    """Whoever changes the record, or how a line is judged, gives the index a new version."""
    import hashlib

    layout = json.dumps(Record.model_json_schema(), sort_keys=True)
    known = hashlib.sha256(layout.encode()).hexdigest()[:12]
    assert (VERSION, known) == (1, "01fe221a8fb8"), (
        "raise VERSION in bench/results/segment.py, and note both here"
    )


def test_twenty_thousand_records_are_parsed_once(tmp_path, parses, monkeypatch):
    """The small form of benchmarks/test_large.py: what is counted here takes the time there."""
    monkeypatch.setattr(build, "HELPED", 1 << 40)  # parses of helpers would not be counted
    folder = large_run(tmp_path / "20260101-000000-aaaaaa", 20_000)
    store = Store(folder)
    assert (len(store.records), parses[0]) == (20_000, 20_000)
    store.close()
    parses[0] = 0
    store = Store(folder)
    assert sum(record.status == "ok" for record in store.records.values()) == 20_000
    assert parses[0] < 4_000  # the tail
    assert store.records.of_pass(f"{0:016x}")[0].metrics["nll"].value == 3.0
    store.close()
    opened = open_index(folder / RECORDS)
    assert opened.line(19_999) + b"\n" == next(large_lines(folder.name, range(19_999, 20_000)))
