"""`python -m bench --help` beside a program that only imports typer."""

from __future__ import annotations

import subprocess
import sys
from typing import Any


def test_help_against_a_plain_typer_program(duel: Any) -> None:
    def call(*arguments: str) -> None:
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)

    duel(
        lambda: call("-m", "bench", "--help"),
        lambda: call("-c", "import typer"),
        against="python -c 'import typer'",
        work=1,
        unit="starts/s",
        rounds=9,
    )
