"""Suites of the `ddpo` workload on a tiny pipeline, and who collects what it answers."""

import json
from pathlib import Path

from bench.suite.model import parse_suite


def suite(pipeline, /, **changes):
    prompts = f"file:{Path(pipeline.removeprefix('path:')).parent / 'prompts.txt'}"
    defaults = {
        "pipeline": pipeline, "prompts": prompts, "eval_prompts": prompts, "eval_seeds": 2,
        "evaluate": ["jpeg_compressibility", "brisque"],
        "sample_num_steps": 3, "sample_guidance_scale": 2.0, "sample_batch_size": 4,
        "sample_num_batches_per_epoch": 1, "train_batch_size": 2, "mixed_precision": "no", "threads": 1,
    }  # fmt: skip
    grid = {"reward": ["jpeg_compressibility"], "steps": [0, 1, 2]} | changes.pop("grid", {})
    data = {"suite": "t", "workload": "ddpo", "defaults": defaults | changes, "grid": grid}
    return parse_suite(json.dumps(data).encode(), "t.yaml")


class Ctx:
    """Collects what a workload answers."""

    def __init__(self, out):
        self.out, self.scratch = out, out.parent / "scratch"
        self.answers, self.shown = {}, []
        out.mkdir(parents=True, exist_ok=True)

    def progress(self, done, total, **values):
        self.shown.append((done, total, values))

    def emit(self, cell, metrics, **more):
        self.answers[cell.label.split(" · ", 1)[1]] = {"metrics": metrics, "status": "ok", **more}
