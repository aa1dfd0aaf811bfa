"""The newest record of every cell of a run, most of them not read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, cast

from bench.results.index import Index
from bench.results.record import Record
from bench.results.stored import StoredRecord


class NewestRecords(Mapping[str, Record]):
    """By the id of the cell, in the order in which cells were first answered."""

    COLUMNS: ClassVar = ("cell", "pass_id", "status", "reason")  # that an index must have

    def __init__(self, index: Index) -> None:
        self._index = index
        cells = index.columns["cell"]
        self._places: dict[str, int | Record] = {cells[row]: row for row in index.rows()}

    def __getitem__(self, cell: str) -> Record:
        place = self._places[cell]
        if not isinstance(place, int):
            return place
        at_hand = self._index.at_hand(place)
        return cast(Record, StoredRecord(self._index, place)) if at_hand is None else at_hand

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def add(self, record: Record) -> None:
        """A record that was written just now."""
        self._places[record.cell] = record

    def of_pass(self, pass_id: str) -> list[Record]:
        """Those that a pass has answered."""
        passes = self._index.columns["pass_id"]
        return [
            self[cell]
            for cell, place in self._places.items()
            if (passes[place] if isinstance(place, int) else place.pass_id) == pass_id
        ]
