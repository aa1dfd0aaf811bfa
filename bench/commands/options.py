"""What several commands may be asked, declared once, and how it is read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from bench.suite.request import Options

SuiteArgument = Annotated[
    str,
    typer.Argument(metavar="SUITE", help="A suite file, or the name of one in suites/.", show_default=False),
]
RunsArgument = Annotated[
    list[str],
    typer.Argument(metavar="RUN...", help="Run folders, or suites (their newest runs).", show_default=False),
]
ResultsOption = Annotated[Path, typer.Option(help="Folder that holds all results.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set a parameter of all cells, or seed, repeat or timeout; the value as in a suite. Repeatable.",
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option(help="Short for --set device=…, e.g. cpu, cuda or cuda:1.", show_default=False)
]
CodeOption = Annotated[
    bool,
    typer.Option("--allow-code", help="Let the suite name Python functions (python:module:function)."),
]
ONLY = "Only these cells: a label as printed, the id of a cell, or a pattern, e.g. 'sink*'."
OnlyOption = Annotated[
    list[str] | None, typer.Option(metavar="LABEL", help=f"{ONLY} Repeatable.", show_default=False)
]
WaitOption = Annotated[bool, typer.Option("--wait", help="Wait for another run of this suite.")]


def run_options(
    suite: str, set_: list[str] | None, device: str | None, allow_code: bool, **more: Any
) -> Options:
    """What a command wants of a suite; ``more`` are further fields of ``bench.suite.request.Options``."""
    from bench.suite import request
    from bench.suite.settings import parse_settings

    request.allow_code(allow_code)
    more["only"] = tuple(more.get("only") or ())
    overrides = parse_settings([*(set_ or []), *([f"device={device}"] if device is not None else [])])
    found = request.find_suite(suite)
    return request.Options(suite=found, overrides=overrides, allow_code=allow_code, **more)


def console() -> Console:
    """Where a command prints."""
    from rich.console import Console

    # Where nobody watches, tables need not fit a window.
    return Console() if sys.stdout.isatty() else Console(width=160)
