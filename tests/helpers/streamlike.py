"""A workload with the parameters of a streaming one, for tests that plan and never measure."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from bench.workload import Cost, Metric, Pass, Scalar, View

POLICIES = ("dense", "window", "sink")


def canonical_policy(text: str) -> str:
    kind, *sizes = text.split() or [""]
    if kind not in POLICIES:
        near = difflib.get_close_matches(kind, POLICIES, n=1)
        raise ValueError(f"unknown cache policy '{kind}'" + (f" (did you mean '{near[0]}'?)" if near else ""))
    if kind == "dense":
        return kind
    if not re.fullmatch(r"\d+" if kind == "window" else r"\d+\+\d+", "".join(sizes)):
        raise ValueError(f"cannot read the size of '{text}'")
    return f"{kind} {''.join(sizes)}"


class Params(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1, description="Which model")
    policy: Annotated[str, AfterValidator(canonical_policy)] = Field(description="Cache policy")
    length: int = Field(gt=0)
    dtype: Literal["float32", "bfloat16"] = "float32"
    scale: float = 1.0
    layers: list[int] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Params:
        if self.policy.startswith("window") and int(self.policy.split()[1]) > 100_000:
            raise ValueError(f"policy {self.policy} is wider than any model")
        if self.policy == "dense" and self.length > 1_000_000:
            raise ValueError(f"dense cannot hold {self.length} tokens")
        return self


class Streamlike:
    name = "streamlike"
    Params = Params
    metrics = (Metric("nll", "NLL", "nats"), Metric("latency_ms", "latency", "ms", klass="noisy"))
    views: tuple[View, ...] = ()
    prefix_axis: str | None = "length"
    preload: tuple[str, ...] = ()

    def __init__(self, version: str = "v1") -> None:
        self._version = version
        self.asked: Counter[str] = Counter()

    def version(self) -> str:
        return self._version

    def label(self, params: Params) -> str:
        return f"{params.policy} @{params.length}"

    def columns(self, params: Params) -> dict[str, Scalar]:
        kind, *size = params.policy.split()
        columns: dict[str, Scalar] = {"model": params.model, "policy": params.policy, "length": params.length}
        columns["kind"] = kind
        if kind == "sink":
            columns["sinks"] = int(size[0].split("+")[0])
        return columns

    def identity(self, params: Params) -> dict[str, str]:
        self.asked[f"{params.model}/{params.policy}"] += 1
        return {"model": f"sha256 of {params.model}"}

    def cost(self, params: Params) -> Cost:
        return Cost(params.length, "tokens")

    def published(self) -> list[dict[str, Scalar]]:
        return []

    def run(self, work: Pass, ctx: Any) -> None:
        raise AssertionError("a plan runs nothing")


def raw_suite(**keys: Any) -> Mapping[str, Any]:
    """Plain data of a small valid suite; keyword arguments replace keys."""
    base: dict[str, Any] = {
        "suite": "toy",
        "workload": "streamlike",
        "defaults": {"model": "small"},
        "grid": {"policy": ["dense", "window 8", "sink 2+6"], "length": [16, 64]},
    }
    return {**base, **keys}
