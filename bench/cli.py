"""The command line. ``python -m bench SUITE`` is ``python -m bench run SUITE``.

Nothing but typer is imported until a command runs: ``--help`` must be as quick as it looks. What a
user can get wrong arrives here as ``UserError`` and leaves as one clear sentence and exit code 2.
"""

from __future__ import annotations

import sys
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from rich.console import Console

    from bench.errors import UserError

_SuiteArgument = Annotated[
    str,
    typer.Argument(metavar="SUITE", help="A suite file, or the name of one in suites/.", show_default=False),
]
_ResultsOption = Annotated[Path, typer.Option(help="Folder that holds all results.")]
_SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a default parameter of the suite; may be repeated."
    ),
]
_DeviceOption = Annotated[
    str | None, typer.Option(help="Short for --set device=…, e.g. cpu, cuda or cuda:1.", show_default=False)
]
_OnlyOption = Annotated[
    str | None,
    typer.Option(metavar="GLOB", help="Only cells whose label matches, e.g. 'sink*'.", show_default=False),
]


class _Commands(TyperGroup):
    """Takes a first word that is no command for a suite to run, and prints what the user got wrong."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "--version"):
            self._check_misspelt(ctx, args[0])
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def _check_misspelt(self, ctx: Any, word: str) -> None:
        near = get_close_matches(word, self.commands, n=1, cutoff=0.7)
        if near and not Path(word).exists() and not (Path("suites") / f"{word}.yaml").exists():
            ctx.fail(f"There is neither a command nor a suite {word!r}. Did you mean {near[0]!r}?")

    def invoke(self, ctx: Any) -> Any:
        from bench.errors import UserError

        try:
            return super().invoke(ctx)
        except UserError as error:
            _show_error(error)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt as interruption:
            number = interruption.args[0] if interruption.args else 2
            raise typer.Exit(128 + int(number)) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="""Reproducible benchmarks: a YAML suite in, records, tables and pictures out.

    [bold]python -m bench suites/smoke.yaml[/] measures a suite; the same command again resumes it.
    [bold]python -m bench plan suites/sinks.yaml[/] says what a suite would do, and does nothing.
    [bold]python -m bench doctor[/] says what this machine can run.""",
)


def main() -> None:
    """Entry point of ``ddposink`` and ``python -m bench``."""
    app()


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        from importlib.metadata import PackageNotFoundError
        from importlib.metadata import version as installed

        try:
            typer.echo(f"ddposink {installed('ddposink')}")
        except PackageNotFoundError:
            typer.echo("ddposink (a checkout that is not installed)")
        raise typer.Exit()


@app.command()
def run(
    suite: _SuiteArgument,
    results: _ResultsOption = Path("results"),
    new: Annotated[
        bool, typer.Option("--new", help="Start a new run instead of resuming the newest.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for a run of this suite that is going on.")
    ] = False,
    only: _OnlyOption = None,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed", help="Measure cells again that ended in error, oom, timeout or skipped."
        ),
    ] = False,
    set_: _SetOption = None,
    device: _DeviceOption = None,
    plain: Annotated[bool, typer.Option("--plain", help="Plain lines instead of moving bars.")] = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, max=1000, help="Passes side by side; they disturb each other's times.", show_default=False
        ),
    ] = None,
) -> None:
    """Measure a suite, or go on where the last run of it stopped.

    Example: [bold]python -m bench run suites/sinks.yaml --only 'sink*'[/]

    Every answered cell is kept at once; Ctrl-C loses at most what is being measured. Exit codes:
    0 all cells measured or skipped, 2 something is wrong with the request, 3 some cells failed or
    nothing was measured, 130 interrupted.
    """
    from bench import request, session

    options = request.Options(
        suite=request.find_suite(suite),
        results=results,
        new=new,
        wait=wait,
        only=only,
        retry_failed=retry_failed,
        overrides=_overrides(set_, device),
        plain=plain,
        jobs=jobs,
    )
    raise typer.Exit(session.run(options, _console()))


@app.command()
def plan(
    suite: _SuiteArgument, only: _OnlyOption = None, set_: _SetOption = None, device: _DeviceOption = None
) -> None:
    """Print the cells and passes of a suite, their cost and what sharing saves. Runs nothing.

    Example: [bold]python -m bench plan suites/pg19.yaml[/]
    """
    from bench import request, show

    options = request.Options(suite=request.find_suite(suite), only=only, overrides=_overrides(set_, device))
    planned = request.prepare(options)
    show.show_plan(planned.plan, planned.passes, _console())


@app.command()
def report(
    run_: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or a suite (its newest run).")],
    results: _ResultsOption = Path("results"),
) -> None:
    """Draw tables, plots and README.md of a run again from its records.

    Example: [bold]python -m bench report results/sinks/20260102-030405-abcdef[/]
    """
    from bench.report import render
    from bench.request import find_run
    from bench.store import RECORDS, read_records

    folder = find_run(run_, results)
    if damaged := len(read_records(folder / RECORDS)[1]):
        lines = "line is" if damaged == 1 else "lines are"
        _console().print(
            f"[yellow]warning:[/] {damaged} {lines} damaged in {RECORDS} and left out", highlight=False
        )
    _console().print(f"report: {render(folder)}", soft_wrap=True, highlight=False)


@app.command()
def doctor(
    results: _ResultsOption = Path("results"),
    probe: Annotated[
        bool, typer.Option("--probe", help="Also measure float32 against bfloat16 here.")
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Do not ask whether the hub can be reached.")
    ] = False,
) -> None:
    """Say what this machine can run, what is missing, and how to get it.

    Example: [bold]python -m bench doctor --probe[/]
    """
    from bench import doctor as physician

    physician.show(physician.examine(results, probe=probe, network=not offline), _console())


@app.command()
def schema(
    write: Annotated[
        bool, typer.Option("--write", help="Write suites/schema.json instead of printing.")
    ] = False,
) -> None:
    """Print the JSON Schema of suites, from which editors complete and check them.

    Example: [bold]python -m bench schema --write[/]
    """
    import json

    from bench import registry
    from bench.schema import suite_schema

    text = json.dumps(suite_schema(registry.load(name) for name in registry.targets()), indent=2) + "\n"
    if not write:
        typer.echo(text, nl=False)
        return
    from bench.store import write_atomic

    write_atomic(Path("suites/schema.json"), text)
    typer.echo("wrote suites/schema.json")


@app.command()
def verify(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A model as a suite names it, e.g. smollm2-135m or path:DIR."),
    ],
    policy: Annotated[str, typer.Option(help="Cache policy to check.")] = "sink 4+252",
    tokens: Annotated[int, typer.Option(min=2, help="Length of the check.")] = 1024,
    corpus: Annotated[str | None, typer.Option(help="Text to read; default: random tokens.")] = None,
) -> None:
    """Check on this very model that exact, decode and reference evaluation agree, token by token.

    Example: [bold]python -m bench verify smollm2-135m --policy 'sink 4+252' --tokens 1000[/]
    """
    from ddposink.verify import main as check

    raise typer.Exit(check(model, policy=policy, tokens=tokens, corpus=corpus) or 0)


def _overrides(texts: list[str] | None, device: str | None) -> dict[str, Any]:
    from bench.request import parse_overrides

    overrides = parse_overrides(texts or [])
    return overrides if device is None else overrides | {"device": device}


def _console() -> Console:
    from rich.console import Console

    # Where nobody watches, tables need not fit a window.
    return Console() if sys.stdout.isatty() else Console(width=160)


def _show_error(error: UserError) -> None:
    from rich.console import Console
    from rich.text import Text

    sys.stdout.flush()
    Console(stderr=True).print(
        Text("error: ", "bold red") + Text(str(error)), soft_wrap=True, highlight=False
    )
