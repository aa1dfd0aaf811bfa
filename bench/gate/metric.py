"""One metric of one cell on both sides, compared as its class demands.

Exact and near metrics are judged here and now; of a noisy one only the evidence is collected, because it
is decided together with all others of the gate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from bench.errors import listed
from bench.gate.match import Match, holds_own_imports
from bench.gate.rule import Evidence, Rule, Verdict
from bench.gate.verdict import Judgement
from bench.results.record import Record, Status
from bench.stats import mean_shift
from bench.text import number
from bench.workload import Metric

_ROUNDING = 1e-9  # relative; what adding up in another order may change
_LEVEL = 0.025  # one-sided, for near metrics that scatter


def compare(
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
    named = judgement_of(cell, metric, tolerance)
    if not values[0] or not values[1]:
        missing = kept[1] if values[0] else kept[0]
        where = "head" if values[0] else "base"
        reason = f"no value in {where}: {_why_missing(missing[0], metric.name)}"
        return named(Verdict.INCOMPARABLE, reason=reason, **_means(*values))
    if len({holds_own_imports(record, metric) for side in kept for record in side}) > 1:
        reason = "a child had not its modules from the fork server (preloaded in the records): more memory"
        return named(Verdict.INCOMPARABLE, reason=reason, **_means(*values))
    if metric.klass == "exact":
        return _exact(cell, metric, tolerance, values, named)
    if cell.fields:
        reason = f"{listed(cell.fields)} {'differs' if len(cell.fields) == 1 else 'differ'}"
        return named(Verdict.INCOMPARABLE, reason=reason, **_means(*values))
    if metric.klass == "near":
        return _near(cell, metric, tolerance, named)
    return _noisy(cell, metric, tolerance or rule.effect, values, named, paired=paired)


def _exact(cell: Match, metric: Metric, tolerance: float, values: list[list[float]], named: Any) -> Judgement:
    numbers = {"pairs": min(map(len, values)), **_means(*values)}
    spread = max(values[0]) - min(values[0])
    if not _within(spread, tolerance, max(values[0]), exact=True):
        reason = f"not the same in every process of the base: {_span(values[0])}"
        return named(Verdict.INCONCLUSIVE, reason=reason, **numbers)
    was = values[0][0]
    now = max(values[1], key=lambda value: (_worse(metric, value - was), abs(value - was)))
    difference = now - was
    numbers |= {"head": now, "base": was, "difference": difference}
    if _within(difference, tolerance, max(abs(was), abs(now)), exact=True):
        return named(Verdict.PASS, **numbers)
    if cell.fields:
        reason = f"{number(was)} → {number(now)}, but {listed(cell.fields)} differ"
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


def judgement(cell: Match, metric: str, label: str, klass: Any, verdict: Verdict, **more: Any) -> Judgement:
    """A judgement on this cell."""
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


def judgement_of(cell: Match, metric: Metric, tolerance: float) -> Any:
    """Makes judgements on this metric of this cell: ``(verdict, **fields) -> Judgement``."""

    def named(verdict: Verdict, **more: Any) -> Judgement:
        declared = {"unit": metric.unit, "direction": metric.direction, "tolerance": tolerance}
        return judgement(cell, metric.name, metric.label, metric.klass, verdict, **declared, **more)

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
    was, now = (_mean(side) if side else None for side in (base, head))
    if was is None or now is None:
        return {"base": was, "head": now}
    quotient = now / was if was > 0 and now > 0 else math.inf
    ratio = quotient if math.isfinite(quotient) else None
    return {"base": was, "head": now, "difference": now - was, "ratio": ratio}


def _mean(values: Sequence[float]) -> float:
    total = sum(values)
    return total / len(values) if math.isfinite(total) else sum(value / len(values) for value in values)


def _worse(metric: Metric, difference: float) -> float:
    """A difference with the sign turned so that positive is worse."""
    return abs(difference) if metric.direction == "none" else difference * _sign(metric)


def _sign(metric: Metric) -> int:
    return -1 if metric.direction == "higher" else 1


def _within(difference: float, tolerance: float, size: float, *, exact: bool = False) -> bool:
    """Whether a difference is no more than the tolerance, but for rounding of numbers of this size."""
    return abs(difference) <= tolerance + (0.0 if exact and not tolerance else _ROUNDING * abs(size))


def _span(values: Sequence[float]) -> str:
    return f"{number(min(values))} … {number(max(values))}"
