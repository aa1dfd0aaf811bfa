"""A workload for gates: cheap, of every metric class, and made worse by settings.

``SLEEP`` seconds per token, ``LEAK`` bytes per token, ``LOSS`` nats, ``SLOTS`` slots more or less, ``END``
how the longest cell of a pass ends (raise, oom, nan, skip). With ``SCATTER`` noisy metrics are not measured
but drawn from ``SEED``, the side, the cell and its repeat (counted from ``FIRST``): SCATTER is the standard
deviation of their logarithms, and times are longer by the factor ``SLOWER``. What a gate says of them is then
the same on every machine.
They are read from the JSON file that GATETOY_SETTINGS names, when a pass runs: a test changes one side's.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel, ConfigDict

from bench.workload import Cell, Context, Cost, Metric, Missing, Pass, Samples, Scalar, Skip, View

WORK = 3000  # additions per token


class ToyParams(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: str = "a"
    tokens: int = 12


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


def settings() -> dict[str, Any]:
    path = Path(os.environ.get("GATETOY_SETTINGS", "/nowhere"))
    return json.loads(path.read_text()) if path.exists() else {}


def setting(name: str) -> float:
    return float(settings().get(name, 0))


class GateToy:
    name = "gatetoy"
    Params = ToyParams
    metrics = (
        Metric("slots", "slots", "", "lower", "exact"),
        Metric("fed", "tokens fed", "", "none", "exact"),
        Metric("nll", "NLL", "nats", "lower", "near", 0.001, headline=True),
        Metric("latency", "quickest token", "ms", "lower", "noisy", 0.1, headline=True),
        Metric("speed", "speed", "tok/s", "higher", "noisy", 0.1),
        Metric("rss", "peak RSS", "B", "lower", "noisy", 0.1),
        Metric("vram", "VRAM", "B", "lower", "noisy", 0.1),
        Metric("note", "a number without direction", "", "none", "noisy"),
    )
    views: tuple[View, ...] = ()
    prefix_axis = "tokens"
    preload: tuple[str, ...] = ("psutil",)

    def version(self) -> str:
        return os.environ.get("GATETOY_VERSION", "1")

    def label(self, params: ToyParams) -> str:
        return f"{params.kind} {params.tokens}"

    def columns(self, params: ToyParams) -> dict[str, Scalar]:
        return {"kind": params.kind, "tokens": params.tokens}

    def identity(self, params: ToyParams) -> dict[str, str]:
        return {}

    def cost(self, params: ToyParams) -> Cost:
        return Cost(params.tokens, "tokens")

    def published(self) -> list[dict[str, Scalar]]:
        return []

    def run(self, work: Pass, ctx: Context) -> None:
        leaked: list[bytes] = []
        times: list[float] = []
        self.sleep, self.leak = setting("SLEEP"), int(setting("LEAK"))
        for cell in work.cells:
            while len(times) < cell.params["tokens"]:
                times.append(self._token(leaked))
            if cell is work.cells[-1]:
                self._end(cell, ctx)
            self._emit(cell, ctx, times)

    def _token(self, leaked: list[bytes]) -> float:
        begun = time.perf_counter()
        total = 0
        for i in range(WORK):
            total += i
        time.sleep(self.sleep)
        leaked.append(b"x" * self.leak)
        return (time.perf_counter() - begun) * 1000

    def _end(self, cell: Cell, ctx: Context) -> None:
        match settings().get("END"):
            case "raise":
                raise ValueError("something <b>broke</b>")
            case "oom":
                raise OutOfMemoryError("CUDA out of memory")
            case "skip":
                raise Skip("weights not available offline")
            case "nan":
                ctx.emit(cell, {"nll": float("nan")})

    def _emit(self, cell: Cell, ctx: Context, times: list[float]) -> None:
        if settings().get("END") == "nan":
            return
        nll = 3.0 + setting("LOSS")
        series = Path(ctx.out) / f"nll-{cell.params['tokens']}.txt"
        series.write_text(f"{nll}\n")
        metrics = {
            "slots": 32 + int(setting("SLOTS")),
            "fed": len(times),
            "nll": nll,
            **(self._drawn(cell, ctx) if "SCATTER" in settings() else self._measured(times)),
            "vram": Missing("no GPU"),
            "note": random.random(),
        }
        ctx.emit(cell, metrics, artifacts=[series])

    def _measured(self, times: list[float]) -> dict[str, float | Samples]:
        quickest = min(times)  # the one that other processes have disturbed least
        rss = psutil.Process().memory_info().rss
        return {"latency": Samples(quickest, tuple(times)), "speed": 1000 / quickest, "rss": rss}

    def _drawn(self, cell: Cell, ctx: Context) -> dict[str, float | Samples]:
        asked = (sorted(cell.params.items()), cell.seed, cell.repeat - setting("FIRST"))
        draw = random.Random(repr((setting("SEED"), "head" in Path(ctx.out).parts, asked)))
        took, held = (math.exp(draw.gauss(0, setting("SCATTER"))) for _ in range(2))
        took *= float(settings().get("SLOWER", 1))
        return {"latency": Samples(took, (took,)), "speed": 1000 / took, "rss": 1e8 * held}
