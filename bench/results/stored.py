"""A record that is read from its file only when more is asked of it than the index knows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, cast

from bench.results.index import Index
from bench.results.record import Record
from bench.results.status import Status


def _column(name: str) -> property:
    """A field that the index has as it is."""

    def get(self: StoredRecord) -> Any:
        found = self.known(name)
        return getattr(self.whole, name) if found is None else found

    return property(get, doc="See `Record`.")


class StoredRecord:
    """Stands for the `Record` of a row of an index, and answers as it would."""

    __slots__ = ("_index", "_row")

    def __init__(self, index: Index, row: int) -> None:
        self._index, self._row = index, row

    suite, workload, run = _column("suite"), _column("workload"), _column("run")
    cell, pass_id, label = _column("cell"), _column("pass_id"), _column("label")
    seed, repeat, reason = _column("seed"), _column("repeat"), _column("reason")
    env, started, setting = _column("env"), _column("started"), _column("setting")

    def __getattr__(self, name: str) -> Any:  # all that is not below
        return getattr(self.whole, name)

    def __eq__(self, other: object) -> bool:
        return bool(self.whole == (other.whole if isinstance(other, StoredRecord) else other))

    __hash__ = None  # type: ignore[assignment]  # like a record's: it holds dictionaries

    @property
    def whole(self) -> Record:
        """The record itself."""
        return self._index.record(self._row)

    def known(self, column: str) -> Any:
        """What the index has in a column of `Outline`; None if it has nothing there."""
        values = self._index.columns.get(column)
        return None if values is None else values[self._row]

    @property
    def status(self) -> Status:
        """See `Record`."""
        text = self.known("status")
        return self.whole.status if text is None else Status(text)

    @property
    def question(self) -> tuple[str, int]:
        """See `Record`."""
        return self.setting, self.seed

    @property
    def parameter_names(self) -> frozenset[str]:
        """See `Record`."""
        text = self.known("names")
        return self.whole.parameter_names if text is None else _as_set(text)

    @property
    def column_names(self) -> frozenset[str]:
        """See `Record`."""
        text = self.known("column_names")
        return self.whole.column_names if text is None else _as_set(text)

    @property
    def units(self) -> dict[str, str]:
        """See `Record`; not to be changed."""
        text = self.known("units")
        return self.whole.units if text is None else _units(text)


@lru_cache(maxsize=1024)
def _as_set(text: str) -> frozenset[str]:
    return frozenset(json.loads(text))


@lru_cache(maxsize=1024)
def _units(text: str) -> dict[str, str]:
    return cast(dict[str, str], json.loads(text))


def stored(index: Index, rows: Iterable[int]) -> list[Record]:
    """The records of these rows; typed as what they stand for."""
    return cast(list[Record], [StoredRecord(index, row) for row in rows])
