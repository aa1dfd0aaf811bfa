"""Run folders made of invented numbers, shaped like real ones, for the tests of the reports.

Nothing here was measured: series come from a seeded generator, and every name says ``synthetic``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict

from bench.workload import Metric, View

METRICS = (
    Metric("nll", "NLL", "nats", "lower", "near", 0.01, "Mean negative log-likelihood of all tokens."),
    Metric("perplexity", "perplexity", "", "lower", "near", 0.1, "exp of the mean NLL.", headline=True),
    Metric("late_perplexity", "perplexity after eviction", "", "lower", "near", 0.1, headline=True),
    Metric("bits_per_byte", "bits per byte", "", "lower", "near", 0.001),
    Metric("cache", "cache", "bytes", "lower", "exact", 0, "Bytes of cached keys and values.", headline=True),
    Metric("vram", "VRAM of the process", "bytes", "lower", "noisy", 0.05, "As NVML reports it."),
    Metric("latency", "latency per token", "ms", "lower", "noisy", 0.05, "Median.", headline=True),
)
VIEWS = (
    View(
        "memory",
        "line",
        "Cache memory against text length",
        x="length",
        y="cache",
        x_label="text length (tokens)",
        y_label="cache (bytes)",
        log_x=True,
        log_y=True,
    ),
    View(
        "perplexity",
        "curve",
        "Perplexity along the text",
        x="position",
        y="nll",
        x_label="position in the text (tokens)",
        y_label="perplexity",
        series="nll",
        transform="exp",
        log_x=True,
        log_y=True,
        marks=("train_length",),
        headline=True,
    ),
    View(
        "latency",
        "line",
        "Latency per token against text length",
        x="length",
        y="latency",
        x_label="text length (tokens)",
        y_label="latency per token",
        log_x=True,
    ),
    View(
        "sinks",
        "line",
        "How many sinks are needed",
        x="sinks",
        y="late_perplexity",
        x_label="sinks (tokens kept)",
        y_label="perplexity after eviction",
        hue="budget",
        where={"budget": 512},
    ),
    View(
        "overview",
        "heatmap",
        "Perplexity by policy and length",
        x="length",
        y="perplexity",
        x_label="text length (tokens)",
        y_label="perplexity",
    ),
    View(
        "vram",
        "line",
        "VRAM against text length",
        x="length",
        y="vram",
        x_label="text length (tokens)",
        y_label="VRAM",
        log_x=True,
    ),
)
POLICIES = ("dense", "window 1024", "window 512", "sink 4+1020", "sink 4+508")
LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)
TRAIN = 8192


class Anything(BaseModel):
    """Parameters of any name."""

    model_config = ConfigDict(extra="allow")


@dataclass
class Synthetic:
    """A torch-free workload declaration without code to run."""

    Params = Anything
    metrics: tuple[Metric, ...] = METRICS
    views: tuple[View, ...] = VIEWS
    prefix_axis: str | None = "length"
    rows: list[dict[str, Any]] = field(default_factory=list)
    name: str = "synthetic"

    def published(self) -> list[dict[str, Any]]:
        return self.rows

    def columns(self, params: Anything) -> dict[str, Any]:
        given = params.model_dump()
        _, sinks, recent = parse(given.get("policy", "dense"))
        return {**given, "sinks": sinks, "budget": sinks + recent or None}


def nll_series(policy: str, n: int, seed: int = 0) -> np.ndarray:
    """Invented NLLs that do what the paper describes: same text for every policy, then its own fate."""
    size, n = n, LENGTHS[-1]  # always all of it, so that every length sees the same text
    text = np.random.default_rng(seed)
    shocks = text.gamma(1.3, 1.0, n)
    slow = np.convolve(text.standard_normal(n + 200), np.ones(200) / 14, "valid")[:n]
    position = np.arange(1, n + 1)
    base = 2.4 + 1.2 * position**-0.25 + 0.22 * slow + 1.15 * (shocks - 1.3)
    own = np.random.default_rng(hash_of(policy))
    kind, sinks, recent = parse(policy)
    if kind == "dense":
        base = base + 5.5 / (1 + np.exp(-(np.log2(position) - np.log2(TRAIN) - 0.75) * 5))
    else:
        after = position > sinks + recent
        cost = 0.035 * np.log2(8192 / (sinks + recent)) / 2 + own.normal(0, 0.12, n)
        lost = {0: 4.2, 1: 0.12, 2: 0.03}.get(sinks, 0.0)
        ramp = 1 - np.exp(-(position - sinks - recent).clip(0) / 60)
        base = base + after * (cost + lost * ramp)
    coarse = np.round(np.maximum(base, 0.02) * 1024) / 1024  # sums are exact: the same on every machine
    return coarse.astype(np.float32)[:size]


def hash_of(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


def parse(policy: str) -> tuple[str, int, int]:
    kind, _, size = policy.partition(" ")
    if kind == "dense":
        return kind, 0, 0
    sinks, _, recent = size.rpartition("+")
    return kind, int(sinks or 0), int(recent)


def record(policy: str, length: int, **changes: Any) -> dict[str, Any]:
    """One invented record as JSON data; ``changes`` replace fields (``params`` and ``columns`` merge)."""
    kind, sinks, recent = parse(policy)
    params = {"model": "synthetic-135m", "corpus": "synthetic novel", "dtype": "float32"}
    params |= {"policy": policy, "length": length} | changes.pop("params", {})
    columns = {**params, "sinks": sinks, "budget": sinks + recent or None, "train_length": TRAIN}
    columns |= {"series_end": length} | ({"series_start": sinks + recent} if kind != "dense" else {})
    seed, repeat = changes.get("seed", 0), changes.get("repeat", 0)
    key = "-".join(str(v) for k, v in params.items() if k != "length") + f"-{seed}-{repeat}"
    pass_id = hashlib.sha256(key.encode()).hexdigest()[:16]
    made = {
        "suite": "synthetic",
        "workload": "synthetic",
        "run": "20260101-000000-abcdef",
        "cell": f"{pass_id}-{length}",
        "pass_id": pass_id,
        "label": f"{policy} @ {length}",
        "params": params,
        "columns": columns | changes.pop("columns", {}),
        "seed": seed,
        "repeat": repeat,
        "status": "ok",
        "env": "0123456789ab",
        "started": "2026-01-01T00:00:00.000+00:00",
        "finished": "2026-01-01T00:01:30.000+00:00",
        "duration_s": 90.0 * length / LENGTHS[-1],
    }
    return made | changes


def measured(policy: str, length: int, series: np.ndarray | None = None, **changes: Any) -> dict[str, Any]:
    """A record of status ok with all metrics; those of quality from ``series`` if given."""
    kind, sinks, recent = parse(policy)
    own = np.random.default_rng(hash_of(policy + str(length) + str(changes.get("seed", 0))))
    values = (nll_series(policy, length) if series is None else series[:length]).astype(np.float64)
    kept = length if kind == "dense" else min(length, sinks + recent)
    late = values[sinks + recent :] if length > sinks + recent else values
    metrics = {
        "nll": value(float(values.mean()), "nats"),
        "perplexity": value(float(np.exp(values.mean())), ""),
        "late_perplexity": value(float(np.exp(late.mean())), ""),
        "bits_per_byte": value(float(values.mean()) / np.log(2) / 4.1, ""),
        "cache": value(kept * 23040, "bytes"),
        "vram": value(None, "bytes", reason="no GPU: libnvidia-ml.so.1 not found"),
    }
    times = (20 + kept * 0.004) * own.lognormal(0, 0.08, 64)
    metrics["latency"] = value(float(np.median(times)), "ms", samples=times.round(3).tolist())
    return record(policy, length, metrics=metrics | changes.pop("metrics", {}), **changes)


def value(number: float | None, unit: str, **more: Any) -> dict[str, Any]:
    return {"value": number if number is None else round(number, 6), "unit": unit, **more}


def write_run(
    folder: Path,
    records: Sequence[Mapping[str, Any]],
    *,
    series: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    suite: Mapping[str, Any] | None = None,
    env: Mapping[str, Any] | None = None,
    planned: Sequence[Mapping[str, Any]] | None = None,
) -> Path:
    """Write a run folder; ``series`` maps pass ids to arrays, whose archive every ok record then lists."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for made in records:
        arrays = (series or {}).get(made["pass_id"])
        if arrays is not None and made["status"] == "ok":
            path = f"artifacts/{made['pass_id']}/series.npz"
            if not (folder / path).exists():
                (folder / path).parent.mkdir(parents=True)
                np.savez_compressed(folder / path, **arrays)
            made = {**made, "artifacts": [{"path": path, "sha256": "0" * 64, "bytes": 1}]}
        lines.append(json.dumps(made) + "\n")
    (folder / "records.jsonl").write_text("".join(lines))
    asked = {"suite": "synthetic", "workload": "synthetic", "description": "Invented numbers for tests."}
    asked |= {"compare": {"axis": "policy", "reference": "dense"}} | dict(suite or {})
    (folder / "suite.yaml").write_text(yaml.safe_dump(asked))
    (folder / "env.json").write_text(json.dumps(env if env is not None else ENV))
    if planned is not None:
        cells = [{"id": made["cell"], "label": made["label"]} for made in planned]
        (folder / "plan.json").write_text(json.dumps({"cells": cells}))
    return folder


