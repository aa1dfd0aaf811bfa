from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import yaml

from bench.errors import CombinedError, UserError, did_you_mean, raise_any
from bench.suite.model import Suite, load_suite, parse_suite
from bench.suite.plan import make_plan
from bench.suite.schema import suite_schema
from helpers.streamlike import Streamlike, raw_suite

HEAD = "suite: toy\nworkload: streamlike\n"
VALID = HEAD + "defaults: {model: small}\ngrid:\n  policy: [dense, window 8]\n  length: [16, 64]\n"


def refusal(text: str | bytes) -> str:
    """What a user is told about this suite, by the suite itself or when it is planned."""
    data = text.encode() if isinstance(text, str) else text
    with pytest.raises(UserError) as caught:
        make_plan(parse_suite(data, "s.yaml"), Streamlike())
    return str(caught.value)


def places(text: str | bytes) -> list[str]:
    """line:column of every error, in order."""
    lines = refusal(text).splitlines()
    return [":".join(line.split(":")[1:3]) for line in lines if line.startswith("s.yaml:")]


def test_a_valid_suite_is_read_with_all_its_values():
    text = VALID + (
        'zip: [[policy, length]]\ninclude: [{policy: sink 4+8, length: [1, 2]}]\nexclude: [{length: ">32"}]\n'
        "seed: 3\nrepeat: 2\ntimeout: 1.5\nmemory_limit: 1.5 GiB\n"
        "compare: {axis: policy, reference: dense}\ntolerances: {nll: 1e-3}\n"
    )
    suite = parse_suite(text.encode(), "s.yaml")
    assert suite.grid == {"policy": ["dense", "window 8"], "length": [16, 64]}
    assert suite.zip == [["policy", "length"]]
    assert (suite.seed, suite.repeat, suite.timeout) == ([3], 2, 1.5)
    assert suite.memory_limit == 3 * 2**29
    assert suite.tolerances == {"nll": 0.001}
    assert suite.compare is not None
    assert suite.compare.reference == "dense"
    assert suite.where(("grid", "length", 1)) == "s.yaml:6:16"
    assert suite.where(("grid", "length"), key=True) == "s.yaml:6:3"


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("16GiB", 2**34), ("16 GB", 16 * 10**9), ("512mib", 2**29)],
)
def test_memory_limits_are_sizes(text: str, size: int):
    assert parse_suite((VALID + f"memory_limit: {text}\n").encode(), "s").memory_limit == size


def test_keys_left_empty_count_as_not_given():
    suite = parse_suite(
        (HEAD + "defaults:\ngrid:\nzip:\ninclude:\nexclude:\ntolerances:\n").encode(), "s.yaml"
    )
    assert suite.model_dump() == Suite(suite="toy", workload="streamlike").model_dump()


def test_a_grid_scalar_is_one_value():
    assert Suite.model_validate(raw_suite(grid={"policy": "dense"})).grid == {"policy": ["dense"]}


def test_yaml_words_are_not_turned_into_booleans_dates_or_sexagesimals():
    text = (
        HEAD + "defaults: {a: no, b: on, c: 1:30, d: 2024-01-01, e: 1e-3, f: 0x10, g: 1_000, h: true, i: ~}\n"
    )
    assert parse_suite(text.encode(), "s.yaml").defaults == {
        "a": "no",
        "b": "on",
        "c": "1:30",
        "d": "2024-01-01",
        "e": 0.001,
        "f": 16,
        "g": 1000,
        "h": True,
        "i": None,
    }


def test_aliases_repeat_values():
    suite = parse_suite((HEAD + "grid: {length: &l [1, 2]}\ninclude: [{length: *l}]\n").encode(), "s.yaml")
    assert suite.include == [{"length": [1, 2]}]


