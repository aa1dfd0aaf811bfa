"""Verdicts: did head get worse than base? Pure; records in, judgements out.

The class of a metric decides how it is compared. *Exact* metrics must be equal (or within a stated
tolerance); any change of one without a direction counts. *Near* metrics may differ by their tolerance,
on equal fingerprints only. *Noisy* metrics are decided together by ``bench.gate.rule``. A cell that was
measured and now fails has regressed, whatever its numbers were.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bench.gate.match import Match, Side, match
from bench.gate.metric import compare, judgement, judgement_of
from bench.gate.rule import Decision, Evidence, Rule, Verdict, decide
from bench.gate.verdict import STATUS, Judgement
from bench.results.record import Record, Status
from bench.run.loop import FAILED
from bench.workload import Metric

MOST_ONE_SIDED = 10_000  # cells that one side alone has, listed one by one


def judge(
    base: Side,
    head: Side,
    metrics: Sequence[Metric],
    tolerances: Mapping[str, float] | None = None,
    *,
    paired: bool,
    rule: Rule | None = None,
    accept: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
    cells: Sequence[Match] | None = None,
) -> list[Judgement]:
    """Judge every metric of every cell that either side knows.

    ``paired``: repetitions of the sides were measured next to each other in one session, so that equal
    repetitions form pairs. ``tolerances`` overrides those that the metrics declare. ``defaults`` are those
    of the parameters, for a side that does not know one. ``cells`` are the matches, if they are known.
    """
    rule = rule or Rule()
    granted = dict(tolerances or {})
    judgements: list[Judgement] = []
    noisy: list[tuple[int, Evidence]] = []
    matched = match(base, head, accept, defaults) if cells is None else cells
    listed, unlisted = _without_most_one_sided(matched)
    for cell in listed:
        judgements += _status(cell, base.lacking)
        if not cell.base or not cell.head:
            continue
        for metric in metrics:
            tolerance = granted.get(metric.name, metric.tolerance)
            found = compare(cell, metric, tolerance, paired=paired, rule=rule)
            if isinstance(found, Judgement):
                judgements.append(found)
            elif found is not None:
                noisy.append((len(judgements), found))
                judgements.append(_open(cell, metric, found))
    judgements += [_unlisted(*one) for one in unlisted.values()]
    decisions = decide([evidence for _, evidence in noisy], rule)
    for (place, evidence), decision in zip(noisy, decisions, strict=True):
        judgements[place] = _close(judgements[place], evidence, decision)
    return judgements


def _without_most_one_sided(cells: Sequence[Match]) -> tuple[list[Match], dict[bool, tuple[Match, int]]]:
    """The cells without those that one side alone has, but for the first `MOST_ONE_SIDED` of each side.

    What is left out comes as a first cell and a count, by whether it is of the base.
    """
    kept: list[Match] = []
    seen, left = {True: 0, False: 0}, dict[bool, tuple[Match, int]]()
    for cell in cells:
        if not (cell.base and cell.head):
            of_base = bool(cell.base)
            seen[of_base] += 1
            if seen[of_base] > MOST_ONE_SIDED:
                first, count = left.get(of_base, (cell, 0))
                left[of_base] = first, count + 1
                continue
        kept.append(cell)
    return kept, left


def _unlisted(cell: Match, count: int) -> Judgement:
    """One line for cells that are not listed one by one."""
    reason = "not measured any more" if cell.base else "not measured in the base"
    told = f"{reason}; only the first {MOST_ONE_SIDED:,} such cells are listed"
    one = judgement(cell, STATUS, "status", "status", Verdict.INCOMPARABLE, reason=told)
    return one.model_copy(update={"cell": f"… and {count:,} more", "params": {}, "seed": 0, "fields": []})


def _status(cell: Match, lacking: str = "") -> list[Judgement]:
    """A judgement if a cell is missing or did not end well somewhere; none if both sides are fine."""
    ends = [{record.status for record in side.values()} for side in (cell.base, cell.head)]
    if ends == [{Status.OK}, {Status.OK}]:
        return []
    was, now = (_ended(side) for side in (cell.base, cell.head))
    failed = [bool(found & FAILED) for found in ends]
    verdict = Verdict.INCOMPARABLE
    if not cell.head:
        reason = "not measured any more"
    elif not cell.base:
        reason = f"new: {lacking}" if lacking else "not measured in the base"
    elif Status.OK in ends[0] and failed[1] and (not failed[0] or Status.OK not in ends[1]):
        verdict, reason = Verdict.REGRESSED, f"was ok, now {now}"
    elif failed[0] and ends[1] == {Status.OK}:
        verdict, reason = Verdict.IMPROVED, f"now ok, was {was}"
    else:
        reason = f"base {was}; head {now}"
    return [judgement(cell, STATUS, "status", "status", verdict, reason=reason)]


def _ended(side: Mapping[int, Record]) -> str:
    """``oom in 1 of 6 processes: CUDA out of memory``, from the first process that did not end well."""
    bad = [record for record in side.values() if record.status is not Status.OK]
    if not bad:
        return "ok"
    share = "" if len(side) == 1 else f" in {len(bad)} of {len(side)} processes"
    return f"{bad[0].status}{share}: {bad[0].reason}"


def _open(cell: Match, metric: Metric, evidence: Evidence) -> Judgement:
    """A noisy metric before the whole family has been decided."""
    return judgement_of(cell, metric, evidence.effect)(Verdict.INCONCLUSIVE)


def _close(judgement: Judgement, evidence: Evidence, decision: Decision) -> Judgement:
    sign = 1 if judgement.direction == "lower" else -1
    base, head = (_mean(sign, side) for side in (evidence.base, evidence.head))
    limits = {}
    if decision.low is not None and decision.high is not None:
        low, high = sorted((_exp(sign * decision.low), _exp(sign * decision.high)))
        limits = {"ratio_low": low, "ratio_high": high}
    changed = {
        "verdict": decision.verdict,
        "reason": decision.reason,
        "base": base,
        "head": head,
        "difference": head - base,
        "ratio": head / base if decision.shift is None else _exp(sign * decision.shift),
        "p_value": decision.p_value,
        "p_adjusted": decision.p_adjusted,
        "pairs": decision.pairs,
        "more_pairs": decision.more_pairs,
        **limits,
    }
    return judgement.model_copy(update=changed)


def _mean(sign: int, logs: Sequence[float]) -> float:
    """Geometric mean, without the last digits that only stem from taking logarithms."""
    return float(f"{_exp(sign * sum(logs) / len(logs)):.12g}")


def _exp(log: float) -> float:
    return math.exp(max(-700.0, min(700.0, log)))