ENV = {
    "id": "0123456789ab",
    "git": {"commit": "f" * 40, "dirty": False},
    "python": "3.11.9",
    "packages": {"torch": "2.13.0", "transformers": "5.23.0"},
    "cpu": {"model": "Synthetic CPU @ 2 GHz", "cores": 2, "flags": ["avx2", "fma"]},
    "ram_bytes": 8 * 2**30,
    "gpus": [],
    "gpu_reason": "NVML: no driver",
    "hostname": "must-not-appear",
    "threads": {"OMP_NUM_THREADS": "2"},
    "container": None,
}


def sinks_run(folder: Path, lengths: Sequence[int] = LENGTHS, *, oom_at: int | None = 32768) -> Path:
    """The whole picture: five policies over all lengths, an ablation of sinks, dense out of memory."""
    records, series = [], {}
    for policy in POLICIES:
        whole = nll_series(policy, lengths[-1])
        for length in lengths:
            if policy == "dense" and oom_at is not None and length >= oom_at:
                reason = "OutOfMemoryError: tried to allocate 9.1 GiB"
                reason = reason if length == oom_at else f"not reached: {reason}"
                made = record(policy, length, status="oom", reason=reason)
            else:
                made = measured(policy, length, whole)
            records.append(made)
            series[made["pass_id"]] = {"nll": whole}
    for sinks in (1, 2, 8):
        policy = f"sink {sinks}+{512 - sinks}"
        made = measured(policy, 4096)
        series[made["pass_id"]] = {"nll": nll_series(policy, 4096)}
        records.append(made)
    return write_run(folder, records, series=series, planned=records)
