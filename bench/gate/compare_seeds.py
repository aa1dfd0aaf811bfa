"""Differences between two runs over all their seeds: what a row of one seed cannot say.

A seed of a training is another training. Interval and verdict of one of them are about its samples; whether
the code has changed what is trained is seen over several, each held against the same seed of the baseline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.gate.match import Match
from bench.gate.rule import Verdict
from bench.gate.verdict import Judgement
from bench.results.record import Record, Status, Value, setting_of
from bench.stats import Interval, is_mean_of, t_interval, two_level_interval


@dataclass(frozen=True)
class OverSeeds:
    """One metric of one setting: run − baseline over the seeds that both have measured."""

    run: str
    cell: str  # without its seed
    metric: str
    label: str
    unit: str
    seeds: int  # with a value on both sides
    planned: int  # on either side
    interval: Interval
    shared: bool  # whether it also covers the samples, which all seeds share


def over_seeds(run: str, cells: Mapping[str, Match], judged: Sequence[Judgement]) -> list[OverSeeds]:
    """Rows for near metrics of settings with several seeds; ``cells`` by name, as ``judged`` names them."""
    groups: dict[tuple[str, str], list[Judgement]] = {}
    for one in judged:
        if one.klass == "near":
            groups.setdefault((setting_of(one.params), one.metric), []).append(one)
    wanted = {setting for setting, _ in groups}
    seeds: dict[str, set[int]] = {}
    for cell in cells.values():
        if cell.asked.setting in wanted:
            seeds.setdefault(cell.asked.setting, set()).add(cell.seed)
    found = (_row(run, cells, group, len(seeds[setting])) for (setting, _), group in groups.items())
    return [row for row in found if row is not None]


def _row(run: str, cells: Mapping[str, Match], group: Sequence[Judgement], planned: int) -> OverSeeds | None:
    """One setting and metric, given the judgement of each seed; None if fewer than two can be compared."""
    first, gaps = group[0], list[float]()
    samples: list[list[float]] = []
    for one in group:
        if one.klass != "near" or one.verdict is Verdict.INCOMPARABLE:
            continue
        pairs = [pair for ab in cells[one.cell].pairs if (pair := _values(*ab, one.metric))]
        if pairs:
            gaps.append(float(np.mean([_number(b) - _number(a) for a, b in pairs])))
            samples += _paired(pairs)
    if len(gaps) < 2:
        return None
    shared = len(samples) == len(gaps) and len({len(row) for row in samples}) == 1
    interval = two_level_interval(samples) if shared else t_interval(gaps)
    name = first.cell.removesuffix(f", seed {first.seed}").removesuffix(f" · seed {first.seed}")
    return OverSeeds(run, name, first.metric, first.label, first.unit, len(gaps), planned, interval, shared)


def _values(a: Record, b: Record, metric: str) -> tuple[Value, Value] | None:
    found = a.metrics.get(metric), b.metrics.get(metric)
    if not (a.status is b.status is Status.OK) or found[0] is None or found[1] is None:
        return None
    return None if found[0].value is None or found[1].value is None else (found[0], found[1])


def _number(value: Value) -> float:
    assert value.value is not None
    return float(value.value)


def _paired(pairs: Sequence[tuple[Value, Value]]) -> list[list[float]]:
    """One row of differences, sample by sample, over the repetitions of a seed; none if they do not pair."""
    both = [(np.array(a.samples or []), np.array(b.samples or [])) for a, b in pairs]
    size = len(both[0][0])
    if size < 2 or any(len(x) != size or len(y) != size for x, y in both):
        return []
    sides = [side for ab, xy in zip(pairs, both, strict=True) for side in zip(ab, xy, strict=True)]
    if not all(is_mean_of(_number(value), samples) for value, samples in sides):  # medians, for example
        return []
    return [np.mean([y - x for x, y in both], axis=0).tolist()]
