"""Metrics over runs as data: the values of every cell, oldest run first, and where their level stepped.

Steps are found by PELT (``ruptures``) on the logarithms, its penalty set from the noise between
neighbouring runs, and count only if they exceed the metric's tolerance.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.gate.match import holds_own_imports
from bench.results.environment import comparable
from bench.results.record import Record, Status
from bench.suite.labels import spelt, varying
from bench.workload import Metric

Question = tuple[str, int]  # a setting and a seed


@dataclass(frozen=True)
class TrackPoint:
    """One run's value: the mean over its repetitions (geometric for noisy metrics)."""

    run: str
    started: str  # ISO 8601, UTC
    value: float
    commit: str | None
    environment: Mapping[str, Any]


@dataclass(frozen=True)
class LevelStep:
    """From run ``at`` on the metric has another level."""

    at: int  # index of the first point of the new level
    before: float
    after: float
    worse: bool | None  # None: the metric has no direction
    environment: list[str] = field(default_factory=list)  # fingerprint fields that changed there


@dataclass(frozen=True)
class Track:
    """One metric of one cell over the runs, oldest first."""

    cell: str
    metric: Metric
    points: list[TrackPoint]
    steps: list[LevelStep]


def _measured(records: Sequence[Record]) -> dict[Question, list[Record]]:
    """Records that are ok, by what was asked; of a repetition the newest."""
    cells: dict[Question, list[Record]] = {}
    for record in {(r.cell, r.repeat): r for r in records}.values():
        if record.status is Status.OK:
            cells.setdefault(record.question, []).append(record)
    return cells


def _labels(cells: Mapping[Question, Record], wanted: Set[Question]) -> dict[Question, str]:
    """Names of cells by key, of all that share a label with a wanted one.

    A run names its own apart; those of other runs may be called the same.
    """
    groups: dict[str, list[Question]] = {}
    for key, record in cells.items():
        said = record.label.endswith(f" · seed {record.seed}")  # in a suite of several seeds
        own = f", seed {record.seed}" if record.seed and not said else ""
        groups.setdefault(record.label + own, []).append(key)
    found = {}
    for label, keys in groups.items():
        if wanted.isdisjoint(keys):
            continue
        params = [cells[key].params for key in keys]
        names = varying(params)
        for key, one in zip(keys, params, strict=True):
            more = ", ".join(f"{name}={spelt(one.get(name))}" for name in names)
            found[key] = f"{label} ({more})" if more else label
    return found


def follow(
    runs: Sequence[tuple[Sequence[Record], Mapping[str, Any]]], metrics: Sequence[Metric]
) -> list[Track]:
    """Tracks of all cells measured in at least two runs; a run is its records and its fingerprint."""
    values: dict[tuple[Question, str], list[TrackPoint]] = {}
    ordered = sorted(runs, key=lambda run: min(record.started for record in run[0]))
    questions = [_measured(records) for records, _ in ordered]
    again = {key for key, count in Counter(key for one in questions for key in one).items() if count > 1}
    newest = {key: alike[-1] for one in questions for key, alike in one.items()}
    for cells, (_, env) in zip(questions, ordered, strict=True):
        for key, alike in cells.items():
            if key not in again:  # nothing to follow: its values need not be read
                continue
            for metric in metrics:
                found = [
                    v.value
                    for r in alike
                    if (v := r.metrics.get(metric.name))
                    and v.value is not None
                    and not holds_own_imports(r, metric)
                ]
                if found:
                    own = _fingerprint(env, alike[0].env)
                    point = TrackPoint(
                        alike[0].run, alike[0].started, _mean(found, metric), _commit(own), own
                    )
                    values.setdefault((key, metric.name), []).append(point)
    named, labels = {metric.name: metric for metric in metrics}, _labels(newest, again)
    return [
        Track(labels[key], named[name], points, steps(points, named[name]))
        for (key, name), points in values.items()
        if len(points) > 1
    ]


def steps(points: Sequence[TrackPoint], metric: Metric) -> list[LevelStep]:
    """Where the level changes for good: by more than the tolerance, and by more than the noise explains."""
    values = np.array([point.value for point in points])
    relative = metric.klass == "noisy" and bool((values > 0).all())
    signal = np.log(values) if relative else values
    effect = math.log1p(metric.tolerance or 0.05) if relative else max(metric.tolerance, 0.0)
    found = []
    for at, low, high in _changes(signal, effect, exact=metric.klass == "exact"):
        before, after = _level(values[low:at]), _level(values[at:high])
        worse = None if metric.direction == "none" else (after > before) == (metric.direction == "lower")
        changed = comparable(points[at - 1].environment, points[at].environment)
        found.append(LevelStep(at, before, after, worse, changed))
    return found


def _changes(signal: NDArray[np.float64], effect: float, *, exact: bool) -> list[tuple[int, int, int]]:
    """Change points with the ends of the levels on either side of them."""
    import ruptures
    from scipy.ndimage import median_filter

    if np.ptp(signal) <= effect or len(signal) < (2 if exact else 4):
        return []
    # Steps are rare, so the middle of the absolute differences of neighbours is noise (over 0.6745·√2).
    noise = 0.0 if exact else float(np.median(np.abs(np.diff(signal)))) / 0.954
    scale = max(noise, effect / 4, float(np.ptp(signal)) * 1e-6)
    # A median of three removes lone outliers, the newest run included, and leaves steps where they are.
    smooth = signal if exact else median_filter(signal, size=3, mode="mirror")
    search = ruptures.Pelt(model="l2", min_size=1 if exact else 2, jump=1).fit(smooth / scale)
    edges = [0, *search.predict(pen=3 * math.log(len(signal)))]
    found = []
    for low, at, high in zip(edges, edges[1:], edges[2:], strict=False):
        if abs(_level(signal[at:high]) - _level(signal[low:at])) > effect:
            found.append((at, low, high))
    return found


def _mean(values: Sequence[float], metric: Metric) -> float:
    if metric.klass == "noisy" and min(values) > 0:
        return math.exp(sum(map(math.log, values)) / len(values))
    return sum(values) / len(values)


def _level(values: NDArray[np.float64]) -> float:
    return float(np.median(values))


def _fingerprint(env: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The fingerprint that a record names: a run that went on on another machine has several."""
    earlier = env.get("earlier")
    known = earlier.get(name) if isinstance(earlier, Mapping) and env.get("id") != name else None
    return known if isinstance(known, Mapping) else env


def _commit(env: Mapping[str, Any]) -> str | None:
    return (env.get("git") or {}).get("commit")
