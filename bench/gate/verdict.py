"""What a gate has to say, as data: the verdict file that exports, pages and other programs read.

The file is versioned like a record. Its JSON Schema is
``GateReport.model_json_schema()``; docs/explanation/gate.md explains the fields.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bench.declarations import Direction, MetricClass
from bench.gate.rule import Rule, Verdict

VERDICT_VERSION = 1
STATUS = "status"  # stands for a metric where the outcome of a cell itself is judged

EXIT_PASS, EXIT_FAILED_CELLS, EXIT_REGRESSION, EXIT_NOTHING = 0, 3, 4, 5


class _FrozenVerdict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Judgement(_FrozenVerdict):
    """One metric (or the status) of one cell on both sides, and what the gate makes of it."""

    cell: str = Field(description="Readable name of the cell, unique within the gate")
    params: dict[str, Any] = Field({}, description="The cell's parameters")
    seed: int = 0
    metric: str = Field(description="Name of the metric, or 'status'")
    label: str
    unit: str = ""
    direction: Direction = "none"
    klass: MetricClass | Literal["status"] = Field(description="exact, near, noisy, or status")
    verdict: Verdict
    reason: str = Field("", description="One line; empty where the numbers say it all")
    base: float | None = Field(None, description="Mean of base's processes (geometric for noisy metrics)")
    head: float | None = None
    difference: float | None = Field(None, description="head - base, in the metric's unit")
    ratio: float | None = Field(None, description="head / base; for noisy metrics with interval")
    ratio_low: float | None = None
    ratio_high: float | None = None
    p_value: float | None = None
    p_adjusted: float | None = Field(None, description="Holm-adjusted over all noisy metrics of the gate")
    tolerance: float = Field(0.0, description="Absolute for exact and near, relative for noisy metrics")
    pairs: int = Field(0, description="Pairs of processes compared")
    more_pairs: int | None = Field(None, description="Pairs that would probably decide it")
    fields: list[str] = Field([], description="Fingerprint fields that differ between the sides")

    @property
    def decided(self) -> bool:
        """Whether two comparable numbers led to a verdict; the outcome of a cell is no number."""
        settled = self.verdict in (Verdict.PASS, Verdict.REGRESSED, Verdict.IMPROVED)
        return settled and not self.fields and self.klass != STATUS


class SideInfo(_FrozenVerdict):
    """One side of the comparison."""

    name: str = Field(description="Git ref or run folder")
    commit: str | None = None
    dirty: bool | None = None
    version: str | None = Field(None, description="Hash of the workload's code")
    environment: list[str] = Field([], description="Fingerprint ids of its records")
    prepared: str = Field("", description="Where its packages come from")
    failed_cells: int = 0


class Terms(_FrozenVerdict):
    """The rule the verdicts follow; see docs/explanation/gate.md."""

    mode: Literal["interleaved", "stored"]
    alpha: float
    miss: float
    effect: float
    allowance: float
    looks: int
    pairs: int

    @classmethod
    def of(cls, rule: Rule, mode: Literal["interleaved", "stored"], pairs: int) -> Terms:
        """The terms that a rule sets; every field but ``mode`` and ``pairs`` is one of its own."""
        shared = {name: getattr(rule, name) for name in cls.model_fields if name not in ("mode", "pairs")}
        return cls(mode=mode, pairs=pairs, **shared)


def _finite(data: Any) -> Any:
    """JSON data with null for what no float holds, such as the difference of two that are huge."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


class GateReport(_FrozenVerdict):
    """The verdict file."""

    verdict_version: int = VERDICT_VERSION
    suite: str
    workload: str
    created: str = Field(description="ISO 8601, UTC")
    duration_s: float = 0.0
    base: SideInfo
    head: SideInfo
    terms: Terms
    notes: list[str] = []
    counts: dict[Verdict, int]
    exit_code: int
    judgements: list[Judgement]

    def json_text(self) -> str:
        """The verdict file: plain ASCII, so that no name in it does anything to whoever looks at it."""
        return json.dumps(_finite(self.model_dump(mode="json")), indent=1, allow_nan=False) + "\n"

    def of(self, *verdicts: Verdict) -> list[Judgement]:
        """The judgements with one of these verdicts, in the order of the suite."""
        return [found for found in self.judgements if found.verdict in verdicts]


def count(judgements: Iterable[Judgement]) -> dict[Verdict, int]:
    """How often each verdict was given; every verdict is a key."""
    counted = Counter(found.verdict for found in judgements)
    return {verdict: counted[verdict] for verdict in Verdict}


def exit_code(judgements: Iterable[Judgement], failed_cells: int) -> int:
    """4 if anything regressed; 5 if nothing was decided; 3 if cells of head failed; else 0.

    Neither metrics that agree although the fingerprints differ nor a cell that is measured again after it
    had failed count as decided.
    """
    known = list(judgements)
    if any(found.verdict is Verdict.REGRESSED for found in known):
        return EXIT_REGRESSION
    if not any(found.decided for found in known):
        return EXIT_NOTHING
    return EXIT_FAILED_CELLS if failed_cells else EXIT_PASS


def assemble(
    names: tuple[str, str],
    judgements: Sequence[Judgement],
    sides: tuple[SideInfo, SideInfo],
    terms: Terms,
    notes: Sequence[str],
) -> GateReport:
    """The verdict file of these judgements; ``names`` are suite and workload, ``sides`` base and head."""
    return GateReport(
        suite=names[0],
        workload=names[1],
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        base=sides[0],
        head=sides[1],
        terms=terms,
        notes=list(notes),
        counts=count(judgements),
        exit_code=exit_code(judgements, sides[1].failed_cells),
        judgements=list(judgements),
    )
