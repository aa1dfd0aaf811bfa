"""A run shaped like a DDPO run, of invented numbers: step counts, a family of metrics, kept arrays, pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.workload import Metric, View
from helpers.synthetic import Synthetic, record, value, write_run

REWARDS = ("small files", "large files", "likeness")
STEPS = (0, 10, 50)
EFFECT = {"small files": (2.0, -2.0, -0.6), "large files": (-1.8, 1.8, 0.02), "likeness": (0.1, 0.0, 1.1)}
METRICS = (
    Metric("effect", "effect", "SD", "higher", headline=True),
    Metric("others_effect", "effect on others", "SD", "higher"),
    *(Metric(f"effect_{name.replace(' ', '_')}", name, "SD", "higher") for name in REWARDS),
)
WHERE = {"engine": "ours"}
VIEWS = (
    View("matrix", "matrix", "Trained on, scored on", "steps", "effect_", "scored on", "effect", "reward",
         where=WHERE, headline=True),
    View("pictures", "pictures", "Before and after", "steps", "effect", "steps", "pictures", "reward",
         series="pictures", where=WHERE, headline=True),
    View("steps", "line", "Reward by steps", "steps", "effect", "steps", "effect", "reward", where=WHERE),
    View("queries", "line", "Reward by queries", "queries", "effect", "queries", "effect", "reward", where=WHERE),
    View("path", "scatter", "Own and others", "effect", "others_effect", "effect", "others", "reward", where=WHERE),
    View("trace", "trace", "While training", "step", "reward", "step", "reward", "engine", series="train"),
)  # fmt: skip


def workload() -> Synthetic:
    return Synthetic(metrics=METRICS, views=VIEWS, prefix_axis="steps")


def tuning_run(folder: Path, **suite: Any) -> Path:
    """Three rewards by our engine, one of them also by a peer; effects grow with the steps."""
    records = []
    for engine, reward in [*(("ours", r) for r in REWARDS), ("peer", REWARDS[0])]:
        for steps in STEPS:
            made = record("dense", steps, params={"engine": engine, "reward": reward, "steps": steps})
            for place in (made["params"], made["columns"]):
                for name in ("policy", "length", "model", "corpus", "dtype"):
                    place.pop(name)
            made["columns"] = made["params"] | {"queries": steps * 32}
            own = REWARDS.index(reward)
            made["pass_id"], made["cell"] = f"{engine}-{own}", f"{engine}-{own}-{steps}"
            made["label"] = f"{engine} · {reward} · {steps}"
            made["metrics"] = _metrics(reward, steps)
            made["artifacts"] = _artifacts(folder, made["pass_id"], steps, own)
            records.append(made)
    return write_run(folder, records, suite={"compare": None} | suite, planned=records)


def _metrics(reward: str, steps: int) -> dict[str, Any]:
    own = np.random.default_rng(steps)
    found = {}
    for name, final in zip(REWARDS, EFFECT[reward], strict=True):
        samples = final * steps / STEPS[-1] + own.normal(0, 0.3, 12) * bool(steps)
        found[f"effect_{name.replace(' ', '_')}"] = _value(samples)
    found["effect"] = found[f"effect_{reward.replace(' ', '_')}"]
    rest = [
        v["value"] for k, v in found.items() if k.startswith("effect_") and reward.replace(" ", "_") not in k
    ]
    return found | {"others_effect": value(float(np.mean(rest)), "SD")}


def _value(samples: np.ndarray) -> dict[str, Any]:
    return {"value": float(samples.mean()), "unit": "SD", "samples": samples.tolist()}


def _artifacts(folder: Path, pass_id: str, steps: int, own: int) -> list[dict[str, Any]]:
    place = folder / "artifacts" / pass_id
    place.mkdir(parents=True, exist_ok=True)
    colour = [60 + 60 * own, 200 - 3 * steps, 120]
    Image.fromarray(np.full((40, 160, 3), colour, np.uint8)).save(place / f"pictures-{steps}.png")
    names = [f"pictures-{steps}.png"]
    if steps:
        step = np.arange(1, steps + 1)
        np.savez_compressed(place / f"train-{steps}.npz", step=step, reward=np.log(step) + own)
        names.append(f"train-{steps}.npz")
    return [{"path": f"artifacts/{pass_id}/{name}", "sha256": "0" * 64, "bytes": 1} for name in names]
