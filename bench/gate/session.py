"""One ``bench gate`` from the command line to the exit code: measure, judge, write, say.

What can be wrong with the request is found before anything is measured; verdict and summary are on the
disk before anything is printed or exported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from bench.errors import UserError, listed
from bench.gate.against import against, planned_looks
from bench.gate.baseline import Stored, open_run, read_run
from bench.gate.commits import VERDICT
from bench.gate.confirm import confirm
from bench.gate.judge import judge
from bench.gate.match import match
from bench.gate.noise import (
    read_noise,
    resolvable_tolerances,
    sharpness_warning,
    tolerance_note,
    undecidable,
    with_tolerances,
)
from bench.gate.options import GateOptions
from bench.gate.rule import Verdict
from bench.gate.scope import parameter_defaults
from bench.gate.show import markdown, show
from bench.gate.verdict import GateReport, Judgement, Terms, assemble
from bench.results.folder import name_after, run_folders
from bench.results.record import setting_of
from bench.results.store import clear_errors, write_atomic
from bench.run.session import Draw, run
from bench.suite.request import Request, prepare
from bench.text import plural

SUMMARY = "summary.md"
Export = Callable[[GateReport], None]


def gate(options: GateOptions, console: Console, draw: Draw, export: Export) -> int:
    """Judge, write the verdict, ``export`` and print it; the exit code. Raises UserError.

    A run that is measured to be held against a stored one is drawn by ``draw``, like any other.
    """
    options.check()
    request = prepare(options.run)
    request, warnings = _foreseen(options, request)
    for warning in warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True, highlight=False)
    started = time.monotonic()
    folder = _new_folder(options.run.results / request.suite.suite / "gates")
    try:
        if options.against:
            report = against(options, request, folder, console)
        else:
            report = _stored(options, request, console, draw)
    except BaseException:
        with suppress(OSError):  # unless something was measured: logs and records stay
            folder.rmdir()
        raise
    more = {"duration_s": round(time.monotonic() - started, 3), "notes": [*warnings, *report.notes]}
    report = report.model_copy(update=more)
    conclude(report, folder, console, export)
    return report.exit_code


def conclude(report: GateReport, folder: Path, console: Console, export: Export) -> None:
    """Write verdict and summary, export, then print."""
    write_atomic(folder / VERDICT, report.json_text())
    write_atomic(folder / SUMMARY, markdown(report))
    export(report)
    show(report, console)
    console.print(f"verdict: [bold]{escape(str(folder / VERDICT))}[/]", soft_wrap=True, highlight=False)


def _foreseen(options: GateOptions, request: Request) -> tuple[Request, list[str]]:
    """The request with thresholds of this machine, and what should be known before measuring."""
    if options.head:
        return request, []
    if not options.against:
        return request, undecidable(request, options.rule(), request.suite.repeat, paired=False)
    planned = planned_looks(options)
    rule, pairs = options.rule(len(planned)), planned[-1]
    few = undecidable(request, rule, pairs)
    if options.noise is None:
        return request, few + sharpness_warning(request, rule, pairs)
    tolerances = resolvable_tolerances(read_noise(options.noise, request.suite.suite), request, rule, pairs)
    return with_tolerances(request, tolerances), few + tolerance_note(tolerances, request, rule)


def _new_folder(parent: Path) -> Path:
    folder = parent / name_after(max(parent.glob("*"), default=None))
    with clear_errors(f"cannot create a folder in {parent}"):
        folder.mkdir(parents=True)
    return folder


def _stored(options: GateOptions, request: Request, console: Console, draw: Draw) -> GateReport:
    """Judge a stored or a new run against a stored one; what has regressed in a new one is measured again."""
    suite, results = request.suite.suite, options.run.results
    base = open_run(str(options.baseline), results, suite, request.workload.name)
    if options.head:
        return _compared(
            base, open_run(options.head, results, suite, request.workload.name), request, options
        )
    report = _compared(base, _measured(options, request, console, draw), request, options)
    if suspects := report.of(Verdict.REGRESSED):
        console.print(f"measured again in a second session: {plural(len(suspects), 'regression')}")
        again = _compared(base, _measured(options, request, console, draw), request, options)
        return confirm(report, again.judgements)
    return report


def _measured(options: GateOptions, request: Request, console: Console, draw: Draw) -> Stored:
    run(replace(options.run, new=True), console, draw)
    suite = request.suite.suite
    return read_run(run_folders(options.run.results, suite)[0], suite, request.workload.name)


def _compared(base: Stored, head: Stored, request: Request, options: GateOptions) -> GateReport:
    if head.folder.resolve() == base.folder.resolve():
        raise UserError("base and head are the same run", hint="give two runs, or leave out --head")
    rule = options.rule()
    defaults = parameter_defaults(request.workload)
    cells = match(base.side, head.side, options.accept, defaults)
    if options.run.only or (options.head and options.run.overrides):  # --set names cells of stored runs, too
        wanted = {(setting_of(cell.params), cell.seed) for cell in request.cells}
        cells = [one for one in cells if one.asked.question in wanted]
    judgements = judge(
        base.side,
        head.side,
        request.workload.metrics,
        request.suite.tolerances,
        paired=False,
        rule=rule,
        cells=cells,
    )
    terms = Terms.of(rule, "stored", pairs=max((found.pairs for found in judgements), default=0))
    notes = [*base.notes, *head.notes, *_environment_notes(judgements)]
    names = (request.suite.suite, request.workload.name)
    return assemble(names, judgements, (base.info, head.info), terms, notes)


def _environment_notes(judgements: Sequence[Judgement]) -> list[str]:
    fields = list(dict.fromkeys(name for found in judgements for name in found.fields))
    if not fields:
        return []
    return [
        f"the fingerprints differ in {listed(fields, 8)}: exact metrics may agree, nothing else is compared "
        "(--accept FIELD to compare all the same)"
    ]
