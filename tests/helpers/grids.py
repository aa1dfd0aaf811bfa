"""Runs over grids of any settings, in which every setting has a number of its own: a power of two."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.report.frames import RunData, load
from bench.workload import Metric, View
from helpers.synthetic import Anything, value, write_run

VALUES: dict[str, list[Any]] = {
    "reward": ["red", "blue"],
    "train_learning_rate": [1e-3, 1e-2],  # shown as learning_rate
    "sample_eta": [1.0, 0.5],  # not shown at all
    "use_lora": [True, False],
    "targets": [["to_q"], ["to_q", "to_k"]],
    "pipeline": ["path:/a/tiny", "path:/b/tiny"],  # both shown as tiny
    "steps": [4, 8],
}


def view(kind: Any, x: str = "steps", y: str = "effect", **more: Any) -> View:
    return View(kind, kind, "title", x, y, "x", "y", hue="reward", **more)


@dataclass
class Tuning:
    """A workload that shows some parameters under other words, and some not at all."""

    Params = Anything
    metrics = (Metric("effect", "effect", "SD", headline=True), Metric("own", "own", ""))
    views = ()
    prefix_axis: str | None = "steps"
    replicate = "training"
    sample = "prompt"
    name = "tuning"

    def columns(self, params: Anything) -> dict[str, Any]:
        given = params.model_dump()
        shown = {"reward": given["reward"], "steps": given["steps"]}
        return shown | {"learning_rate": given["train_learning_rate"], "pipeline": "tiny"}

    def published(self) -> list[dict[str, Any]]:
        return []


def run(folder: Path, axes: dict[str, list[Any]], seeds: int, lost: set[int]) -> RunData:
    """A run over the grid of ``axes``; the cells whose number is ``lost`` were not answered."""
    fixed = {name: found[:1] for name, found in VALUES.items()} | axes
    names = [name for name in fixed if name != "steps"]
    records, number = [], itertools.count()
    for code, values in enumerate(itertools.product(*(fixed[name] for name in names))):
        for seed, steps in itertools.product(range(seeds), fixed["steps"]):
            params = {**dict(zip(names, values, strict=True)), "steps": steps}
            if not records or next(number) not in lost:
                records.append(record(folder, params, code, seed))
    suite = {"workload": "tuning", "compare": {"axis": "reward", "reference": "red"}}
    return load(write_run(folder, records, suite=suite), Tuning())  # type: ignore[arg-type]


def record(folder: Path, params: dict[str, Any], code: int, seed: int) -> dict[str, Any]:
    name, number = f"p{code}-{seed}", float(2**code)
    file = Path("artifacts") / f"{name}-{params['steps']}" / "train-1.npz"
    (folder / file).parent.mkdir(parents=True)
    np.savez(folder / file, steps=np.arange(3), y=np.full(3, number))
    columns = Tuning().columns(Anything(**params)) | {
        "queries": params["steps"] * 7,
        "seconds": params["steps"] + seed,
    }
    return {
        "suite": "tuning", "workload": "tuning", "run": "r", "cell": f"{name}-{params['steps']}",
        "pass_id": name, "label": f"{params['reward']} · {params['steps']}", "params": params,
        "columns": columns, "seed": seed, "repeat": 0, "status": "ok", "env": "0123456789ab",
        "metrics": {"effect": value(number, "SD", samples=[number] * 4), "own": value(number, "")},
        "artifacts": [{"path": str(file), "sha256": "0" * 64, "bytes": 1}],
        "started": "2026-01-02T00:00:00.000+00:00", "finished": "2026-01-02T00:01:00.000+00:00",
        "duration_s": 60.0,
    }  # fmt: skip
