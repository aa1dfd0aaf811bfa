"""The same view of several runs as one chart: equal panels laid over each other, runs told apart by dash."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.report.web.grids import GRIDS


def merge(charts: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """One chart of all (run name, chart); a single one comes back as it is."""
    if len(charts) == 1:
        return charts[0][1]
    first = charts[0][1]
    if first["kind"] in GRIDS:
        return _grids(charts)
    units = {spec["unit"] for _, spec in charts}
    categories = {tuple(spec["categories"] or ()) for _, spec in charts}
    if len(units) > 1 or len(categories) > 1:  # other scales cannot share axes: a panel each
        return (
            first
            | {"panels": [_titled(p, name) for name, spec in charts for p in spec["panels"]]}
            | {"notes": ["The runs do not share a scale: " + ", ".join(sorted(units)) + "."]}
        )
    panels: dict[str, dict[str, Any]] = {}
    for place, (name, spec) in enumerate(charts):
        for panel in spec["panels"]:
            shared = panels.setdefault(panel["title"], {"title": panel["title"], "lines": [], "marks": {}})
            shared["lines"] += [
                line | {"name": f"{line['name']} · {name}", "run": place} for line in panel["lines"]
            ]
            shared["marks"] |= panel["marks"]
    notes = list(dict.fromkeys(note for _, spec in charts for note in spec["notes"]))
    return first | {"panels": list(panels.values()), "notes": notes}


def _grids(charts: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Grids stand below each other; a row or column that a run lacks is blank."""
    rows = list(dict.fromkeys(row for _, spec in charts for row in spec["rows"]))
    columns = list(dict.fromkeys(column for _, spec in charts for column in spec["columns"]))
    panels = []
    for name, spec in charts:
        for panel in spec["panels"]:
            known = {
                (row, column): panel["fields"][i][j]
                for i, row in enumerate(spec["rows"])
                for j, column in enumerate(spec["columns"])
            }
            fields = [[known.get((row, column)) for column in columns] for row in rows]
            panels.append(_titled(panel, name) | {"fields": fields})
    notes = list(dict.fromkeys(note for _, spec in charts for note in spec["notes"]))
    signed = any(spec["signed"] for _, spec in charts)
    return charts[0][1] | {
        "rows": rows,
        "columns": columns,
        "panels": panels,
        "notes": notes,
        "signed": signed,
    }


def _titled(panel: dict[str, Any], name: str) -> dict[str, Any]:
    return panel | {"title": " · ".join(filter(None, [name, panel["title"]]))}
