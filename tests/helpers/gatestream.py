"""The real `stream` workload with faults that a gate must catch; the file GATESTREAM_FAULT names one."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import Any

from bench.workload import Context, Pass
from ddposink.workloads.stream import StreamWorkload


class FaultyStream(StreamWorkload):
    name = "gatestream"
    preload = ("ddposink.workloads.stream_run", "helpers.gatestream")

    def run(self, work: Pass, ctx: Context) -> None:
        fault = Path(os.environ.get("GATESTREAM_FAULT", "/nowhere"))
        if fault.exists():
            FAULTS[fault.read_text()]()
        super().run(work, ctx)


def _none() -> None:
    pass


def _quality() -> None:
    """Every token costs a hundredth of a nat more."""
    from ddposink.workloads import stream_run

    whole = stream_run.quality

    def worse(nll: Any, *rest: Any) -> Any:
        return whole(nll + 0.01, *rest)

    stream_run.quality = worse  # type: ignore[assignment]


def _slot() -> None:
    """The cache is opened with one slot less than the cell promises."""
    from ddposink.workloads import stream_run

    whole = stream_run.open_stream

    def smaller(model: Any, policy: Any, **rest: Any) -> Any:
        return whole(model, dataclasses.replace(policy, window=policy.window - 1), **rest)

    stream_run.open_stream = smaller


def _window() -> None:
    """The policy itself is read with one slot less, so that all that follows agrees with it."""
    from ddposink.caches import parse_policy
    from ddposink.workloads.stream import StreamParams

    def smaller(params: StreamParams) -> Any:
        policy = parse_policy(params.policy)
        return dataclasses.replace(policy, window=policy.window - 1)

    StreamParams.parsed_policy = property(smaller)  # type: ignore[assignment,method-assign]


def _step(before: Any) -> None:
    from ddposink.workloads.stream_decoding import Decoding

    whole = Decoding.step

    def step(self: Any, i: int) -> None:
        before()
        whole(self, i)

    Decoding.step = step  # type: ignore[method-assign]


def _cat() -> None:
    """A concatenation creeps back into decoding."""
    import torch

    _step(lambda: torch.cat([torch.zeros(8), torch.zeros(8)]))


def _leak() -> None:
    """Every decoded token leaves 20 MB behind."""
    leaked: list[bytes] = []
    _step(lambda: leaked.append(b"x" * 20_000_000))


def _sleep() -> None:
    """Every decoded token takes 20 ms longer."""
    _step(lambda: time.sleep(0.02))


FAULTS = {
    "none": _none,
    "quality": _quality,
    "slot": _slot,
    "window": _window,
    "cat": _cat,
    "leak": _leak,
    "sleep": _sleep,
}
