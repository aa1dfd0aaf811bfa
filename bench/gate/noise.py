"""What a gate can find before it has measured: too few pairs, and thresholds below the noise of this machine.

A gate whose pairs cannot decide anything passes all the same, so it must say so beforehand. And a threshold
that a suite declares is right on a quiet machine; ``calibrate`` knows what this one can resolve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.declarations import MetricClass
from bench.errors import UserError, listed
from bench.gate.rule import Rule, detectable
from bench.results import environment as env
from bench.results.environment import comparable
from bench.results.record import canonical
from bench.suite.request import Request
from bench.text import clean, plural
from bench.workload import Metric

USUAL = 0.05  # scatter of a pair on a shared machine; see the table in docs/explanation/gate.md
LARGE = 1.0  # a gate that finds nothing below a doubling is worth a warning


class Scatter(BaseModel):
    """What identical code yielded for one metric; fields as in ``bench.gate.calibrate.MeasuredNoise``."""

    model_config = ConfigDict(frozen=True, strict=True)

    metric: str
    klass: MetricClass
    worst: float = Field(ge=0, allow_inf_nan=False)
    worst_cell: str


class Calibration(BaseModel):
    """The part of a ``calibration.json`` that thresholds are made of."""

    model_config = ConfigDict(frozen=True, strict=True)

    suite: str
    environment: dict[str, Any]  # fingerprint
    metrics: list[Scatter]


def read_noise(path: Path, suite: str) -> Calibration:
    """A calibration of this suite on this machine. Raises UserError for anything else."""
    again = f"calibrate here: python -m bench calibrate {suite}"
    try:
        found = Calibration.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"--noise {path}: {error.strerror or error}", hint=again) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        told = f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"
        raise UserError(f"--noise {path} is no calibration: {clean(told)}", hint=again) from error
    if found.suite != suite:
        raise UserError(f"--noise {path}: of suite {clean(found.suite, 80)!r}, not of {suite!r}", hint=again)
    fields = comparable(found.environment, env.fingerprint())
    if machine := [name for name in fields if not name.startswith("packages.")]:
        raise UserError(f"--noise {path}: measured with another {listed(machine)}", hint=again)
    return found


def resolvable_tolerances(noise: Calibration, request: Request, rule: Rule, pairs: int) -> dict[str, float]:
    """Tolerances of the metrics whose own are below what this machine can resolve with so many pairs.

    Exact metrics are not among them: those are exact on every machine, or not declared rightly.
    """
    declared = {metric.name: metric for metric in request.workload.metrics}
    family = _cells(request) * sum(one.klass == "noisy" for one in noise.metrics)
    found = {}
    for one in noise.metrics:
        if (metric := declared.get(one.metric)) is None or metric.klass == "exact":
            continue
        noisy = metric.klass == "noisy"
        reach = detectable(one.worst, pairs, family, rule) if noisy else one.worst
        decidable = not noisy or pairs >= rule.least_pairs
        if decidable and reach > _tolerance(metric, request, rule):
            found[metric.name] = reach
    return found


def tolerance_note(tolerances: Mapping[str, float], request: Request, rule: Rule) -> list[str]:
    """One note on the thresholds that were `resolvable_tolerances`, if any were."""
    metrics = [metric for metric in request.workload.metrics if metric.name in tolerances]
    parts = [
        f"{metric.label} {_amount(metric, _tolerance(metric, request, rule))} → "
        f"{_amount(metric, tolerances[metric.name])}"
        for metric in metrics
    ]
    return [f"thresholds raised to what this machine can resolve: {listed(parts, 12)}"] if parts else []


def with_tolerances(request: Request, tolerances: Mapping[str, float]) -> Request:
    """The request with other tolerances."""
    suite = request.suite.model_copy(update={"tolerances": {**request.suite.tolerances, **tolerances}})
    return Request(suite, request.workload, request.plan, request.passes, request.changed)


def undecidable(request: Request, rule: Rule, count: int, *, paired: bool = True) -> list[str]:
    """A warning if so many pairs (``paired``) or processes leave every noisy metric undecided."""
    noisy = [metric.label for metric in _noisy(request.workload.metrics)]
    least = rule.least_pairs if paired else 2
    if not noisy or count >= least:
        return []
    what, give = (plural(count, "pair"), "--pairs") if paired else (plural(count, "process"), "--set repeat=")
    return [
        f"{what} cannot decide any noisy metric ({listed(noisy)}), however large a change is: "
        f"give at least {f'{give} {least}' if paired else f'{give}{least}'}"
    ]


def sharpness_warning(request: Request, rule: Rule, pairs: int) -> list[str]:
    """A warning if so many pairs find but the largest changes at a scatter that is `USUAL`."""
    noisy = _noisy(request.workload.metrics)
    family = _cells(request) * len(noisy)
    reach = detectable(USUAL, pairs, family, rule) if noisy and pairs >= rule.least_pairs else 0
    if reach <= LARGE:
        return []
    return [
        f"{plural(pairs, 'pair')} find a change of a noisy metric only beyond × {1 + reach:.3g} ({family} "
        f"comparisons, pairs that scatter by {USUAL * 100:g} %): give more --pairs, or --until-decided"
    ]


def _cells(request: Request) -> int:
    return len({canonical([cell.params, cell.seed]) for cell in request.cells})


def _noisy(metrics: Sequence[Metric]) -> list[Metric]:
    return [metric for metric in metrics if metric.klass == "noisy" and metric.direction != "none"]


def _tolerance(metric: Metric, request: Request, rule: Rule) -> float:
    own = request.suite.tolerances.get(metric.name, metric.tolerance)
    return own or rule.effect if metric.klass == "noisy" else own


def _amount(metric: Metric, amount: float) -> str:
    return f"{amount * 100:.3g} %" if metric.klass == "noisy" else f"{amount:.4g} {metric.unit}".rstrip()
