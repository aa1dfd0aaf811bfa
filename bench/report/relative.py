"""Headline metrics against the suite's reference: ratios, or differences where a metric need not be positive.

Seeds are one row. An interval is over seeds (and the samples that they share) where there are several:
repeats of a seed are averaged first, because they are no independent ones. Every summary says how many
seeds it has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from bench.report.buckets import exp
from bench.report.comparisons import compared_names, furthest_pairs
from bench.report.frames import RunData
from bench.report.select import CellPair, pairs, requested_seeds, split
from bench.report.spread import RANGE, Spread, spread_of_seeds
from bench.report.tables import ARROWS, Column, Entry, Table, name_columns, name_entries, reported_metrics
from bench.report.vocabulary import Vocabulary
from bench.results.record import Value, canonical
from bench.stats import is_mean_of, t_interval
from bench.text import Md, clean, number, plural
from bench.workload import Metric

Both = tuple[Value, Value]  # of a cell and of its reference, both measured


def relative(data: RunData) -> Table | None:
    """One row per setting. A metric that is positive everywhere is a ratio, one that is not a difference.

    Never the ratio of those cells that happen to be positive. None if the suite compares nothing.
    """
    compare = data.compare()
    metrics = [m for m in reported_metrics(data, headline=True) if m.direction != "none"]
    if compare is None or not metrics:
        return None
    found = furthest_pairs(data, pairs(data, *compare, data.ok))
    if not found:
        return None
    names = [n for n in compared_names(data, found, compare[0]) if n not in ("seed", "repeat")]
    measured = {m.name: [both for pair in found if (both := _both(data, pair, m.name))] for m in metrics}
    shown = [m for m in metrics if measured[m.name]]
    ratios = {m.name: all(min(_numbers(both)) > 0 for both in measured[m.name]) for m in shown}
    reference, kinds, wanted = clean(compare[1], 40), dict[str, None](), requested_seeds(data)
    columns = [Column(m.name, _header(m, ratio=ratios[m.name])) for m in shown]
    table = Table("relative", f"Relative to {reference}", [*name_columns(data, names), *columns])
    by_cell = {pair.cell: pair for pair in found}
    for _, rows in split(data.frame.loc[list(by_cell)], names):
        own = [by_cell[int(index)] for index in rows.index]
        cells = wanted[canonical(data.records[own[0].cell].params)]
        entries = name_entries(rows.iloc[0], names)
        for metric in shown:
            entries[metric.name] = _summary(data, own, metric.name, cells, kinds, ratio=ratios[metric.name])
        table.rows.append(entries)
    table.notes += [f"{m.label}: nowhere a value in both cells." for m in metrics if not measured[m.name]]
    table.notes.append(_footnote(reference, set(ratios.values()), list(kinds)))
    return table


def _header(metric: Metric, *, ratio: bool) -> str:
    unit = f" ({metric.unit})" if metric.unit and not ratio else ""
    return (metric.label if ratio else f"difference in {metric.label}{unit}") + ARROWS[metric.direction]


def _both(data: RunData, pair: CellPair, metric: str) -> Both | None:
    a, b = (data.records[i].metrics.get(metric) for i in pair)
    return (a, b) if a and b and a.value is not None and b.value is not None else None


def _numbers(both: Both) -> tuple[float, float]:
    a, b = (value.value for value in both)
    assert a is not None
    assert b is not None
    return float(a), float(b)


def _summary(
    data: RunData,
    own: Sequence[CellPair],
    metric: str,
    cells: set[tuple[int, int]],
    kinds: dict[str, None],
    *,
    ratio: bool,
) -> Entry:
    """One setting's number, over the seeds and repeats ``cells`` that were asked for; adds to ``kinds``."""
    seeds: dict[int, list[Both]] = {}
    for pair in own:
        if both := _both(data, pair, metric):
            seeds.setdefault(data.records[pair.cell].seed, []).append(both)
    if not seeds:
        return Entry(None, note="no value in both cells")
    estimate, found = _ratio(data.words, seeds) if ratio else _difference(data.words, seeds)
    text = ("× " if ratio else "") + number(estimate)
    if found:
        kinds[found.what] = None
        text += f" [{number(found.low)}, {number(found.high)}]"
    return Entry(estimate, Md(text + _count(seeds, cells)))


