"""Through the real harness: children with CUDA, an OOM that becomes a record, and a healthy cell after it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SUITE = """
suite: gpu-oom
workload: stream
defaults:
  {model: "random:smollm2-135m", dtype: bfloat16, device: cuda, decode_tokens: 16, measure: [memory, latency]}

include:
  # 45 KiB a token: hundreds of gigabytes, reserved at once after the length before it.
  - {policy: dense, length: [512, 8000000]}
  - {policy: sink 4+508, length: [512, 2048]}
timeout: 400
"""


def measured(tmp_path: Path) -> dict[str, dict[str, Any]]:
    suite = tmp_path / "gpu-oom.yaml"
    suite.write_text(SUITE)
    run = [sys.executable, "-m", "bench", "run", str(suite), "--results", str(tmp_path / "r"), "--plain"]
    ended = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 3, ended.stdout + ended.stderr  # one cell failed, and the run went on
    (records,) = (tmp_path / "r").glob("gpu-oom/*/records.jsonl")
    return {r["label"]: r for r in map(json.loads, records.read_text().splitlines())}


def test_an_oom_is_recorded_and_the_next_cell_is_healthy(tmp_path: Path) -> None:
    records = measured(tmp_path)
    shorter = records["smollm2-135m · dense · 512"]
    too_long = records["smollm2-135m · dense · 8,000,000"]
    assert shorter["status"] == "ok"
    assert too_long["status"] == "oom"
    assert "out of memory" in too_long["reason"]
    for length in ("512", "2,048"):
        next_one = records[f"smollm2-135m · sink 4+508 · {length}"]
        assert next_one["status"] == "ok"
        assert next_one["conformance"]["decoded_as"] == "CUDA graph"
        metrics = next_one["metrics"]
        assert metrics["kv_bytes"]["value"] == metrics["kv_bytes_analytic"]["value"]
        assert metrics["alloc_peak_bytes"]["value"] > metrics["kv_bytes"]["value"]
        assert metrics["latency_median_ms"]["value"] > 0
        for name in ("nvml_process_bytes", "nvml_device_bytes"):
            assert metrics[name]["value"] is not None or metrics[name]["reason"]
