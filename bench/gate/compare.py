"""Runs side by side: every number beside the baseline's, by how much it differs, and how sure that is.

Pure: records in, rows out. Verdicts are the gate's (``bench.gate.judge.judge``), of values from different
sessions: what separate sessions may differ by is granted, and a number from another machine is
incomparable, with the field of the fingerprint that differs. Beside them stand intervals of the
difference where both runs kept what a metric was averaged over: series of the same inputs, entry by
entry, or equally many samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.gate.compare_seeds import OverSeeds, over_seeds
from bench.gate.judge import judge
from bench.gate.match import Match, Side, match
from bench.gate.rule import Verdict
from bench.gate.verdict import Judgement
from bench.results.environment import comparable
from bench.results.record import Record, Status
from bench.stats import Interval, is_mean_of, paired_block_bootstrap, t_interval
from bench.workload import Metric

Series = NDArray[np.float64]
Lookup = Callable[[Record, str], Series | None]
MOST_INTERVALS = 300  # bootstraps in one comparison; beyond, only the differences


def no_series(record: Record, name: str) -> Series | None:
    """Of a run whose artifacts are not at hand."""
    return None


@dataclass(frozen=True)
class ComparedRun:
    """One run: its records with their fingerprints, and where to find a record's series by name."""

    side: Side
    series: Lookup = no_series

    @property
    def name(self) -> str:
        """What the run is called."""
        return self.side.name


@dataclass(frozen=True)
class Row:
    """One metric of one cell of one run beside the baseline; ``interval`` is of the difference."""

    run: str
    judgement: Judgement
    interval: Interval | None = None
    basis: str = ""  # what the interval was computed from


@dataclass(frozen=True)
class Field:
    """A field of the fingerprint in which a run differs from the baseline."""

    run: str
    name: str
    baseline: str
    value: str


@dataclass(frozen=True)
class Comparison:
    """All rows of all runs, worst first, and what differs between the machines."""

    baseline: str
    runs: tuple[str, ...]
    rows: tuple[Row, ...]
    fields: tuple[Field, ...] = ()
    notes: tuple[str, ...] = field(default=())
    over_seeds: tuple[OverSeeds, ...] = ()
    replicate: str = "run"  # what a seed is, and what its samples are, in the words of the workload
    sample: str = "sample"

    @property
    def counts(self) -> dict[Verdict, int]:
        """How many numbers came to each verdict that was given, worst first."""
        found = Counter(row.judgement.verdict for row in self.rows)
        return {verdict: found[verdict] for verdict in ORDER if found[verdict]}

    @property
    def decided(self) -> bool:
        """Whether any two comparable numbers stand side by side."""
        return any(row.judgement.decided for row in self.rows)


ORDER = (Verdict.REGRESSED, Verdict.IMPROVED, Verdict.INCONCLUSIVE, Verdict.INCOMPARABLE, Verdict.PASS)


