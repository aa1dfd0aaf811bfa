"""What a cell of a `stream` suite may say."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ddposink.caches import Policy, parse_policy
from ddposink.caches.static import Static
from ddposink.corpora import CorpusRef
from ddposink.models.language import ModelRef
from ddposink.workloads.policy_param import HELP, bytes_become_tokens

RANDOM_TOKENS = "random-tokens"
WARM_UP = 4  # decode steps before any timed one
Part = Literal["quality", "divergence", "memory", "latency", "prefill", "energy", "work"]


class StreamParams(BaseModel):
    """One cell of a `stream` suite."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(
        description="smollm2-135m (embedded), bundled:NAME, path:DIR, random:ARCHITECTURE, "
        "or ORG/NAME@REVISION (40 hex digits)"
    )
    policy: str = Field(description=HELP)
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
        description="quality, memory, latency, energy, work (each in its own repetition); divergence: from "
        "dense, which reads the same tokens beside; prefill: the text read once more as a prompt",
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
    def _bytes_become_tokens(cls, data: Any) -> Any:
        return bytes_become_tokens(data)

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

    @model_validator(mode="after")
    def _a_static_cache_has_room(self) -> StreamParams:
        policy, needed = self.parsed_policy, self.length + WARM_UP + self.decode_tokens
        if isinstance(policy, Static) and policy.size < needed:
            raise ValueError(
                f"'{policy}' is too small for {self.length:,} tokens and the "
                f"{WARM_UP + self.decode_tokens} that are decoded after them: write 'static {needed}'"
            )
        return self

    @property
    def parsed_policy(self) -> Policy:
        """The policy as an object."""
        return parse_policy(self.policy)
