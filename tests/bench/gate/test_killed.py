"""A gate that is killed with -9: its drivers go with it, and a later gate removes what it could not."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from bench import temporary
from bench.gate import commits
from helpers.gateplace import HERE, ROOT, plug_in, write_suite
from helpers.toy import gone
from helpers.toyruns import eventually


def git(folder, *words):
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    done = subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout


@pytest.fixture
def temp(monkeypatch):
    """A temporary folder of its own for everything that is started: a short one, for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="killed-", dir="/tmp"))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def place(tmp_path, temp, monkeypatch):
    """A checkout with a suite."""
    folder = tmp_path / "work"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch", "main")
    (folder / ".gitignore").write_text("/results/\n")
    write_suite(folder, grid={"kind": ["a"], "tokens": [8]})
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "suite")
    (tmp_path / "settings.json").write_text('{"SCATTER": 0.01, "SLEEP": 60}')
    paths = (plug_in(tmp_path / "plugs"), ROOT, HERE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
    monkeypatch.setenv("GATETOY_SETTINGS", str(tmp_path / "settings.json"))
    return folder


def gate(place):
    command = [sys.executable, "-m", "bench", "gate", "toys.yaml", "--against", "main", "--pairs", "1"]
    return subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_its_drivers_die_with_it_and_the_next_gate_tidies_up(place, temp, tmp_path):
    mine = temporary.own("gate", {"root": str(place), "results": None})  # of a living gate: this process
    git(place, "worktree", "add", "--detach", "--quiet", str(mine.path / "tree"), "main")
    first = gate(place)
    logs = place / "results" / "toys" / "gates"
    assert eventually(lambda: [p for p in logs.glob("*/*/logs/*.log") if p.stem != "server"])  # a pass is on
    family = psutil.Process(first.pid).children(recursive=True)
    assert len(family) >= 4  # two drivers, their fork servers, a child
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert eventually(lambda: all(gone(one.pid) for one in family), 20)
    assert len(git(place, "worktree", "list").splitlines()) == 3
    (killed,) = logs.iterdir()
    (tmp_path / "settings.json").write_text('{"SCATTER": 0.01}')
    second = gate(place)
    out, _ = second.communicate(timeout=60)
    assert second.returncode in (0, 5), out
    assert "tidied up after 1 gate that had been killed" in out
    assert len(git(place, "worktree", "list").splitlines()) == 2
    assert {path.name for path in temp.iterdir()} == {mine.path.name, f"{mine.path.name}.lock"}
    assert not killed.exists()  # it held no record
    assert (mine.path / "tree" / "toys.yaml").exists()
    mine.remove()


def test_one_that_is_killed_while_it_checks_out(place, temp, tmp_path):
    """Git knows the worktree before its files are there, and locks it meanwhile."""
    code = (
        "import os, pathlib; from bench import temporary\n"
        f"note = {{'root': {str(place)!r}, 'results': None}}\n"
        "print(temporary.own('gate', note).path, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    tree = f"{done.stdout.strip()}/tree"
    git(place, "worktree", "add", "--lock", "--no-checkout", "--detach", "--quiet", tree, "main")
    assert commits.tidy() == 1
    assert len(git(place, "worktree", "list").splitlines()) == 1
    assert list(temp.iterdir()) == []


def test_folders_of_the_living_and_of_others_stay(place, temp, tmp_path):
    held = temporary.own("x")
    assert held.path.is_dir()
    assert temporary.tidy("x") == 0
    (temp / "bench-x-foreign").mkdir()  # nobody's: no lock
    assert temporary.tidy("x") == 0
    os.close(held.lock)  # as the kernel does when its owner is gone
    (held.path / "file").write_text("left")
    assert temporary.tidy("x") == 1
    assert [path.name for path in temp.iterdir()] == ["bench-x-foreign"]


def test_a_lock_without_a_folder_or_a_note_is_tidied(place, temp, tmp_path):
    (temp / "bench-gate-abc.lock").touch()
    (temp / "bench-gate-def.lock").write_text('{"root": ')
    assert commits.tidy() == 2
    assert list(temp.iterdir()) == []


def test_a_link_is_not_followed(place, temp, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (temp / "bench-x-abc.lock").touch()
    (temp / "bench-x-abc").symlink_to(precious)
    (temp / "bench-x-def.lock").symlink_to(tmp_path / "settings.json")
    temporary.tidy("x")
    assert precious.is_dir()
    assert (tmp_path / "settings.json").read_text()


def test_a_temporary_folder_that_is_too_deep_for_a_socket(tmp_path, monkeypatch):
    deep = tmp_path / ("x" * 60)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    folder = temporary.own("deep")
    assert len(str(folder.path)) < 60
    os.close(folder.lock)
    assert temporary.tidy("deep") == 1
    assert not folder.path.exists()
