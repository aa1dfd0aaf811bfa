"""A run in the forms that people and programs read: page, pictures and tables, and one parquet file."""

from __future__ import annotations

from pathlib import Path

from bench.results.store import Store
from bench.workload import Workload


def readable(store: Store, workload: Workload) -> Path:
    """Write them beside the records; returns the page to begin with. Imports plotting only now."""
    from bench.export.parquet import write_parquet
    from bench.report import render

    write_parquet(store.records.values(), store.folder / "records.parquet")
    return render(store.folder, workload)
