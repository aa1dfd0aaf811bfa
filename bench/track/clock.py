"""Time per step, with everything around the step kept out of it.

On a GPU the clock is one CUDA event between each two steps, read after the last: the host is never
made to wait between steps, and a device that waits for the host shows. On a CPU it is the monotonic
performance counter, once per step. Python's garbage collector is off meanwhile: a collection in one
step out of a thousand is the p99.

A percentile needs enough steps to mean anything: p90 at least ten, p99 at least a hundred (one step
beyond the percentile); with fewer it is `Missing`.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from bench.track import split_device, wait_for
from bench.workload import Missing, Samples

MIN_STEPS = {90: 10, 99: 100}


def time_steps(
    step: Callable[[int], None],
    *,
    warmup: int,
    steps: int,
    device: object = "cpu",
    min_seconds: float = 0.0,
    max_steps: int | None = None,
) -> list[float]:
    """Seconds taken by each measured step; ``step`` is called with 0, 1, 2, … through warm-up and on.

    At least ``steps`` are measured *and* at least ``min_seconds`` pass, unless ``max_steps`` measured
    steps (at least ``steps``) are reached first. Without ``min_seconds`` ``step`` is called exactly
    ``warmup + steps`` times. ``device`` is "cpu" or a CUDA device (timed on its current stream).
    """
    if warmup < 0 or steps < 1 or (max_steps is not None and max_steps < steps):
        raise ValueError(f"cannot time {steps} steps (at most {max_steps}) after {warmup} of warm-up")
    limit = float("inf") if max_steps is None else max_steps
    clock = _clock_for(device)
    for index in range(warmup):
        step(index)
    wait_for(device)
    with _no_garbage_collection():
        started = time.perf_counter()
        clock.mark()
        done = 0
        while done < steps or (done < limit and time.perf_counter() - started < min_seconds):
            step(warmup + done)
            clock.mark()
            done += 1
    return clock.intervals()


def summarise(times: Sequence[float], *, tokens_per_step: int = 1) -> dict[str, float | Missing | Samples]:
    """Median (with the raw values), p90 and p99 in milliseconds, and tokens per second overall.

    Keys: ``latency_median_ms``, ``latency_p90_ms``, ``latency_p99_ms``, ``tokens_per_s``.
    """
    if not times:
        raise ValueError("no step was timed")
    total = sum(times)
    raw = tuple(round(seconds * 1e3, 6) for seconds in times)
    return {
        "latency_median_ms": Samples(statistics.median(raw), raw),
        "latency_p90_ms": _percentile(raw, 90),
        "latency_p99_ms": _percentile(raw, 99),
        "tokens_per_s": len(times) * tokens_per_step / total
        if total > 0
        else Missing("the steps were too short for the clock"),
    }


def _percentile(values: Sequence[float], percent: int) -> float | Missing:
    """Linear interpolation between order statistics, as numpy does by default."""
    if len(values) < MIN_STEPS[percent]:
        return Missing(f"p{percent} needs at least {MIN_STEPS[percent]} steps, {len(values)} were timed")
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


class _Clock(Protocol):
    def mark(self) -> None: ...

    def intervals(self) -> list[float]: ...


class _HostClock:
    """Marks in nanoseconds of the performance counter."""

    def __init__(self) -> None:
        self._marks: list[int] = []

    def mark(self) -> None:
        self._marks.append(time.perf_counter_ns())

    def intervals(self) -> list[float]:
        return [(after - before) / 1e9 for before, after in zip(self._marks, self._marks[1:], strict=False)]


class _CudaClock:
    """Marks as events in the device's current stream."""

    def __init__(self, device: object) -> None:
        import torch

        self._torch = torch
        self._device = device
        self._marks: list[Any] = []

    def mark(self) -> None:
        event = self._torch.cuda.Event(enable_timing=True)
        event.record(self._torch.cuda.current_stream(self._device))
        self._marks.append(event)

    def intervals(self) -> list[float]:
        wait_for(self._device)
        pairs = zip(self._marks, self._marks[1:], strict=False)
        return [before.elapsed_time(after) / 1e3 for before, after in pairs]


def _clock_for(device: object) -> _Clock:
    kind, _ = split_device(device)
    if kind == "cuda":
        return _CudaClock(device)
    if kind == "cpu":
        return _HostClock()
    raise ValueError(f"cannot time steps on {kind!r}: only cpu and cuda have a clock here")


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
