"""The `stream` workload, declared: an endless token stream through a model under a cache policy.

Everything here is data: what a cell may say, which metrics it yields, which pictures are drawn. No
torch; what runs in the child is `ddposink.workloads.stream_run`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from importlib.resources import files
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from bench.version import code_version
from bench.workload import Context, Cost, Pass, Scalar, Skip
from ddposink.caches import Policy, parse_policy
from ddposink.corpora import CorpusRef
from ddposink.errors import Unavailable
from ddposink.models.language import ModelRef
from ddposink.workloads.stream_notes import bos_notes, own_window_notes
from ddposink.workloads.stream_tables import METRICS, VIEWS

# What is shown and said of cells: no number changes with it.
SAID = ("ddposink.workloads.stream_tables", "ddposink.workloads.stream_notes")
RANDOM_TOKENS = "random-tokens"
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
Part = Literal["quality", "memory", "latency", "energy", "work"]


class StreamParams(BaseModel):
    """One cell of a `stream` suite."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(
        description="smollm2-135m (embedded), bundled:NAME, path:DIR, random:ARCHITECTURE, "
        "or ORG/NAME@REVISION (40 hex digits)"
    )
    policy: str = Field(
        description="cache policy: 'dense', 'window 1024' or 'sink 4+1020'; options "
        "positions=cache|absolute|library, evict=token|chunk:N|turn|after-turn"
    )
    length: int = Field(ge=2, le=100_000_000, description="tokens fed")
    corpus: str = Field(
        default=RANDOM_TOKENS,
        description="novel:NAME, novels, file:PATH, folder:DIR, pg19:test[/BOOK]; "
        "'?separator=…&books=N' may follow",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="weights and cache"
    )
    device: str = Field(
        default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N"
    )
    evaluator: Literal["auto", "exact", "decode", "reference"] = Field(
        default="auto", description="auto takes exact parallel evaluation wherever it is exact"
    )
    chunk: int = Field(default=1024, ge=1, le=65536, description="tokens per forward in parallel evaluation")
    bos: bool = Field(default=False, description="feed the tokenizer's beginning-of-text token first")
    decode_tokens: int = Field(default=32, ge=1, le=4096, description="timed decode steps at each length")
    decode: Literal["auto", "eager", "graph", "compile"] = Field(
        default="auto",
        description="how decode of a bounded policy runs: auto is a CUDA graph where there is CUDA; compile "
        "also fuses its kernels; eager starts each from Python",
    )
    measure: tuple[Part, ...] = Field(
        default=("quality", "memory", "latency", "work"),
        description="quality, memory, latency, energy, work (each in its own repetition)",
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads; default: torch's choice")

    @field_validator("model")
    @classmethod
    def _model(cls, value: str) -> str:
        ModelRef.parse(value)
        return value

    @field_validator("corpus")
    @classmethod
    def _corpus(cls, value: str) -> str:
        if value != RANDOM_TOKENS:
            CorpusRef.parse(value)
        return value

    @field_validator("policy")
    @classmethod
    def _policy(cls, value: str) -> str:
        return parse_policy(value).label

    @model_validator(mode="before")
    @classmethod
    def _random_weights_read_random_tokens(cls, data: Any) -> Any:
        # Random weights have no tokenizer; a suite's default corpus must not split their cells.
        if isinstance(data, dict) and str(data.get("model", "")).startswith("random:"):
            return {**data, "corpus": RANDOM_TOKENS}
        return data

    @model_validator(mode="after")
    def _needs_a_corpus(self) -> StreamParams:
        if self.corpus == RANDOM_TOKENS and not self.model.startswith("random:"):
            raise ValueError("a corpus is required, e.g. corpus: novel:persuasion")
        return self

    @property
    def parsed_policy(self) -> Policy:
        """The policy as an object."""
        return parse_policy(self.policy)


class StreamWorkload:
    """See the module docstring; implements `bench.workload.Workload`."""

    name = "stream"
    Params = StreamParams
    metrics = METRICS
    views = VIEWS
    prefix_axis = "length"
    preload = ("ddposink.workloads.stream_run",)

    def version(self) -> str:
        """Hash of the code that produces the numbers, a subclass's own included."""
        return code_version(__name__, type(self).__module__, shown=SAID, metrics=self.metrics)

    def label(self, params: StreamParams) -> str:
        """``smollm2-135m · sink 4+1020 · 16,384``."""
        return f"{ModelRef.parse(params.model).name} · {params.policy} · {params.length:,}"

    def seeded(self, params: StreamParams) -> bool:
        """Only random tokens are drawn; what is read from a text is the same under every seed."""
        return params.corpus == RANDOM_TOKENS

    def columns(self, params: StreamParams) -> dict[str, Scalar]:
        """Everything a table or an exclusion may ask for; sinks, window and budget are the policy's."""
        policy = params.parsed_policy
        return {
            "model": ModelRef.parse(params.model).name,
            "corpus": params.corpus,
            "policy": policy.label,
            "kind": policy.kind,
            "sinks": policy.sinks if policy.bounded else None,
            "window": policy.window if policy.bounded else None,
            "budget": policy.budget,
            "positions": policy.positions,
            "evict": str(policy.evict),
            "length": params.length,
            "dtype": params.dtype,
            "device": params.device,
            "evaluator": params.evaluator,
            "chunk": params.chunk,
            "decode": params.decode,
            "bos": params.bos,
            "series_end": params.length - 1,
            # Index of the first query that misses a token: NLLs before it are equal under all policies.
            "series_start": policy.evicts_from,
        }

    def identity(self, params: StreamParams) -> dict[str, str]:
        """Revision or sha256 of model and corpus; raises Skip if they cannot be identified."""
        try:
            model = {f"model.{k}": v for k, v in ModelRef.parse(params.model).identity().items()}
            if params.corpus == RANDOM_TOKENS:
                return model
            return model | {f"corpus.{k}": v for k, v in CorpusRef.parse(params.corpus).identity().items()}
        except Unavailable as error:
            raise Skip(str(error)) from error

    def notes(self, params: StreamParams) -> Iterator[str]:
        """What is legal but probably not meant."""
        model = ModelRef.parse(params.model)
        yield from own_window_notes(model, params.parsed_policy)
        yield from bos_notes(model, params.bos)

    def cost(self, params: StreamParams) -> Cost:
        """Tokens fed."""
        return Cost(params.length, "tokens")

    def published(self) -> list[dict[str, Scalar]]:
        """Rows of ``data/published.csv``: model, policy, length, metric, value, source, note."""
        text = (files("ddposink") / "data" / "published.csv").read_text(encoding="utf-8")
        rows: list[dict[str, Scalar]] = []
        for raw in csv.DictReader(text.splitlines()):
            row: dict[str, Scalar] = {k: v for k, v in raw.items() if v}
            row["length"], row["value"] = int(raw["length"]), float(raw["value"])
            rows.append(row)
        return rows

    def run(self, work: Pass, ctx: Context) -> None:
        """Measure every length of one (model, policy, corpus); child process only."""
        from ddposink.workloads.stream_run import run

        run([(cell, StreamParams(**cell.params)) for cell in work.cells], ctx)
