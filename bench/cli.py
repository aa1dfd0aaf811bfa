"""The command line. ``python -m bench SUITE`` is ``python -m bench run SUITE``.

Nothing but typer is imported until a command runs: ``--help`` must be as quick as it looks. What a
user can get wrong arrives here as ``UserError`` and leaves as one clear sentence and exit code 2.
"""

from __future__ import annotations

import errno
import re
import sys
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from bench.commands import checks, judge, measure, pages, pictures
from bench.errors import there

if TYPE_CHECKING:
    from bench.errors import UserError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# What a file system says of a name, a disk or a permission is about the request, wherever it is met.
SAID = FULL | {errno.ENAMETOOLONG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ELOOP, errno.EIO}
SAID |= {errno.EEXIST, errno.ENOTDIR, errno.EISDIR}  # a file where a folder is to be, or the other way round

COMMANDS = (  # in the order of the help
    measure.run,
    measure.plan,
    pages.report,
    pages.compare,
    pages.publish,
    judge.gate,
    judge.calibrate,
    pages.history,
    checks.doctor,
    checks.schema,
    checks.verify,
    pictures.generate,
    pictures.label,
)


class _Commands(TyperGroup):
    """Takes a first word that is no command for a suite to run, and prints what the user got wrong."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "--version"):
            self._check_misspelt(ctx, args[0])
            args = ["run", *args]
        for before, word in pairwise(["", *args]):
            if not word or re.fullmatch("--[a-z-]+=", word):  # an empty path would be the folder one is in
                name = word.rstrip("=") or (before if before.startswith("-") else "an argument")
                ctx.fail(f"{name} is empty: is a variable of the shell unset?")
        return super().parse_args(ctx, args)

    def _check_misspelt(self, ctx: Any, word: str) -> None:
        near = get_close_matches(word, self.commands, n=1, cutoff=0.7)
        if near and not there(word) and not there(Path("suites") / f"{word}.yaml"):
            ctx.fail(f"There is neither a command nor a suite {word!r}. Did you mean {near[0]!r}?")

    def invoke(self, ctx: Any) -> Any:
        from bench.errors import UserError

        try:
            return super().invoke(ctx)
        except UserError as error:
            _show_error(error)
            raise typer.Exit(error.exit_code) from None
        except OSError as error:
            if error.errno not in SAID or not (error.filename or error.errno in FULL):
                raise  # a bug of ours
            _show_error(UserError(_sentence(error), hint="check the name, free space and permissions"))
            raise typer.Exit(UserError.exit_code) from None
        except KeyboardInterrupt as interruption:
            number = interruption.args[0] if interruption.args else 2
            raise typer.Exit(128 + int(number)) from None


class _Command(TyperCommand):
    """Refuses an option that is given twice and not repeatable: the last one would count, without a word."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _, _, order = self.make_parser(ctx).parse_args(list(args))
        for option in order:
            if option.param_type_name == "option" and not option.multiple and order.count(option) > 1:
                ctx.fail(f"{option.opts[0]} is given twice: which one counts?")
        return super().parse_args(ctx, args)


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


for command in COMMANDS:
    app.command(cls=_Command)(command)


def main() -> None:
    """Entry point of ``ddposink`` and ``python -m bench``."""
    app()


def _sentence(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)


def _show_error(error: UserError) -> None:
    from rich.console import Console
    from rich.text import Text

    sys.stdout.flush()
    Console(stderr=True).print(
        Text("error: ", "bold red") + Text(str(error)), soft_wrap=True, highlight=False
    )
