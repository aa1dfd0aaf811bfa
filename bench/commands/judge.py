"""Commands that hold a suite's code against other code, or against itself."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from bench.commands.options import (
    CodeOption,
    DeviceOption,
    OnlyOption,
    ResultsOption,
    SetOption,
    SuiteArgument,
    WaitOption,
    console,
    run_options,
)

_AgainstOption = Annotated[
    str | None,
    typer.Option(
        metavar="REF",
        help="A git ref: measure the commit that your changes to it began from (the merge base of REF and "
        "HEAD), and your working tree, in turn.",
        show_default=False,
    ),
]
_AgainstTipOption = Annotated[
    str | None,
    typer.Option(metavar="REF", help="The same with the newest commit of REF itself.", show_default=False),
]
_BaselineOption = Annotated[
    list[str] | None,
    typer.Option(metavar="RUN", help="A stored run to compare with.", show_default=False),
]
_HeadOption = Annotated[
    str | None,
    typer.Option(metavar="RUN", help="With --baseline: judge this run, measure none.", show_default=False),
]
_UntilDecidedOption = Annotated[
    bool, typer.Option("--until-decided", help="Add pairs while a metric is undecided.")
]
_AcceptOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FIELD", help="Fingerprint fields that may differ, e.g. 'packages.*'.", show_default=False
    ),
]
_ExtrasOption = Annotated[
    list[str] | None,
    typer.Option(metavar="EXTRA", help="Extras that REF needs, e.g. ddpo.", show_default=False),
]
_NoiseOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A calibration.json of this suite and machine: thresholds that its noise hides are raised.",
        show_default=False,
    ),
]
_ExportOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FORMAT=FILE",
        help="Also write junit, bencher, benchmark-action-smaller, benchmark-action-bigger, github, "
        "markdown or json; may be repeated.",
        show_default=False,
    ),
]
_GithubOption = Annotated[bool, typer.Option("--github", help="Print annotations and write the job summary.")]


def gate(
    suite: SuiteArgument,
    against: _AgainstOption = None,
    against_tip: _AgainstTipOption = None,
    baseline: _BaselineOption = None,
    head: _HeadOption = None,
    pairs: Annotated[int, typer.Option(min=1, max=1000, help="Pairs of processes with --against.")] = 6,
    until_decided: _UntilDecidedOption = False,
    max_pairs: Annotated[int, typer.Option(min=1, max=1000, help="Limit of --until-decided.")] = 24,
    alpha: Annotated[float, typer.Option(help="Chance of a false alarm per gate, both directions.")] = 0.02,
    allowance: Annotated[
        float, typer.Option(min=0, help="Relative difference granted between sessions (--baseline).")
    ] = 0.25,
    accept: _AcceptOption = None,
    extras: _ExtrasOption = None,
    noise: _NoiseOption = None,
    export: _ExportOption = None,
    github: _GithubOption = False,
    results: ResultsOption = Path("results"),
    only: OnlyOption = None,
    set_: SetOption = None,
    device: DeviceOption = None,
    wait: WaitOption = False,
    allow_code: CodeOption = False,
) -> None:
    """Judge whether a suite got worse, and leave with an exit code that a CI job can act on.

    Example: [bold]python -m bench gate suites/smoke.yaml --against origin/main --until-decided[/]

    What regressed is measured again in a second session before it is said. Pairs that are too few to decide
    anything are warned about; [bold]python -m bench calibrate SUITE[/] tells how many it takes here, and
    its result is for --noise.

    Exit codes: 0 no regression, 2 something is wrong with the request, 3 some cells failed, 4 a
    regression, 5 nothing could be compared or decided.
    """
    from bench.export import verdicts
    from bench.export.readable import readable
    from bench.gate import session
    from bench.gate.options import GateOptions, one_baseline, one_ref

    exports = verdicts.parse(export or [])
    options = GateOptions(
        run=run_options(suite, set_, device, allow_code, results=results, only=only, wait=wait, plain=True),
        baseline=one_baseline(baseline or []),
        against=one_ref(against, against_tip),
        tip=against_tip is not None,
        head=head,
        pairs=pairs,
        until_decided=until_decided,
        max_pairs=max_pairs,
        alpha=alpha,
        allowance=allowance,
        accept=tuple(accept or ()),
        extras=tuple(extras or ()),
        noise=noise,
    )
    options.check()
    verdicts.make_room(exports)
    send = partial(verdicts.write, exports=exports, annotate=github)
    raise typer.Exit(session.gate(options, console(), readable, send))


def calibrate(
    suite: SuiteArgument,
    pairs: Annotated[int, typer.Option(min=2, max=1000, help="Pairs of processes.")] = 6,
    alpha: Annotated[float, typer.Option(help="As for the gate.")] = 0.02,
    results: ResultsOption = Path("results"),
    only: OnlyOption = None,
    set_: SetOption = None,
    device: DeviceOption = None,
    wait: WaitOption = False,
    allow_code: CodeOption = False,
) -> None:
    """Measure a suite against itself: how noisy it is here, and what a gate could find.

    Example: [bold]python -m bench calibrate suites/smoke.yaml --pairs 6[/]

    What it found is kept as calibration.json; hand that to [bold]python -m bench gate --noise FILE[/], and
    thresholds that this machine cannot resolve are raised to those that it can.
    """
    from bench.gate import calibrate as calibration

    options = run_options(suite, set_, device, allow_code, results=results, only=only, wait=wait)
    raise typer.Exit(calibration.calibrate(options, pairs, console(), alpha))
