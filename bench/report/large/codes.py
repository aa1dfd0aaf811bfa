"""Values of very many cells as small integers: what tells two cells apart takes four bytes a cell."""

from __future__ import annotations

from array import array
from collections.abc import Hashable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.report.select import token
from bench.suite.labels import spelt


class Codes:
    """One column: the code of each row, and the value that each code stands for.

    Codes count from 0 in order of appearance. Values are told apart as `spelt` does: True is not 1, 0.0 is
    not -0.0.
    """

    def __init__(self) -> None:
        self.rows, self.values = array("i"), list[Any]()
        self._known: dict[Hashable, int] = {}
        self._last: Any = None
        self._kind: type | None = None  # of the last value, where equal ones of a kind are one
        self._code = 0

    def add(self, value: Any) -> int:
        """The next row; returns its code."""
        if type(value) is self._kind and value == self._last:  # as nearly always
            self.rows.append(self._code)
            return self._code
        code = self._code = self._add(value)
        self._last, self._kind = value, type(value) if isinstance(value, (str, int)) else None
        return code

    def _add(self, value: Any) -> int:
        key = _exact(value)
        code = self._known.get(key)
        if code is None:
            code = self._known[key] = len(self.values)
            self.values.append(value)
        self.rows.append(code)
        return code

    @property
    def array(self) -> NDArray[np.int32]:
        """The code of each row; nothing may be added while it is held."""
        return np.frombuffer(self.rows, np.int32)

    def alike(self) -> NDArray[np.int64]:
        """The same with equal codes for what a table takes for one value: 1 and 1.0."""
        known: dict[Hashable, int] = {}
        scalars = (v if v is None or isinstance(v, (str, int, float)) else spelt(v) for v in self.values)
        codes = [known.setdefault(token(value), len(known)) for value in scalars]
        return np.array(codes, np.int64)[self.array]

    def tells(self, other: Codes) -> bool:
        """Whether rows that differ in ``other`` differ in this column."""
        both = self.array.astype(np.int64) * len(other) + other.array
        return len(np.unique(both)) == len(self)

    def __len__(self) -> int:
        """How many different values there are."""
        return len(self.values)


def _exact(value: Any) -> Hashable:
    """What is equal for values that are spelt alike; plain texts and numbers stand for themselves."""
    return value if value is None or type(value) in (str, int) else (spelt(value),)
