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
_CodeOption = Annotated[
    bool,
    typer.Option("--allow-code", help="Let the suite name Python functions (python:module:function)."),
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
    allow_code: _CodeOption = False,
) -> None:
    """Measure a suite, or go on where the last run of it stopped.

    Example: [bold]python -m bench run suites/sinks.yaml --only 'sink*'[/]

    Every answered cell is kept at once; Ctrl-C loses at most what is being measured. Exit codes:
    0 all cells measured or skipped, 2 something is wrong with the request, 3 some cells failed or
    nothing was measured, 130 interrupted.
    """
    from bench import request, session

    request.allow_code(allow_code)
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
        allow_code=allow_code,
    )
    raise typer.Exit(session.run(options, _console()))


@app.command()
def plan(
    suite: _SuiteArgument,
    only: _OnlyOption = None,
    set_: _SetOption = None,
    device: _DeviceOption = None,
    allow_code: _CodeOption = False,
) -> None:
    """Print the cells and passes of a suite, their cost and what sharing saves. Runs nothing.

    Example: [bold]python -m bench plan suites/pg19.yaml[/]
    """
    from bench import request, show

    request.allow_code(allow_code)
    options = request.Options(suite=request.find_suite(suite), only=only, overrides=_overrides(set_, device))
    planned = request.prepare(options)
    show.show_plan(planned.plan, planned.passes, _console())


@app.command()
def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...", help="Run folders, or suites (their newest runs).", show_default=False
        ),
    ],
    baseline: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Hold every RUN against this one.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the page of several runs.", show_default=False),
    ] = None,
    results: _ResultsOption = Path("results"),
) -> None:
    """Draw tables, plots, README.md and index.html of a run again from its records, or several side by side.

    Example: [bold]python -m bench report results/sinks/20260102-030405-abcdef --baseline sinks[/]

    Several runs share one page, in a folder of its own; their baseline is the first unless you name one.
    Exit codes: 0 drawn, 2 something is wrong with the request, 3 drawn, but nothing was measured.
    """
    from bench.several import report as draw

    raise typer.Exit(draw(runs, baseline, out, results, _console()))


@app.command()
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...", help="Run folders, or suites (their newest runs).", show_default=False
        ),
    ],
    baseline: Annotated[
        str | None, typer.Option(metavar="RUN", help="Default: the first RUN.", show_default=False)
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="As Markdown, for a pull request, instead of a table.")
    ] = False,
    results: _ResultsOption = Path("results"),
) -> None:
    """Print how runs differ from a baseline, and how sure that is. Measures and writes nothing.

    Example: [bold]python -m bench compare results/sinks/OLD results/sinks/NEW[/]

    Exit codes: 0 compared, 2 something is wrong with the request, 5 no two numbers may be compared.
    """
    from bench.several import show

    raise typer.Exit(show(runs, baseline, results, _console(), as_markdown=markdown))


@app.command()
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
    results: _ResultsOption = Path("results"),
) -> None:
    """Add a run to a static site that any web server (GitHub Pages) can serve, or upload its tables.

    Example: [bold]python -m bench publish sinks site/[/]

    The index shows the newest run of every suite and how it compares with the one before. Publishing a
    run again changes nothing.
    """
    from bench.publish import publish as send

    send(run_, site, to_hub, private, results, _console())


@app.command()
def gate(
    suite: _SuiteArgument,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="REF", help="A git ref: measure its code and yours in turn.", show_default=False
        ),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN", help="A stored run to compare with.", show_default=False),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            metavar="RUN", help="With --baseline: judge this run, measure none.", show_default=False
        ),
    ] = None,
    pairs: Annotated[int, typer.Option(min=1, max=1000, help="Pairs of processes with --against.")] = 6,
    until_decided: Annotated[
        bool, typer.Option("--until-decided", help="Add pairs while a metric is undecided.")
    ] = False,
    max_pairs: Annotated[int, typer.Option(min=1, max=1000, help="Limit of --until-decided.")] = 24,
    alpha: Annotated[float, typer.Option(help="Chance of a false alarm per gate, both directions.")] = 0.02,
    allowance: Annotated[
        float, typer.Option(min=0, help="Relative difference granted between sessions (--baseline).")
    ] = 0.25,
    accept: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD", help="Fingerprint fields that may differ, e.g. 'packages.*'.", show_default=False
        ),
    ] = None,
    extras: Annotated[
        list[str] | None,
        typer.Option(metavar="EXTRA", help="Extras that REF needs, e.g. ddpo.", show_default=False),
    ] = None,
    export: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FORMAT=FILE",
            help="Also write junit, bencher, benchmark-action-smaller, benchmark-action-bigger, github, "
            "markdown or json; may be repeated.",
            show_default=False,
        ),
    ] = None,
    github: Annotated[
        bool, typer.Option("--github", help="Print annotations and write the job summary.")
    ] = False,
    results: _ResultsOption = Path("results"),
    only: _OnlyOption = None,
    set_: _SetOption = None,
    device: _DeviceOption = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for another run of this suite.")] = False,
    allow_code: _CodeOption = False,
) -> None:
    """Judge whether a suite got worse, and leave with an exit code that a CI job can act on.

    Example: [bold]python -m bench gate suites/smoke.yaml --against origin/main --until-decided[/]

    Exit codes: 0 no regression, 2 something is wrong with the request, 3 some cells failed, 4 a
    regression, 5 nothing could be compared or decided.
    """
    from bench import gate_session, request
    from bench.export import verdicts

    request.allow_code(allow_code)
    options = gate_session.GateOptions(
        run=request.Options(
            suite=request.find_suite(suite),
            results=results,
            only=only,
            overrides=_overrides(set_, device),
            wait=wait,
            plain=True,
        ),
        baseline=gate_session.one_baseline(baseline or []),
        against=against,
        head=head,
        pairs=pairs,
        until_decided=until_decided,
        max_pairs=max_pairs,
        alpha=alpha,
        allowance=allowance,
        accept=tuple(accept or ()),
        extras=tuple(extras or ()),
        exports=verdicts.parse(export or []),
        github=github,
    )
    raise typer.Exit(gate_session.gate(options, _console()))


