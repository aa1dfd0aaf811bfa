"""Commands that measure a suite, or say what that would take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bench.commands.options import (
    CodeOption,
    DeviceOption,
    OnlyOption,
    ResultsOption,
    SetOption,
    SuiteArgument,
    console,
    run_options,
)


def run(
    suite: SuiteArgument,
    results: ResultsOption = Path("results"),
    new: Annotated[
        bool, typer.Option("--new", help="Start a new run instead of resuming the newest.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for a run of this suite that is going on.")
    ] = False,
    only: OnlyOption = None,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed", help="Measure cells again that ended in error, oom, timeout or skipped."
        ),
    ] = False,
    set_: SetOption = None,
    device: DeviceOption = None,
    plain: Annotated[bool, typer.Option("--plain", help="Plain lines instead of moving bars.")] = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1000,
            help="Passes side by side on a machine; they disturb each other's times.",
            show_default=False,
        ),
    ] = None,
    allow_code: CodeOption = False,
    launcher: Annotated[
        Literal["local", "ray", "slurm"],
        typer.Option(help="Where passes run: here, on the nodes of a Ray cluster, or as jobs of Slurm."),
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Of a cluster's head; without it RAY_ADDRESS, or the cluster of this machine.",
            show_default=False,
        ),
    ] = None,
    log_with: Annotated[
        Literal["tensorboard", "trackio"] | None,
        typer.Option(
            help="Write what passes tell while they run, and their answers, for TensorBoard (in the run "
            "folder) or trackio too.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Measure a suite, or go on where the last run of it stopped.

    Example: [bold]python -m bench run suites/sinks.yaml --only 'sink*'[/]

    Every answered cell is kept at once; Ctrl-C loses at most what is being measured. Exit codes:
    0 all cells measured or skipped, 2 something is wrong with the request, 3 some cells failed or
    nothing was measured, 130 interrupted.
    """
    from bench.export.readable import readable
    from bench.run import session

    options = run_options(
        suite, set_, device, allow_code,
        results=results, new=new, wait=wait, only=only, retry_failed=retry_failed, plain=plain, jobs=jobs,
        launcher=launcher, address=address, log_with=log_with,
    )  # fmt: skip
    raise typer.Exit(session.run(options, console(), readable))


def plan(
    suite: SuiteArgument,
    only: OnlyOption = None,
    set_: SetOption = None,
    device: DeviceOption = None,
    allow_code: CodeOption = False,
) -> None:
    """Print the cells and passes of a suite, their cost and what sharing saves. Runs nothing.

    Example: [bold]python -m bench plan suites/pg19.yaml[/]
    """
    from bench.run import terminal
    from bench.suite import request

    planned = request.prepare(run_options(suite, set_, device, allow_code, only=only))
    terminal.show_plan(planned.plan, planned.passes, console())
