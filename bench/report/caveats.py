"""What must be read with the numbers, as the records' own conformance says it: one sentence for each kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.errors import listed
from bench.text import clean, plural
from bench.track.contention import DISTURBED, SHARE


@dataclass
class Caveats:
    """Fed with every record; ``most`` bounds how many labels are kept of each kind (None: all)."""

    most: int | None = None
    _cells: int = 0
    _not_preloaded: list[str] = field(default_factory=list)
    _shares: dict[str, float] = field(default_factory=dict)  # of CPU time, by label
    _said: dict[str, dict[str, None]] = field(default_factory=dict)  # labels by text
    _counts: dict[str, int] = field(default_factory=dict)  # records by text, or by kind

    def add(self, label: str, conformance: Mapping[str, Any]) -> None:
        """What one record says."""
        self._cells += 1
        for text in filter(None, map(conformance.get, ("warning", "note"))):
            self._count(str(text))
            labels = self._said.setdefault(str(text), {})
            if self._room(labels):
                labels[label] = None
        if conformance.get("preloaded") is False:
            self._count("preloaded")
            if self._room(self._not_preloaded):
                self._not_preloaded.append(label)
        if conformance.get("disturbed"):
            self._count("disturbed")
            shares = (v for k, v in conformance.items() if k.endswith(SHARE) and isinstance(v, int | float))
            self._shares[label] = min(shares, default=1.0)
            if self.most is not None:
                worst = min(self._shares, key=lambda one: self._shares[one])
                self._shares = {worst: self._shares[worst]}

    def _room(self, kept: Any) -> bool:
        return self.most is None or len(kept) < self.most

    def _count(self, kind: str) -> None:
        self._counts[kind] = self._counts.get(kind, 0) + 1

    def sentences(self) -> list[str]:
        """Without their full stops; none if there is nothing to be said."""
        return [*self._of_disturbed(), *self._of_imports(), *self._of_warnings()]

    def _of_warnings(self) -> list[str]:
        """What workloads say must be read with a number (``warning``, ``note``), and of which cells."""
        found = []
        for text, labels in self._said.items():
            left = self._counts[text] - len(labels) if self.most is not None else 0
            more = f" and {plural(left, 'more cell')}" if left > 0 else ""
            found.append(f"{', '.join(labels)}{more}: {text}")
        return found

    def _of_imports(self) -> list[str]:
        """Of children that imported everything themselves, beside others that did not."""
        count = self._counts.get("preloaded", 0)
        if not count or count == self._cells:
            return []
        names = [clean(label) for label in self._not_preloaded]
        which = listed([*names, *[""] * (count - len(names))])
        return [
            f"{plural(count, 'cell')} ({which}) had no modules from the fork server: host memory there is "
            "larger by them, and is not to be held against that of others"
        ]

    def _of_disturbed(self) -> list[str]:
        """Of records whose CPU time was taken by others."""
        count = self._counts.get("disturbed", 0)
        if not count:
            return []
        worst = min(self._shares, key=lambda label: self._shares[label])
        what = f"{plural(count, 'cell')} got less than {DISTURBED:.0%} of the CPU time asked for"
        which = f"worst: {clean(worst)}, {self._shares[worst]:.0%}"
        return [f"{what}, because others took it ({which}): latency and speed there are not this machine's"]
