"""Run folders of very many records, made fast from one that was measured: cells and values differ."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.results.digest import DIGEST
from bench.results.record import canonical
from bench.results.store import ENV, RECORDS, SUITE

PUBLISHED = Path(__file__).resolve().parents[2] / "results" / "published"
_PER_PASS = 4
_MARK = "§{}§"


def large_run(folder: Path, count: int, *, first: int = 0, drift: float = 0.0, source: str = "sinks") -> Path:
    """A run of ``count`` cells, numbered from ``first``; ``drift`` is added to a value of each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (ENV, SUITE):
        shutil.copy(PUBLISHED / source / name, folder / name)
    with open(folder / RECORDS, "wb") as file:
        file.writelines(large_lines(folder.name, range(first, first + count), drift))
    return folder


def large_lines(run: str, numbers: range, drift: float = 0.0) -> Iterator[bytes]:
    """Lines of records: texts with places to fill in, as they stand and as they are digested."""
    with open(PUBLISHED / "sinks" / RECORDS, encoding="utf-8") as file:
        data = json.loads(file.readline())
    data |= {"run": run, "artifacts": []}
    del data[DIGEST]
    _mark(data)
    as_written = _filled(json.dumps(data, separators=(",", ":")))
    as_digested = _filled(canonical(data))
    for number in numbers:
        length, passed = 1024 + number, number // _PER_PASS
        nll = 3.0 + (number * 7919 % 10_007) / 10_007 + drift
        values = (f"{number:016x}", f"{passed:016x}", str(length), repr(nll), repr(80.0 + number % 97 / 100))
        digest = hashlib.sha256(as_digested(values).encode()).hexdigest()
        yield f'{as_written(values)[:-1]},"digest":"{digest}"}}\n'.encode()


def _mark(data: dict[str, Any]) -> None:
    """Put marks where records differ: cell, pass, length, and two metrics."""
    marks = [_MARK.format(i) for i in range(5)]
    data |= {"cell": marks[0], "pass_id": marks[1], "label": f"smollm2-135m · dense · {marks[2]}"}
    data["params"]["length"] = data["columns"]["length"] = marks[2] + "#"
    data["metrics"]["nll"]["value"] = marks[3] + "#"
    data["metrics"]["latency_p90_ms"]["value"] = marks[4] + "#"


def _filled(text: str) -> Callable[[tuple[str, ...]], str]:
    """Fills marks in; those that end in ``#`` stand for numbers, so their quotes go."""
    mark = json.dumps("§")[1:-1]
    for i in range(5):
        text = text.replace(f'"{mark}{i}{mark}#"', f"\0{i}\0").replace(f"{mark}{i}{mark}", f"\0{i}\0")
    pieces = text.split("\0")
    numbers = [int(piece) for piece in pieces[1::2]]

    def fill(values: tuple[str, ...]) -> str:
        pieces[1::2] = [values[i] for i in numbers]
        return "".join(pieces)

    return fill
