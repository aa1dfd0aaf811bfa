"""Numbers on CUDA equal those on the CPU; a recorded decode step equals the eager one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddposink.caches import parse_policy
from ddposink.streaming import DecodeStream, DenseStream, ExactStream, ReferenceStream, evaluate, inspect
from helpers.families import VOCAB, build

LENGTH = 150
FAMILIES = ["llama", "gpt-neox", "mpt", "bloom"]
POLICIES = ["window 12", "sink 3+16", "sink 2+9 positions=absolute"]
TOLERANCE = 2e-4  # nats; fp32 on both sides, sums in another order


def text(length: int = LENGTH) -> torch.Tensor:
    return torch.randint(0, VOCAB, (length,), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_exact_nlls_on_cuda_equal_the_reference_on_the_cpu(family: str, policy: str) -> None:
    parsed, model = parse_policy(policy), build(family)
    expected = evaluate(ReferenceStream(model, parsed, inspect(model).positions), text())
    model.cuda()
    found = evaluate(ExactStream(model, parsed, inspect(model).positions, 48), text())
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_dense_nlls_on_cuda_equal_those_on_the_cpu(family: str) -> None:
    model = build(family)
    expected = evaluate(DenseStream(model, inspect(model).positions, 48), text())
    model.cuda()
    np.testing.assert_allclose(
        evaluate(DenseStream(model, inspect(model).positions, 48), text()), expected, atol=TOLERANCE
    )


@pytest.mark.parametrize("mode", ["graph", "compile"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_recorded_step_equals_the_eager_one(family: str, mode: str) -> None:
    """From the first token through the sinks, the filling of the window and several rounds of eviction."""
    model = build(family).cuda()
    parsed, positions, ids = parse_policy("sink 3+16"), inspect(model).positions, text().cuda()
    streams = [DecodeStream(model, parsed, positions, mode=which) for which in ("eager", mode)]
    hidden = []
    for stream in streams:
        with stream.attached():
            hidden.append(torch.cat([stream.feed(ids[t : t + 1]) for t in range(80)]))
    torch.testing.assert_close(hidden[1], hidden[0], atol=2e-4, rtol=1e-4)
    assert "CUDA graph" in streams[1].running
    assert [stream.seen for stream in streams] == [80, 80]
    assert streams[1].calls_per_layer == 80


def test_recorded_decode_goes_on_where_parallel_evaluation_stopped_and_rewinds() -> None:
    model = build("llama").cuda()
    parsed, positions, ids = parse_policy("sink 3+16"), inspect(model).positions, text().cuda()
    stream = ExactStream(model, parsed, positions, 48)
    with stream.attached():
        while stream.seen < 100:
            stream.feed(ids[stream.seen : stream.seen + stream.next_size(100 - stream.seen)])
        mark, runs = stream.mark(30), []
        for _ in range(2):
            with stream.decoder().attached() as decoder:
                runs.append(torch.cat([decoder.feed(ids[t : t + 1]) for t in range(100, 130)]))
            stream.rewind(mark)
        with stream.decoder(eager=True).attached() as decoder:
            expected = torch.cat([decoder.feed(ids[t : t + 1]) for t in range(100, 130)])
    assert stream.decoder().running == "CUDA graph"
    torch.testing.assert_close(runs[0], runs[1], atol=0, rtol=0)
    torch.testing.assert_close(runs[0], expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_stays_near(family: str) -> None:
    """bfloat16 keeps eight bits: the mean NLL may differ by a hundredth, not by a tenth."""
    model = build(family).cuda()
    parsed = parse_policy("sink 3+16")
    full = evaluate(ExactStream(model, parsed, inspect(model).positions, 48), text())
    model.bfloat16()
    half = evaluate(ExactStream(model, parsed, inspect(model).positions, 48), text())
    assert np.isfinite(half).all()
    assert abs(half.mean() - full.mean()) < 0.1
