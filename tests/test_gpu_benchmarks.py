"""The measures of the GPU benchmarks, on a CPU and a small model: none of them is dead code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu_measures as measures  # noqa: E402

from ddposink.caches import parse_policy  # noqa: E402
from ddposink.streaming import ExactStream, inspect  # noqa: E402
from helpers.families import VOCAB, build  # noqa: E402
from helpers.tiny import tiny_pipeline  # noqa: E402


def test_rates_are_positive_and_of_a_plausible_size() -> None:
    assert 1e7 < measures.copy_rate("cpu", 2**22) < 1e13
    assert 1e6 < measures.matmul_rate(torch.float32, "cpu", 128) < 1e14


def test_a_step_reads_every_weight_but_the_untied_embedding() -> None:
    model = build("llama")
    everything = sum(p.numel() * 4 for p in model.parameters())
    assert not model.config.tie_word_embeddings
    assert measures.traffic(model, 1000) == everything - VOCAB * 64 * 4 + 1000
    model.lm_head.weight = model.model.embed_tokens.weight
    assert measures.traffic(model, 0) == everything - VOCAB * 64 * 4


def test_ring_and_library_steps_advance_as_they_should() -> None:
    model, ids = build("llama"), torch.randint(0, VOCAB, (100,))
    stream = ExactStream(model, parse_policy("sink 3+9"), inspect(model).positions, 18)
    with stream.attached():
        measures.fill(stream, ids, 40)
        with stream.decoder().attached() as decoder:
            step = measures.ring_step(decoder, ids)
            assert step().shape == (1, VOCAB)
            assert measures.per_step(step, "cpu", 3, rounds=2) > 0
    assert stream.seen == 40 + 1 + 3 * 3  # one, then three rounds (one of warm-up) of three
    step = measures.library_step(model, ids, 12)
    torch.testing.assert_close(step(), step())  # the cache is cut back: every step is the same
    with torch.no_grad():
        expected = model(ids[None, :13]).logits[0, -1:]
    torch.testing.assert_close(step(), expected, atol=1e-4, rtol=1e-4)


def test_operations_of_a_training_follow_from_those_of_a_forward() -> None:
    pipeline = tiny_pipeline()
    one = measures.forward_flops(pipeline)
    assert one > 1e6
    assert measures.ddpo_flops(pipeline, samples=16, denoising_steps=10) == 16 * 60 * one


def test_the_benchmarks_for_a_gpu_say_why_they_are_skipped() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device: they would be measured")
    command = [sys.executable, "-m", "pytest", "benchmarks/test_gpu.py", "-o", "addopts=", "-rs", "-q"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "needs a CUDA device" in ended.stdout
    assert "18 skipped" in ended.stdout
