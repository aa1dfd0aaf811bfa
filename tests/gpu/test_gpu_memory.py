"""Memory that can be believed: analytic bytes, the allocator and the driver tell one story."""

from __future__ import annotations

import torch

from bench.track.memory import MemoryTracker
from bench.workload import Missing
from ddposink.caches import CacheShape, parse_policy
from ddposink.models.language import ModelRef, load_model
from ddposink.streaming import DenseStream, ExactStream, inspect, open_stream
from ddposink.streaming.base import Stream

MODEL = "random:smollm2-135m"
MIB = 2**20


def fill(stream: Stream, length: int, ids: torch.Tensor) -> None:
    while stream.seen < length:
        size = stream.next_size(length - stream.seen)
        stream.feed(ids[stream.seen : stream.seen + size])


def allocated() -> int:
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


def requested() -> int:
    """Bytes asked for: what is allocated has the ends of segments in it that were too small to split."""
    torch.cuda.synchronize()
    return torch.cuda.memory_stats()["requested_bytes.all.current"]


def test_analytic_bytes_are_within_a_percent_of_what_the_allocator_is_asked_for() -> None:
    """Dense and sinks at 4,096 tokens of bfloat16; the ring's scratch slot is the difference."""
    loaded = load_model(ModelRef.parse(MODEL), "bfloat16", "cuda")
    ids = torch.randint(0, 49152, (8192,), device="cuda")
    shape = CacheShape.from_config(loaded.model.config.to_dict(), itemsize=2)
    for text in ("dense", "window 4096", "sink 4+4092"):
        policy = parse_policy(text)
        warm = open_stream(loaded.model, policy, chunk=512).stream  # kernels' workspaces, once
        with warm.attached():
            fill(warm, 512, ids)
        del warm
        before, held = requested(), allocated()
        stream = open_stream(loaded.model, policy, chunk=512, capacity=4096).stream
        with stream.attached():
            fill(stream, 4096, ids)
        grown = requested() - before
        assert allocated() - held >= grown
        analytic = policy.nbytes(shape, 4096)
        assert stream.nbytes() == analytic
        assert abs(grown - analytic) <= 0.01 * analytic, f"{text}: {grown} against {analytic} bytes"
        del stream


def test_nothing_grows_once_the_window_is_full() -> None:
    """Parallel evaluation and recorded decode: not one byte per token, over thousands of tokens."""
    loaded = load_model(ModelRef.parse(MODEL), "bfloat16", "cuda")
    ids = torch.randint(0, 49152, (16_384,), device="cuda")
    stream = ExactStream(loaded.model, parse_policy("sink 4+508"), inspect(loaded.model).positions, 1016)
    with stream.attached():
        fill(stream, 4 + 508 * 5, ids)
        before = allocated()
        fill(stream, 4 + 508 * 25, ids)
        assert allocated() == before
        with stream.decoder().attached() as decoder:
            decoder.feed(ids[:1])  # recording takes memory of its own
            before = allocated()
            for t in range(1000):
                decoder.feed(ids[t : t + 1])
            assert allocated() == before


def test_dense_grows_by_its_tokens() -> None:
    """The counter-check: the allocator would have shown growth, had there been any."""
    loaded = load_model(ModelRef.parse(MODEL), "bfloat16", "cuda")
    ids = torch.randint(0, 49152, (8192,), device="cuda")
    stream = DenseStream(loaded.model, inspect(loaded.model).positions, 512, 2048)
    with stream.attached():
        fill(stream, 2048, ids)
        before = allocated()
        stream.reserve(8192)
        fill(stream, 8192, ids)
    shape = CacheShape.from_config(loaded.model.config.to_dict(), itemsize=2)
    expected = parse_policy("dense").nbytes(shape, 8192) - parse_policy("dense").nbytes(shape, 2048)
    assert abs(allocated() - before - expected) <= 0.01 * expected


def test_the_driver_and_the_allocator_agree_or_the_reason_is_stated() -> None:
    """A block of 1 GiB: the driver shows what torch has reserved, and a context at most beside it."""
    tracker = MemoryTracker("cuda")
    with tracker:
        block = torch.ones(1024 * MIB // 4, device="cuda")
        block += 1
        torch.cuda.synchronize()
        peaks = tracker.snapshot()
    held, reserved = peaks["alloc_peak_bytes"], peaks["reserved_peak_bytes"]
    assert isinstance(held, int)
    assert isinstance(reserved, int)
    assert 1024 * MIB <= held <= reserved
    process, device = peaks["nvml_process_bytes"], peaks["nvml_device_bytes"]
    for figure in (process, device):
        if isinstance(figure, Missing):
            assert len(figure.reason) > 10
            print(f"not to be had here: {figure.reason}")
        else:
            assert reserved <= figure <= reserved + 4096 * MIB
    assert not (isinstance(process, Missing) and isinstance(device, Missing)), (process, device)
