"""The record: what a cell came to. One JSON line, versioned; the product of the whole harness."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from bench.results.status import Status

SCHEMA_VERSION = 2  # 1: records without a digest
# JSON in one form: equal data are equal text. ValueError for what is no JSON (NaN, infinity).
canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


def setting_of(params: Mapping[str, Any]) -> str:
    """A digest of parameters, 32 hex digits: texts of a million settings weigh."""
    return hashlib.blake2b(canonical(params).encode(), digest_size=16).hexdigest()


class _FrozenRecord(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Value(_FrozenRecord):
    """One metric of one cell. ``value`` is null exactly when ``reason`` says why."""

    value: float | int | None
    """What was measured; null if it could not be."""
    unit: str
    """Unit of the value, e.g. B, ms, nats/token; empty for a plain number."""
    reason: str | None = None
    """Why there is no value."""
    samples: list[float] | None = None
    """What the value is the mean or median of, where that says something: seven digits each."""

    @model_validator(mode="before")
    @classmethod
    def _no_nan(cls, data: Any) -> Any:
        """NaN and infinity are not JSON: they become null with the reason."""
        value = data.get("value") if isinstance(data, dict) else None
        if isinstance(value, int) and abs(value) > sys.float_info.max:
            return {**data, "reason": data.get("reason") or "measured more than a float holds", "value": None}
        if isinstance(value, float) and not math.isfinite(value):
            return {**data, "reason": data.get("reason") or f"measured {value}", "value": None}
        return data

    @model_validator(mode="after")
    def _null_has_reason(self) -> Value:
        if (self.value is None) != (self.reason is not None):
            raise ValueError("a null value needs a reason, a measured one has none")
        return self


class Artifact(_FrozenRecord):
    """A file beside the records."""

    path: str
    """Relative to the run folder."""
    sha256: str
    """Of the file's bytes, when it was written."""
    bytes: int
    """Its size."""


class Record(_FrozenRecord):
    """One answered cell."""

    schema_version: int = SCHEMA_VERSION
    """Version of this layout; 1 had no digest."""
    suite: str
    """Name of the suite."""
    workload: str
    """Name of the workload that measured it."""
    run: str
    """Id of the run: the name of its folder."""
    cell: str
    """Content hash of the cell: workload, version of its code, parameters, identity, seed, repeat."""
    pass_id: str
    """Content hash of the pass that answered it."""
    label: str
    """The cell's name, for people and for --only."""
    params: dict[str, Any]
    """The cell's parameters, canonical, with defaults filled in."""
    columns: dict[str, str | int | float | bool | None]
    """Parameters and facts as flat columns, for tables and plots."""
    seed: int
    """Seed of all that is drawn."""
    repeat: int
    """Which repetition of the cell, from 0."""
    status: Status
    """How it ended: ok, skipped, error, oom, timeout or nan."""
    reason: str | None = None
    """Why it is not ok, in one line."""
    metrics: dict[str, Value] = {}
    """What was measured, by the name of the metric."""
    conformance: dict[str, str | int | float | bool | None] = {}
    """What shows that the cell is what its label says, and how it was measured."""
    artifacts: list[Artifact] = []
    """Files that the cell left behind: series, pictures, weights."""
    env: str
    """Id of the environment's fingerprint; the fingerprint itself is in env.json."""
    started: str
    """When its pass was started: ISO 8601, UTC."""
    finished: str
    """When it was answered."""
    duration_s: float
    """Seconds in between."""
    digest: str | None = None
    """SHA-256 of all the rest as canonical JSON (`bench.results.digest`); set where it is stored."""

    @property
    def setting(self) -> str:
        """A digest of the parameters: equal where they are. Raises ValueError for what is no JSON."""
        return setting_of(self.params)

    @property
    def question(self) -> tuple[str, int]:
        """What was asked: parameters, as a digest, and seed. Raises ValueError for what is no JSON."""
        return self.setting, self.seed

    @property
    def parameter_names(self) -> frozenset[str]:
        """The names of its parameters."""
        return frozenset(self.params)

    @property
    def column_names(self) -> frozenset[str]:
        """The names of its columns."""
        return frozenset(self.columns)

    @property
    def units(self) -> dict[str, str]:
        """The units of its metrics by their names."""
        return {name: value.unit for name, value in self.metrics.items()}

    @model_validator(mode="after")
    def _failure_has_reason(self) -> Record:
        if self.status is not Status.OK and not self.reason:
            raise ValueError(f"status {self.status} needs a reason")
        return self
