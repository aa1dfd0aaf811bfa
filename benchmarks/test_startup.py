"""`python -m bench --help` beside a program that only imports typer."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

PLAIN = """
import typer
app = typer.Typer()
@app.command()
def one(name: str) -> None: "One."
@app.command()
def two(name: str) -> None: "Two."
app()
"""


@pytest.mark.parametrize("peer", ["import typer", PLAIN], ids=["import-typer", "plain-typer-program"])
def test_help_against_typer(duel: Any, peer: str) -> None:
    def call(*arguments: str) -> None:
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)

    duel(
        lambda: call("-m", "bench", "--help"),
        lambda: call("-c", peer, "--help"),
        against="python -c 'import typer'" if peer != PLAIN else "the help of a plain typer program",
        work=1,
        unit="starts/s",
        rounds=9,
    )
