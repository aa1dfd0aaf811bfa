"""Tables as the page wants them: columns, rows of ``[value, text, note]``, repeated notes by number."""

from __future__ import annotations

import math
from typing import Any

from bench.report.tables import Entry, Table
from bench.text import clean, number

MOST_ROWS = 5000  # of a table on the page; its CSV beside the page has all


def packed(table: Table, most: int = MOST_ROWS) -> dict[str, Any]:
    """A table as JSON data. ``facets`` are the columns by whose values a reader may choose rows."""
    shown = [c for c in table.columns if not c.csv_only]
    notes: dict[str, int] = {}
    rows = [[_field(row.get(c.key), notes) for c in shown] for row in table.rows[:most]]
    below = [clean(note, 2000) for note in table.notes]
    if len(table.rows) > most:
        below.append(f"The first {most:,} of {len(table.rows):,} rows; all are in {table.name}.csv.")
    return {
        "title": clean(table.title),
        "columns": [[clean(c.header), c.numeric] for c in shown],
        "rows": rows,
        "notes": below,
        "words": list(notes),
        "facets": [i for i, c in enumerate(shown) if _chosen_by(rows, i, c.numeric)],
    }


def _field(entry: Entry | None, notes: dict[str, int]) -> Any:
    if entry is None:
        return None
    value = entry.value
    if isinstance(value, float) and not math.isfinite(value):
        value = None
    text = number(entry.value) if entry.text is None else clean(entry.text, 12_000)
    if isinstance(value, str):
        value = clean(value, 12_000)
        text = value if entry.text is None else text
    if entry.note:
        return [value, text, notes.setdefault(clean(entry.note, 2000), len(notes))]
    return text if value == text else [value, text]


def _chosen_by(rows: list[list[Any]], column: int, numeric: bool) -> bool:
    if numeric or len(rows) < 9:
        return False
    values = {f[1] if isinstance(f := row[column], list) else f for row in rows}
    return 1 < len(values) <= min(40, len(rows) / 2) and all(len(str(v)) <= 60 for v in values)
