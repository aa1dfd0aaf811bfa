"""Systems on which passes cannot be measured say so in one sentence, and do all the rest."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
# What Python on Windows lacks of what the harness uses; only the name of the system stays.
WINDOWS = """
import filelock, multiprocessing.context, psutil, signal, sys  # they have another self on Windows
sys.modules["resource"] = sys.modules["fcntl"] = None
for name in ("SIGHUP", "SIGUSR1", "SIGKILL"):
    delattr(signal, name)
multiprocessing.context.DefaultContext.get_all_start_methods = lambda self: ["spawn"]
from bench.cli import main
main()
"""


def on_windows(folder, *words):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WINDOWS, *words]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)


def test_measuring_on_windows_ends_in_one_sentence(tmp_path):
    done = on_windows(tmp_path, "run", str(ROOT / "suites" / "smoke.yaml"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: passes cannot be measured on linux: ")
    assert "use WSL" in done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert not (tmp_path / "results").exists()


def test_planning_on_windows_works(tmp_path):
    done = on_windows(tmp_path, "plan", str(ROOT / "suites" / "smoke.yaml"))
    assert done.returncode == 0, done.stderr
    assert "passes" in done.stdout
