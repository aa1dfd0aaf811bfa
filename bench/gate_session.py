"""One ``bench gate`` from the command line to the exit code: measure, judge, write, say.

What can be wrong with the request is found before anything is measured; verdict and summary are on the
disk before anything is printed or exported.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from bench import session
from bench.errors import UserError
from bench.gate import judge
from bench.gate_baseline import Stored, info, open_run, read_run
from bench.gate_match import Side
from bench.gate_rule import Rule, Verdict
from bench.gate_run import Asked, Session, Tree
from bench.gate_show import markdown, show
from bench.gate_tree import checked_out, toplevel
from bench.gate_verdict import GateReport, Judgement, Terms, count, exit_code
from bench.record import Record
from bench.report.text import clean, plural
from bench.request import Options, Request, prepare
from bench.rundir import locked, run_folders
from bench.store import clear_errors, write_atomic

VERDICT, SUMMARY = "verdict.json", "summary.md"


@dataclass(frozen=True)
class GateOptions:
    """What the command line may ask of a gate."""

    run: Options
    baseline: str | None = None
    against: str | None = None
    head: str | None = None  # a stored run to judge instead of measuring
    pairs: int = 6
    until_decided: bool = False
    max_pairs: int = 24
    alpha: float = 0.02
    allowance: float = 0.25
    accept: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    exports: Mapping[str, Path] = field(default_factory=dict)  # format → file
    github: bool = False


def gate(options: GateOptions, console: Console) -> int:
    """Judge, write the verdict, print it, export it; the exit code. Raises UserError."""
    _check(options)
    request = prepare(options.run)
    started = time.monotonic()
    folder = _new_folder(options.run.results / request.suite.suite / "gates")
    report = _interleaved(options, request, folder, console) if options.against else None
    report = report or _stored(options, request, console)
    report = report.model_copy(update={"duration_s": round(time.monotonic() - started, 3)})
    conclude(report, folder, options.exports, console, github=options.github)
    return report.exit_code


def conclude(
    report: GateReport, folder: Path, exports: Mapping[str, Path], console: Console, *, github: bool = False
) -> None:
    """Write verdict, summary and exports, then print."""
    write_atomic(folder / VERDICT, report.model_dump_json(indent=1) + "\n")
    write_atomic(folder / SUMMARY, markdown(report))
    from bench.export import gate_exports

    for kind, path in exports.items():
        with clear_errors(f"cannot write {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, gate_exports.render(kind, report))
    if github:
        gate_exports.annotate(report)
    show(report, console)
    console.print(f"verdict: [bold]{escape(str(folder / VERDICT))}[/]", soft_wrap=True, highlight=False)


def _check(options: GateOptions) -> None:
    if not options.baseline and not options.against:
        raise UserError("nothing to compare with", hint="give --against REF or --baseline RUN")
    if options.baseline and options.against:
        raise UserError("--baseline and --against exclude each other", hint="give one of them")
    if options.against and options.head:
        raise UserError("--head is for stored runs; --against measures both sides", hint="drop one of them")
    if options.until_decided and not options.against:
        raise UserError("--until-decided adds pairs, which --baseline has none of", hint="use --against REF")
    if not 0 < options.alpha < 0.5:
        raise UserError(f"--alpha {options.alpha:g}: should lie between 0 and 0.5", hint="for example 0.02")
    if options.until_decided and options.max_pairs < options.pairs:
        raise UserError(f"--max-pairs {options.max_pairs} is less than --pairs {options.pairs}")
    from bench.export import gate_exports

    gate_exports.check(options.exports)


def _new_folder(parent: Path) -> Path:
    folder = parent / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    with clear_errors(f"cannot create a folder in {parent}"):
        folder.mkdir(parents=True)
    return folder


# --- against a stored run --------------------------------------------------------------------------


def _stored(options: GateOptions, request: Request, console: Console) -> GateReport:
    suite, results = request.suite.suite, options.run.results
    base = open_run(str(options.baseline), results, suite, request.workload.name)
    if options.head:
        head = open_run(options.head, results, suite, request.workload.name)
    else:
        session.run(replace(options.run, new=True), console)
        head = read_run(run_folders(results, suite)[0], suite, request.workload.name)
    if head.folder.resolve() == base.folder.resolve():
        raise UserError("base and head are the same run", hint="give two runs, or leave out --head")
    rule = Rule(alpha=options.alpha, allowance=options.allowance)
    wanted = {cell.label for cell in request.cells} if options.run.only else None
    sides = [_only(stored.side, wanted) for stored in (base, head)]
    judgements = judge(
        *sides,
        request.workload.metrics,
        request.suite.tolerances,
        paired=False,
        rule=rule,
        accept=options.accept,
    )
    notes = [*base.notes, *head.notes, *_environment_notes(judgements)]
    return _report(request, judgements, (base, head), rule, notes)


def _only(side: Side, labels: set[str] | None) -> Side:
    kept = tuple(r for r in side.records if labels is None or r.label in labels)
    return replace(side, records=kept)


def _environment_notes(judgements: Sequence[Judgement]) -> list[str]:
    fields = list(dict.fromkeys(name for found in judgements for name in found.fields))
    if not fields:
        return []
    listed = ", ".join(fields[:8]) + (f" and {len(fields) - 8} more" if len(fields) > 8 else "")
    return [
        f"the fingerprints differ in {listed}: exact metrics may agree, nothing else is compared "
        "(--accept FIELD to compare all the same)"
    ]


def _report(
    request: Request, judgements: list[Judgement], sides: tuple[Stored, Stored], rule: Rule, notes: list[str]
) -> GateReport:
    terms = Terms(
        mode="stored",
        alpha=rule.alpha,
        miss=rule.miss,
        effect=rule.effect,
        allowance=rule.allowance,
        looks=1,
        pairs=max((found.pairs for found in judgements), default=0),
    )
    base, head = sides
    return assemble(request, judgements, base.info, head.info, terms, notes)


def assemble(
    request: Request, judgements: list[Judgement], base: Any, head: Any, terms: Terms, notes: Sequence[str]
) -> GateReport:
    """The verdict file of these judgements."""
    return GateReport(
        suite=request.suite.suite,
        workload=request.workload.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        base=base,
        head=head,
        terms=terms,
        notes=list(notes),
        counts=count(judgements),
        exit_code=exit_code(judgements, head.failed_cells),
        judgements=judgements,
    )


# --- against a git ref -----------------------------------------------------------------------------


def _interleaved(options: GateOptions, request: Request, folder: Path, console: Console) -> GateReport:
    root = toplevel(Path.cwd())
    with ExitStack() as stack:
        stack.enter_context(locked(folder.parent.parent, wait=options.run.wait))
        base = stack.enter_context(checked_out(str(options.against), root, options.extras))
        head = Tree("the working tree", root)
        console.print(f"base: {escape(base.name)}, on {escape(base.prepared)}", highlight=False)
        asked = Asked(
            options.run.suite,
            options.run.only,
            options.run.overrides,
            repeats=options.max_pairs if options.until_decided else options.pairs,
        )
        measured = stack.enter_context(Session.start(base, head, asked, folder))
        return compare(measured, request, options, console)


def compare(measured: Session, request: Request, options: GateOptions, console: Console) -> GateReport:
    """Measure pairs and judge them, again and again if asked to, until everything is decided."""
    looks = schedule(options.pairs, options.max_pairs if options.until_decided else options.pairs)
    rule = Rule(alpha=options.alpha, allowance=options.allowance, looks=len(looks))
    known: dict[tuple[str, str], Judgement] = {}
    wanted: set[str] | None = None  # labels of cells still undecided
    for pairs in looks:
        _measure(measured, pairs - measured.pairs, wanted, console)
        found = judge(
            *_sides(measured), request.workload.metrics, request.suite.tolerances, paired=True, rule=rule,
            accept=("*",),
        )  # fmt: skip
        for one in found:  # what was decided at an earlier look stays decided
            key = (one.cell, one.metric)
            if key not in known or known[key].verdict is Verdict.INCONCLUSIVE:
                known[key] = one
        undecided = [one for one in known.values() if one.verdict is Verdict.INCONCLUSIVE]
        if not undecided:
            break
        cells = {one.cell for one in undecided}
        wanted = {r.label for r in measured.head.records if any(c.startswith(r.label) for c in cells)}
    base, head = (_info(side) for side in (measured.base, measured.head))
    terms = Terms(
        mode="interleaved",
        alpha=rule.alpha,
        miss=rule.miss,
        effect=rule.effect,
        allowance=rule.allowance,
        looks=rule.looks,
        pairs=measured.pairs,
    )
    return assemble(request, list(known.values()), base, head, terms, _notes(measured))


def schedule(pairs: int, limit: int) -> list[int]:
    """Numbers of pairs at which to look: doubling up to the limit, every look planned beforehand."""
    looks = [pairs]
    while looks[-1] < limit:
        looks.append(min(2 * looks[-1], limit))
    return looks


def _measure(measured: Session, pairs: int, wanted: set[str] | None, console: Console) -> None:
    total = measured.pairs + pairs

    def tell(side: str, repeat: int, records: Sequence[Record]) -> None:
        ends = ", ".join(dict.fromkeys(str(record.status) for record in records))
        label = clean(records[-1].label, 80)
        console.print(f"pair {repeat + 1}/{total} {side}: {escape(label)} {ends}", highlight=False)

    measured.measure(pairs, (lambda label: True) if wanted is None else wanted.__contains__, tell)


def _sides(measured: Session) -> tuple[Side, Side]:
    base, head = (
        Side(
            side.tree.name,
            tuple(side.records),
            {side.ready["fingerprint"]["id"]: side.ready["fingerprint"]},
        )
        for side in (measured.base, measured.head)
    )
    return base, head


def _info(side: Any) -> Any:
    env = side.ready["fingerprint"]
    records = Side(side.tree.name, tuple(side.records))
    return info(records, {"version": side.ready["version"]}, env, side.tree.prepared)


def _notes(measured: Session) -> list[str]:
    from bench.env import comparable

    base, head = (side.ready["fingerprint"] for side in (measured.base, measured.head))
    notes = []
    if differing := comparable(base, head):
        notes.append(f"the sides run on other packages, which is part of the comparison: {', '.join(differing)}")
    if measured.base.ready["version"] == measured.head.ready["version"]:
        notes.append("both sides run the same code of this workload")
    if not measured.aligned:
        notes.append("the sides plan the suite differently: measured in turn as a whole, not pass by pass")
    return notes


def schema() -> str:
    """JSON Schema of the verdict file."""
    return json.dumps(GateReport.model_json_schema(), indent=2) + "\n"


__all__ = ["GateOptions", "assemble", "compare", "conclude", "gate", "plural", "schedule", "schema"]
