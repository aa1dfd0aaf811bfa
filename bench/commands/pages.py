"""Commands that show what was measured: tables, pages, a site."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.commands.options import ONLY, ResultsOption, RunsArgument, console


def report(
    runs: RunsArgument,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Hold every RUN against this one.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the page of several runs.", show_default=False),
    ] = None,
    only: Annotated[str | None, typer.Option(metavar="LABEL", help=ONLY, show_default=False)] = None,
    vectors: Annotated[
        bool,
        typer.Option(
            "--vectors/--no-vectors",
            help="Every plot of one run as SVG, too; a copy to publish is lighter without.",
        ),
    ] = True,
    results: ResultsOption = Path("results"),
) -> None:
    """Draw tables, plots, README.md and index.html of a run again from its records, or several side by side.

    Example: [bold]python -m bench report results/sinks/20260102-030405-abcdef --baseline sinks[/]

    Several runs share one page, in a folder of its own; their baseline is the first unless you name one.
    Of more than 10,000 cells a page counts all and draws some, by a rule that it states; --only draws those
    that you name, in a folder only/ of the run.

    Exit codes: 0 drawn, 2 something is wrong with the request, 3 drawn, but nothing was measured.
    """
    from bench.report.session import report as draw

    raise typer.Exit(draw(runs, baseline, out, results, console(), vectors=vectors, only=only))


def compare(
    runs: RunsArgument,
    baseline: Annotated[
        str | None, typer.Option(metavar="RUN", help="Default: the first RUN.", show_default=False)
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="As Markdown, for a pull request, instead of a table.")
    ] = False,
    results: ResultsOption = Path("results"),
) -> None:
    """Print how runs differ from a baseline, and how sure that is. Measures and writes nothing.

    Example: [bold]python -m bench compare results/sinks/OLD results/sinks/NEW[/]

    Exit codes: 0 compared, 2 something is wrong with the request, 5 no two numbers may be compared.
    """
    from bench.report.session import show

    raise typer.Exit(show(runs, baseline, results, console(), as_markdown=markdown))


def publish(
    run_: Annotated[
        str,
        typer.Argument(metavar="RUN", help="A run folder, or a suite (its newest run).", show_default=False),
    ],
    site: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", help="The folder of the site; made if missing.", show_default=False),
    ] = None,
    to_hub: Annotated[
        str | None,
        typer.Option(
            "--to-hub", metavar="ORG/NAME", help="Also upload the tables as a dataset.", show_default=False
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Create the dataset as a private one.")] = False,
    results: ResultsOption = Path("results"),
) -> None:
    """Add a run to a static site that any web server (GitHub Pages) can serve, or upload its tables.

    Example: [bold]python -m bench publish sinks site/[/]

    The index shows the newest run of every suite and how it compares with the one before. Publishing a
    run again changes nothing.
    """
    from bench.export.site import publish as send

    send(run_, site, to_hub, private, results, console())


def history(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder of runs, e.g. results/SUITE.", show_default=False)
    ],
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only these metrics; may be repeated.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where table and plot go; default: DIR.", show_default=False)
    ] = None,
) -> None:
    """Follow every cell over the runs of a folder, and find where a metric stepped up or down.

    Example: [bold]python -m bench history results/smoke[/]
    """
    from bench.report import history as chronicle

    chronicle.write(folder, out or folder, metric or [], console())
