"""One ``bench gate`` from the command line to the exit code: measure, judge, write, say.

What can be wrong with the request is found before anything is measured; verdict and summary are on the
disk before anything is printed or exported.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from bench.errors import UserError, listed
from bench.export import verdicts
from bench.gate.against import against, looks
from bench.gate.baseline import Stored, open_run, read_run
from bench.gate.confirm import confirmed
from bench.gate.judge import judge
from bench.gate.match import Side
from bench.gate.noise import blunt, raised, read_noise, told, undecidable, with_tolerances
from bench.gate.rule import Rule, Verdict
from bench.gate.scope import parameter_defaults
from bench.gate.show import markdown, show
from bench.gate.verdict import GateReport, Judgement, Terms, assemble
from bench.results.folder import run_folders
from bench.results.store import clear_errors, write_atomic
from bench.run import session
from bench.suite.request import Options, Request, prepare
from bench.text import plural

VERDICT, SUMMARY = "verdict.json", "summary.md"


@dataclass(frozen=True)
class GateOptions:
    """What the command line may ask of a gate."""

    run: Options
    baseline: str | None = None
    against: str | None = None
    tip: bool = False  # compare with the tip of ``against``, not with the merge base
    head: str | None = None  # a stored run to judge instead of measuring
    pairs: int = 6
    until_decided: bool = False
    max_pairs: int = 24
    alpha: float = Rule.alpha
    allowance: float = Rule.allowance
    accept: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    noise: Path | None = None  # a calibration.json
    exports: Mapping[str, Path] = field(default_factory=dict)  # format → file
    github: bool = False

    def rule(self, looks: int = 1) -> Rule:
        """The rule these options ask for. Raises UserError for what is none."""
        return Rule.asked(self.alpha, self.allowance, looks)


def gate(options: GateOptions, console: Console) -> int:
    """Judge, write the verdict, print it, export it; the exit code. Raises UserError."""
    _check(options)
    request = prepare(options.run)
    request, warnings = _foreseen(options, request)
    for warning in warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True, highlight=False)
    verdicts.make_room(options.exports)
    started = time.monotonic()
    folder = _new_folder(options.run.results / request.suite.suite / "gates")
    try:
        if options.against:
            report = against(options, request, folder, console)
        else:
            report = _stored(options, request, console)
    except BaseException:
        with suppress(OSError):  # unless something was measured: logs and records stay
            folder.rmdir()
        raise
    more = {"duration_s": round(time.monotonic() - started, 3), "notes": [*warnings, *report.notes]}
    report = report.model_copy(update=more)
    conclude(report, folder, options.exports, console, github=options.github)
    return report.exit_code


def conclude(
    report: GateReport, folder: Path, exports: Mapping[str, Path], console: Console, *, github: bool = False
) -> None:
    """Write verdict, summary and exports, then print."""
    write_atomic(folder / VERDICT, report.json_text())
    write_atomic(folder / SUMMARY, markdown(report))
    for kind, path in exports.items():
        write_atomic(path, verdicts.render(kind, report))
    if github:
        verdicts.annotate(report)
    show(report, console)
    console.print(f"verdict: [bold]{escape(str(folder / VERDICT))}[/]", soft_wrap=True, highlight=False)


def one_ref(against: str | None, against_tip: str | None) -> str | None:
    """The ref, if one was given. Raises UserError for two."""
    if against and against_tip:
        raise UserError("--against and --against-tip exclude each other", hint="give one of them")
    return against or against_tip


def one_baseline(names: Sequence[str]) -> str | None:
    """The baseline, if one was given. Raises UserError for two."""
    if len(names) > 1:
        raise UserError(
            f"{len(names)} baselines were given", hint="a gate has one; run it once for each baseline"
        )
    return names[0] if names else None


def _check(options: GateOptions) -> None:
    if not options.baseline and not options.against:
        raise UserError("nothing to compare with", hint="give --against REF or --baseline RUN")
    if options.baseline and options.against:
        raise UserError("--baseline and --against exclude each other", hint="give one of them")
    if options.head == "":
        raise UserError("--head is empty", hint="give a run, or leave --head out to measure one")
    if options.against and options.head:
        raise UserError("--head is for stored runs; --against measures both sides", hint="drop one of them")
    if options.until_decided and not options.against:
        raise UserError("--until-decided adds pairs, which --baseline has none of", hint="use --against REF")
    if options.noise and not options.against:
        raise UserError(
            "--noise is that of pairs in one session, and --baseline compares sessions",
            hint="use --against REF, or --allowance",
        )
    options.rule()
    if options.until_decided and options.max_pairs < options.pairs:
        raise UserError(f"--max-pairs {options.max_pairs} is less than --pairs {options.pairs}")
    verdicts.check(options.exports)


def _foreseen(options: GateOptions, request: Request) -> tuple[Request, list[str]]:
    """The request with thresholds of this machine, and what should be known before measuring."""
    if options.head:
        return request, []
    if not options.against:
        return request, undecidable(request, options.rule(), request.suite.repeat, paired=False)
    planned = looks(options)
    rule, pairs = options.rule(len(planned)), planned[-1]
    few = undecidable(request, rule, pairs)
    if options.noise is None:
        return request, few + blunt(request, rule, pairs)
    tolerances = raised(read_noise(options.noise, request.suite.suite), request, rule, pairs)
    return with_tolerances(request, tolerances), few + told(tolerances, request, rule)


def _new_folder(parent: Path) -> Path:
    folder = parent / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    with clear_errors(f"cannot create a folder in {parent}"):
        folder.mkdir(parents=True)
    return folder


def _stored(options: GateOptions, request: Request, console: Console) -> GateReport:
    """Judge a stored or a new run against a stored one; what has regressed in a new one is measured again."""
    suite, results = request.suite.suite, options.run.results
    base = open_run(str(options.baseline), results, suite, request.workload.name)
    if options.head:
        return _compared(
            base, open_run(options.head, results, suite, request.workload.name), request, options
        )
    report = _compared(base, _measured(options, request, console), request, options)
    if suspects := report.of(Verdict.REGRESSED):
        console.print(f"measured again in a second session: {plural(len(suspects), 'regression')}")
        again = _compared(base, _measured(options, request, console), request, options)
        return confirmed(report, again.judgements)
    return report


def _measured(options: GateOptions, request: Request, console: Console) -> Stored:
    session.run(replace(options.run, new=True), console)
    suite = request.suite.suite
    return read_run(run_folders(options.run.results, suite)[0], suite, request.workload.name)


def _compared(base: Stored, head: Stored, request: Request, options: GateOptions) -> GateReport:
    if head.folder.resolve() == base.folder.resolve():
        raise UserError("base and head are the same run", hint="give two runs, or leave out --head")
    rule = options.rule()
    wanted = {(cell.label, cell.seed) for cell in request.cells} if options.run.only else None
    judgements = judge(
        _only(base.side, wanted),
        _only(head.side, wanted),
        request.workload.metrics,
        request.suite.tolerances,
        paired=False,
        rule=rule,
        accept=options.accept,
        defaults=parameter_defaults(request.workload),
    )
    terms = Terms.of(rule, "stored", pairs=max((found.pairs for found in judgements), default=0))
    notes = [*base.notes, *head.notes, *_environment_notes(judgements)]
    names = (request.suite.suite, request.workload.name)
    return assemble(names, judgements, (base.info, head.info), terms, notes)


def _only(side: Side, wanted: set[tuple[str, int]] | None) -> Side:
    kept = tuple(r for r in side.records if wanted is None or (r.label, r.seed) in wanted)
    return replace(side, records=kept)


def _environment_notes(judgements: Sequence[Judgement]) -> list[str]:
    fields = list(dict.fromkeys(name for found in judgements for name in found.fields))
    if not fields:
        return []
    return [
        f"the fingerprints differ in {listed(fields, 8)}: exact metrics may agree, nothing else is compared "
        "(--accept FIELD to compare all the same)"
    ]
