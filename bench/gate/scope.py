"""What both sides of a gate measure, settled once by head.

Base may be older: it may not know a way to choose cells, a setting or a parameter. So nothing is left for it
to interpret. It gets keys of the suite with their values, and cells with their parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from bench.suite.request import Options, Request
from bench.workload import Cell, Workload


@dataclass(frozen=True)
class Asked:
    """What both sides measure, in words that either side understands whatever its version."""

    suite: Path
    changed: Mapping[str, Any] = field(default_factory=dict)  # keys of the suite that --set has changed
    settings: Mapping[str, Any] = field(default_factory=dict)  # --set as given; kept with the plan
    cells: Sequence[Cell] | None = None  # None: all of the suite
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of parameters that a side may not know
    repeats: int = 100  # repetitions that may be asked for

    @classmethod
    def of(cls, request: Request, options: Options, repeats: int) -> Asked:
        """What a request comes to."""
        defaults = parameter_defaults(request.workload)
        return cls(options.suite, request.changed, options.overrides, request.cells, defaults, repeats)

    def message(self) -> dict[str, Any]:
        """As JSON data for a driver."""
        cells = None if self.cells is None else [[dict(cell.params), cell.seed] for cell in self.cells]
        return {
            "suite": str(self.suite.resolve()),
            "changed": dict(self.changed),
            "settings": dict(self.settings),
            "cells": cells,
            "defaults": dict(self.defaults),
            "repeats": self.repeats,
        }


def parameter_defaults(workload: Workload) -> dict[str, Any]:
    """The defaults of a workload's parameters, as they stand in records."""
    fields = workload.Params.model_fields
    found = {
        name: one.get_default(call_default_factory=True)
        for name, one in fields.items()
        if not one.is_required()
    }
    return to_jsonable_python(found)
