"""Pages of the documentation as something to follow: their blocks, and the command line in a folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r'^```(\w+)(?: title="([\w./-]+)")?\n(.*?)^```$', re.M | re.S)
TEXT = "It is a truth universally acknowledged, that a text is read, and read again. " * 40


def bench(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """``python -m bench WORDS`` in a folder whose modules and entry points count as installed."""
    env = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "bench", *words]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