def compare(
    baseline: ComparedRun,
    others: Sequence[ComparedRun],
    metrics: Sequence[Metric],
    tolerances: Mapping[str, float] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Comparison:
    """Hold every run against the baseline. Cells are matched by parameters and seed, not by code version.

    A row is about one seed; several are summarised in ``over_seeds``.
    """
    rows: list[Row] = []
    fields: list[Field] = []
    seeds: list[OverSeeds] = []
    intervals = 0
    for other in others:
        matched = match(baseline.side, other.side, defaults=defaults)
        cells = {cell.name: cell for cell in matched}
        judged = judge(baseline.side, other.side, metrics, tolerances, paired=False, cells=matched)
        seeds += over_seeds(other.name, cells, judged)
        for judgement in judged:
            bounded = intervals < MOST_INTERVALS
            cell = cells.get(judgement.cell)  # none for a line about many
            found = _interval(cell, judgement, baseline, other) if bounded and cell else None
            intervals += found is not None
            rows.append(Row(other.name, judgement, *(found or ())))
        fields += differing(baseline.side, other.side)
    rows.sort(
        key=lambda row: (ORDER.index(row.judgement.verdict), row.judgement.klass != "status")
    )  # stable: else in the order of the suite
    return Comparison(
        baseline.name,
        tuple(run.name for run in others),
        tuple(rows),
        tuple(fields),
        _notes(rows),
        tuple(seeds),
    )


def _notes(rows: Sequence[Row]) -> tuple[str, ...]:
    if sum(row.interval is not None for row in rows) < MOST_INTERVALS:
        return ()
    return (f"Only the first {MOST_INTERVALS} differences have an interval",)


def _interval(
    cell: Match, judgement: Judgement, base: ComparedRun, head: ComparedRun
) -> tuple[Interval, str] | None:
    """Interval of head − base of a near metric whose sides may stand beside each other."""
    if judgement.klass != "near" or judgement.verdict is Verdict.INCOMPARABLE:
        return None
    pairs = [(a, b) for a, b in cell.pairs if a.status is b.status is Status.OK]
    values = [
        [record.metrics[judgement.metric].value for record in pair if judgement.metric in record.metrics]
        for pair in pairs
    ]
    gaps = [b - a for a, b in (v for v in values if len(v) == 2) if a is not None and b is not None]
    if len(gaps) > 1:
        return t_interval(gaps), f"{len(gaps)} repetitions"
    return next((found for a, b in pairs[:1] if (found := _within(a, b, judgement.metric, base, head))), None)


def _within(
    a: Record, b: Record, metric: str, base: ComparedRun, head: ComparedRun
) -> tuple[Interval, str] | None:
    """Interval from what two records averaged over: a series of that name, or samples, entry by entry."""
    series = base.series(a, metric), head.series(b, metric)
    if series[0] is not None and series[1] is not None and len(series[0]) == len(series[1]):
        with np.errstate(invalid="ignore"):
            gaps = series[1] - series[0]
        gaps = gaps[np.isfinite(gaps)]
        if len(gaps) > 1 and not gaps.any():
            return Interval(0.0, 0.0, 0.0, len(gaps)), f"{len(gaps):,} equal entries"
        if len(gaps) > 1:
            return paired_block_bootstrap(series[1], series[0]), f"{len(gaps):,} entries, block bootstrap"
    samples = [np.array(record.metrics[metric].samples or []) for record in (a, b)]
    if 2 < len(samples[0]) == len(samples[1]) and all(map(_is_mean, (a, b), (metric, metric))):
        return t_interval(samples[1] - samples[0]), f"{len(samples[0])} paired samples of this seed"
    return None


def _is_mean(record: Record, metric: str) -> bool:
    """Whether a metric's value is the mean of its samples, and not e.g. their median."""
    found = record.metrics[metric]
    return found.value is not None and is_mean_of(found.value, found.samples or [])


def differing(base: Side, head: Side) -> list[Field]:
    """The fields that move numbers and differ, with both values; each once, over all environments used."""
    found: dict[tuple[str, str, str], Field] = {}
    for a in {record.env for record in base.records}:
        for b in {record.env for record in head.records}:
            left, right = base.environments.get(a), head.environments.get(b)
            if left is None or right is None:
                missing = Field(head.name, "environment", _there(left), _there(right))
                found[missing.name, missing.baseline, missing.value] = missing
                continue
            for name in comparable(left, right):
                one = Field(head.name, name, _at(left, name), _at(right, name))
                found[one.name, one.baseline, one.value] = one
    return sorted(found.values(), key=lambda one: (one.name, one.baseline, one.value))


def _there(environment: Mapping[str, Any] | None) -> str:
    return "not recorded" if environment is None else "recorded"


def _at(environment: Mapping[str, Any], name: str) -> str:
    """A field by its dotted name, as text: ``packages.torch`` is ``2.13.0``."""
    if name == "gpus":
        cards = [f"{gpu.get('name')} (driver {gpu.get('driver')})" for gpu in environment.get("gpus") or []]
        return ", ".join(cards) or "none"
    section, _, key = name.partition(".")
    value: Any = environment.get(section)
    if key:
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
