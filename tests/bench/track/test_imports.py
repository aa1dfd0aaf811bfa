"""The instruments must be importable in the parent process, which has no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.track import split_device

MODULES = ("clock", "contention", "memory", "nvml", "power", "rss", "work")
HEAVY = ("torch", "numpy", "pandas", "scipy", "transformers", "pynvml", "psutil")


def test_importing_the_trackers_imports_nothing_heavy():
    names = ", ".join(f"bench.track.{name}" for name in MODULES)
    blocked = f"import sys; sys.modules.update(dict.fromkeys({HEAVY}))"  # None makes an import fail
    code = f"{blocked}; import {names}; print(*sorted(m for m in {HEAVY} if sys.modules[m]))"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_every_module_is_in_that_list():
    folder = Path(__file__).parents[3] / "bench" / "track"
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == set(MODULES)


def test_split_device():
    assert split_device("cpu") == ("cpu", None)
    assert split_device("cuda") == ("cuda", None)
    assert split_device("cuda:3") == ("cuda", 3)
    for wrong in ("", "cuda:", "cuda:-1", "cuda:x"):
        with pytest.raises(ValueError, match="not a device"):
            split_device(wrong)
