"""A plug-in that times steps with the harness's clock and makes its version the default way."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from bench.track.clock import summarise, time_steps
from bench.version import code_version
from bench.workload import Context, Cost, Metric, Pass, Scalar, View


class TickParams(BaseModel):
    model_config = ConfigDict(extra="forbid")

    steps: int = 10


class TickToy:
    name = "ticktoy"
    Params = TickParams
    metrics = (
        Metric("latency_median_ms", "latency", "ms", klass="noisy", headline=True),
        Metric("tokens_per_s", "speed", "tok/s", "higher", klass="noisy"),
    )
    views: tuple[View, ...] = ()
    prefix_axis = None
    preload: tuple[str, ...] = ()

    def version(self) -> str:
        return code_version(__name__)

    def label(self, params: TickParams) -> str:
        return f"ticks {params.steps}"

    def columns(self, params: TickParams) -> dict[str, Scalar]:
        return {"steps": params.steps}

    def identity(self, params: TickParams) -> dict[str, str]:
        return {}

    def cost(self, params: TickParams) -> Cost:
        return Cost(params.steps, "steps")

    def published(self) -> list[dict[str, Scalar]]:
        return []

    def run(self, work: Pass, ctx: Context) -> None:
        for cell in work.cells:
            times = time_steps(lambda step: None, warmup=1, steps=cell.params["steps"])
            found = summarise(times)
            ctx.emit(cell, {metric.name: found[metric.name] for metric in self.metrics})
