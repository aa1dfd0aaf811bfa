"""The table of all cells as CSV, written line by line: what `bench.report.tables.full` would write."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.report.columns import OWN
from bench.report.large.survey import Survey
from bench.report.tables import raw
from bench.report.vocabulary import Vocabulary
from bench.results.atomic import replaced
from bench.results.record import Status
from bench.suite.labels import spelt
from bench.text import clean
from bench.workload import Metric

_SEEN = 100_000  # texts whose form is remembered


class EveryCell:
    """Columns of the table, and the rows of cells under them."""

    def __init__(self, survey: Survey, words: Vocabulary, edited: frozenset[str]) -> None:
        """``edited``: ids of cells whose record is no longer as measured."""
        names, self._edited = survey.identifying(words.metrics), edited
        self._added = survey.added(words.metrics)
        self._metrics: list[Metric] = [m for m in words.metrics.values() if m.name in survey.measured]
        self._short = [m.name for m in self._metrics if survey.measured[m.name] < survey.count]
        facts = [name for name in survey.frame_columns(words.metrics) if name not in names]
        self._names, self._checks = names, sorted(survey.checks)
        self._rest = [name for name in [*facts, *OWN] if name not in (*names, "status")]
        self._texts: dict[str, str] = {}

    @property
    def header(self) -> list[str]:
        """The names of the columns."""
        keys = [*self._names, "status", *(m.name for m in self._metrics), *self._rest]
        keys += [*(f"conformance.{name}" for name in self._checks), *(["edited"] if self._edited else [])]
        return [str(raw(key)) for key in [*keys, *(f"{name}.reason" for name in self._short)]]

    def row(self, data: Mapping[str, Any]) -> list[Any]:
        """A cell's fields, from its record as JSON data."""
        params, metrics, checks = data["params"], data.get("metrics", {}), data.get("conformance", {})
        found = data["columns"] | {name: _own(params.get(p)) for name, p in self._added.items()}
        found |= {name: data.get(name) for name in OWN}
        values = [found.get(name) for name in self._names]
        values.append(data["status"])
        values += [metrics[m.name]["value"] if m.name in metrics else None for m in self._metrics]
        values += [found.get(name) for name in self._rest]
        values += [checks.get(name) for name in self._checks]
        if self._edited:
            values.append(data["cell"] in self._edited)
        known = self._texts
        fields = [
            known.get(v) or self._raw(v) if type(v) is str else v for v in values
        ]  # None is written as ""
        return fields + [self._reason(data, name) for name in self._short]

    def _raw(self, text: str) -> str:
        """As `raw`; most texts come again and again."""
        written = str(raw(text))
        if len(self._texts) < _SEEN:
            self._texts[text] = written
        return written

    def _reason(self, data: Mapping[str, Any], metric: str) -> str:
        """Why a cell has no value of a metric, as `RunData.reason` says it; empty if it has one."""
        found = data.get("metrics", {}).get(metric, {})
        if found.get("value") is not None:
            return ""
        if data["status"] != Status.OK:
            return str(raw(clean(f"{data['status']}: {data['reason']}")))
        return str(raw(clean(found.get("reason") or "not measured by this cell")))

    def write(self, path: Path, records: Iterable[Mapping[str, Any]]) -> None:
        """Write ``path``, whole or not at all. Raises UserError."""
        with replaced(path) as file:
            text = io.TextIOWrapper(file, encoding="utf-8", newline="")
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(self.header)
            writer.writerows(map(self.row, records))
            text.flush()
            text.detach()  # the file is closed by who has opened it


def _own(value: Any) -> Any:
    """A parameter as a table has it."""
    return value if value is None or isinstance(value, (str, int, float)) else spelt(value)
