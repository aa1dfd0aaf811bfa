"""The long form of fuzzing: its targets take what they begin with, and a finding is one."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("fuzz", ROOT / "tools" / "fuzz.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def targets(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(tool.tempfile, "mkdtemp", lambda: str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tool.targets()


def test_every_target_takes_its_seeds_and_bytes_without_sense(tool, targets):
    assert tuple(targets) == tool.NAMES
    for target in targets.values():
        for data in (*target.seeds, b"", b"\xff\x00[[[[", bytes(range(256)) * 4):
            target.run(data)


def test_what_is_no_clear_sentence_is_a_finding(tool, targets, monkeypatch):
    checks = sys.modules["fuzz_checks"]

    def broken(*_):
        raise RecursionError

    monkeypatch.setattr(checks, "parse_suite", broken)
    with pytest.raises(RecursionError):
        targets["suites"].run(b"suite: x")


def test_an_unknown_target_is_told_with_those_there_are(tool, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fuzz.py", "suite"])
    with pytest.raises(SystemExit):
        tool.main()
    assert "no such target: suite; there are suites, records" in capsys.readouterr().err
