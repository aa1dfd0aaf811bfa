"""What a pass keeps travels whole or not at all, both ways."""

import os
import shutil
import threading

import pytest

from bench.run.cluster import scratch
from bench.run.cluster.files import ChangedError
from bench.run.cluster.scratch import Copy, Kept, Snapshot, Watch, listing, write_piece
from bench.run.context import SCRATCH


@pytest.fixture
def node(tmp_path):
    return tmp_path / "node"


@pytest.fixture
def driver(tmp_path):
    return tmp_path / "driver"


def keep(root, **files):
    folder = root / SCRATCH / "p"
    shutil.rmtree(folder, ignore_errors=True)
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def read_of(root):
    def read(path, start, size):
        return (root / path).read_bytes()[start : start + size]

    return read


def texts(root):
    folder = root / SCRATCH / "p"
    return {path: (folder / path).read_text() for path in listing(folder)}


def left(root):
    return sorted(path.name for path in (root / SCRATCH).iterdir())


def test_a_checkpoint_comes_to_the_driver_and_goes_to_the_next_node(node, driver, tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "CHUNK", 4)
    watch = Watch(node, "p")
    keep(node, step__a="12345678", step__b="", found="xyz")
    Copy(driver, "p").take(watch.look(0, now=True), read_of(node))
    assert texts(driver) == {"found": "xyz", "step/a": "12345678", "step/b": ""}
    assert left(driver) == ["p"]
    other = tmp_path / "other"
    for piece in Copy(driver, "p").pieces():
        write_piece(other, *piece)
    assert texts(other) == texts(driver)
    assert Watch(other, "p").look(0, now=True) is None  # the driver has it


def test_only_what_is_new_travels(node, driver):
    watch, copy, asked = Watch(node, "p"), Copy(driver, "p"), []

    def read(path, start, size):
        asked.append(path)
        return read_of(node)(path, start, size)

    keep(node, step__a="aaaa")
    copy.take(watch.look(0, now=True), read)
    assert watch.look(1, now=True) is None
    (node / SCRATCH / "p" / "found").write_text("xyz")
    copy.take(watch.look(1, now=True), read)
    assert asked == [".kept/1/step/a", ".kept/2/found"]
    assert texts(driver) == {"found": "xyz", "step/a": "aaaa"}


def test_what_is_removed_on_the_node_is_removed_here(node, driver):
    watch, copy = Watch(node, "p"), Copy(driver, "p")
    keep(node, old="1")
    copy.take(watch.look(0, now=True), read_of(node))
    keep(node)
    copy.take(watch.look(1, now=True), read_of(node))
    assert texts(driver) == {}


def test_a_snapshot_is_told_until_it_has_been_dealt_with_and_stays_as_it_was(node, driver):
    watch = Watch(node, "p")
    keep(node, a="first")
    first = watch.look(0, now=True)
    keep(node, a="second", b="new")  # other files of the same names
    assert watch.look(0, now=True) == first
    Copy(driver, "p").take(first, read_of(node))
    assert texts(driver) == {"a": "first"}
    assert [kept.path for kept in watch.look(1, now=True).files] == ["a", "b"]


def test_a_folder_is_left_alone_until_it_is_quiet(node, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(scratch.time, "monotonic", lambda: clock[0])
    watch = Watch(node, "p")
    keep(node, a="1")
    assert watch.look(0) is None
    clock[0] += 0.9
    keep(node, a="1", b="2")
    assert watch.look(0) is None
    clock[0] += 0.9
    assert watch.look(0) is None
    clock[0] += 0.2
    assert [kept.path for kept in watch.look(0).files] == ["a", "b"]
    for number in range(40):  # never quiet
        clock[0] += 0.9
        keep(node, a=str(number))
        if (found := watch.look(1)) is not None:
            break
    assert found.number == 2
    assert number == 33


def test_a_folder_that_never_rests_gives_a_moment_of_it_or_nothing(node):
    """Two files are always changed together: a snapshot never has one of them alone."""
    watch, over, taken = Watch(node, "p"), threading.Event(), 0
    folder = node / SCRATCH / "p"

    def write():
        number = 0
        while not over.is_set():
            number += 1
            part, whole = folder / "part", folder / f"at-{number:09}"
            part.mkdir(parents=True)
            (part / "a").write_text(str(number))
            (part / "b").write_text(str(number))
            part.rename(whole)
            for older in folder.glob("at-*"):
                if older != whole:
                    shutil.rmtree(older)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(60):
            found = watch.look(taken, now=True)
            if found is None:
                continue
            taken = found.number
            kept = {k.path: (node / found.place / k.path).read_text() for k in found.files}
            whole = [path for path in kept if path.startswith("at-")]
            assert not whole or {os.path.dirname(p) + "/a" for p in whole} <= kept.keys()
            newest = max((os.path.dirname(p) for p in whole), default=None)
            if newest:
                assert kept[f"{newest}/a"] == kept[f"{newest}/b"] == str(int(newest[3:]))
    finally:
        over.set()
        writer.join()
    found = watch.look(taken, now=True)
    assert watch.is_known()
    assert found is None or [k.path.rpartition("/")[2] for k in found.files] in (["a", "b"], ["a", "b"] * 2)


@pytest.mark.parametrize("change", ["short", "other", "gone"])
def test_what_is_not_as_announced_changes_nothing(node, driver, change):
    watch, copy = Watch(node, "p"), Copy(driver, "p")
    keep(node, a="old", b="old")
    copy.take(watch.look(0, now=True), read_of(node))
    keep(node, a="newer", b="newer")

    def read(path, start, size):
        if path.endswith("/a"):
            return b"newer"[start:]
        if change == "gone":
            raise ConnectionError("the node has gone")
        return b"new"[start:] if change == "short" else b"NEWER"[start:]

    with pytest.raises((ChangedError, ConnectionError)):
        copy.take(watch.look(1, now=True), read)
    assert texts(driver) == {"a": "old", "b": "old"}
    assert left(driver) == ["p"]


@pytest.mark.parametrize("path", ["../../records.jsonl", "/tmp/x", "../q/a"])
def test_nothing_is_written_outside_the_folder_of_the_pass(node, driver, path):
    with pytest.raises(ChangedError, match="does not lie"):
        Copy(driver, "p").take(Snapshot(1, ".kept/1", (Kept(path, 1, "0"),)), lambda *_: b"x")
    with pytest.raises(ValueError, match="leads out"):
        write_piece(node, f"{SCRATCH}/../{path}" if path[0] != "/" else path, 0, b"x")
    assert [p for p in driver.rglob("*") if p.is_file()] == []


def test_links_are_not_followed(node, tmp_path):
    (tmp_path / "secret").write_text("s")
    keep(node, a="1")
    (node / SCRATCH / "p" / "link").symlink_to(tmp_path / "secret")
    (node / SCRATCH / "p" / "folder").symlink_to(tmp_path)
    assert list(listing(node / SCRATCH / "p")) == ["a"]


def test_a_driver_killed_between_two_renames_has_the_older_copy(driver):
    keep(driver, a="older")
    (driver / SCRATCH / "p").rename(driver / SCRATCH / "p.old")
    (driver / SCRATCH / "p.part").mkdir()
    assert [piece for *_, piece in Copy(driver, "p").pieces()] == [b"older"]
