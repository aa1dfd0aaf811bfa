"""An invented run that looks like fine-tuning: steps as prefix axis, pictures, traces, many metrics."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.workload import Metric, View
from helpers.synthetic import Anything, value, write_run

METRICS = (
    Metric("effect", "effect", "SD", "higher", "near", 0.05, headline=True),
    Metric("effect_red", "effect on red", "SD", "higher", "near", 0.05),
    Metric("effect_blue", "effect on blue", "SD", "higher", "near", 0.05),
    Metric("vendi", "effective number of pictures", "", "higher", "near", 0.1, headline=True),
    Metric("state_bytes", "weights and optimizer", "B", "lower", "exact"),
    Metric("state_bytes_analytic", "weights and optimizer, predicted", "B", "lower", "exact"),
    Metric("rss_peak_bytes", "peak RSS (host)", "B", "lower", "noisy", 0.05),
    Metric("nvml_process_bytes", "VRAM of the process", "B", "lower", "noisy", 0.05),
)
VIEWS = (
    View("matrix", "matrix", "What training does to all", "steps", "effect_", "scored on", "effect",
         hue="reward", headline=True),
    View("pictures", "pictures", "Before and after", "steps", "effect", "training steps", "pictures",
         hue="reward", series="pictures", headline=True),
    View("by-steps", "line", "Effect by steps", "steps", "effect", "training steps", "effect", hue="reward"),
    View("paths", "scatter", "Effect and diversity", "effect", "vendi", "effect", "pictures", hue="reward"),
    View("training", "trace", "While training", "step", "reward", "training step", "reward", hue="reward",
         series="train"),
)  # fmt: skip
STEPS = (0, 25, 50, 100)


@dataclass
class Tuned:
    """A torch-free workload declaration without code to run."""

    Params = Anything
    metrics: tuple[Metric, ...] = METRICS
    views: tuple[View, ...] = VIEWS
    prefix_axis: str | None = "steps"
    name: str = "tuned"

    def published(self) -> list[dict[str, Any]]:
        return []

    def columns(self, params: Anything) -> dict[str, Any]:
        return params.model_dump()


def tuned_run(folder: Path, rewards: tuple[str, ...] = ("red", "blue")) -> Path:
    """Two rewards at four checkpoints, each with a picture whose colour says how far training has gone."""
    records = []
    for place, reward in enumerate(rewards):
        base = f"artifacts/pass{place}"
        for steps in STEPS:
            (folder / base).mkdir(parents=True, exist_ok=True)
            files = [f"{base}/pictures-{steps}.png"]
            (folder / files[0]).write_bytes(picture(reward, steps))
            if steps:
                files.append(f"{base}/train-{steps}.npz")
                step = np.arange(1, steps + 1)
                np.savez(folder / files[1], step=step, reward=np.sqrt(step) / 3 + place)
            records.append(_record(reward, steps, place, files))
    return write_run(folder, records, suite={"suite": "tuned", "workload": "tuned", "compare": None})


def _record(reward: str, steps: int, place: int, files: list[str]) -> dict[str, Any]:
    own, other = steps / 50, -steps / 80
    metrics = {
        "effect": value(own, "SD", samples=[own - 0.1, own, own + 0.1]),
        "effect_red": value(own if reward == "red" else other, "SD"),
        "effect_blue": value(own if reward == "blue" else other, "SD"),
        "vendi": value(20 - steps / 10, ""),
        "state_bytes": value(4_194_304, "B"),
        "state_bytes_analytic": value(4_194_304, "B"),
        "rss_peak_bytes": value(900_000_000 + steps, "B"),
        "nvml_process_bytes": value(None, "B", reason="no GPU"),
    }
    params = {"reward": reward, "steps": steps}
    return {
        "suite": "tuned", "workload": "tuned", "run": "20260102-000000-abcdef", "cell": f"c{place}-{steps}",
        "pass_id": f"pass{place}", "label": f"{reward} · {steps}", "params": params, "columns": params,
        "seed": 0, "repeat": 0, "status": "ok", "env": "0123456789ab", "metrics": metrics,
        "artifacts": [{"path": path, "sha256": "0" * 64, "bytes": 1} for path in files],
        "started": "2026-01-02T00:00:00.000+00:00", "finished": "2026-01-02T00:01:00.000+00:00",
        "duration_s": 60.0,
    }  # fmt: skip


def picture(reward: str, steps: int) -> bytes:
    """A PNG of 4 × 2 tiles that turn red or blue with the steps."""
    tint = min(255, 40 + 2 * steps)
    colour = (tint, 60, 60) if reward == "red" else (60, 60, tint)
    array = np.full((64, 128, 3), colour, np.uint8)
    array[::32] = array[:, ::32] = 230
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()
