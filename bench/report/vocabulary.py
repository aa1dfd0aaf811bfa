"""What a workload declares, as reports ask for it: names, labels and units of everything that is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bench.results.record import Record
from bench.suite.labels import alike, spelt
from bench.workload import Control, Controlled, Metric, Replicated, Scalar, View, Workload

NO_REPLICATE = "run"  # of a workload that does not say what a seed repeats
_MOST_VALUES = 64  # of a parameter, tried to see which columns follow from it


@dataclass(frozen=True)
class Vocabulary:
    """What the workload declares: names, labels and units of everything that may be shown."""

    metrics: Mapping[str, Metric]
    views: tuple[View, ...] = ()
    prefix_axis: str | None = None
    replicate: str = NO_REPLICATE  # what one seed is
    sample: str = "sample"  # what the samples of a metric are
    follows: Mapping[str, frozenset[str]] = field(default_factory=dict)  # column → parameters it is told from
    published: tuple[Mapping[str, Scalar], ...] = ()
    control: Control | None = None  # what a cell has to beat

    @property
    def replicated(self) -> bool:
        """Whether sentences are about what a seed repeats, so that one seed supports none."""
        return self.replicate != NO_REPLICATE

    def metric(self, name: str) -> Metric:
        """The declared metric, or a plain stand-in for a name that nobody declared."""
        return self.metrics.get(name) or Metric(name, name.replace("_", " "), "", "none")


def vocabulary(workload: Workload | None, records: Sequence[Record]) -> Vocabulary:
    """The declarations of ``workload``; what records hold beyond them is named as they name it."""
    metrics = metrics_of(workload, records)
    if workload is None:
        return Vocabulary(metrics)
    found = Vocabulary(
        metrics,
        tuple(workload.views),
        workload.prefix_axis,
        follows=follows(workload, [record.params for record in records]),
        published=tuple(workload.published()),
        control=workload.control if isinstance(workload, Controlled) else None,
    )
    return _with_replicates(found, workload)


def for_comparison(workload: Workload | None, records: Sequence[Record]) -> Vocabulary:
    """What a comparison needs of it, told without reading the records."""
    return _with_replicates(Vocabulary(metrics_of(workload, records)), workload)


def _with_replicates(found: Vocabulary, workload: Workload | None) -> Vocabulary:
    if not isinstance(workload, Replicated):
        return found
    return replace(found, replicate=workload.replicate, sample=workload.sample)


def metrics_of(workload: Workload | None, records: Sequence[Record]) -> dict[str, Metric]:
    """Declared metrics, and those that records hold beyond them under the name of no column."""
    metrics = {metric.name: metric for metric in workload.metrics} if workload else {}
    kinds = {record.parameter_names | record.column_names for record in records}
    taken = set[str]().union(*kinds)
    for units in {id(found): found for found in (record.units for record in records)}.values():
        for name, unit in units.items():
            if name not in metrics and name not in taken:
                metrics[name] = Metric(name, name.replace("_", " "), unit, "none", headline=not workload)
    return metrics


def follows(workload: Workload, cells: Sequence[Mapping[str, Any]]) -> dict[str, frozenset[str]]:
    """For columns that a workload tells from parameters alone: which of these change them.

    Found by changing one parameter at a time, to the values that the cells have. A column that is a
    parameter itself is left out, and so is all that measuring has added.
    """
    found: dict[str, set[str]] = {}
    for base in cells:
        before = _columns(workload, base)
        if before is None:  # of an older version of the workload
            continue
        found = {column: set() for column in before if column not in base}
        for name in base:
            given = [cell[name] for cell in cells if name in cell]
            values = {} if alike(given) else {spelt(value): value for value in given}
            for value in list(values.values())[:_MOST_VALUES]:
                after = _columns(workload, {**base, name: value}) or before
                for column in found:
                    if spelt(after.get(column)) != spelt(before[column]):
                        found[column].add(name)
        break
    return {column: frozenset(names) for column, names in found.items()}


def _columns(workload: Workload, params: Mapping[str, Any]) -> dict[str, Scalar] | None:
    """The columns of a cell, or None if the workload refuses its parameters."""
    try:
        return workload.columns(workload.Params.model_validate(dict(params)))
    except ValueError:
        return None
