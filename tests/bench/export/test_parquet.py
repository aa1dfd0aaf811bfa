import json
import math

import pyarrow.parquet as pq
import pytest

from bench.errors import UserError
from bench.export import parquet
from bench.export.parquet import write_parquet
from helpers.passes import make_record


def test_records_become_flat_rows_with_units(tmp_path):
    path = tmp_path / "records.parquet"
    missing = {"vram": {"value": None, "unit": "bytes", "reason": "no GPU"}}
    write_parquet([make_record("a"), make_record("b", metrics=missing)], path)
    table = pq.read_table(path)
    assert table.column("cell").to_pylist() == ["a", "b"]
    assert table.column("length").to_pylist() == [8, 8]
    assert table.column("metric.total").to_pylist() == [28, None]
    assert table.column("metric.vram.reason").to_pylist() == [None, "no GPU"]
    assert table.schema.field("metric.total").metadata == {b"unit": b"units"}
    assert json.loads(table.column("params")[0].as_py()) == {"length": 8}
    assert list(tmp_path.iterdir()) == [path]


def test_columns_of_mixed_types_do_not_break_the_export(tmp_path):
    path = tmp_path / "records.parquet"
    values = [1, 2.5, None]
    write_parquet(
        [make_record(str(v), columns={"x": v, "y": w}) for v, w in zip(values, [1, "a", True], strict=True)],
        path,
    )
    table = pq.read_table(path)
    assert table.column("x").to_pylist() == [1.0, 2.5, None]
    assert table.column("y").to_pylist() == ["1", "a", "True"]


def test_integers_that_the_file_cannot_hold_make_a_column_of_floats(tmp_path):
    path = tmp_path / "records.parquet"
    values = {"a": [2**63, 1], "b": [-(2**63) - 1, None], "c": [2**63 - 1, -(2**63)], "d": [10**400, "x"]}
    values["e"] = [-(10**400), 0]
    rows = [{name: own[n] for name, own in values.items()} for n in range(2)]
    write_parquet([make_record(str(n), columns=row) for n, row in enumerate(rows)], path)
    table = pq.read_table(path)
    assert table.column("a").to_pylist() == [2.0**63, 1.0]
    assert table.column("b").to_pylist() == [-(2.0**63), None]
    assert table.column("c").to_pylist() == values["c"]
    assert table.column("d").to_pylist() == ["1" + "0" * 400, "x"]
    assert table.column("e").to_pylist() == [-math.inf, 0.0]


def test_many_records_have_the_file_of_few(tmp_path, monkeypatch):
    """Read twice and written a little at a time; the columns of all are known before the first row."""
    missing = {"vram": {"value": None, "unit": "bytes", "reason": "no GPU"}}
    mixed = [1, 2.5, None, True, "a", 3, 4, 5]
    made = [
        make_record(str(n), columns={"x": v, "y": n, "z": n if n < 5 else n / 2, "none": None})
        for n, v in enumerate(mixed)
    ]
    made.append(make_record("last", metrics=missing))
    write_parquet(made, tmp_path / "whole.parquet")
    held, real = [], parquet._table
    monkeypatch.setattr(parquet, "_BATCH", 2)
    monkeypatch.setattr(parquet, "_table", lambda rows, *rest: held.append(len(rows)) or real(rows, *rest))
    write_parquet(made, tmp_path / "parts.parquet")
    whole, parts = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("whole", "parts"))
    assert parts.schema.equals(whole.schema, check_metadata=True)
    assert parts.equals(whole)
    assert held == [2, 2, 2, 2, 1]
    assert parts.column("x").to_pylist() == ["1", "2.5", None, "True", "a", "3", "4", "5", None]
    assert parts.column("z").to_pylist() == [0.0, 1.0, 2.0, 3.0, 4.0, 2.5, 3.0, 3.5, None]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts.parquet", "whole.parquet"]


def test_no_records_are_an_empty_file(tmp_path):
    write_parquet([], tmp_path / "records.parquet")
    assert pq.read_table(tmp_path / "records.parquet").num_rows == 0


def test_a_file_that_cannot_be_written_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        write_parquet([make_record()], tmp_path / "absent" / "records.parquet")
