"""What a cell of a `stream` suite may say."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ddposink.caches import CacheShape, Policy, in_tokens, parse_policy
from ddposink.caches.static import Static
from ddposink.corpora import CorpusRef
from ddposink.models.language import ModelRef

RANDOM_TOKENS = "random-tokens"
WARM_UP = 4  # decode steps before any timed one
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
Part = Literal["quality", "divergence", "memory", "latency", "prefill", "energy", "work"]


class StreamParams(BaseModel):
    """One cell of a `stream` suite."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(
        description="smollm2-135m (embedded), bundled:NAME, path:DIR, random:ARCHITECTURE, "
        "or ORG/NAME@REVISION (40 hex digits)"
    )
    policy: str = Field(
        description="cache policy: 'dense', 'window 1024', 'sink 4+1020', 'recompute 512', 'quantized 4', "
        "'static 4096', 'offloaded', or one that chooses by content: h2o, tova, snapkv, pyramidkv, knorm, "
        "keydiff, expected-attention, lagkv, random, each with a budget of tokens ('h2o 512'), bytes "
        "('h2o 11MiB') or a share ('h2o 50% evict=once:2048'); options positions=cache|absolute|library, "
        "evict=token|chunk:N|once:N|turn|after-turn, bits=2|4|8|fp8, sinks=N, recent=N and the policy's own"
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
        # A label says what runs, so a budget in bytes is written in the tokens that it buys of this model.
        if not isinstance(data, dict) or not {"model", "policy"} <= data.keys():
            return data
        text = str(data["policy"])
        if not re.search(r"\d[kKMG]?i?B\b", text):
            return data
        config = ModelRef.parse(str(data["model"])).config_dict()
        if config is None:
            raise ValueError(
                f"'{text}': a budget in bytes needs the model's configuration, which is not here; give tokens"
            )
        itemsize = ITEMSIZE.get(str(data.get("dtype", "float32")), 4)
        return {
            **data,
            "policy": in_tokens(text, CacheShape.from_config(config.get("text_config") or config, itemsize)),
        }

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