# Bad files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ("", "1:1", "the file is empty"),
        ("# nothing but a comment\n", "2:1", "the file is empty"),
        ("- a\n- b\n", "1:1", "a suite is a mapping of keys, not a list"),
        ("hello", "1:1", "not 'hello'"),
        ("a: b: c", "1:5", "must be quoted"),
        ("suite:\n\tname: 1\n", "2:1", "a tab cannot indent YAML"),
        ("a: [1,\n  2", "2:4", "expected ',' or ']'"),
        ("a: 'x", "1:6", "unexpected end of stream"),
        (b"suite: caf\xe9\n", "1:11", "not UTF-8 text: byte 0xe9"),
        ("suite: a\n".encode("utf-16"), "1:1", "not UTF-8"),
        ("ok: 1\na: \x00", "2:4", "control character U+0000"),
        ("a: 1\n---\nb: 2\n", "2:1", "a second document"),
        ("a: 1\nb: 2\na: 3\n", "3:1", "the key 'a' is given twice (first in line 1)"),
        ("a: {x: 1, x: 2}\n", "1:11", "the key 'x' is given twice"),
        ("1: x\n'1': y\n", "2:1", "given twice"),
        ("? [1]\n: 2\n", "1:3", "a key must be a word"),
        ("~: 2\n", "1:1", "a key must be a word"),
        ("<<: {a: 1}\n", "1:1", "merge key"),
        (
            "a: !!python/object/apply:os.system ['exit 1']\n",
            "1:4",
            "!!python/object/apply:os.system is not allowed",
        ),
        ("a: !!binary aGk=\n", "1:4", "the tag !!binary is not allowed"),
        ("a: !include other.yaml\n", "1:4", "the tag !include is not allowed"),
        ("a: *nowhere\n", "1:4", "*nowhere refers to nothing above it"),
        ("a: &a [*a]\n", "1:8", "stands inside of what it refers to"),
        ("[" * 9000, "1:33", "nested deeper than 32 levels"),
        ("a: [.inf]\n", "1:5", ".inf is not a finite number"),
        ("a: 1e999\n", "1:4", "1e999 is not a finite number"),
        ("a: " + "9" * 5000, "1:4", "is not a finite number"),
    ],
)
def test_unreadable_yaml_is_refused_with_its_place(text: str | bytes, where: str, words: str):
    message = refusal(text)
    assert message.startswith(f"s.yaml:{where}: ")
    assert words in message


def test_an_unquoted_comparison_is_explained():
    for condition in (">32768", "!=3", "*glob", "!tag"):
        assert 'must be quoted, e.g. ">32768"' in refusal(VALID + f"exclude:\n  - length: {condition}\n")


def test_a_yaml_bomb_ends_early():
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        bomb += f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    started = time.process_time()
    assert "more than 50,000 values" in refusal(bomb)
    assert time.process_time() - started < 5  # expanded it has 387 million values


def test_a_file_too_large_is_not_parsed():
    assert "larger than 256 KiB" in refusal("x" * (256 * 1024 + 1))


def test_a_byte_order_mark_is_no_part_of_the_first_key():
    assert parse_suite(b"\xef\xbb\xbf" + VALID.encode(), "s.yaml").suite == "toy"


def test_windows_line_ends_keep_the_places():
    assert places(VALID.replace("dense", "dnse").replace("\n", "\r\n")) == ["5:12"]


def test_a_python_tag_runs_nothing(tmp_path: Path):
    canary = tmp_path / "canary"
    refusal(f"suite: !!python/object/apply:os.mkdir ['{canary}']\n")
    assert not canary.exists()


# Bad keys -----------------------------------------------------------------------------------------


