"""Only what the cell is of is measured: on a node, and later on than it was planned."""

import dataclasses

import pytest
from pydantic import BaseModel, field_validator

from bench.run.meaning import OtherDataError, check_meaning, check_planned, meaning
from bench.workload import Cell, Skip
from helpers.passes import make_pass
from helpers.toy import Toy

CELL = Cell("c", {"length": 2}, "ok 2")


class Reading(Toy):
    """Its data is what it is told to be."""

    def __init__(self, found):
        self.found = found

    def identity(self, params):
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


@pytest.mark.parametrize("found", [{"text.sha256": "a"}, {}, Skip("no weights")])
def test_the_same_is_measured(found):
    there = meaning(Reading(found), CELL)
    check_meaning(Reading(found), CELL, there)


def test_what_is_missing_here_alone_is_left_to_the_pass():
    check_meaning(Reading(Skip("no weights")), CELL, {"model.sha256": "a"})


@pytest.mark.parametrize(
    ("here", "there", "said"),
    [
        (
            {"model": "m", "text.sha256": "a"},
            {"model": "m", "text.sha256": "b"},
            "text.sha256 is a, where the run was started it is b; bring the same files to every node",
        ),
        ({"text": "a"}, {}, "text is a, where the run was started it is None; bring the same files"),
        ({"text": "a"}, None, "it has what is missing where the run was started"),
        (FileNotFoundError(2, "No such file", "t.txt"), {"text": "a"}, "[Errno 2] No such file: 't.txt'"),
    ],
)
def test_other_data_is_told(here, there, said):
    with pytest.raises(OtherDataError) as caught:
        check_meaning(Reading(here), CELL, there)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("found", [{"text.sha256": "a"}, Skip("no weights")])
def test_what_is_as_it_was_planned_is_measured(found):
    check_planned(Reading(found), dataclasses.replace(make_pass(), identity={"text.sha256": "a"}))
    check_planned(Reading({"text.sha256": "b"}), make_pass())  # not known


@pytest.mark.parametrize(
    ("here", "said"),
    [
        ({"model": "m", "text.sha256": "b"}, "text.sha256 was a and is b; run the same command again"),
        ({"model": "m"}, "text.sha256 was a and is None; run"),
        (FileNotFoundError(2, "No such file", "t.txt"), "[Errno 2] No such file: 't.txt'; run"),
    ],
)
def test_what_has_changed_since_it_was_planned_is_told(here, said):
    work = dataclasses.replace(make_pass(), identity={"model": "m", "text.sha256": "a"})
    with pytest.raises(OtherDataError) as caught:
        check_planned(Reading(here), work)
    assert str(caught.value).startswith(f"the data has changed since the run was planned: {said}")


def test_a_file_that_is_not_here_is_told_with_the_folder(tmp_path, monkeypatch):
    class Params(BaseModel):
        length: int

        @field_validator("length")
        @classmethod
        def there(cls, value):
            raise ValueError("file 't.txt' does not exist")

    workload = Reading({})
    workload.Params = Params
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OtherDataError, match=r"file 't.txt' does not exist; looked for below /"):
        check_meaning(workload, CELL, {})
