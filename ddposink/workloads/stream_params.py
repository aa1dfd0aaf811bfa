"""What a cell of a `stream` suite may say."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from ddposink.caches.dense import Dense
from ddposink.caches.sink import Sink
from ddposink.caches.static import Static
from ddposink.caches.window import Window
from ddposink.workloads.common_params import (
    RANDOM_TOKENS,
    AnyModel,
    Bos,
    Chunk,
    Decode,
    Device,
    Dtype,
    Evaluator,
    OnText,
    Threads,
    UnderPolicy,
)
from ddposink.workloads.policy_param import HELP

WARM_UP = 4  # decode steps before any timed one
Part = Literal["quality", "divergence", "key_tokens", "memory", "latency", "prefill", "energy", "work"]


class StreamParams(UnderPolicy, OnText):
    """One cell of a `stream` suite."""

    model: AnyModel
    policy: str = Field(description=HELP)
    length: int = Field(ge=2, le=100_000_000, description="tokens fed")
    corpus: str = Field(
        default=RANDOM_TOKENS,
        description="novel:NAME, novels, file:PATH, folder:DIR, pg19:test[/BOOK]; "
        "'?separator=…&books=N' may follow",
    )
    dtype: Dtype = "float32"
    device: Device = "auto"
    evaluator: Evaluator = "auto"
    chunk: Chunk = 1024
    bos: Bos = False
    decode_tokens: int = Field(default=32, ge=1, le=4096, description="timed decode steps at each length")
    decode: Decode = "auto"
    batch: int = Field(
        default=1,
        ge=1,
        le=4096,
        description="streams decoded side by side where memory, latency, energy and work are measured, each "
        "with a cache of its own of this length; the text is read, and its NLL measured, once",
    )
    measure: tuple[Part, ...] = Field(
        default=("quality", "memory", "latency", "work"),
        description="quality, memory, latency, energy, work (each in its own repetition); divergence: from "
        "dense, which reads the same tokens beside; key_tokens: LongPPL; prefill: the text read once more "
        "as a prompt",
    )
    key_context: int = Field(
        default=512,
        ge=8,
        le=1_000_000,
        description="tokens of a short context; a key token is much likelier after the whole text",
    )
    threads: Threads = None

    @model_validator(mode="before")
    @classmethod
    def _random_weights_read_random_tokens(cls, data: Any) -> Any:
        # Random weights have no tokenizer; a suite's default corpus must not split their cells.
        if isinstance(data, dict) and str(data.get("model", "")).startswith("random:"):
            return {**data, "corpus": RANDOM_TOKENS}
        return data

    @model_validator(mode="after")
    def _every_part_is_named_once(self) -> StreamParams:
        twice = [part for part in self.measure if self.measure.count(part) > 1]
        if twice or not self.measure:
            raise ValueError(f"measure names {repr(twice[0]) + ' twice' if twice else 'nothing'}")
        return self

    @model_validator(mode="after")
    def _a_static_cache_has_room(self) -> StreamParams:
        policy, needed = self.parsed_policy, self.length + WARM_UP + self.decode_tokens
        if isinstance(policy, Static) and policy.size < needed:
            raise ValueError(
                f"'{policy}' is too small for {self.length:,} tokens and the "
                f"{WARM_UP + self.decode_tokens} that are decoded after them: write 'static {needed}'"
            )
        return self

    @model_validator(mode="after")
    def _a_batch_goes_in_step(self) -> StreamParams:
        policy = self.parsed_policy
        if self.batch == 1:
            return self
        plain = type(policy) in (Dense, Window, Sink) and policy.bits is None
        if not plain or policy.evict.per != "token" or policy.positions == "library":
            raise ValueError(
                f"'{policy}' is read one stream at a time; batch {self.batch} is for dense, and for window "
                f"and sink as they evict after every token"
            )
        if not {"memory", "latency", "energy"} & set(self.measure):
            raise ValueError(f"batch {self.batch} changes nothing that is measured: add memory or latency")
        return self
