"""The committed schema is the one that the code prints: editors must not be told otherwise."""

import subprocess
import sys
from pathlib import Path


def test_committed_schema_is_current():
    printed = subprocess.run(
        [sys.executable, "-m", "bench", "schema"], capture_output=True, text=True, check=True
    )
    committed = Path(__file__).parents[3] / "suites" / "schema.json"
    assert committed.read_text() == printed.stdout, "run: python -m bench schema --write"