def _count(seeds: Mapping[int, Sequence[Both]], cells: set[tuple[int, int]]) -> str:
    """Of how many seeds a number is, or if there is one seed of how many repeats."""
    wanted = len({seed for seed, _ in cells})
    if wanted > 1:
        return f" ({len(seeds)} of {plural(wanted, 'seed')})"
    return f" ({sum(map(len, seeds.values()))} of {plural(len(cells), 'repeat')})" if len(cells) > 1 else ""


def _ratio(words: Vocabulary, seeds: Mapping[int, Sequence[Both]]) -> tuple[float, Spread | None]:
    """Geometric mean with the interval of the log-ratios."""
    logs = {seed: [_log_ratio(*_numbers(both)) for both in own] for seed, own in seeds.items()}
    mean, found = _student(words, logs)
    if found is None:
        return float(exp(mean)), None
    estimate, low, high = map(float, exp([mean, found.low, found.high]))
    return estimate, found._replace(estimate=estimate, low=low, high=high)


def _log_ratio(a: float, b: float) -> float:
    """The logarithm of a / b, also where the quotient is beyond what a float holds."""
    return math.log(a / b) if 0 < a / b < math.inf else math.log(a) - math.log(b)


def _difference(words: Vocabulary, seeds: Mapping[int, Sequence[Both]]) -> tuple[float, Spread | None]:
    """Mean difference, with an interval over seeds and the samples that they share, if there are any."""
    gaps = {seed: [_gap(a, b) for a, b in own] for seed, own in seeds.items()}
    numbers = {seed: [float(g.value) for g in own if g.value is not None] for seed, own in gaps.items()}
    mean, found = _student(words, numbers)
    better = spread_of_seeds(words, gaps)
    return mean, better if better is not None and better.what != RANGE else found


def _gap(a: Value, b: Value) -> Value:
    """A difference of values, with samples if both are means of samples that pair."""
    x, y = _numbers((a, b))
    left, right = np.array(a.samples or [], np.float64), np.array(b.samples or [], np.float64)
    paired = len(left) == len(right) and is_mean_of(x, left) and is_mean_of(y, right)
    return Value(value=x - y, unit=a.unit, samples=(left - right).tolist() if paired else None)


def _student(words: Vocabulary, seeds: Mapping[int, Sequence[float]]) -> tuple[float, Spread | None]:
    """Mean over seeds, each the mean of its repeats, with Student's interval; of one seed over repeats."""
    means = [float(np.mean(own)) for own in seeds.values()]
    values = means if len(means) > 1 else [*next(iter(seeds.values()))]
    if len(values) < 2:
        return means[0], None
    found = t_interval(values)
    repeats = f"repeats of one {words.replicate}" if words.replicated else "repeats"
    what = "seeds" if len(means) > 1 else repeats
    return found.estimate, Spread(
        found.estimate, found.low, found.high, f"95 % interval over {what}", len(means)
    )


def _footnote(reference: str, ratios: set[bool], kinds: Sequence[str]) -> str:
    """What the table's numbers are, and what their intervals cover."""
    words = {
        True: f"×: the value divided by that of {reference} in the cell that is otherwise equal",
        False: "difference: that cell's value subtracted, where a metric is not positive in every cell",
    }
    said = "; ".join(words[kind] for kind in (True, False) if kind in ratios)
    mean = " Means of ratios are geometric." if kinds and True in ratios else ""
    brackets = f" Brackets: {'; '.join(kinds)}." if kinds else ""
    return f"{said[:1].upper()}{said[1:]}.{mean}{brackets}"
