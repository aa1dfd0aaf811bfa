"""Whatever a file or a word holds, the answer is a value or a clear sentence: no traceback, and no hang.

``FUZZ=N`` in the environment tries N examples of each kind instead of some dozens.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from bench import registry
from bench.cli import app
from bench.errors import UserError, inert, parse_json
from bench.report.frames import RunData, load
from bench.results.digest import with_digest
from bench.results.folder import choose_run, run_folders
from bench.results.record import Record
from bench.results.store import RECORDS, Store, read
from bench.suite.choice import choose
from bench.suite.model import parse_suite
from bench.suite.plan import make_plan
from bench.suite.request import find_run
from bench.suite.settings import as_setting, changes, parse_settings
from helpers.passes import make_record
from helpers.synthetic import Synthetic, sinks_run

ROOT = Path(__file__).parents[2]
SUITES = [
    path.read_bytes() for path in sorted((ROOT / "suites").glob("*.yaml")) if path.stat().st_size < 4000
]
EXAMPLES = int(os.environ.get("FUZZ", 30))
TOLD = 8000  # characters of an error, at most: some ten sentences

fuzz = settings(
    max_examples=EXAMPLES,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
    print_blob=True,
)
# Text that has meant something to some parser.
PIECES = st.sampled_from(
    [
        *"[]{}:,-?&*!|>'\"%@`#~<=\\/\t\n\r\0 .",
        *(
            "---",
            "...",
            "<<",
            "&a",
            "*a",
            "!!python/name:os",
            ".inf",
            "1e999",
            "0x",
            "0o8",
            "1_.5",
            "1__e5",
            "\ufeff",
        ),
        *(
            "\x1b[31m",
            "\u202e",
            "\u2028",
            "\x85",
            "\ud800",
            '"\\UFFFFFFFF"',
            '"\\ud800"',
            "9" * 5000,
            "[" * 500,
        ),
        *("sink 4+28", "window 1", "dense", "grid", "policy", "length", "exclude", "zip", "include", "model"),
        *(
            "path:",
            "file:",
            "hub:",
            "python:os:system",
            "${HOME}",
            "~/",
            "../" * 40,
            "a" * 300,
            "*" * 400 + "b",
        ),
    ]
)
TEXTS = st.lists(PIECES | st.text(max_size=8), max_size=12).map("".join)


def mutated(data: bytes, draw: Any) -> bytes:
    """A file after a few accidents: bytes turned, cut, doubled, moved, and pieces put in."""
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        to = draw(st.integers(at, min(len(data), at + 60)))
        piece = draw(PIECES).encode(errors="surrogatepass")
        accident = draw(st.sampled_from(("cut", "put", "double", "flip", "end")))
        if accident == "cut":
            data = data[:at] + data[to:]
        elif accident == "put":
            data = data[:at] + piece + data[at:]
        elif accident == "double":
            data = data[:at] + data[at:to] * 3 + data[to:]
        elif accident == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) + data[at + 1 :]
        elif accident == "end":
            data = data[:at]
    return data


def answered(call: Any, *arguments: Any) -> Any:
    """What a call says, or None if it is refused in a few inert sentences."""
    try:
        return call(*arguments)
    except UserError as error:
        told = str(error)
        assert all(c == "\n" or inert(c) == c for c in told)
        assert len(told) < TOLD
        assert "set_int_max_str_digits" not in told
        return None


@fuzz
@given(data=st.data())
def test_suites(data: st.DataObject) -> None:
    text = mutated(data.draw(st.sampled_from(SUITES)), data.draw)
    suite = answered(parse_suite, text, "s.yaml")
    if suite is not None and (workload := answered(registry.load, suite.workload)) is not None:
        answered(make_plan, suite, workload, lambda params: {})


@fuzz
@given(st.lists(st.tuples(st.sampled_from(["policy", "length", "seed", "timeout", "x"]), TEXTS), max_size=3))
def test_settings(words: list[tuple[str, str]]) -> None:
    found = answered(parse_settings, [f"{name}={value}" for name, value in words])
    if found is None:
        return
    assert parse_settings([as_setting(name, value) for name, value in found.items()]) == found
    suite = parse_suite(SUITES[0], "s.yaml")
    workload = registry.load(suite.workload)
    if changed := answered(changes, suite, workload, found):
        answered(make_plan, suite.model_copy(update=changed), workload, lambda params: {})


@fuzz
@given(TEXTS)
@example("*" * 5000 + "b")
@example("[" * 400)
def test_what_only_names(pattern: str) -> None:
    suite = parse_suite((ROOT / "suites" / "smoke.yaml").read_bytes(), "s.yaml")
    plan = make_plan(suite, registry.load(suite.workload), lambda params: {})
    answered(choose, plan.passes, pattern)


LINES = [
    with_digest(make_record(f"c{i}", label=f"ok {i}")).model_dump_json().encode() + b"\n" for i in range(3)
]
DEEP = b'{"schema_version": 2, "params": ' + b"[" * 100_000
LONG = LINES[0].replace(b'"length":8', b'"length":' + b"8" * 5000)


@fuzz
@given(data=st.data())
def test_records(data: st.DataObject, tmp_path: Path) -> None:
    check_records(mutated(b"".join(LINES), data.draw), tmp_path)


@pytest.mark.parametrize("text", [DEEP, LONG, b"[]\n", b"null\n", b'{"schema_version": "x"}', b"\xff\xfe\n"])
def test_records_that_are_none(text: bytes, tmp_path: Path) -> None:
    check_records(text + b"\n" + LINES[1], tmp_path)
    assert list(Store(tmp_path).records) == ["c1"]


def check_records(text: bytes, folder: Path) -> None:
    """Whole records are kept as they were, all else is set aside, and opening again finds nothing to do."""
    (folder / RECORDS).write_bytes(text)
    if answered(read, folder / RECORDS) is None:
        return  # of a newer version
    store = Store(folder)
    store.close()
    whole = [Record.model_validate_json(line) for line in LINES]
    assert all(record in whole for record in store.records.values())
    again = read(folder / RECORDS)
    lines = (folder / RECORDS).read_bytes().splitlines()
    assert (again.damaged, again.edited, len(again.records)) == ([], [], len([*filter(bytes.strip, lines)]))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    return load(sinks_run(tmp_path_factory.mktemp("run") / "sinks"), Synthetic())  # type: ignore[arg-type]


@fuzz
@given(data=st.data())
def test_artifacts(data: st.DataObject, drawn: RunData) -> None:
    index = next(i for i, record in enumerate(drawn.records) if record.artifacts)
    path = drawn.folder / drawn.records[index].artifacts[0].path
    whole = path.read_bytes()
    try:
        path.write_bytes(mutated(whole, data.draw))
        os.utime(path, ns=(n := data.draw(st.integers(1, 2**60)), n))  # arrays are kept by time
        found = drawn.series(index, "nll")
        assert found is None or found.ndim == 1
    finally:
        path.write_bytes(whole)


def test_an_artifact_that_would_fill_the_memory(drawn: RunData) -> None:
    index = next(i for i, record in enumerate(drawn.records) if record.artifacts)
    path = drawn.folder / drawn.records[index].artifacts[0].path
    whole = path.read_bytes()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**40,)})
    try:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("nll.npy", header.getvalue())
        assert drawn.series(index, "nll") is None
    finally:
        path.write_bytes(whole)


@fuzz
@given(name=TEXTS, file=st.sampled_from(["records.jsonl", "plan.json", "env.json"]), content=TEXTS)
def test_run_names(name: str, file: str, content: str, tmp_path: Path) -> None:
    results = tmp_path / "results"
    try:
        folder = results / "s" / f"20260101-000000-{name}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(content, encoding="utf-8", errors="surrogateescape")
    except (OSError, ValueError):
        pass  # no such name on this file system
    answered(run_folders, results, "s")
    answered(find_run, name, results)
    found = answered(choose_run, results, "s", {"id": "e"}, {}, "1")
    assert found is None or (found.folder / "env.json").is_file()


@settings(fuzz, max_examples=max(10, EXAMPLES // 3))
@given(st.lists(TEXTS.filter(lambda text: not text.startswith("\ud800")), max_size=3))
def test_the_command_line(words: list[str]) -> None:
    for command in ("plan", "report", "compare", "history"):
        done = CliRunner().invoke(app, [command, *words])
        assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
        assert "\x1b" not in done.output + done.stderr


@fuzz
@given(st.text() | TEXTS | st.recursive(st.integers() | st.floats() | st.text(), st.lists).map(json.dumps))
def test_json(text: str) -> None:
    try:
        parse_json(text)
    except ValueError as error:
        if "sys." in str(error):
            raise AssertionError("Python's own advice") from error