def test_everything_wrong_with_the_keys_is_told_at_once_in_the_order_of_the_file():
    text = HEAD + (
        "gird: {}\ntimeout: -1\nrepeat: 0\nseed: [1, x, -4]\nmemory_limit: much\nzip: [model]\n"
        'exclude: [{length: ">abc"}]\ntolerances: {nll: -1}\n'
    )
    assert places(text) == ["3:1", "4:10", "5:9", "6:11", "6:14", "7:15", "8:7", "9:20", "10:19"]
    message = refusal(text)
    assert "unknown key 'gird'\n  hint: did you mean 'grid'? valid: compare, defaults" in message
    assert "timeout: should be greater than 0, got -1" in message
    assert "seed: should be a valid integer, got 'x'" in message
    assert "'much' is not a size; write bytes or e.g. 16GiB" in message
    assert "zip: should be a list, got 'model'" in message
    assert "exclude.length: '>' compares numbers, and 'abc' is none" in message


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("grid: {policy: []}", "grid.policy: an empty list"),
        ("seed: []", "seed: an empty list"),
        ("seed: true", "seed: should be a number, got true"),
        ("seed: 99999999999", "less than or equal to 4294967295"),
        ("repeat: 1.5", "repeat: should be a valid integer"),
        ("repeat: true", "repeat: should be a number"),
        ("repeat: 5000", "less than or equal to 1000"),
        ("defaults: 3", "defaults: should be a mapping, got 3"),
        ("include: {a: 1}", "include: should be a list"),
        ("memory_limit: true", "should be a number, got true"),
        ("memory_limit: 0", "greater than 0"),
        ("memory_limit: -3GiB", "is not a size"),
        ("memory_limit: 2K", "is not a size"),
        ("compare: {axis: policy}", "'compare.reference' is missing"),
        ("compare: policy", "compare: should be a mapping, got 'policy'"),
        ("compare: {axis: a, refrence: b}", "unknown key 'refrence'\n  hint: did you mean 'reference'?"),
        ("resources: {cpu: 1}", "unknown key 'cpu'\n  hint: did you mean 'cpus'?"),
        ("compare: {axis: policy, reference: [a]}", "compare.reference: should be a single value"),
        ("exclude: [{length: []}]", "an empty list matches nothing"),
        ("exclude: [{length: {a: 1}}]", "not a mapping"),
        ('exclude: [{length: ">"}]', "nothing to compare with after '>'"),
        ('exclude: [{length: ""}]', "an empty condition"),
        ('exclude: [{length: ["!=3", 4]}]', "cannot be one of several alternatives"),
    ],
)
def test_a_bad_key_is_refused(line: str, words: str):
    message = refusal(HEAD + line + "\n")
    assert message.startswith("s.yaml:3:")
    assert words in message


@pytest.mark.parametrize("name", ["Sinks", "../up", "", "a b", "-x", "x" * 65, "123", "~"])
def test_a_suite_name_must_be_good_as_a_folder_name(name: str):
    assert refusal(f"suite: {name}\nworkload: streamlike\n").startswith("s.yaml:1:")


def test_missing_keys_are_named():
    assert "key 'suite' is missing" in refusal("description: x\n")
    assert "key 'workload' is missing" in refusal("description: x\n")


def test_more_than_ten_errors_are_counted():
    with pytest.raises(CombinedError) as caught:
        parse_suite("\n".join(f"x{i}: 1" for i in range(30)).encode(), "s")
    assert len(caught.value.errors) == 32  # with the two required keys
    assert str(caught.value).endswith("… and 22 more")


# Bad paths ----------------------------------------------------------------------------------------


def test_a_missing_suite_suggests_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "sinks.yaml").write_text(VALID)
    (tmp_path / "suites" / "smoke.yaml").write_text(VALID)
    monkeypatch.chdir(tmp_path)
    for wrong in ("suites/sink.yaml", "sinks", "snks.yaml"):
        with pytest.raises(UserError, match=r"there is no suite .*\n.*did you mean suites/sinks\.yaml\?"):
            load_suite(wrong)
    with pytest.raises(UserError, match=r"found: suites/sinks\.yaml, suites/smoke\.yaml"):
        load_suite("other/entirely.yaml")


