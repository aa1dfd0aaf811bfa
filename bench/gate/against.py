"""Base and head in one session: pairs of processes, judged once or until everything is decided.

How often the data are looked at is fixed beforehand (twice as many pairs each time, up to the limit) and
paid for in significance, so that asking until the answer pleases does not make an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from bench.gate.baseline import info
from bench.gate.commits import tidy, toplevel
from bench.gate.confirm import cells_of, confirm, suspects_of
from bench.gate.judge import judge
from bench.gate.match import Side
from bench.gate.options import GateOptions
from bench.gate.pairs import PairSession, SideProcess, Tree
from bench.gate.rule import Verdict
from bench.gate.scope import Asked
from bench.gate.tree import checked_out, elsewhere
from bench.gate.verdict import GateReport, Judgement, SideInfo, Terms, assemble
from bench.results.environment import comparable
from bench.results.folder import locked
from bench.results.record import Record, canonical
from bench.run.interrupt import Interrupts
from bench.suite.request import Request
from bench.text import clean, plural
from bench.workload import Metric

AGAIN = "again"  # folder of the second session


def against(options: GateOptions, request: Request, folder: Path, console: Console) -> GateReport:
    """Measure the code of a git ref and that of the working tree in turn, and judge.

    What seems to have regressed is measured again in a second session: other processes, another worktree.
    """
    root = toplevel(Path.cwd())
    asked = Asked.of(request, options.run, repeats=planned_looks(options)[-1])
    head = Tree("the working tree", root)
    with ExitStack() as stack:
        stack.enter_context(Interrupts())  # a cancelled job removes worktree and processes, too
        stack.enter_context(locked(folder.parent.parent, wait=options.run.wait))
        if left := tidy():
            console.print(f"tidied up after {plural(left, 'gate')} that had been killed", highlight=False)
        tree = checked_out(str(options.against), root, options.extras, tip=options.tip, results=folder)
        base = stack.enter_context(tree)
        console.print(f"base: {escape(base.name)}, on {escape(base.prepared)}", highlight=False)
        with PairSession.start(base, head, asked, folder) as measured:
            report = compare(measured, request, options, console)
        if not (suspects := report.of(Verdict.REGRESSED)):
            return report
        console.print(f"measured again in a second session: {plural(len(suspects), 'regression')}")
        again = stack.enter_context(elsewhere(base, root))
        with PairSession.start(again, head, asked, folder / AGAIN) as second:
            return confirm(report, judge_pairs(second, request, options, console, suspects))


def compare(measured: PairSession, request: Request, options: GateOptions, console: Console) -> GateReport:
    """Measure and judge in one session."""
    first = measured.pairs
    judgements = judge_pairs(measured, request, options, console)
    terms = Terms.of(options.rule(len(planned_looks(options))), "interleaved", measured.pairs - first)
    sides = [_info(side, first) for side in (measured.base, measured.head)]
    names = (request.suite.suite, request.workload.name)
    return assemble(names, judgements, (sides[0], sides[1]), terms, _notes(measured))


def judge_pairs(
    measured: PairSession,
    request: Request,
    options: GateOptions,
    console: Console,
    suspects: Sequence[Judgement] = (),
) -> list[Judgement]:
    """Add pairs and judge them, at every planned look, until everything is decided.

    ``suspects`` limit that to their cells and metrics.
    """
    planned = planned_looks(options)
    rule = options.rule(len(planned))
    first = measured.pairs
    known: dict[tuple[str, str], Judgement] = {}
    wanted = _labels(request, suspects) if suspects else None
    for pairs in planned:
        measure(measured, first + pairs - measured.pairs, wanted, console)
        base, head = (side_of(side, first) for side in (measured.base, measured.head))
        metrics: Sequence[Metric] = request.workload.metrics
        if suspects:
            head, metrics = suspects_of(suspects, head, metrics)
        for one in judge(
            base,
            head,
            metrics,
            request.suite.tolerances,
            paired=True,
            rule=rule,
            accept=("*",),
            defaults=measured.defaults,
        ):
            if known.get((one.cell, one.metric), one).verdict in (one.verdict, Verdict.INCONCLUSIVE):
                known[one.cell, one.metric] = one  # what was decided at an earlier look stays decided
        undecided = [one for one in known.values() if one.verdict is Verdict.INCONCLUSIVE]
        if not undecided:
            break
        wanted = _labels(request, undecided)
    return list(known.values())


def _labels(request: Request, judgements: Sequence[Judgement]) -> set[str]:
    """What head calls the cells that these are about."""
    cells = cells_of(judgements)
    return {cell.label for cell in request.cells if canonical([cell.params, cell.seed]) in cells}


def schedule(pairs: int, limit: int) -> list[int]:
    """Numbers of pairs at which to look: doubling up to the limit."""
    planned = [pairs]
    while planned[-1] < limit:
        planned.append(min(2 * planned[-1], limit))
    return planned


def planned_looks(options: GateOptions) -> list[int]:
    """Numbers of pairs at which this gate looks."""
    return schedule(options.pairs, options.max_pairs if options.until_decided else options.pairs)


def measure(measured: PairSession, pairs: int, wanted: set[str] | None, console: Console) -> None:
    """Add pairs, a line for each pass; ``wanted`` limits them to passes with a cell of such a label."""
    total = measured.pairs + pairs

    def tell(side: str, repeat: int, records: Sequence[Record]) -> None:
        ends = ", ".join(dict.fromkeys(str(record.status) for record in records))
        label = clean(records[-1].label, 80)
        console.print(f"pair {repeat + 1}/{total} {side}: {escape(label)} {ends}", highlight=False)

    measured.measure(pairs, (lambda label: True) if wanted is None else wanted.__contains__, tell)


def side_of(side: SideProcess, first: int = 0) -> Side:
    """What a side has measured from repetition ``first`` on."""
    env = side.ready["fingerprint"]
    records = tuple(record for record in side.records if record.repeat >= first)
    return Side(side.tree.name, records, {env["id"]: env}, side.ready["lacking"])


def _info(side: SideProcess, first: int) -> SideInfo:
    plan = {"version": side.ready["version"]}
    return info(side_of(side, first), plan, side.ready["fingerprint"], side.tree.prepared)


def _notes(measured: PairSession) -> list[str]:
    base, head = (side.ready for side in (measured.base, measured.head))
    notes = []
    if differing := comparable(base["fingerprint"], head["fingerprint"]):
        listed = ", ".join(differing)
        notes.append(f"the sides run on other packages, which is part of the comparison: {listed}")
    if base["version"] == head["version"]:
        notes.append("both sides run the same code of this workload")
    if measured.new:
        told = f"{plural(measured.new, 'cell')} of the suite {'is' if measured.new == 1 else 'are'} new"
        lacking = base["lacking"]
        notes.append(f"{told} and not judged: the base has no such cell{f' ({lacking})' if lacking else ''}")
    if not measured.aligned:
        notes.append("the sides plan the suite differently: measured in turn as a whole, not pass by pass")
    return notes