@app.command()
def calibrate(
    suite: _SuiteArgument,
    pairs: Annotated[int, typer.Option(min=2, max=1000, help="Pairs of processes.")] = 6,
    alpha: Annotated[float, typer.Option(help="As for the gate.")] = 0.02,
    results: _ResultsOption = Path("results"),
    only: _OnlyOption = None,
    set_: _SetOption = None,
    device: _DeviceOption = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for another run of this suite.")] = False,
    allow_code: _CodeOption = False,
) -> None:
    """Measure a suite against itself: how noisy it is here, and what a gate could find.

    Example: [bold]python -m bench calibrate suites/smoke.yaml --pairs 6[/]
    """
    from bench import calibrate as calibration
    from bench import request

    request.allow_code(allow_code)
    options = request.Options(
        suite=request.find_suite(suite),
        results=results,
        only=only,
        overrides=_overrides(set_, device),
        wait=wait,
    )
    raise typer.Exit(calibration.calibrate(options, pairs, _console(), alpha))


@app.command()
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
    from bench import history as chronicle

    chronicle.write(folder, out or folder, metric or [], _console())


@app.command()
def doctor(
    results: _ResultsOption = Path("results"),
    probe: Annotated[
        bool, typer.Option("--probe", help="Also measure float32 against bfloat16 here.")
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Do not ask whether the hub can be reached.")
    ] = False,
    ddpo: Annotated[
        str | None,
        typer.Option(
            metavar="PIPELINE",
            help="Check instead that this diffusion pipeline can be trained, e.g. emoji-sd or path:DIR.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[str, typer.Option(help="With --ddpo: native, or trl (the reference).")] = "native",
    precision: Annotated[str, typer.Option(help="With --ddpo: no (fp32), bf16 or fp16.")] = "no",
    device: Annotated[str, typer.Option(help="With --ddpo: cpu, cuda or cuda:1.")] = "cpu",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="With --ddpo: another training setting; may be repeated."
        ),
    ] = None,
    unrepaired: Annotated[bool, typer.Option("--unrepaired", hidden=True)] = False,
) -> None:
    """Say what this machine can run, what is missing, and how to get it.

    Example: [bold]python -m bench doctor --probe[/]

    Before a DDPO training, [bold]python -m bench doctor --ddpo emoji-sd --engine trl[/] trains for a few
    steps and checks that learning sees the policy that sampled, that processes share their gradients,
    that a resumed training goes on as if uninterrupted, and that what is saved draws the same pictures.
    Exit codes then: 0 ready to train, 2 something is wrong with the request, 3 a check failed.
    """
    from bench import doctor as physician

    if ddpo is None:
        physician.show(physician.examine(results, probe=probe, network=not offline), _console())
        return
    from bench.request import parse_overrides

    settings = parse_overrides(set_ or [])
    raise typer.Exit(
        physician.preflight(
            ddpo,
            engine=engine,
            precision=precision,
            device=device,
            settings=settings,
            unrepaired=unrepaired,
        )
    )


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


@app.command()
def generate(
    cell: Annotated[
        str,
        typer.Argument(metavar="RUN/CELL", help="A run folder or suite, and a cell's id, label or pattern."),
    ],
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What to draw.")],
    results: _ResultsOption = Path("results"),
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("generated"),
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Pictures per prompt.")] = 4,
    denoising_steps: Annotated[
        int | None, typer.Option(min=2, help="Default: as in training.", show_default=False)
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(min=1.0, help="Guidance scale; default: as in training.", show_default=False),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Draw prompts with a fine-tuned pipeline, the base model beside it, same noise.

    Example: [bold]python -m bench generate 'ddpo/*brisque*50' "red apple" "tiger face"[/]
    """
    from ddposink.workloads.ddpo_generate import main as draw

    paths = draw(
        cell, prompts, results=results, out=out, seeds=seeds,
        denoising_steps=denoising_steps, guidance=guidance, device=device,
    )  # fmt: skip
    _console().print(f"{len(paths) - 1} pictures and {paths[-1]}", soft_wrap=True, highlight=False)


@app.command()
def label(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="DIR/PROMPT/*.png, or a manifest.csv (prompt, image) in DIR."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File of choices; default: DIR/choices.csv.", show_default=False),
    ] = None,
    judge: Annotated[str, typer.Option(help="Who chooses; kept beside every choice.")] = "",
    seed: Annotated[int, typer.Option(help="Of order and sides; the same one resumes.")] = 0,
    per_prompt: Annotated[
        int | None, typer.Option(min=1, help="Pairs per prompt at most.", show_default=False)
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
) -> None:
    """Pick the better of two pictures on a local page; the choices train a reward.

    Example: [bold]python -m bench label pictures[/], then
    [bold]python -m ddposink.rewards.preference train pictures/choices.csv --out my-reward[/]
    """
    from bench.errors import UserError
    from ddposink.label import main as serve

    try:
        serve(folder, out, judge=judge, seed=seed, per_prompt=per_prompt, browser=browser, tell=typer.echo)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error


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