def test_a_folder_lists_its_suites(tmp_path: Path):
    (tmp_path / "a.yaml").write_text(VALID)
    with pytest.raises(UserError, match=r"is a folder, not a suite\n  hint: suites in it: a\.yaml"):
        load_suite(tmp_path)


def test_paths_that_cannot_be_read(tmp_path: Path):
    fifo = tmp_path / "pipe.yaml"
    os.mkfifo(fifo)
    for path in (fifo, Path("/dev/zero")):
        with pytest.raises(UserError, match="not a regular file"):
            load_suite(path)
    with pytest.raises(UserError, match="File name too long"):
        load_suite("x" * 5000)


def test_the_place_names_the_file_as_it_was_given(tmp_path: Path):
    path = tmp_path / "s.yaml"
    path.write_text(HEAD + "grd: 1\n")
    with pytest.raises(UserError) as caught:
        load_suite(path)
    assert caught.value.where == f"{path}:3:1"


# Errors themselves --------------------------------------------------------------------------------


def test_errors_render_all_their_parts():
    assert str(UserError("wrong", "try this", "f:1:2")) == "f:1:2: wrong\n  hint: try this"
    assert str(UserError("wrong")) == "wrong"
    assert UserError("wrong").exit_code == 2


def test_raise_any_tells_equal_errors_once_and_sorts_by_place():
    raise_any([])
    with pytest.raises(UserError) as one:
        raise_any([UserError("a"), UserError("a")])
    assert not isinstance(one.value, CombinedError)
    with pytest.raises(CombinedError) as several:
        raise_any([UserError("late", where="f:10:1"), UserError("early", where="f:9:3"), UserError("top")])
    assert [error.message for error in several.value.errors] == ["top", "early", "late"]


def test_did_you_mean():
    assert did_you_mean("Windw", ["window", "dense"]) == "did you mean 'window'? valid: dense, window"
    assert did_you_mean("xyz", ["window", "dense"]) == "valid: dense, window"
    assert did_you_mean("xyz", []) == "there are none"


# JSON Schema --------------------------------------------------------------------------------------


class Other(Streamlike):
    name = "other"


SCHEMA = suite_schema([Streamlike(), Other()])


def test_the_schema_is_plain_json_and_valid():
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA
    assert suite_schema([Other(), Streamlike()]) == SCHEMA  # whatever the order


@pytest.mark.parametrize(
    "extra",
    [
        "",
        "seed: 3\nmemory_limit: 16GiB\n",
        "seed: [1, 2]\nmemory_limit: 1024\ntimeout: 3\n",
        "zip: [[policy, length]]\ntolerances: {nll: 0.1}\n",
        'exclude:\n  - {length: ">32", sinks: [1, 2]}\ninclude:\n  - {policy: [dense], length: 8}\n',
        "include:\nzip:\ncompare: {axis: policy, reference: dense}\n",
    ],
)
def test_what_the_schema_accepts_can_be_planned(extra: str):
    jsonschema.validate(yaml.safe_load(VALID + extra), SCHEMA)
    parse_suite((VALID + extra).encode(), "s.yaml")


@pytest.mark.parametrize(
    "change",
    [
        {"gird": {}},
        {"workload": "strem"},
        {"defaults": {"modle": "x"}},
        {"grid": {"lenght": [1]}},
        {"grid": {"length": []}},
        {"grid": {"length": [0]}},
        {"grid": {"dtype": ["flaot32"]}},
        {"include": [{"length": -1}]},
        {"zip": [["modle", "length"]]},
        {"tolerances": {"nlll": 1}},
        {"seed": -1},
        {"repeat": 0},
    ],
)
def test_the_schema_refuses_what_the_suite_refuses(change: dict):
    bad = raw_suite(**change)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(bad, SCHEMA)


def test_nothing_heavy_is_imported():
    code = "import sys, bench.suite.plan, bench.suite.schema, bench.registry; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "pandas", "numpy", "scipy", "pyarrow"} & set(found.stdout.split())
