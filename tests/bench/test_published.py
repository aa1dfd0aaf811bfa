"""What is published stays readable: records parse, were measured, and artifacts are what they were."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from bench.record import Status
from bench.store import RECORDS, read_records

PUBLISHED = Path(__file__).parents[2] / "results" / "published"


@pytest.mark.parametrize("name", ["sinks", "book10146", "learned-sinks"])
def test_published_records_and_artifacts(name: str) -> None:
    folder = PUBLISHED / name
    records, damaged = read_records(folder / RECORDS)
    assert not damaged
    assert records
    for record in records:
        assert record.status is Status.OK, record.label
        assert record.metrics["kv_bytes"].value == record.metrics["kv_bytes_analytic"].value
        for artifact in record.artifacts:
            data = (folder / artifact.path).read_bytes()
            assert hashlib.sha256(data).hexdigest() == artifact.sha256
    page = (folder / "README.md").read_text()
    for picture in (folder / "plots").glob("*.png"):
        assert picture.stat().st_size > 1000
        assert f"plots/{picture.name}" in page


def test_the_effect_is_in_the_published_default_run() -> None:
    """Dense breaks past its training length, the window at once, sinks stay within a few percent of dense."""
    records, _ = read_records(PUBLISHED / "sinks" / RECORDS)
    value = {(r.columns["policy"], r.columns["length"]): r.metrics["perplexity"].value for r in records}
    dense, window, sink = (value[policy, 8192] for policy in ("dense", "window 1024", "sink 4+1020"))
    assert dense is not None
    assert window is not None
    assert sink is not None
    assert window > 1.3 * dense
    assert sink < 1.15 * dense
    assert value["dense", 16384] > 1.5 * value["sink 4+1020", 16384]
