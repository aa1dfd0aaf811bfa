"""An artifact arrives whole or not at all."""

import hashlib

import pytest

from bench.errors import UserError
from bench.run.cluster import files
from bench.run.cluster.files import ChangedError, receive

DATA = bytes(range(256)) * 10


def artifact(data=DATA, path="artifacts/p/x.bin"):
    return {"path": path, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def reader(data):
    return lambda path, start, size: data[start : start + size]


def left(folder):
    return [path.name for path in folder.rglob("*") if path.is_file()]


def test_it_arrives_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CHUNK", 1000)
    receive(tmp_path, artifact(), reader(DATA))
    assert (tmp_path / "artifacts/p/x.bin").read_bytes() == DATA
    assert left(tmp_path) == ["x.bin"]


def test_a_file_that_has_grown_since_is_what_was_announced(tmp_path):
    receive(tmp_path, artifact(), reader(DATA + b"more"))
    assert (tmp_path / "artifacts/p/x.bin").read_bytes() == DATA


@pytest.mark.parametrize("sent", [DATA[:-1], DATA[:-1] + b"?", b""])
def test_what_is_not_as_announced_is_not_there(tmp_path, sent):
    with pytest.raises(ChangedError, match="changed on its way"):
        receive(tmp_path, artifact(), reader(sent))
    assert left(tmp_path) == []


def test_a_node_that_goes_away_leaves_no_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CHUNK", 1000)

    def read(path, start, size):
        if start:
            raise ConnectionError("gone")
        return DATA[:size]

    with pytest.raises((ConnectionError, UserError)):
        receive(tmp_path, artifact(), read)
    assert left(tmp_path) == []


def test_one_that_is_here_already_does_not_travel_again(tmp_path):
    receive(tmp_path, artifact(), reader(DATA))
    receive(tmp_path, artifact(), reader(b""))
    assert (tmp_path / "artifacts/p/x.bin").read_bytes() == DATA


@pytest.mark.parametrize("path", ["artifacts/../../x", "records.jsonl", "/tmp/x"])
def test_nothing_is_written_outside_the_folder_of_artifacts(tmp_path, path):
    with pytest.raises(ChangedError, match="does not lie"):
        receive(tmp_path, artifact(path=path), reader(DATA))
