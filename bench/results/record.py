"""The record: what a cell came to. One JSON line, versioned; the product of the whole harness."""

from __future__ import annotations

import json
import math
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from bench.results.status import Status

SCHEMA_VERSION = 2  # 1: records without a digest
# JSON in one form: equal data are equal text. ValueError for what is no JSON (NaN, infinity).
canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


class _FrozenRecord(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Value(_FrozenRecord):
    """One metric of one cell. ``value`` is null exactly when ``reason`` says why."""

    value: float | int | None
    unit: str
    reason: str | None = None
    samples: list[float] | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_nan(cls, data: Any) -> Any:
        """NaN and infinity are not JSON: they become null with the reason."""
        value = data.get("value") if isinstance(data, dict) else None
        if isinstance(value, float) and not math.isfinite(value):
            return {**data, "reason": data.get("reason") or f"measured {value}", "value": None}
        return data

    @model_validator(mode="after")
    def _null_has_reason(self) -> Value:
        if (self.value is None) != (self.reason is not None):
            raise ValueError("a null value needs a reason, a measured one has none")
        return self


class Artifact(_FrozenRecord):
    """A file beside the records; ``path`` is relative to the run folder."""

    path: str
    sha256: str
    bytes: int


class Record(_FrozenRecord):
    """One answered cell."""

    schema_version: int = SCHEMA_VERSION
    suite: str
    workload: str
    run: str  # run id
    cell: str  # content hash of the cell
    pass_id: str
    label: str
    params: dict[str, Any]  # canonical parameters, defaults filled in
    columns: dict[str, str | int | float | bool | None]  # flat, for tables and plots (params + facts)
    seed: int
    repeat: int
    status: Status
    reason: str | None = None
    metrics: dict[str, Value] = {}
    conformance: dict[str, str | int | float | bool | None] = {}
    artifacts: list[Artifact] = []
    env: str  # environment fingerprint id, see env.json
    started: str  # ISO 8601, UTC
    finished: str
    duration_s: float
    digest: str | None = None  # of all the rest, see bench.results.digest; set where the record is stored

    @model_validator(mode="after")
    def _failure_has_reason(self) -> Record:
        if self.status is not Status.OK and not self.reason:
            raise ValueError(f"status {self.status} needs a reason")
        return self
