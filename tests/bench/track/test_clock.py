"""Steps are counted, not timed: no assertion here depends on how fast the machine is."""

from __future__ import annotations

import gc
import statistics
import sys
import time
import types

import pytest

from bench.track.clock import summarise, time_steps
from bench.workload import Missing, Samples


def test_every_step_is_called_once_and_warm_up_is_not_measured():
    seen = []
    times = time_steps(seen.append, warmup=3, steps=5)
    assert seen == list(range(8))
    assert len(times) == 5
    assert all(seconds >= 0 for seconds in times)


def test_a_slow_step_is_found_where_it_happened():
    times = time_steps(lambda i: time.sleep(0.03 if i == 4 else 0), warmup=2, steps=5)
    assert times.index(max(times)) == 2
    assert max(times) >= 0.03


def test_minimum_duration_asks_for_more_steps():
    times = time_steps(lambda i: time.sleep(0.005), warmup=0, steps=2, min_seconds=0.05)
    assert len(times) > 2
    assert sum(times) >= 0.05


def test_minimum_duration_ends_at_the_last_possible_step():
    seen = []
    assert len(time_steps(seen.append, warmup=1, steps=2, min_seconds=60, max_steps=7)) == 7
    assert seen == list(range(8))


def test_garbage_collection_is_off_meanwhile_and_back_afterwards():
    states = []
    time_steps(lambda i: states.append(gc.isenabled()), warmup=1, steps=2)
    assert states == [True, False, False]
    assert gc.isenabled()


def test_garbage_collection_comes_back_after_an_error():
    with pytest.raises(ZeroDivisionError):
        time_steps(lambda i: 1 // 0, warmup=0, steps=1)
    assert gc.isenabled()


def test_garbage_collection_stays_off_if_it_was_off():
    gc.disable()
    try:
        time_steps(lambda i: None, warmup=0, steps=1)
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"warmup": -1}, {"steps": 5, "max_steps": 4}, {"device": "mps"}]
)
def test_impossible_requests(wrong):
    calls = []
    with pytest.raises(ValueError, match="cannot time"):
        time_steps(calls.append, **{"warmup": 0, "steps": 1, **wrong})
    assert not calls


def test_cuda_steps_are_timed_by_events_read_after_the_last(monkeypatch):
    """Stand-in for torch.cuda with a device clock of its own: it advances 10 ms per step."""
    log = []
    now = [0.0]

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            self.at = now[0]
            log.append("mark")

        def elapsed_time(self, end):
            assert log[-1] == "wait"
            return end.at - self.at

    cuda = types.SimpleNamespace(
        Event=Event, current_stream=lambda device: "stream", synchronize=lambda device: log.append("wait")
    )
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))

    def step(index):
        log.append(index)
        now[0] += 10.0 + index

    assert time_steps(step, warmup=2, steps=2, device="cuda:0") == [0.012, 0.013]
    assert log == [0, 1, "wait", "mark", 2, "mark", 3, "mark", "wait"]


def test_summary_against_the_standard_library_and_numpy():
    numpy = pytest.importorskip("numpy")
    times = [((7 * i) % 101 + 1) / 1000 for i in range(150)]
    summary = summarise(times, tokens_per_step=2)
    median = summary["latency_median_ms"]
    assert isinstance(median, Samples)
    assert median.value == pytest.approx(statistics.median(times) * 1e3)
    assert median.values == tuple(round(t * 1e3, 6) for t in times), "raw values in order"
    assert summary["latency_p90_ms"] == pytest.approx(numpy.percentile(times, 90) * 1e3)
    assert summary["latency_p99_ms"] == pytest.approx(numpy.percentile(times, 99) * 1e3)
    assert summary["tokens_per_s"] == pytest.approx(300 / sum(times))


@pytest.mark.parametrize(("steps", "p90", "p99"), [(9, False, False), (10, True, False), (100, True, True)])
def test_percentiles_need_enough_steps(steps, p90, p99):
    summary = summarise([0.001] * steps)
    for key, given in (("latency_p90_ms", p90), ("latency_p99_ms", p99)):
        assert isinstance(summary[key], Missing) is not given
    assert summary["latency_median_ms"].value == 1.0


def test_nothing_timed():
    with pytest.raises(ValueError, match="no step was timed"):
        summarise([])


def test_steps_too_short_for_the_clock():
    assert isinstance(summarise([0.0, 0.0])["tokens_per_s"], Missing)


@pytest.mark.gpu
def test_on_a_real_gpu():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    small, large = (torch.randn(n, n, device="cuda:0") for n in (256, 8192))
    short = time_steps(lambda i: small @ small, warmup=3, steps=10, device="cuda:0")
    long = time_steps(lambda i: large @ large, warmup=3, steps=10, device="cuda:0")
    assert statistics.median(long) > statistics.median(short), "kernels are waited for, not just launched"
