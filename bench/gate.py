"""Verdicts: did head get worse than base? Pure; records in, judgements out.

The class of a metric decides how it is compared. *Exact* metrics must be equal (or within a stated
tolerance); any change of one without a direction counts. *Near* metrics may differ by their tolerance,
on equal fingerprints only. *Noisy* metrics are decided together by ``bench.gate_rule``. A cell that was
measured and now fails has regressed, whatever its numbers were.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench.gate_match import Match, Side, match
from bench.gate_rule import Decision, Evidence, Rule, Verdict, decide
from bench.gate_verdict import STATUS, Judgement
from bench.record import Record, Status
from bench.report.text import number
from bench.run import FAILED
from bench.stats import mean_shift
from bench.workload import Metric

_ROUNDING = 1e-9  # relative; what adding up in another order may change
_LEVEL = 0.025  # one-sided, for near metrics that scatter


def judge(
    base: Side,
    head: Side,
    metrics: Sequence[Metric],
    tolerances: Mapping[str, float] | None = None,
    *,
    paired: bool,
    rule: Rule | None = None,
    accept: Sequence[str] = (),
) -> list[Judgement]:
    """Judge every metric of every cell that either side knows.

    ``paired``: repetitions of the sides were measured next to each other in one session, so that equal
    repetitions form pairs. ``tolerances`` overrides those that the metrics declare.
    """
    rule = rule or Rule()
    granted = dict(tolerances or {})
    judgements: list[Judgement] = []
    noisy: list[tuple[int, Evidence]] = []
    for cell in match(base, head, accept):
        judgements += _status(cell)
        for metric in metrics:
            tolerance = granted.get(metric.name, metric.tolerance)
            found = _metric(cell, metric, tolerance, paired=paired, rule=rule)
            if isinstance(found, Judgement):
                judgements.append(found)
            elif found is not None:
                noisy.append((len(judgements), found))
                judgements.append(_open(cell, metric, found))
    decisions = decide([evidence for _, evidence in noisy], rule)
    for (place, evidence), decision in zip(noisy, decisions, strict=True):
        judgements[place] = _close(judgements[place], evidence, decision)
    return judgements


def failed_cells(side: Side, metrics: Iterable[Metric] = ()) -> int:
    """Cells of a side of which at least one process failed."""
    newest = {(record.cell, record.repeat): record for record in side.records}
    return len({(r.label, r.seed, str(r.params)) for r in newest.values() if r.status in FAILED})


def _status(cell: Match) -> list[Judgement]:
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
        reason = "not measured in the base"
    elif Status.OK in ends[0] and failed[1] and not failed[0]:
        verdict, reason = Verdict.REGRESSED, f"was ok, now {now}"
    elif failed[0] and ends[1] == {Status.OK}:
        verdict, reason = Verdict.IMPROVED, f"now ok, was {was}"
    else:
        reason = f"base {was}; head {now}"
    return [_judgement(cell, STATUS, "status", "status", verdict, reason=reason)]


def _ended(side: Mapping[int, Record]) -> str:
    """``oom in 1 of 6 processes: CUDA out of memory``, from the first process that did not end well."""
    bad = [record for record in side.values() if record.status is not Status.OK]
    if not bad:
        return "ok"
    share = "" if len(side) == 1 else f" in {len(bad)} of {len(side)} processes"
    return f"{bad[0].status}{share}: {bad[0].reason}"


def _metric(
    cell: Match, metric: Metric, tolerance: float, *, paired: bool, rule: Rule
) -> Judgement | Evidence | None:
    """A judgement, the evidence for one if the metric is noisy, or None if there is nothing to compare."""
    if metric.direction == "none" and metric.klass != "exact":
        return None
    kept = [[r for r in side.values() if r.status is Status.OK] for side in (cell.base, cell.head)]
    if not kept[0] or not kept[1]:
        return None  # the status says why
    values = [_values(records, metric.name) for records in kept]
    if not values[0] and not values[1]:
        return None  # measured on neither side
    named = _judgement_of(cell, metric, tolerance)
    if not values[0] or not values[1]:
        missing = kept[1] if values[0] else kept[0]
        where = "head" if values[0] else "base"
        reason = f"no value in {where}: {_why_missing(missing[0], metric.name)}"
        return named(Verdict.INCOMPARABLE, reason=reason, **_means(*values))
    if metric.klass == "exact":
        return _exact(cell, metric, tolerance, values, named)
    if cell.fields:
        reason = f"{_listed(cell.fields)} {'differs' if len(cell.fields) == 1 else 'differ'}"
        return named(Verdict.INCOMPARABLE, reason=reason, **_means(*values))
    if metric.klass == "near":
        return _near(cell, metric, tolerance, named)
    return _noisy(cell, metric, tolerance or rule.effect, values, named, paired=paired)


def _exact(cell: Match, metric: Metric, tolerance: float, values: list[list[float]], named: Any) -> Judgement:
    numbers = {"pairs": min(map(len, values)), **_means(*values)}
    if len(set(values[0])) > 1 and not _within(max(values[0]) - min(values[0]), tolerance, max(values[0])):
        reason = f"not the same in every process of the base: {_span(values[0])}"
        return named(Verdict.INCONCLUSIVE, reason=reason, **numbers)
    was = values[0][0]
    now = max(values[1], key=lambda value: (_worse(metric, value - was), abs(value - was)))
    difference = now - was
    numbers |= {"head": now, "base": was, "difference": difference}
    if _within(difference, tolerance, max(abs(was), abs(now)), exact=True):
        return named(Verdict.PASS, **numbers)
    if cell.fields:
        reason = f"{number(was)} → {number(now)}, but {_listed(cell.fields)} differ"
        return named(Verdict.INCOMPARABLE, reason=reason, **numbers)
    if metric.direction == "none":
        return named(Verdict.REGRESSED, reason="any change counts: neither direction is better", **numbers)
    varies = f"not the same in every process: {_span(values[1])}" if len(set(values[1])) > 1 else ""
    worse = _worse(metric, difference) > 0
    return named(Verdict.REGRESSED if worse else Verdict.IMPROVED, reason=varies, **numbers)


def _near(cell: Match, metric: Metric, tolerance: float, named: Any) -> Judgement:
    pairs = _paired(cell, metric.name)
    if not pairs:
        return named(Verdict.INCOMPARABLE, reason="no repetition was measured on both sides")
    base, head = [a for a, _ in pairs], [b for _, b in pairs]
    numbers = {"pairs": len(pairs), **_means(base, head)}
    worse = _worse(metric, numbers["difference"])
    if _within(worse, tolerance, max(map(abs, base + head))):
        return named(Verdict.PASS, **numbers)
    if len(pairs) > 1:
        shift = mean_shift(head, base, paired=True)
        if abs(shift.estimate) <= shift.bound(_LEVEL):
            reason = f"scatters by more than it differs over {len(pairs)} pairs"
            return named(Verdict.INCONCLUSIVE, reason=reason, **numbers)
    return named(Verdict.REGRESSED if worse > 0 else Verdict.IMPROVED, **numbers)


def _noisy(
    cell: Match, metric: Metric, effect: float, values: list[list[float]], named: Any, *, paired: bool
) -> Judgement | Evidence:
    if paired:
        pairs = _paired(cell, metric.name)
        values = [[a for a, _ in pairs], [b for _, b in pairs]]
    if not values[0]:
        return named(Verdict.INCOMPARABLE, reason="no repetition was measured on both sides")
    if min(map(min, values)) <= 0:
        same = set(values[0]) == set(values[1]) and len(set(values[0])) == 1
        verdict = Verdict.PASS if same else Verdict.INCOMPARABLE
        reason = "" if same else "a ratio needs positive values"
        return named(verdict, reason=reason, pairs=min(map(len, values)), **_means(*values))
    sign = 1 if metric.direction == "lower" else -1
    logs = [tuple(sign * math.log(value) for value in side) for side in values]
    return Evidence(logs[0], logs[1], effect, paired=paired)


def _open(cell: Match, metric: Metric, evidence: Evidence) -> Judgement:
    """A noisy metric before the whole family has been decided."""
    return _judgement_of(cell, metric, evidence.effect)(Verdict.INCONCLUSIVE)


def _close(judgement: Judgement, evidence: Evidence, decision: Decision) -> Judgement:
    sign = 1 if judgement.direction == "lower" else -1
    base, head = (math.exp(sign * sum(side) / len(side)) for side in (evidence.base, evidence.head))
    limits = {}
    if decision.low is not None and decision.high is not None:
        low, high = sorted((_ratio(sign * decision.low), _ratio(sign * decision.high)))
        limits = {"ratio_low": low, "ratio_high": high}
    changed = {
        "verdict": decision.verdict,
        "reason": decision.reason,
        "base": base,
        "head": head,
        "difference": head - base,
        "ratio": head / base,
        "p_value": decision.p_value,
        "p_adjusted": decision.p_adjusted,
        "pairs": decision.pairs,
        "more_pairs": decision.more_pairs,
        **limits,
    }
    return judgement.model_copy(update=changed)


def _judgement(cell: Match, metric: str, label: str, klass: Any, verdict: Verdict, **more: Any) -> Judgement:
    return Judgement(
        cell=cell.name,
        params=cell.params,
        seed=cell.seed,
        metric=metric,
        label=label,
        klass=klass,
        verdict=verdict,
        fields=cell.fields,
        **more,
    )


def _judgement_of(cell: Match, metric: Metric, tolerance: float) -> Any:
    """A maker of judgements on this metric of this cell."""

    def named(verdict: Verdict, **more: Any) -> Judgement:
        declared = {"unit": metric.unit, "direction": metric.direction, "tolerance": tolerance}
        return _judgement(cell, metric.name, metric.label, metric.klass, verdict, **declared, **more)

    return named


def _values(records: Iterable[Record], name: str) -> list[float]:
    found = (record.metrics.get(name) for record in records)
    return [value.value for value in found if value is not None and value.value is not None]


def _paired(cell: Match, name: str) -> list[tuple[float, float]]:
    couples = [_values(pair, name) for pair in cell.pairs if all(r.status is Status.OK for r in pair)]
    return [(values[0], values[1]) for values in couples if len(values) == 2]


def _why_missing(record: Record, name: str) -> str:
    value = record.metrics.get(name)
    return (value.reason if value else None) or "not reported"


def _means(base: Sequence[float], head: Sequence[float]) -> dict[str, Any]:
    was, now = (sum(side) / len(side) if side else None for side in (base, head))
    if was is None or now is None:
        return {"base": was, "head": now}
    ratio = now / was if was > 0 and now > 0 else None
    return {"base": was, "head": now, "difference": now - was, "ratio": ratio}


def _worse(metric: Metric, difference: float) -> float:
    """A difference with the sign turned so that positive is worse."""
    return abs(difference) if metric.direction == "none" else difference * _sign(metric)


def _sign(metric: Metric) -> int:
    return -1 if metric.direction == "higher" else 1


def _within(difference: float, tolerance: float, size: float, *, exact: bool = False) -> bool:
    """Whether a difference is no more than the tolerance, but for rounding of numbers of this size."""
    return abs(difference) <= tolerance + (0.0 if exact and not tolerance else _ROUNDING * abs(size))


def _ratio(log: float) -> float:
    return math.exp(max(-700.0, min(700.0, log)))


def _span(values: Sequence[float]) -> str:
    return f"{number(min(values))} … {number(max(values))}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
