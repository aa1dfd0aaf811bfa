"""Every committed suite plans here, and those for a GPU end skipped, with the reason, where there is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.suite.request import Options, prepare
from ddposink.caches import CacheShape, parse_policy
from ddposink.models.language import ModelRef

ROOT = Path(__file__).parents[1]
SUITES = sorted(path.stem for path in (ROOT / "suites").glob("*.yaml"))
LOCAL_TEXT = {"book10146"}  # reads a file that is not committed
FOR_A_GPU = ("gpu-memory", "gpu-ddpo")
GIB = 2**30


def test_the_suites_for_a_gpu_are_among_them() -> None:
    assert set(FOR_A_GPU) < set(SUITES)


@pytest.mark.parametrize("name", [name for name in SUITES if name not in LOCAL_TEXT])
def test_a_committed_suite_plans(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    request = prepare(Options(suite=ROOT / "suites" / f"{name}.yaml"))
    assert request.cells
    assert len({cell.id for cell in request.cells}) == len(request.cells)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device: the suite would be measured")
@pytest.mark.parametrize("name", FOR_A_GPU)
def test_without_a_gpu_it_ends_skipped_with_the_reason(name: str, tmp_path: Path) -> None:
    run = [sys.executable, "-m", "bench", "run", f"suites/{name}.yaml", "--results", str(tmp_path), "--plain"]
    ended = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 3, ended.stdout + ended.stderr  # nothing was measured
    (records,) = tmp_path.glob(f"{name}/*/records.jsonl")
    answers = [json.loads(line) for line in records.read_text().splitlines()]
    assert {answer["status"] for answer in answers} == {"skipped"}
    assert {answer["reason"] for answer in answers} == {"device 'cuda': no CUDA device on this machine"}


def test_the_dense_cells_fit_a_card_but_for_the_one_that_must_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and analytic keys and values of every cell of gpu-memory, in bytes, against 80 and 141 GB."""
    monkeypatch.chdir(ROOT)
    request = prepare(Options(suite=ROOT / "suites" / "gpu-memory.yaml"))
    too_large = []
    for cell in request.cells:
        config = ModelRef.parse(cell.params["model"]).config_dict()
        shape = CacheShape.from_config(config, itemsize=2)
        weights = 2 * parameters(config)
        held = parse_policy(cell.params["policy"]).nbytes(shape, cell.params["length"])
        if weights + held > 70 * GIB:
            too_large.append((cell.label, weights + held))
    assert [label for label, _ in too_large] == ["llama-2-7b · dense · 262,144"]
    assert too_large[0][1] > 140 * GIB


def parameters(config: dict) -> int:
    """Of a Llama-like model, from its shape (norms left out)."""
    d, layers = config["hidden_size"], config["num_hidden_layers"]
    heads = config["num_attention_heads"]
    kv = config.get("num_key_value_heads", heads) * (d // heads)
    layer = 2 * d * d + 2 * d * kv + 3 * d * config["intermediate_size"]
    return layers * layer + config["vocab_size"] * d * (1 if config.get("tie_word_embeddings") else 2)
