"""A regression is said only if a second session has found it, too.

Whatever is common to all pairs of a session (where the worktree lies, how memory happened to be laid out,
what a neighbour did for those ten minutes) looks like a difference of the code, and no statistics over those
pairs can tell. It does not recur in fresh processes of another session. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from bench.gate.match import Side
from bench.gate.rule import Verdict
from bench.gate.show import change
from bench.gate.verdict import STATUS, GateReport, Judgement, count, exit_code
from bench.results.record import Record, canonical
from bench.text import plural
from bench.workload import Metric


def confirm(report: GateReport, again: Iterable[Judgement]) -> GateReport:
    """The report after a second session: what has not regressed ``again`` is inconclusive."""
    found = {_key(one): one for one in again}
    suspects = report.of(Verdict.REGRESSED)
    judgements = [
        _settled(one, found.get(_key(one))) if one.verdict is Verdict.REGRESSED else one
        for one in report.judgements
    ]
    left = sum(one.verdict is Verdict.REGRESSED for one in judgements)
    note = f"{plural(len(suspects), 'regression')} measured again in a second session: {left} recurred"
    return report.model_copy(
        update={
            "judgements": judgements,
            "counts": count(judgements),
            "exit_code": exit_code(judgements, report.head.failed_cells),
            "notes": [*report.notes, note],
        }
    )


def suspects_of(
    suspects: Sequence[Judgement], side: Side, metrics: Sequence[Metric]
) -> tuple[Side, list[Metric]]:
    """The records and metrics that a second session has to judge: the fewer, the more it can find."""
    cells, names = cells_of(suspects), {one.metric for one in suspects}
    kept = replace(side, records=tuple(record for record in side.records if cell_of(record) in cells))
    return kept, [metric for metric in metrics if metric.name in names]


def cells_of(judgements: Iterable[Judgement]) -> set[str]:
    """Keys of the cells that these are about."""
    return {cell_of(one) for one in judgements}


def cell_of(one: Judgement | Record) -> str:
    """Parameters and seed as one text."""
    return canonical([one.params, one.seed])


def _key(one: Judgement) -> tuple[str, str]:
    return cell_of(one), one.metric


def _settled(one: Judgement, again: Judgement | None) -> Judgement:
    if again is not None and again.verdict is Verdict.REGRESSED:
        return one
    told = "nothing to compare" if again is None else str(again.verdict)
    if again is not None and again.metric != STATUS:
        told += f", {change(again)}"
    reason = f"regressed in one session, but not in a second one ({told})"
    return one.model_copy(
        update={"verdict": Verdict.INCONCLUSIVE, "reason": reason, "more_pairs": None, "p_adjusted": None}
    )
